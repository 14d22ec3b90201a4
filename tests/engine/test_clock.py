"""The seconds of a run's steps beside those in all, and the time that is left, as it will be."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.engine import clock
from openjepa.engine.checkpoint_files import write_manifest
from openjepa.engine.clock import LoopClock
from openjepa.experiments.ablations.ablation_tables import RunResult, tables
from openjepa.records import seconds_of_steps
from openjepa.report.facts import facts, step_seconds, total_seconds
from openjepa.report.reading import read_run
from openjepa.report.scaling import training
from openjepa.system.interrupts import Interrupted, Interrupts
from openjepa.training import loop
from openjepa.training.loop import train
from openjepa.training.monitor import Monitor
from tests.helpers.images import write_folder
from tests.helpers.small_runs import lines, small_config

CPU = torch.device("cpu")


class Moments:
    """A clock that is put forward."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> Moments:
    moments = Moments()
    monkeypatch.setattr(clock, "time", moments)
    return moments


def steps(timer: LoopClock, moments: Moments, first: int, seconds: list[float]) -> None:
    for number, taken in enumerate(seconds, first + 1):
        moments.now += taken
        timer.step_done(number)


def test_steps_and_all_seconds_are_two_numbers(moments: Moments) -> None:
    timer = LoopClock(CPU, 100, first_step=40, seconds_before=50.0, step_seconds_before=30.0)
    timer.aside("look", moments.pass_by, 7)
    steps(timer, moments, 40, [1.0, 2.0])
    assert (timer.step_seconds(), timer.seconds()) == (33.0, 60.0), "those of the session before are added to both"
    timer.aside("save", moments.pass_by, 5)
    assert (timer.step_seconds(), timer.seconds()) == (33.0, 65.0)


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_what_a_gpu_has_still_to_do_belongs_to_the_steps(kind: str, moments: Moments, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(*_: object) -> None:
        moments.now += pending.pop() if pending else 0

    pending: list[float] = []
    monkeypatch.setattr(getattr(torch, kind), "synchronize", finish)
    timer = LoopClock(torch.device(kind), 10)
    pending.append(9.0)  # steps that were only handed over

    def look() -> None:
        moments.now += 1
        pending.append(2.0)

    timer.aside("look", look)
    assert (timer.step_seconds(), timer.seconds()) == (9.0, 12.0)


def test_the_first_steps_and_the_first_look_do_not_count(moments: Moments) -> None:
    """A compilation, workers that start: the old display said 50 times as much."""
    timer = LoopClock(CPU, 1000)
    timer.aside("look", moments.pass_by, 30)
    steps(timer, moments, 0, [60.0, 5.0, 1.0])
    assert timer.seconds_left(3) is None
    steps(timer, moments, 3, [0.5] * 4)
    assert timer.seconds_left(7) is None, "too few"
    steps(timer, moments, 7, [0.5])
    assert timer.seconds_left(8) == pytest.approx(992 * 0.5)
    assert timer.seconds_left(8, looks=4) == pytest.approx(992 * 0.5 + 4 * 30)


def test_short_steps_are_timed_for_long_enough(moments: Moments) -> None:
    timer = LoopClock(CPU, 1000)
    steps(timer, moments, 0, [0.01] * 100)
    assert timer.seconds_left(100) is None, "one second"
    steps(timer, moments, 100, [0.01] * 200)
    assert timer.seconds_left(300) == pytest.approx(7.0)


def test_steps_on_prepared_data_do_not_count(moments: Moments) -> None:
    """Workers have 8 batches ready when the first look ends; decoding takes three times as long as a step."""
    timer = LoopClock(CPU, 1000, prepared_steps=8)
    steps(timer, moments, 0, [1.0] * 12)
    assert timer.seconds_left(12) is None
    steps(timer, moments, 12, [3.0] * 20)
    assert timer.seconds_left(32) == pytest.approx(968 * 3.0)


def test_nobody_waits_more_than_a_minute_for_prepared_data_to_be_used_up(moments: Moments) -> None:
    timer = LoopClock(CPU, 1000, prepared_steps=32)
    steps(timer, moments, 0, [20.0] * 9)
    assert timer.seconds_left(9) == pytest.approx(991 * 20.0)


def test_saves_and_looks_are_left_too(moments: Moments) -> None:
    timer = LoopClock(CPU, 10_000, save_minutes=10)
    timer.aside("look", moments.pass_by, 20)  # with what only the first look has to do
    steps(timer, moments, 0, [1.0] * 1000)
    timer.aside("save", moments.pass_by, 5)
    timer.aside("look", moments.pass_by, 12)
    assert timer.seconds_left(1000, looks=9) == pytest.approx(9000 + 9 * 12 + (1 + 9000 / 600) * 5)


def test_a_continued_run_knows_of_looks_from_before(moments: Moments) -> None:
    timer = LoopClock(CPU, 4000, first_step=1000, seconds_before=1300.0, step_seconds_before=1000.0, looks_before=10)
    timer.aside("start", moments.pass_by, 3)
    steps(timer, moments, 1000, [40.0, *[2.0] * 9])
    assert timer.seconds_left(1010, looks=7) == pytest.approx(2990 * 2.0 + 7 * 30), "this machine's steps, looks as before"
    timer.aside("look", moments.pass_by, 50)
    assert timer.seconds_left(1010, looks=7) == pytest.approx(2990 * 2.0 + 7 * 50)


def test_a_steadier_pace_refines_what_is_left(moments: Moments) -> None:
    timer = LoopClock(CPU, 100)
    steps(timer, moments, 0, [1.0] * 8)
    assert timer.seconds_left(8) == 92.0
    steps(timer, moments, 8, [2.0] * 5)
    assert timer.seconds_left(13) == pytest.approx(87 * 1.5)


def shown(timer: LoopClock, moments: Moments, first: int, seconds: list[float], every: int = 1) -> float | None:
    """What is left after these steps; it is asked for after every few of them, as the display does."""
    left = None
    for number, taken in enumerate(seconds, first):
        steps(timer, moments, number, [taken])
        if (number + 1) % every == 0:
            left = timer.seconds_left(number + 1)
    return left


@pytest.mark.parametrize(("before", "after", "every"), [(1.0, 3.0, 1), (3.0, 1.0, 10), (0.01, 0.05, 50), (0.5, 30.0, 2)])
def test_a_pace_that_changes_shows_after_minutes(before: float, after: float, every: int, moments: Moments) -> None:
    timer = LoopClock(CPU, 1_000_000)
    first = round(3600 / before) // every * every
    assert shown(timer, moments, 0, [before] * first, every) == pytest.approx((1_000_000 - first) * before)
    more = round(max(150, 10 * after) / after) // every * every
    left = shown(timer, moments, first, [after] * more, every)
    assert left == pytest.approx((1_000_000 - first - more) * after, rel=0.01)
    assert len(timer._timed) <= clock.MOST_MARKS


def test_single_slow_steps_do_not_count_for_more_than_they_are(moments: Moments) -> None:
    timer = LoopClock(CPU, 10_000)
    left = shown(timer, moments, 0, [1.0, 1.0, 1.0, 4.0] * 100)
    assert left == pytest.approx(9600 * 1.75, rel=0.05)


# ------------------------------------------------------------------------------------------------------------ a whole run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", 40)


def slowed(work: Callable[..., object], seconds: float) -> Callable[..., object]:
    def run(*arguments: object, **named: object) -> object:
        time.sleep(seconds)
        return work(*arguments, **named)

    return run


def summary(run: Path) -> dict[str, float]:
    return dict(json.loads((run / "summary.json").read_text()))


@pytest.fixture
def slow_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 0.1 seconds more; looks and saves of 0.2 seconds more: after steps 0, 2 and 4, and at the end."""
    monkeypatch.setattr(loop, "_take", slowed(loop._take, 0.1))  # the log rounds to hundredths
    monkeypatch.setattr(Monitor, "look", slowed(Monitor.look, 0.2))
    monkeypatch.setattr(loop.CheckpointWriter, "save", slowed(loop.CheckpointWriter.save, 0.2))


def interrupt(config: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stops after the first step."""
    with monkeypatch.context() as patch:
        patch.setattr(Interrupts, "__init__", lambda self: self.__dict__.update(requested="SIGTERM", _before={}))
        with pytest.raises(Interrupted):
            train(config)  # type: ignore[arg-type]


@pytest.mark.usefixtures("slow_looks")
def test_a_run_writes_seconds_of_steps_and_in_all(images: Path, tmp_path: Path) -> None:
    run = train(small_config(images, tmp_path))
    assert run is not None
    logged, found = lines(run, "train"), summary(run)
    assert found["step_seconds"] >= logged[-1]["step_seconds"] > 0
    assert found["seconds"] >= found["step_seconds"] + 0.8, "three looks and a save"
    assert [line["step_seconds"] for line in logged] == sorted(line["step_seconds"] for line in logged)
    speeds = [(line["images"], line["images_per_second"]) for line in logged]
    assert seconds_of_steps(speeds) == pytest.approx(logged[-1]["step_seconds"], rel=0.05)
    assert train(small_config(images, tmp_path)) == run
    assert summary(run) == found | {"peak_memory_bytes": summary(run)["peak_memory_bytes"]}, "a finished run stays as it is"


@pytest.mark.usefixtures("slow_looks")
def test_a_continued_run_adds_up_both(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(images, tmp_path)
    interrupt(config, monkeypatch)
    before = summary(tmp_path / "run")
    assert 0 < before["step_seconds"] <= before["seconds"] - 0.4
    run = train(config)
    assert run is not None
    after, logged = summary(run), lines(run, "train")
    assert after["step_seconds"] > before["step_seconds"] and after["seconds"] >= after["step_seconds"] + 0.8
    added = sum(8 / line["images_per_second"] for line in logged[1:])
    assert logged[-1]["step_seconds"] == pytest.approx(before["step_seconds"] + added, rel=0.05)


def test_a_checkpoint_that_lacks_the_seconds_of_steps_gets_them_from_the_log(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(images, tmp_path)
    interrupt(config, monkeypatch)
    (saved,) = (tmp_path / "run" / "checkpoints").iterdir()
    state = json.loads((saved / "trainer.json").read_text())
    del state["step_seconds"]
    (saved / "trainer.json").write_text(json.dumps(state | {"seconds": 100.0}))
    write_manifest(saved, {})
    log = tmp_path / "run" / "metrics.jsonl"
    log.write_text(json.dumps({"kind": "train", "step": 1, "images": 8, "images_per_second": 0.1}) + "\n")
    run = train(replace(config, monitor=replace(config.monitor, every=0)))
    assert run is not None
    found = summary(run)
    assert 80 < found["step_seconds"] < 95 and 100 < found["seconds"] < 115


# ------------------------------------------------------------------------------------------------------------- who reads it


def test_seconds_of_steps_are_images_by_their_speed() -> None:
    assert seconds_of_steps([(100.0, 10.0), (300.0, 20.0), (310.0, 0.0)]) == 20.0
    assert seconds_of_steps([]) == 0.0


@pytest.mark.parametrize("version", ["new", "new, running", "old", "old, without a log"])
def test_the_report_names_both(version: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("recipe: mine\n")
    lacks = {"new": (), "new, running": ("seconds", "step_seconds")}.get(version, ("step_seconds",))
    content = {"step": 20, "images_seen": 200, "seconds": 312.0, "step_seconds": 276.0}
    (tmp_path / "summary.json").write_text(json.dumps({name: value for name, value in content.items() if name not in lacks}))
    line = {"kind": "train", "step": 20, "images": 200, "images_per_second": 200 / 276, "loss": 1.0}
    line |= {"seconds": 312.0, "step_seconds": 276.0} if version.startswith("new") else {"seconds": 312.0}
    (tmp_path / "metrics.jsonl").write_text("" if "without" in version else json.dumps(line) + "\n")
    run = read_run(tmp_path)
    assert total_seconds(run) == 312.0
    known = "without" not in version
    assert step_seconds(run) == (pytest.approx(276.0) if known else None)
    (row,) = [fact.values[0] for fact in facts([run]) if fact.label == "Time"]
    assert row.startswith("5 min of steps, 5 min with looks and saving" if known else "5 min with looks and saving")
    assert training(run).values["hours"] == pytest.approx((276.0 if known else 312.0) / 3600)


def test_the_table_at_equal_time_names_both() -> None:
    result = RunResult(name="a", row="a", seed=0, budgets=("seconds",), status="finished", seconds=276.0, total_seconds=312.0)
    (line,) = tables([result], ["a"])["seconds"]
    assert line.means == {"step s": 276.0, "total s": 312.0}
    (older,) = tables([replace(result, total_seconds=0.0)], ["a"])["seconds"]
    assert older.means == {"step s": 276.0}
