"""A file is the old one or the whole new one, whatever happens while it is written."""

import os
from pathlib import Path

import pytest

from openjepa.whole_files import whole_file


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
