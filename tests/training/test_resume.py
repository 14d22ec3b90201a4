"""Killed with SIGKILL at any point and continued, the weights are bitwise those of the run that was left alone."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from openjepa.config import save_yaml
from openjepa.settings.run import RunConfig, SystemSettings
from openjepa.training.loop import train
from tests.helpers.images import write_folder
from tests.helpers.small_runs import small_config

PROGRAM = """
import sys
from openjepa.config import load_run_config
from openjepa.training.loop import train
train(load_run_config(sys.argv[1]))
"""


def start(config: RunConfig, file: Path) -> subprocess.Popen[bytes]:
    save_yaml(config, file)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, str(file)], env=environment, stdout=subprocess.DEVNULL)


def wait_for_step(run: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    metrics = run / "metrics.jsonl"
    for _ in range(6000):
        if metrics.exists() and f'"step": {step},' in metrics.read_text():
            return
        assert process.poll() is None, f"ended with {process.returncode} before step {step}"
        time.sleep(0.01)
    raise AssertionError(f"step {step} was not reached in a minute")


@pytest.mark.parametrize(("workers", "kills"), [(0, (3, 8)), (2, (6,))])
def test_killed_and_continued_equals_left_alone(tmp_path: Path, workers: int, kills: tuple[int, ...]) -> None:
    images = write_folder(tmp_path / "images", 44)
    system = SystemSettings(workers=workers, log_every=1, progress="none", checkpoint_minutes=0.0, threads=1)
    config = replace(small_config(images, tmp_path / "killed", total_steps=14), system=system)
    for step in kills:  # an epoch has 5 steps: in the middle of the first and of the second
        process = start(config, tmp_path / "config.yaml")
        wait_for_step(tmp_path / "killed" / "run", step, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    continued = train(config)

    alone = train(replace(config, run=replace(config.run, output=str(tmp_path / "alone")), system=replace(system, workers=0)))
    assert continued is not None and alone is not None
    for network in ("encoder", "predictor", "encoder_initial"):
        name = f"{network}/model.safetensors"
        assert (continued / name).read_bytes() == (alone / name).read_bytes()


def test_a_damaged_latest_checkpoint_costs_steps_but_not_exactness(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", 44)
    system = SystemSettings(workers=0, log_every=1, progress="none", checkpoint_minutes=0.0)
    config = replace(small_config(images, tmp_path / "a", total_steps=6), system=system)
    reference = train(config)
    assert reference is not None
    expected = (reference / "encoder" / "model.safetensors").read_bytes()
    latest = sorted((reference / "checkpoints").iterdir())[-1]
    (latest / "trainer.json").write_text("{}")
    assert train(config) == reference
    assert (reference / "encoder" / "model.safetensors").read_bytes() == expected
