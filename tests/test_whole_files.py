"""A file is the old one or the whole new one, whatever happens while it is written."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from openjepa import whole_files
from openjepa.whole_files import place, whole_file, whole_folder


def test_the_new_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.txt"
    with whole_file(path) as file:
        file.write_text("new")
        assert not path.exists() and file.parent == path.parent  # one file system, so that renaming is atomic
    assert path.read_text() == "new" and list(path.parent.iterdir()) == [path]


def test_the_file_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, flushed = tmp_path / "a.txt", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append((os.fstat(descriptor).st_size, path.exists())))
    with whole_file(path) as file:
        file.write_text("new")
        assert str(os.getpid()) in file.name  # two processes do not write into one another's
    assert flushed == [(3, False)]


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
    gone = [left_there(tmp_path, f".out.{place()}.{dead}.{kind}") for kind in ("unfinished", "old")]
    (tmp_path / "out").mkdir()  # so that the old one has nothing to give back
    kept = [
        left_there(tmp_path, name)
        for name in (
            f".out.{place()}.{os.getppid()}.unfinished",  # alive
            f".out.node7-0123456789ab.{dead}.unfinished",
            f".out.node7-0123456789ab.{dead}.old",
            f".out.{dead}.unfinished",  # of an earlier version, which did not say on which machine
            f".out.two.{place()}.{dead}.unfinished",  # of the folder out.two
            f".out.{place()}.word.unfinished",
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


def test_machines_and_containers_of_one_name_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every start of a kernel has a number of its own, and every container numbers its processes anew."""
    found = []
    for host, boot, numbering in (
        ("node.a/1", "b1", "n1"),
        ("node.a/1", "b2", "n1"),
        ("node.a/1", "b1", "n2"),
        ("b", "b1", "n1"),
    ):
        place.cache_clear()
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        monkeypatch.setattr(Path, "read_text", lambda self, boot=boot: f"{boot}\n")
        monkeypatch.setattr(Path, "readlink", lambda self, numbering=numbering: Path(numbering))
        found.append(place())
    place.cache_clear()
    monkeypatch.setattr(Path, "read_text", lambda self: (self / "missing").read_bytes())
    assert place().startswith("b-"), "without /proc"
    place.cache_clear()
    assert len(set(found)) == 4 and found[0].startswith("node-a-1-") and "." not in found[0]


def test_files_of_two_machines_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their processes may have the same number."""
    with whole_file(tmp_path / "a.txt") as file:
        monkeypatch.setattr(whole_files, "place", lambda: "elsewhere-0123456789ab")
        with whole_file(tmp_path / "a.txt") as other:
            assert other != file
            other.write_text("theirs")
        file.write_text("ours")
    assert (tmp_path / "a.txt").read_text() == "ours" and len(list(tmp_path.iterdir())) == 1
