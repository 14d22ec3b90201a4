"""A full disk, an interrupt and a kill leave no half of a converted folder."""

import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openjepa.cli import main
from openjepa.settings.inference import ConvertSettings
from openjepa.system.shared_files import machine_place, whole_folder
from openjepa.weights.convert import conversion as module
from openjepa.weights.convert.conversion import convert
from tests.helpers.processes import in_clean_process
from tests.helpers.weights_written import names, run_folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return run_folder(tmp_path / "runs" / "mine")


def convert_on_a_full_disk(*words: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # files of 30 kB, then EFBIG, as ENOSPC on a full disk
    main(["convert", *words])


@pytest.mark.parametrize("to", ["transformers", "official"])
def test_a_full_disk_leaves_nothing(to: str, run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    log = tmp_path_factory.mktemp("printed") / "log"
    process = in_clean_process(convert_on_a_full_disk, str(run), "--to", to, log=log)
    process.join(120)
    printed = log.read_text()
    assert process.exitcode == 2 and "could not be written" in printed and "Traceback" not in printed
    assert [path.name for path in Path.cwd().iterdir()] == ["runs"]


def raises(error: BaseException) -> Callable[..., Any]:
    def function(*_: object) -> None:
        raise error

    return function


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("No space left on device")])
def test_an_interrupt_while_checking_leaves_nothing(error: BaseException, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = convert(ConvertSettings(subject=run, to="timm")).folder
    before = names(folder)
    monkeypatch.setattr(module, "verify", raises(error))
    with pytest.raises(type(error)):
        convert(ConvertSettings(subject=run, to="transformers", output=folder, overwrite=True))
    assert names(folder) == before  # the older one stays
    with pytest.raises(type(error)):
        convert(ConvertSettings(subject=run, to="transformers", output=Path("a/b")))
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["mine-timm", "runs"]


KILLED = """
import sys, time
from pathlib import Path
from openjepa.system.shared_files import whole_folder
with whole_folder(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert not (tmp_path / "out").exists()
    with whole_folder(tmp_path / "other"), whole_folder(tmp_path / "out"):  # a living process keeps its own
        assert len(list(tmp_path.glob(".out.*.unfinished"))) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with whole_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "out"] and names(tmp_path / "out") == ["whole"]


def test_a_folder_that_a_killed_process_had_moved_aside_gets_its_name_again(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    aside = tmp_path / f".out.{machine_place()}.{done.stdout.strip()}.old"
    aside.mkdir()
    (aside / "whole").write_text("older")
    with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "out"):
        raise OSError("full")
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "whole").read_text() == "older"
