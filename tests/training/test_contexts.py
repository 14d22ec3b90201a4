"""Several contexts per image in a whole run: division of the batch, workers and a stop change nothing; what is told of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.settings.run import RunConfig
from openjepa.training.loop import train
from tests.helpers.continued import stop_after_a_step
from tests.helpers.images import write_folder
from tests.helpers.small_runs import lines, small_config, weights

GOLDEN_STEPS = [1.0134528, 0.9768106]
"""Losses of the first two steps of a run with three contexts per image, on a CPU in fp32."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 40)


def config_in(folder: Path, images: Path, contexts: int = 3, **optim: object) -> RunConfig:
    """With drop path, whose draws must be those of each context."""
    config = small_config(images, folder, **optim)
    model = replace(config.model, drop_path=0.3)
    return replace(config, model=model, method=replace(config.method, contexts=contexts))  # type: ignore[call-arg]


@pytest.fixture(scope="module")
def left_alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = train(config_in(tmp_path_factory.mktemp("alone"), images))
    assert run is not None
    return run


def test_microbatches_have_the_losses_of_the_whole_batch(images: Path, left_alone: Path, tmp_path: Path) -> None:
    run = train(config_in(tmp_path, images, microbatch_size=2))
    assert run is not None
    for kind in ("train", "monitor"):
        pairs = zip(lines(run, kind), lines(left_alone, kind), strict=True)
        assert all(first["loss"] == pytest.approx(second["loss"], abs=1e-5) for first, second in pairs)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stop_and_workers_change_no_weight(optimizer: str, images: Path, left_alone: Path, tmp_path: Path) -> None:
    whole, config = left_alone, config_in(tmp_path / "stopped", images, optimizer=optimizer)
    if optimizer == "muon":
        found = train(config_in(tmp_path, images, optimizer=optimizer))
        assert found is not None
        whole = found
    stop_after_a_step(config)
    run = train(replace(config, system=replace(config.system, workers=1)))
    assert run is not None
    assert all(torch.equal(weights(whole)[name], value) for name, value in weights(run).items())
    assert (optimizer == "muon") is any(
        not torch.equal(weights(left_alone)[name], value) for name, value in weights(run).items()
    )


def test_contexts_are_told_and_looks_stay_comparable(
    images: Path, left_alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [row["loss"] for row in lines(left_alone, "train")[:2]] == pytest.approx(GOLDEN_STEPS, rel=1e-5)
    line = lines(left_alone, "train")[-1]
    assert line["images"] == 32 and line["contexts_per_second"] == pytest.approx(3 * line["images_per_second"], rel=0.01)
    train(config_in(tmp_path, images), dry_run=True)
    printed = capsys.readouterr().out
    assert "4 steps of 8 images x 3 contexts (32 in all)" in printed and "for each of 3 contexts)" in printed
    one = train(config_in(tmp_path, images, contexts=1))
    assert one is not None and "contexts_per_second" not in lines(one, "train")[-1]
    first, second = lines(left_alone, "monitor")[0], lines(one, "monitor")[0]
    assert first == second, "before the first step, one look is like the other"
