"""Reads that fail for a moment, fail for good, or give no answer."""

import errno
import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from openjepa.refusals import Refusal
from openjepa.system.patience import Patience, ReadAhead, read_patiently

QUICK = (0.0, 0.0, 0.0)


class Disk:
    """Places whose first reads fail with an error, or wait until `released`."""

    def __init__(self, failures: dict[int, int] | None = None, stalls: dict[int, int] | None = None, error: int = errno.EIO):
        self.failures, self.stalls = Counter(failures or {}), Counter(stalls or {})
        self.released = threading.Event()
        self.reads: list[int] = []
        self.error = error

    def __call__(self, place: int) -> bytes:
        self.reads.append(place)
        if self.stalls[place]:
            self.stalls[place] -= 1
            self.released.wait()
        if self.failures[place]:
            self.failures[place] -= 1
            raise OSError(self.error, os.strerror(self.error))
        return b"%d" % place


def ahead(disk: Callable[[int], bytes], num: int, patience: Patience) -> ReadAhead[bytes]:
    return ReadAhead(disk, num, lambda place: f"file {place}", patience)


def outcomes(reader: ReadAhead[bytes], places: range) -> list[object]:
    found: list[object] = []
    for place in places:
        try:
            found.append(int(reader(place)))
        except OSError as error:
            found.append(error.strerror)
    return found


@pytest.mark.parametrize("name", ["EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT"])
def test_errors_that_may_pass_are_repeated_and_counted(name: str) -> None:
    disk, patience = Disk({1: 1, 3: 3}, error=getattr(errno, name)), Patience(pauses=QUICK)
    assert outcomes(ahead(disk, 5, patience), range(5)) == [0, 1, 2, 3, 4]
    assert disk.reads == [0, 1, 1, 2, 3, 3, 3, 3, 4] and patience.num_repeated == 4


def test_an_error_that_stays_is_given_up_and_the_next_reads_are_tried_once() -> None:
    disk, patience = Disk({1: 99, 2: 99, 4: 1}), Patience(pauses=QUICK)
    assert outcomes(ahead(disk, 5, patience), range(5)) == [0, "Input/output error", "Input/output error", 3, 4]
    assert Counter(disk.reads) == {0: 1, 1: 4, 2: 1, 3: 1, 4: 2}


def test_a_missing_file_is_not_waited_for(tmp_path: Path) -> None:
    patience = Patience(pauses=(60.0,))
    with pytest.raises(FileNotFoundError):
        ahead(lambda place: (tmp_path / "x").read_bytes(), 1, patience)(0)
    assert patience.num_repeated == 0 and not patience.gave_up


def test_a_read_without_an_answer_is_begun_again_and_then_given_up() -> None:
    disk, patience = Disk(stalls={1: 1, 3: 9}), Patience(seconds=0.5)
    words = "reading it gave no answer for 0.5 s, 2 times"
    assert outcomes(ahead(disk, 6, patience), range(6)) == [0, 1, 2, words, 4, 5]
    assert Counter(disk.reads) == {0: 1, 1: 2, 2: 1, 3: 2, 4: 1, 5: 1} and patience.num_repeated == 2
    disk.released.set()


def test_a_pipe_that_nobody_writes_to_is_given_up(tmp_path: Path) -> None:
    """A real read that blocks."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"7")
    names = ["pipe", "file"]
    patience = Patience(seconds=0.5)
    found = outcomes(ahead(lambda place: (tmp_path / names[place]).read_bytes(), 2, patience), range(2))
    assert found == ["reading it gave no answer for 0.5 s, 2 times", 7]
    os.close(os.open(tmp_path / "pipe", os.O_RDWR))  # lets the abandoned reads end, and waits for no reader


def test_two_reads_without_an_answer_in_a_row_are_a_file_system_that_is_gone() -> None:
    disk = Disk(stalls={1: 9, 2: 9})
    reader = ahead(disk, 4, Patience(seconds=0.5))
    assert outcomes(reader, range(2))[0] == 0
    with pytest.raises(Refusal, match=r"file 2: .* no answer for 0.5 s, and the read before was given up as well"):
        reader(2)
    disk.released.set()


def test_places_may_be_read_again_and_beyond_those_read_ahead() -> None:
    disk = Disk()
    reader = ahead(disk, 3, Patience())
    assert [reader(place) for place in (0, 1, 2, 7, 8, 1)] == [b"0", b"1", b"2", b"7", b"8", b"1"]
    assert disk.reads == [0, 1, 2, 7, 8, 1]
    assert [reader(place) for place in (0, 2)] == [b"0", b"2"]


def test_one_read_with_patience() -> None:
    assert read_patiently(lambda: 3, "x") == 3
    with pytest.raises(ZeroDivisionError):
        read_patiently(lambda: 1 // 0, "x")
