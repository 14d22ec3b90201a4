"""A dry run says how long the steps of a run take, from real ones that are thrown away."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.settings.run import RunConfig
from openjepa.training import timed_steps
from openjepa.training.loop import train
from openjepa.training.timed_steps import TimedStep, time_line
from tests.helpers.images import write_folder
from tests.helpers.small_runs import small_config

CPU = torch.device("cpu")
FLOPS = 1e6


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return small_config(write_folder(tmp_path / "images", 40), tmp_path / "runs")


@pytest.fixture
def half_seconds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Steps take half a second each, whatever is in them; images of each step."""
    taken: list[int] = []
    run = TimedStep.run

    def measure(work: Callable[[], object], device: torch.device) -> float:
        before = len(taken)
        work()
        return 0.5 * (len(taken) - before)

    def counted(self: TimedStep) -> object:
        taken.append(len(self.batch.sample_ids))
        return run(self)

    monkeypatch.setattr(timed_steps, "measure", measure)
    monkeypatch.setattr(TimedStep, "run", counted)
    return taken


def test_the_time_is_that_of_all_steps(config: RunConfig, half_seconds: list[int]) -> None:
    line = time_line(config, FLOPS, CPU, total_steps=1000)
    assert line.startswith("time       about 8m20s of steps at 16 images/s (timed: 4 steps of 8 images)")
    assert half_seconds == [8] * 6, "two to warm up"


def test_microbatches_add_up(config: RunConfig, half_seconds: list[int]) -> None:
    config = replace(config, optim=replace(config.optim, microbatch_size=2))
    line = time_line(config, FLOPS, CPU, total_steps=1000)
    assert "about 33m20s of steps at 4 images/s (timed: 4 steps of 2 images)" in line


def test_large_batches_are_timed_in_part_on_a_cpu(
    config: RunConfig, half_seconds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timed_steps, "CPU_FLOPS", 3.5 * FLOPS)
    assert "about 22m13s of steps at 6 images/s (timed: 4 steps of 3 images)" in time_line(config, FLOPS, CPU, 1000)
    assert set(half_seconds) == {3}


@pytest.mark.parametrize(("name", "value"), [("MOST_CPU_FLOPS", 0), ("distributed.world_size", lambda: 2)])
def test_what_cannot_be_timed_says_what_times_it(
    name: str, value: object, config: RunConfig, half_seconds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"openjepa.training.timed_steps.{name}", value)
    line = time_line(replace(config, recipe="gpu-224"), FLOPS, CPU, total_steps=1000)
    assert "not measured" in line and "openjepa bench step gpu-224" in line and not half_seconds


def test_a_dry_run_is_right_about_the_run(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config, dry_run=True) is None
    (line,) = re.findall(r"^time .*", capsys.readouterr().out, re.MULTILINE)
    assert re.fullmatch(r"time       about \d+s of steps at [\d,]+ images/s \(timed: \d+ steps of 8 images\); .*", line)
    assert not Path(config.run.output).exists()


def test_a_sample_of_targets_may_be_larger_than_the_usual_block(config: RunConfig) -> None:
    """The blocks of some steps are larger than those of the step that is timed."""
    masks = replace(config.masks, target_scale=(0.05, 0.4), target_aspect=(1.0, 1.0))
    usual = TimedStep(replace(config, masks=masks)).shape.target
    step = TimedStep(replace(config, masks=masks, method=replace(config.method, sampled_targets=usual)))
    assert step.shape.target == usual and step.run().isfinite()
