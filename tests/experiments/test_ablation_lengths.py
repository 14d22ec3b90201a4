"""Speeds of the rows of an ablation are measured in turns, on real batches."""

import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.engine.device import synchronize
from openjepa.experiments.ablations import ablation_lengths
from openjepa.experiments.ablations.ablation_lengths import measure_speeds
from openjepa.recipes import load_recipe
from openjepa.recipes.matched import with_method
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import FolderSettings
from openjepa.training import timed_steps
from tests.helpers.images import write_folder


@pytest.fixture(params=["cuda", "mps", "xpu"])
def waited(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.device, list[float]]:
    """A kind of device that answers before its work is done, and when it was waited for."""
    moments: list[float] = []
    monkeypatch.setattr(getattr(torch, request.param), "synchronize", lambda *_: moments.append(time.perf_counter()))
    return torch.device(request.param), moments


def test_every_timing_waits_for_the_device(waited: tuple[torch.device, list[float]]) -> None:
    device, moments = waited
    before = timed_steps.now(device)
    assert len(moments) == 1 and moments[0] <= before
    assert timed_steps.measure(lambda: time.sleep(0.01), device) >= 0.01
    assert len(moments) == 3 and moments[2] - moments[1] >= 0.01, "at both ends"
    timer = timed_steps.PartTimer(device)
    timer.lap("part")
    assert len(moments) == 5


def test_nothing_waits_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("cuda", "mps", "xpu"):
        monkeypatch.setattr(getattr(torch, kind), "synchronize", pytest.fail)
    synchronize(torch.device("cpu"))


class _Series:
    """Instead of a row: turns of known speed."""

    def __init__(self, speeds: RunConfig) -> None:
        self._speeds = iter(speeds)  # type: ignore[call-overload]
        self.flops = 7.0

    def images_per_second(self) -> float:
        return float(next(self._speeds))

    def close(self) -> None:
        assert next(self._speeds, None) is None


def test_what_slows_a_whole_round_changes_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation_lengths, "RealSteps", _Series)
    # the machine is twice as slow in the second and third round of five
    found = measure_speeds({"first": [100, 50, 50, 100, 102], "other": [300, 150, 150, 300, 306]}, 5)  # type: ignore[dict-item]
    assert found["first"].images_per_second == 100 and found["other"].images_per_second == 300
    assert found["other"].flops == 7.0


def test_real_steps_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timed_steps, "TURN_SECONDS", 0.01)
    config = load_recipe("cpu-32")
    assert isinstance(config.method, IJepaSettings)
    config = replace(
        config,
        data=FolderSettings(path=str(write_folder(tmp_path, 24, 16)), image_size=16, cache="device"),
        model=replace(config.model, size="test"),
        method=replace(config.method, predictor_width=24, predictor_depth=1),
        optim=replace(config.optim, batch_size=16, microbatch_size=4),
        run=replace(config.run, device="cpu", precision="fp32"),
    )
    rows = {name: with_method(config, name) for name in ("ijepa", "dino")}
    found = measure_speeds(rows, rounds=3)
    assert found["dino"].flops > 2 * found["ijepa"].flops
    assert 0 < found["dino"].images_per_second < found["ijepa"].images_per_second, "ten views of an image against one"
