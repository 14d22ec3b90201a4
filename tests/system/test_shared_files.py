"""A file is the old one or the whole new one, whatever happens while it is written."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from openjepa.system import shared_files
from openjepa.system.shared_files import machine_place, whole_file, whole_folder


def test_the_new_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.txt"
    with whole_file(path) as file:
        file.write_text("new")
        assert not path.exists() and file.parent == path.parent  # one file system, so that renaming is atomic
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


def test_the_file_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flushed = tmp_path / "a.txt", []

    def flush(descriptor: int) -> None:
        state = os.fstat(descriptor)
        flushed.append(("folder" if stat.S_ISDIR(state.st_mode) else state.st_size, path.exists()))

    monkeypatch.setattr(os, "fsync", flush)
    with whole_file(path) as file:
        file.write_text("new")
        assert str(os.getpid()) in file.name  # two processes do not write into one another's
    assert flushed == [(3, False), ("folder", True)]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as file:
        file.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    return int(done.stdout)


def left_there(folder: Path, name: str) -> Path:
    left = folder / name
    left.mkdir()
    (left / "half").write_text("half")
    return left


def test_only_what_dead_processes_of_this_machine_left_is_removed(tmp_path: Path, dead: int) -> None:
    """On a shared disk the numbers of another host's processes say nothing about ours."""
    gone = [left_there(tmp_path, f".out.{machine_place()}.{dead}.{kind}") for kind in ("unfinished", "old")]
    (tmp_path / "out").mkdir()  # so that the old one has nothing to give back
    kept = [
        left_there(tmp_path, name)
        for name in (
            f".out.{machine_place()}.{os.getppid()}.unfinished",  # alive
            f".out.node7-0123456789ab.{dead}.unfinished",
            f".out.node7-0123456789ab.{dead}.old",
            f".out.{dead}.unfinished",  # of an earlier version, which did not say on which machine
            f".out.two.{machine_place()}.{dead}.unfinished",  # of the folder out.two
            f".out.{machine_place()}.word.unfinished",
        )
    ]
    with whole_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("x")
    assert not any(left.exists() for left in gone)
    assert all((left / "half").read_text() == "half" for left in kept)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, tmp_path / "out"])


@pytest.mark.parametrize("left", ["node7-0123456789ab.{dead}", "{dead}"])
def test_who_holds_the_lock_removes_what_any_machine_left(tmp_path: Path, dead: int, left: str) -> None:
    left_there(tmp_path, f".out.{left.format(dead=dead)}.unfinished")
    with whole_folder(tmp_path / "out", alone=True):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@dataclass(frozen=True)
class Machine:
    """What a process sees of where it runs."""

    host: str = "node.a/1"
    machine: str = "m1"
    boot: str = "b1"
    numbering: str = shared_files.OUTSIDE

    def place(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """Runs everything that follows there."""
        texts = {shared_files.MACHINE_ID: self.machine, shared_files.BOOT_ID: self.boot}

        def read_text(path: Path) -> str:
            if not texts[path]:
                raise FileNotFoundError(path)
            return f"{texts[path]}\n"

        def read_link(_: Path) -> Path:
            if not self.numbering:
                raise FileNotFoundError
            return Path(self.numbering)

        monkeypatch.setattr(socket, "gethostname", lambda: self.host)
        monkeypatch.setattr(Path, "read_text", read_text)
        monkeypatch.setattr(Path, "readlink", read_link)
        machine_place.cache_clear()
        return machine_place()


@pytest.fixture
def elsewhere() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch
    machine_place.cache_clear()


def test_machines_and_containers_of_one_name_are_told_apart(elsewhere: pytest.MonkeyPatch) -> None:
    """Every start of a kernel has a number of its own, and every container numbers its processes anew."""
    one = Machine()
    others = (replace(one, boot="b2"), replace(one, numbering="pid:[7]"), replace(one, machine="m2"), replace(one, host="b"))
    found = [machine.place(elsewhere) for machine in (one, *others)]
    assert len(set(found)) == 5 and found[0].startswith("node-a-1-") and "." not in found[0]
    assert Machine("b", "", "", "").place(elsewhere).startswith("b-"), "without /proc"


@pytest.mark.parametrize(
    ("then", "is_dead"),
    [
        (Machine(boot="b0"), True),  # before the machine was started again, whatever has that number now
        (Machine(), False),  # the process has the number of one that runs
        (Machine(boot="b0", machine="m2"), False),
        (Machine(boot="b0", host="node.b"), False),
        (Machine(boot="b0", numbering="pid:[7]"), False),  # a container may be of another machine
        (Machine(numbering="pid:[7]"), False),
    ],
)
@pytest.mark.parametrize("kind", ["unfinished", "old"])
def test_what_is_left_of_the_time_before_a_restart(
    then: Machine, is_dead: bool, kind: str, tmp_path: Path, elsewhere: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An older folder that had stepped aside has its name again, or is said to be there."""
    left = left_there(tmp_path, f".out.{then.place(elsewhere)}.{os.getppid()}.{kind}")
    Machine().place(elsewhere)
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out"):
        raise RuntimeError
    assert left.exists() is not is_dead
    assert (tmp_path / "out" / "half").exists() is (is_dead and kind == "old")
    assert (f"{left} is what stood at {tmp_path / 'out'} before" in caplog.text) is (not is_dead and kind == "old")


@pytest.mark.parametrize("machine", [Machine(machine="", boot="b0"), Machine(numbering="pid:[7]", boot="b0")])
def test_a_restart_that_cannot_be_told_from_another_machine(
    machine: Machine, tmp_path: Path, elsewhere: pytest.MonkeyPatch
) -> None:
    left = left_there(tmp_path, f".out.{machine.place(elsewhere)}.{os.getppid()}.unfinished")
    replace(machine, boot="b1").place(elsewhere)
    with whole_folder(tmp_path / "out"):
        pass
    assert left.exists()


def test_files_of_two_machines_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processes may have the same number."""
    with whole_file(tmp_path / "a.txt") as file:
        monkeypatch.setattr(shared_files, "machine_place", lambda: "elsewhere-0123456789ab")
        with whole_file(tmp_path / "a.txt") as other:
            assert other != file
            other.write_text("theirs")
        file.write_text("ours")
    assert (tmp_path / "a.txt").read_text() == "ours" and len(list(tmp_path.iterdir())) == 1
