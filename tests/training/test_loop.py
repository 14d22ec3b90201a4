"""The training loop: equal results however a batch is split, a stop at bad numbers, a log that says what happened."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.masks import MASKS
from openjepa.methods.targets import TargetSpaces
from openjepa.settings.run import MonitorSettings, SystemSettings
from openjepa.system.interrupts import Interrupted, Interrupts
from openjepa.training.loop import train
from tests.helpers.images import write_folder
from tests.helpers.small_runs import lines, small_config, weights


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 40)


def test_a_run_leaves_what_the_other_stages_read(images: Path, tmp_path: Path) -> None:
    run = train(small_config(images, tmp_path))
    assert run == tmp_path / "run"
    for name in ("config.yaml", "environment.json", "summary.json", "metrics.jsonl"):
        assert (run / name).is_file()
    for name in ("encoder", "encoder_initial", "predictor"):
        assert (run / name / "config.json").is_file() and (run / name / "model.safetensors").is_file()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["step"] == 4 and summary["images_seen"] == 32
    assert summary["processes"] == 1 and summary["train_images"] == 32, "of 40, a fifth is for tests"
    assert summary["mask_mode"].startswith("multiblock/unbiased")
    assert [line["step"] for line in lines(run, "train")] == [1, 2, 3, 4]
    assert [line["step"] for line in lines(run, "monitor")] == [0, 2, 4]
    assert {"feature_std", "cosine", "rankme", "loss_mean_target", "loss_position_mean"} <= set(lines(run, "monitor")[0])


GOLDEN_STEPS: dict[str, list[float]] = {
    "multiblock": [1.0085554, 0.9763367],
    "rasterized": [1.01086, 0.9750504],
    "block": [1.0100945, 0.9753317],
    "random_targets": [1.0100783, 0.9751661],
    "inverse_block": [1.0083696, 0.9754039],
}
"""Losses of the first two steps by mask strategy, on a CPU in fp32."""


@pytest.mark.parametrize("strategy", [name for name, entry in MASKS.items() if entry.settings.kind == "blocks"])
def test_every_strategy_of_blocks_trains_on_odd_rectangles(strategy: str, images: Path, tmp_path: Path) -> None:
    config = small_config(images, tmp_path, total_steps=2, microbatch_size=4)
    config = replace(config, masks=MASKS[strategy].settings(strategy=strategy), monitor=MonitorSettings(every=0))
    run = train(replace(config, data=replace(config.data, image_size=(28, 20))))
    assert run is not None
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["step"] == 2 and summary["mask_mode"].startswith(strategy)
    assert [line["loss"] for line in lines(run, "train")] == pytest.approx(GOLDEN_STEPS[strategy], rel=1e-5)


def test_a_finished_run_is_not_trained_again(images: Path, tmp_path: Path) -> None:
    config = small_config(images, tmp_path)
    run = train(config)
    assert run is not None
    before = weights(run)
    assert train(config) == run
    assert all(torch.equal(before[name], value) for name, value in weights(run).items())
    assert len(lines(run, "train")) == 4


def test_microbatches_give_the_gradient_of_the_whole_batch(images: Path, tmp_path: Path) -> None:
    whole = train(small_config(images, tmp_path / "whole"))
    split = train(small_config(images, tmp_path / "split", microbatch_size=2))
    assert whole is not None and split is not None
    for first, second in zip(lines(whole, "train"), lines(split, "train"), strict=True):
        assert first["loss"] == pytest.approx(second["loss"], abs=1e-5)
        assert first["grad_norm"] == pytest.approx(second["grad_norm"], abs=1e-5)


def test_workers_logging_and_monitoring_change_no_weight(images: Path, tmp_path: Path) -> None:
    config = small_config(images, tmp_path / "a")
    first = train(config)
    system = SystemSettings(workers=2, log_every=3, progress="none", checkpoint_minutes=0.0)
    run = replace(config.run, output=str(tmp_path / "b"))
    second = train(replace(config, run=run, system=system, monitor=MonitorSettings(every=0)))
    assert first is not None and second is not None
    assert all(torch.equal(weights(first)[name], value) for name, value in weights(second).items())


def test_another_seed_gives_other_weights(images: Path, tmp_path: Path) -> None:
    config = small_config(images, tmp_path / "a")
    first = train(config)
    second = train(replace(config, run=replace(config.run, seed=1, output=str(tmp_path / "b"))))
    assert first is not None and second is not None
    assert not torch.equal(weights(first)["norm.weight"], weights(second)["norm.weight"])


def test_a_number_that_is_not_finite_stops_before_the_weights_move(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = SystemSettings(workers=0, progress="none", checkpoint_minutes=0.0)
    config = replace(small_config(images, tmp_path), system=system, monitor=MonitorSettings(every=0))
    healthy = TargetSpaces.distance
    calls = {"count": 0}

    def failing(self: TargetSpaces, *given: Any) -> torch.Tensor:
        calls["count"] += int(self.training and not given[0].is_meta)  # costs are counted on the meta device
        return healthy(self, *given) * (float("nan") if calls["count"] == 3 else 1.0)

    monkeypatch.setattr(TargetSpaces, "distance", failing)
    with pytest.raises(ValueError, match=r"step 2 is not finite.*\.png.*optim\.lr") as error:
        train(config)
    assert "8 samples" in str(error.value)
    monkeypatch.undo()
    resumed = train(config)  # from the checkpoint of step 2, which is intact
    reference = train(small_config(images, tmp_path / "reference"))
    assert resumed is not None and reference is not None
    assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(reference).items())


def test_a_signal_saves_and_the_same_command_continues_bitwise(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(images, tmp_path / "a")
    monkeypatch.setattr(Interrupts, "__init__", lambda self: self.__dict__.update(requested="SIGTERM", _before={}))
    with pytest.raises(Interrupted, match="stopped by SIGTERM after step 1"):
        train(config)
    monkeypatch.undo()
    continued = train(config)
    reference = train(small_config(images, tmp_path / "b"))
    assert continued is not None and reference is not None
    assert all(torch.equal(weights(continued)[name], value) for name, value in weights(reference).items())
    assert [line["step"] for line in lines(continued, "train")] == [1, 2, 3, 4]
    environment = json.loads((continued / "environment.json").read_text())
    (second,) = environment["continued"]
    assert second["from_step"] == 1 and second["started"] >= environment["started"]


def test_a_dry_run_says_what_the_run_needs_and_writes_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(small_config(images, tmp_path / "runs"), dry_run=True) is None
    printed = capsys.readouterr().out
    for word in ("device", "fp32", "weights", "FLOPs", "memory", "4 steps of 8 images", "\ntime       about "):
        assert word in printed
    assert not (tmp_path / "runs").exists()


def test_a_batch_larger_than_the_data_is_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"optim\.batch_size=64"):
        train(small_config(images, tmp_path, batch_size=64))


def test_unlabeled_images_train_without_the_online_knn(tmp_path: Path) -> None:
    flat = write_folder(tmp_path / "flat", 20, classes=False)
    config = small_config(flat, tmp_path)
    run = train(replace(config, monitor=MonitorSettings(every=2, images=16, knn=True)))
    assert run is not None and "knn" not in lines(run, "monitor")[0]


def test_a_kill_between_checkpoint_and_export_leaves_no_older_encoder(images: Path, tmp_path: Path) -> None:
    config = small_config(images, tmp_path)
    run = train(config)
    assert run is not None
    expected = (run / "encoder" / "model.safetensors").read_bytes()
    summary = json.loads((run / "summary.json").read_text())
    shutil.rmtree(run / "encoder")
    assert train(config) == run
    assert (run / "encoder" / "model.safetensors").read_bytes() == expected
    assert json.loads((run / "summary.json").read_text())["monitor"] == summary["monitor"]
