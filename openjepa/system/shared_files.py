"""Files that processes share: claims that one process has alone, files and folders that are whole whenever they are seen.

A claim is a lock of the system (flock), not a file that says so: a process that is killed loses it at once, on any machine, so
that no age has to be guessed and no clock compared. Folders that several machines share must carry locks from one to the other,
as NFS and most parallel file systems do. A whole file is written under another name, flushed to disk, then renamed.
"""

import errno
import fcntl
import glob
import hashlib
import logging
import os
import re
import shutil
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of a file system without locks."""
UNFINISHED = "unfinished"
"""Kind of the name (`own_name`) under which files and folders are written."""
MACHINE_ID, BOOT_ID, PROCESSES = Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
"""Files that tell apart machines of one name, their starts, and containers, which number their processes anew."""
OUTSIDE = "pid:[4026531836]"
"""What Linux calls the numbering of processes outside of every container (PROC_PID_INIT_INO)."""
START = 8
"""Digits of the mark of a start, and of that of a numbering."""
_log = logging.getLogger("openjepa")


class Claim:
    """A lock that this process holds until it releases it or ends."""

    def __init__(self, file: BinaryIO) -> None:
        """`file`: locked. Claims are taken by `take`."""
        self._file = file

    def release(self) -> None:
        """Lets others have it, even if a forked worker has inherited the file."""
        if not self._file.closed:
            with suppress(OSError):  # where there are no locks
                fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()

    def leave(self) -> None:
        """Forgets it in a process that was forked meanwhile, which inherited the file: the parent keeps what it has."""
        self._file.close()


def take(path: Path, *, wait: bool = False, shared: bool = False) -> Claim | None:
    """Claims the file `path`. Returns None if another process has it.

    `wait`: waits until it is free. `shared`: any number of processes may have it at once, but none alone. Raises
    FileNotFoundError if the folder is gone. A file system without locks gives every claim to everyone, with a warning.
    """
    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, kind)
        except BlockingIOError:
            file.close()
            return None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                file.close()
                raise
            warnings.warn(f"{path.parent} cannot lock files: let only one process work there at a time", stacklevel=2)
            return Claim(file)
        if _is_same(path, file):
            return Claim(file)
        file.close()  # it was removed between our opening and locking it


def is_taken(path: Path) -> bool | None:
    """Whether another process has the claim of the file `path` alone; None if that cannot be found out. Makes no file."""
    try:
        with path.open() as file:
            # released at once, with the file; shared, because NFS gives no other lock on a file that is open for reading
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:
        return None
    return False


@contextmanager
def claimed(folder: Path, name: str, wait: bool = False) -> Iterator[bool]:
    """True while only this process holds the lock `name` in `folder`. Released at the end of the block or if the process dies.

    `wait`: waits for other processes, so that it is always True. Makes the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim = take(folder / name, wait=wait)
    try:
        yield claim is not None
    finally:
        if claim is not None:
            claim.release()


def _is_same(path: Path, file: BinaryIO) -> bool:
    try:
        there, ours = path.stat(), os.fstat(file.fileno())
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a name to write to, which becomes `path` if the block ends without an error; an error leaves `path` as it was.

    Makes the folder if there is none. The name is this process's own: if two processes write the same file, the later whole
    file stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = own_name(path, UNFINISHED)
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, alone: bool = False) -> Iterator[Path]:
    """Gives an empty folder to write to, which replaces `path` if the block ends without an error.

    An error leaves everything as it was and removes parents of `path` that were made for it. Leftovers of killed processes of
    this machine are removed. `alone`: the caller holds a lock that keeps all other processes away, so leftovers are of dead
    processes, whichever machine they ran on.
    """
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_left(path, alone)
    unfinished = own_name(path, UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        _flush(unfinished)
        _rename(unfinished, path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):  # another process may have put something there
            for parent in made:
                parent.rmdir()
        raise


def is_writable(folder: Path) -> bool:
    """Whether something can be made in a folder. If the folder does not exist, the nearest one above it counts."""
    try:
        there = next((item for item in (folder, *folder.absolute().parents) if item.exists()), folder)
    except PermissionError:  # one above it cannot be looked into
        return False
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _rename(unfinished: Path, path: Path) -> None:
    """A folder cannot be renamed over another, so an older one steps aside first."""
    old = own_name(path, "old")
    if path.exists():
        path.rename(old)
    try:
        unfinished.rename(path)
    except OSError:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _remove_left(path: Path, alone: bool) -> None:
    """Removes leftovers of dead processes and restores an old folder that one of them had moved aside.

    A process of another machine may be alive: its files are left alone unless `alone`.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.*"):
        # names of earlier versions have no place
        words = re.fullmatch(r"(?:([A-Za-z0-9-]+)\.)?(\d+)\.(unfinished|old)", left.name.removeprefix(f".{path.name}."))
        if words is None or not (alone or _is_over(words[1] or "", int(words[2]))):
            if words is not None and words[3] == "old" and not path.exists():
                _log.warning("%s is what stood at %s before; if nothing is writing it, rename it to bring it back", left, path)
            continue
        if words[3] == "old" and not path.exists():
            left.rename(path)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _is_over(where: str, process: int) -> bool:
    """Whether a process that ran at `where` (a `place`) is known to be dead."""
    machine, _, start = where.rpartition("-")
    own_machine, _, own_start = place().rpartition("-")
    if not start or machine != own_machine:
        return False
    if start[:START] != own_start[:START]:
        # the machine was started again since, which no process outlives; containers of two machines may say all this alike
        return bool(_first_line(MACHINE_ID)) and start[START:] == own_start[START:] == _mark(OUTSIDE)[:START]
    return start == own_start and not _is_running(process)


@cache
def place() -> str:
    """Name and mark of this machine, of its start and of this container: inside it a number means one process.

    Hosts that share a disk may share a name. So may containers, and each numbers its processes anew. Without /proc only the
    name of the host is known.
    """
    name = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname())[:24]
    numbering = ""
    with suppress(OSError):
        numbering = str(PROCESSES.readlink())
    machine, start = _mark(socket.gethostname(), _first_line(MACHINE_ID)), _mark(_first_line(BOOT_ID))
    return f"{name}-{machine}-{start[:START]}{_mark(numbering)[:START]}"


def _mark(*words: str) -> str:
    return hashlib.blake2b(repr(words).encode(), digest_size=6).hexdigest()


def _first_line(file: Path) -> str:
    """Empty for a file that this system does not have."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def own_name(path: Path, kind: str) -> Path:
    """A hidden name beside `path` that no other process uses, on whichever machine."""
    return path.with_name(f".{path.name}.{place()}.{os.getpid()}.{kind}")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
