"""Killed with SIGKILL at any point and continued, the weights are bitwise those of the run that was left alone."""

import os
import platform
import signal
import socket
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from openjepa.engine.run_states import list_runs
from openjepa.settings.run import RunConfig, SystemSettings
from openjepa.system.interrupts import Interrupted, Interrupts
from openjepa.system.shared_files import UNFINISHED, machine_place, own_name
from openjepa.training.loop import train
from tests.helpers.images import write_folder
from tests.helpers.processes import in_clean_process
from tests.helpers.small_runs import small_config
from tests.helpers.waiting import wait_for

SYSTEM = SystemSettings(workers=0, log_every=1, progress="none", threads=1)
NETWORKS = ("encoder", "predictor", "encoder_initial")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 44)


def config_in(folder: Path, images: Path, **system: object) -> RunConfig:
    """Eleven steps, of which an epoch has four, that leave a checkpoint each if `checkpoint_minutes` is 0."""
    config = small_config(images, folder, total_steps=11)
    return replace(config, system=replace(SYSTEM, **system), monitor=replace(config.monitor, every=5))  # type: ignore[arg-type]


def exported(run: Path | None) -> list[bytes]:
    assert run is not None
    return [(run / network / "model.safetensors").read_bytes() for network in NETWORKS]


@pytest.fixture(scope="module")
def left_alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The networks of a run that nothing interrupts, which leaves one checkpoint."""
    return exported(train(config_in(tmp_path_factory.mktemp("alone"), images)))


def wait_for_step(run: Path, step: int, process: BaseProcess) -> None:
    metrics = run / "metrics.jsonl"

    def is_reached() -> bool:
        assert process.is_alive(), f"ended with {process.exitcode} before step {step}"
        return metrics.exists() and f'"step": {step},' in metrics.read_text()

    wait_for(is_reached, 120)


@pytest.mark.parametrize(("workers", "kills"), [(0, (3, 7)), (2, (6,))])
def test_killed_and_continued_equals_left_alone(
    workers: int, kills: tuple[int, ...], images: Path, left_alone: list[bytes], tmp_path: Path
) -> None:
    config = config_in(tmp_path, images, workers=workers, checkpoint_minutes=0.0)
    for step in kills:  # in the middle of the first epoch and of the second
        process = in_clean_process(train, config, log=tmp_path / "log")
        wait_for_step(tmp_path / "run", step, process)
        assert process.pid is not None
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert exported(train(config)) == left_alone


def stopped_after_a_step(config: RunConfig) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interrupts, "__init__", lambda self: self.__dict__.update(requested="SIGTERM", _before={}))
        with pytest.raises(Interrupted):
            train(config)


def test_a_clock_that_is_set_back_changes_nothing(
    images: Path, left_alone: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_in(tmp_path, images)
    stopped_after_a_step(config)
    seconds, year = iter(range(10**9, 0, -60)), 365 * 86_400
    for path in [*images.rglob("*"), *(tmp_path / "run").rglob("*")]:  # the clock was a year ahead until now
        os.utime(path, (time.time() + year, time.time() + year))
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))  # and goes back by a minute whenever somebody looks
    stopped_after_a_step(config)
    assert exported(train(config)) == left_alone
    (state,) = list_runs(tmp_path / "run")
    assert (state.state, state.step, state.damaged) == ("finished", 11, ())


def test_a_host_that_is_renamed_continues_its_run_and_clears_up(
    images: Path, left_alone: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_in(tmp_path, images)
    places = set()
    for name in ("old", "new"):
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        monkeypatch.setattr(platform, "node", lambda name=name: name)
        machine_place.cache_clear()
        places.add(machine_place())
        stopped_after_a_step(config)
        if name == "old":  # what a kill in the middle of an export leaves
            leftover = own_name(tmp_path / "run" / "encoder", UNFINISHED)
            leftover.mkdir()
    assert len(places) == 2 and not leftover.exists()
    assert exported(train(config)) == left_alone
    machine_place.cache_clear()


def test_a_damaged_latest_checkpoint_costs_steps_but_not_exactness(
    images: Path, left_alone: list[bytes], tmp_path: Path
) -> None:
    config = config_in(tmp_path, images, checkpoint_minutes=0.0)
    run = train(config)
    assert run is not None
    latest = sorted((run / "checkpoints").iterdir())[-1]
    (latest / "trainer.json").write_text("{}")
    assert train(config) == run
    assert exported(run) == left_alone
