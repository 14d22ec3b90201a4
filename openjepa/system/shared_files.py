"""Files that processes share: locks, and files and folders that are complete whenever another process sees them.

A claim is a lock of the system (flock), not a lock file. A killed process loses it at once, on any machine, so that nobody has
to guess the age of a file or compare clocks. Folders that several machines share must pass locks between them, as NFS and most
parallel file systems do. A whole file is written under another name, flushed to disk, then renamed, and the rename is flushed.
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
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO

from rich.filesize import decimal

from openjepa.refusals import Refusal

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of a file system without locks."""
WITHOUT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of a file system that cannot flush a folder, as some network file systems."""
UNFINISHED = "unfinished"
"""Kind of the name (`own_name`) of files and folders while they are written."""
MACHINE_ID, BOOT_ID, PROCESSES = Path("/etc/machine-id"), Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
"""Files that distinguish machines of one name, their boots, and containers, each of which numbers its own processes."""
OUTSIDE = "pid:[4026531836]"
"""Linux's name for the numbering of processes outside all containers (PROC_PID_INIT_INO)."""
START = 8
"""Number of digits of the mark of a boot, and of the mark of a numbering of processes."""
_log = logging.getLogger("openjepa")


class Claim:
    """A lock that this process holds until it releases it or ends."""

    def __init__(self, file: BinaryIO) -> None:
        """`file`: must be locked already. Call `take` to get a claim."""
        self._file = file

    def release(self) -> None:
        """Releases the lock, even if a forked worker has inherited the file."""
        if not self._file.closed:
            with suppress(OSError):  # the file system may have no locks
                fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()

    def leave(self) -> None:
        """Closes the file in a forked process that inherited it. The parent keeps the lock."""
        self._file.close()


def take(path: Path, *, wait: bool = False, shared: bool = False, forked: bool = True) -> Claim | None:
    """Locks the file `path`. Returns None if another process holds the lock.

    `wait`: waits until the lock is free. `shared`: any number of processes may hold a shared lock at the same time, but then
    none can hold an exclusive one. `forked`: if False, processes that this one forks leave the claim. Data workers would
    otherwise keep it after this process is killed. Raises FileNotFoundError if the folder is gone. On a file system without
    locks every call succeeds, with a warning.
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
            return _claim(file, forked)
        if _is_same(path, file):
            return _claim(file, forked)
        file.close()  # it was removed between our opening and locking it


def _claim(file: BinaryIO, forked: bool) -> Claim:
    claim = Claim(file)
    if not forked:
        os.register_at_fork(after_in_child=claim.leave)
    return claim


def is_taken(path: Path) -> bool | None:
    """True if another process holds an exclusive lock of the file `path`; None if this is not known. Makes no file."""
    try:
        with path.open() as file:
            # closing the file releases it at once; shared, because NFS gives no exclusive lock on a file open for reading
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
    """Yields True if this process got the lock `name` in `folder`. Makes the folder.

    The lock is released at the end of the block or if the process dies. `wait`: waits for other processes, so that the result
    is always True.
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
    """Yields a path to write to, which becomes `path` if the block ends without an error. An error leaves `path` as it was.

    Makes the folder if there is none. No other process uses the yielded path: if two processes write `path`, the file that is
    finished later stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = own_name(path, UNFINISHED)
    try:
        yield unfinished
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
        flush_folder(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path, alone: bool = False) -> Iterator[Path]:
    """Yields an empty folder to write to, which replaces `path` if the block ends without an error.

    An error leaves everything as it was and removes parents of `path` that were made for it. Leftovers of killed processes on
    this machine are removed. `alone`: the caller holds a lock that keeps all other processes away, so that all leftovers come
    from dead processes, whichever machine they ran on.
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
        flush_folder(path.parent)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        with suppress(OSError):  # another process may have put something there
            for parent in made:
                parent.rmdir()
        raise


def flush_folder(folder: Path) -> None:
    """Flushes the names in a folder to disk, so that a file or a rename in it survives a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in WITHOUT_FLUSH:
            raise
    finally:
        os.close(descriptor)


def require_space(folder: Path, needed: int, what: str, advice: str = "make room, or choose another disk") -> None:
    """Raises Refusal if the disk of `folder` has fewer than `needed` free bytes.

    `what`: what is to be written there, in the plural. `advice`: what the user can do.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Refusal(f"{folder}: {what} need {decimal(needed)}, but only {decimal(free)} are free: {advice}")


def file_digest(path: Path, name: str) -> str:
    """The digest of a file in hexadecimal digits. `name`: that of a hash in hashlib; `blake2b` has 16 bytes here."""
    with path.open("rb") as file:
        made = partial(hashlib.blake2b, digest_size=16) if name == "blake2b" else name
        return hashlib.file_digest(file, made).hexdigest()


def is_writable(folder: Path) -> bool:
    """True if files can be made in a folder. If the folder does not exist, the nearest existing one above it counts."""
    try:
        there = next((item for item in (folder, *folder.absolute().parents) if item.exists()), folder)
    except PermissionError:  # a folder above it cannot be read
        return False
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _flush(folder: Path) -> None:
    """Flushes all files in `folder`, and all their names."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            flush_folder(path)
        elif path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _rename(unfinished: Path, path: Path) -> None:
    """Renames `unfinished` to `path`. A folder cannot be renamed over another, so an old one is moved aside first."""
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

    A process on another machine may be alive: its files are kept unless `alone` is true.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.*"):
        # names of earlier versions do not hold a `machine_place`
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
    """True if a process that ran at `where` (a `machine_place`) is known to be dead."""
    machine, _, start = where.rpartition("-")
    own_machine, _, own_start = machine_place().rpartition("-")
    if not start or machine != own_machine:
        return False
    if start[:START] != own_start[:START]:
        # another boot, which no process survives; in containers of two machines all these names may be equal
        return bool(_first_line(MACHINE_ID)) and start[START:] == own_start[START:] == _mark(OUTSIDE)[:START]
    return start == own_start and not _is_running(process)


@cache
def machine_place() -> str:
    """Name of this machine with marks of the machine, its boot and this container. In one place a number means one process.

    Hosts that share a disk may have the same name. So may containers, each of which numbers its own processes. Without /proc
    only the name of the host is known.
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
    """Content of a system file without surrounding blanks; empty if this system does not have it."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def own_name(path: Path, kind: str) -> Path:
    """A hidden path beside `path` that no other process on any machine uses. `kind`: its ending."""
    return path.with_name(f".{path.name}.{machine_place()}.{os.getpid()}.{kind}")


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # a process of another user
        return True
    return True
