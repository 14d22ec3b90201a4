"""Runs of one, two and four processes are the same run: losses, looks, logs and exports, whatever happens in between."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.settings.run import RunConfig
from openjepa.training.loop import train
from tests.helpers.images import write_folder
from tests.helpers.ranks import on_ranks
from tests.helpers.small_runs import lines, method_config, weights

METHODS = ("ijepa", "mae", "data2vec", "dino", "ibot", "msn")
SIX_METHODS_SECONDS = 400
LOSS = 1e-5
"""Largest difference of losses in fp32, which differ because sums are taken in another order."""


def train_all(configs: Sequence[RunConfig]) -> None:
    for config in configs:
        train(config)


def runs(images: Path, output: Path, steps: int, strategy: str, methods: Sequence[str] = METHODS) -> list[RunConfig]:
    """A run of each method with drop path, so that its draws are compared, too."""
    found = []
    for name in methods:
        config = method_config(name, images, output, total_steps=steps)
        model = replace(config.model, drop_path=0.2)
        run, parallel = replace(config.run, name=name), replace(config.parallel, strategy=strategy)
        found.append(replace(config, model=model, run=run, parallel=parallel))
    return found


def differences(one: Path, other: Path, kind: str, key: str) -> float:
    """Largest difference of a value in the logs of two runs."""
    pairs = zip(lines(one, kind), lines(other, kind), strict=True)
    return max(abs(first[key] - second[key]) for first, second in pairs)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Images, and the runs of one process on them."""
    folder = tmp_path_factory.mktemp("alone")
    images = write_folder(folder / "images", 40)
    train_all(runs(images, folder, 6, "auto"))
    return images, folder


@pytest.mark.timeout(1000)
@pytest.mark.parametrize(("processes", "strategy"), [(2, "ddp"), (2, "fsdp2"), (4, "ddp")])
def test_several_processes_train_like_one(alone: tuple[Path, Path], tmp_path: Path, processes: int, strategy: str) -> None:
    images, folder = alone
    on_ranks(processes, tmp_path / "output", train_all, runs(images, tmp_path, 6, strategy), seconds=SIX_METHODS_SECONDS)
    for name in METHODS:
        found = {kind: differences(folder / name, tmp_path / name, kind, "loss") for kind in ("train", "monitor")}
        assert max(found.values()) < LOSS, (name, found)
        assert differences(folder / name, tmp_path / name, "monitor", "rankme") < 1e-2, name
        one, several = weights(folder / name), weights(tmp_path / name)
        assert one.keys() == several.keys()
        assert all(torch.allclose(one[key], several[key], atol=2e-3) for key in one), name
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert (summary["status"], summary["processes"]) == ("finished", processes)
    assert f"processes  {processes}, " in (tmp_path / "output" / "rank0.txt").read_text()
    assert (tmp_path / "output" / "rank1.txt").read_text() == ""


# ---------------------------------------------------------------------------------------------------- fifty steps


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", METHODS)
def test_fifty_steps_of_several_processes_have_the_losses_of_one(name: str, tmp_path: Path) -> None:
    """Prints a row of docs/results/scale/same-losses.txt: the largest difference of losses from those of one process."""
    images = write_folder(tmp_path / "images", 40)
    (alone,) = runs(images, tmp_path / "alone", 50, "auto", [name])
    train_all([alone])
    found = {}
    for processes, strategy in ((2, "ddp"), (4, "ddp"), (2, "fsdp2"), (4, "fsdp2")):
        folder = tmp_path / f"{strategy}{processes}"
        on_ranks(processes, folder / "output", train_all, runs(images, folder, 50, strategy, [name]))
        found[f"{strategy} {processes}"] = differences(tmp_path / "alone" / name, folder / name, "train", "loss")
    losses = [line["loss"] for line in lines(tmp_path / "alone" / name, "train")]
    row = "  ".join(f"{value:10.1e}" for value in found.values())
    print(f"{name:10}{losses[0]:9.4f}{losses[-1]:9.4f}  {row}")
    assert max(found.values()) < LOSS
