"""A run that ends in its first save can be continued, and nothing that was counted before an end is lost."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from openjepa.engine.checkpoint import CheckpointWriter
from openjepa.methods.ijepa import IJepa
from openjepa.refusals import Refusal
from openjepa.settings.run import RunConfig
from openjepa.training.loop import train
from tests.helpers.images import write_folder
from tests.helpers.processes import in_clean_process
from tests.helpers.ranks import SECONDS, on_ranks
from tests.helpers.small_runs import lines, small_config


def end_in_the_first_write(config: RunConfig) -> None:
    """Trains in a process that dies when the tensors of its first checkpoint are to be written, after it has slept a while."""

    def die(*_: object) -> None:
        import time

        time.sleep(1.0)  # an export that does not wait would be written meanwhile
        os._exit(9)

    CheckpointWriter._write = die  # type: ignore[method-assign,assignment]  # only in this process
    train(config)


def test_a_kill_in_the_first_save_leaves_no_export_that_could_not_be_continued(tmp_path: Path) -> None:
    config = small_config(write_folder(tmp_path / "images", 40), tmp_path, total_steps=6)
    config = replace(config, system=replace(config.system, checkpoint_minutes=0.0))
    process = in_clean_process(end_in_the_first_write, config, log=tmp_path / "log")
    process.join(SECONDS)
    assert process.exitcode == 9, (tmp_path / "log").read_text()
    assert not (tmp_path / "run" / "encoder").exists()
    train(config)
    assert lines(tmp_path / "run", "train")[-1]["step"] == 6


def test_skipped_images_are_written_down_if_a_run_ends_between_two_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_folder(tmp_path / "images", 40)
    (images / "disk" / "0001.png").write_bytes(b"no image")
    config = small_config(images, tmp_path, total_steps=20)
    config = replace(config, system=replace(config.system, log_every=20), data=replace(config.data, max_skipped=1.0))
    whole, calls = IJepa.forward, []

    def forward(*arguments: object) -> object:
        calls.append(1)
        if len(calls) > 8:  # two epochs of the 32 training images
            raise Refusal("stopped")
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(IJepa, "forward", forward)
    monkeypatch.setattr(IJepa, "__call__", forward, raising=False)
    with pytest.raises(Refusal, match="stopped"):
        train(config)
    assert not lines(tmp_path / "run", "train")
    rows = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["disk/0001.png"]


def train_with(config: RunConfig, rates: list[float]) -> str:
    """The refusal of a run whose processes have different rates."""
    own = replace(config, optim=replace(config.optim, lr=rates[int(os.environ["RANK"])]))
    with pytest.raises(Refusal) as refused:
        train(own)
    return str(refused.value)


def test_processes_with_different_settings_or_images_are_refused(tmp_path: Path) -> None:
    config = small_config(write_folder(tmp_path / "images", 40), tmp_path)
    words = on_ranks(2, tmp_path / "output", train_with, config, [1e-3, 2e-3], joined=False)
    assert all("different optim.lr: 0.001 in process 0; 0.002 in process 1. Start the same command" in said for said in words)
    assert not (tmp_path / "run").exists()
