"""Work that processes share: each piece is taken by one of them alone. Free of torch.

The claims are locks of the system (flock), not files that say so: a process that is killed loses them at once, on whichever
machine it ran, so that no age has to be guessed and no clock compared. Folders that several machines share must carry locks
from one to the other, as NFS and most parallel file systems do.
"""

import errno
import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Errors of a file system without locks."""


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
