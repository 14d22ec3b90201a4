"""Run folders: their names, who may write in them, what continues a run, and its log."""

import errno
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.config import load_run_config
from openjepa.engine.run_folder import RunFolder, RunLog, open_run_folder, run_path
from openjepa.settings.run import OptimizationSettings, RunConfig, RunSettings, SystemSettings
from openjepa.settings.sources import DataSettings, FolderSettings, HuggingFaceSettings, ScenesSettings
from openjepa.system.shared_files import take
from openjepa.types import Skipped
from tests.helpers.processes import in_process

CPU = torch.device("cpu")


def config_in(folder: Path) -> RunConfig:
    return RunConfig(run=RunSettings(output=str(folder), name="a"))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (FolderSettings(path="~/my photos/"), "my-photos"),
        (FolderSettings(), "folder"),
        (FolderSettings(path="photos/caf\udce9"), "caf-"),  # weights cannot be read from a path that is no text
        (HuggingFaceSettings(path="data/cifar10/*.parquet"), "cifar10"),
        (HuggingFaceSettings(path="owner/name"), "name"),
        (ScenesSettings(), "scenes"),
    ],
)
def test_a_run_is_named_after_its_data(data: DataSettings, name: str) -> None:
    config = RunConfig(recipe="cpu-64", preset="default", data=data, run=RunSettings(output="runs"))
    assert run_path(config) == Path("runs") / f"cpu-64-default-{name}"


def begun(folder: RunFolder, device: str = "cpu", precision: str = "fp32") -> None:
    """Leaves what a first step leaves: a line of the log, and the environment of the session."""
    folder.write_json("environment.json", {"device": device, "precision": precision, "threads": torch.get_num_threads()})
    (folder.path / "metrics.jsonl").write_text('{"kind": "monitor", "step": 0}\n{"kind": "train", "step": 10}\n')
    folder.close()


def test_other_results_are_refused_and_other_bookkeeping_is_not(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    begun(open_run_folder(config, False, CPU, "fp32"))
    open_run_folder(replace(config, system=SystemSettings(workers=3)), False, CPU, "fp32").close()
    changed = replace(config, optim=OptimizationSettings(lr=0.5))
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.001 -> 0\.5"):
        open_run_folder(changed, False, CPU, "fp32").close()
    fresh = open_run_folder(changed, True, CPU, "fp32")
    begun(fresh)
    assert fresh.path == tmp_path / "a-2"
    continued = open_run_folder(load_run_config(fresh.path), False, CPU, "fp32")  # its config.yaml leads back to it
    continued.close()
    assert continued.path == fresh.path


def test_a_run_without_a_step_takes_other_settings(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    folder = open_run_folder(config, False, CPU, "fp32")
    folder.close()
    (folder.path / "metrics.jsonl").write_text('{"kind": "monitor", "step": 0}\n')  # the look before the first step
    changed = replace(config, optim=OptimizationSettings(lr=0.5))
    open_run_folder(changed, False, CPU, "fp32").close()
    assert load_run_config(folder.path).optim.lr == 0.5
    (folder.path / "checkpoints" / "step_00000001").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.5 -> 0\.001"):
        open_run_folder(config, False, CPU, "fp32")


@pytest.mark.parametrize(("device", "precision"), [("cuda:1", "fp32"), ("cpu", "bf16")])
def test_another_device_or_precision_is_refused_with_what_continues_the_run(
    tmp_path: Path, device: str, precision: str
) -> None:
    config = config_in(tmp_path)
    begun(open_run_folder(config, False, CPU, "fp32"), device, precision)
    fix = f"--run.device {device.split(':')[0]} --run.precision {precision}"
    with pytest.raises(ValueError, match=fix):
        open_run_folder(config, False, CPU, "fp32")
    asked = replace(config, run=replace(config.run, device=device, precision=precision))  # type: ignore[arg-type]
    open_run_folder(asked, False, torch.device(device), precision).close()


def test_other_threads_are_noted(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    begun(open_run_folder(config, False, CPU, "fp32"))
    same = open_run_folder(config, False, CPU, "fp32")
    same.write_json("environment.json", {"device": "cpu", "precision": "fp32", "threads": 99, "torch": torch.__version__})
    same.close()
    other = open_run_folder(config, False, CPU, "fp32")
    other.close()
    assert same.notes == () and len(other.notes) == 1 and other.notes[0].startswith("threads was 99 and is now")


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    first = open_run_folder(config_in(tmp_path), False, CPU, "fp32")
    with pytest.raises(ValueError, match="another process is writing"):
        open_run_folder(config_in(tmp_path), False, CPU, "fp32")
    first.close()
    open_run_folder(config_in(tmp_path), False, CPU, "fp32").close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_second_writer(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "No locks available")

    monkeypatch.setattr("openjepa.system.shared_files.fcntl.flock", refuse)
    for _ in range(2):
        with pytest.warns(UserWarning, match="cannot lock files: let only one process work there at a time"):
            folder = open_run_folder(config_in(tmp_path), False, CPU, "fp32")
        folder.close()


def test_forked_workers_neither_hold_the_folder_nor_let_it_go(tmp_path: Path) -> None:
    first = open_run_folder(config_in(tmp_path), False, CPU, "fp32")
    worker = in_process(lambda: time.sleep(1000))
    with pytest.raises(ValueError, match="another process is writing"):  # the worker has closed its copy by now
        open_run_folder(config_in(tmp_path), False, CPU, "fp32")
    first.lock.leave()  # as when this process is killed: nobody says that it lets go, and the worker lives on
    again = take(first.path / ".lock", wait=True)
    assert again is not None and worker.is_alive()
    again.release()
    worker.kill()
    worker.join()


def test_resume_drops_lines_after_the_checkpoint_and_broken_ones(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, tensorboard=False)
    for step in (10, 20, 30):
        log.write("train", step, {"loss": float(step), "nan": math.nan})
        log.write_skipped([(step, Skipped(f"{step}.jpg", "truncated: 3 bytes", "truncated"))])
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # a kill in the middle of a line
    RunLog(tmp_path, 20, tensorboard=False).close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20] and lines[0]["nan"] is None
    skipped = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert skipped[0] == {"step": 10, "name": "10.jpg", "reason": "truncated: 3 bytes", "kind": "truncated"}
    assert [line["name"] for line in skipped] == ["10.jpg", "20.jpg"]
