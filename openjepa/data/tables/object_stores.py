"""Tars and Parquet files in object stores (`s3://`, `gs://`, `https://`, ...), through fsspec.

A file is copied whole to a disk of this machine when it is first used, and then read like any other: large requests are what
stores are fast at, and every image is a small place in a file. Copies lie in the cache of the `datasets` library, where the
processes of a machine share them. Those of a stream make room for later ones if the disk fills up, and the next file of a
stream is copied while the one before it is used.

Every request has a time limit and is repeated a few times (`openjepa.system.patience`).
"""

import errno
import hashlib
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from openjepa.data.source import file_stamp
from openjepa.refusals import Refusal
from openjepa.system.console import Style, progress
from openjepa.system.patience import Patience, ReadAhead
from openjepa.system.shared_files import claimed, require_space, whole_file

Result = TypeVar("Result")

BLOCK_BYTES = 16 * 2**20
"""Number of bytes of one request."""
AT_ONCE = 4
"""Number of requests at a time. A single one does not fill a fast network."""
SPARE_BYTES = 2 * 10**9
"""Number of bytes of the disk that are left free."""
IN_USE_SECONDS = 1800
"""A copy of a stream's file is kept for this time after its last use, because some of its images may still be waiting."""
VERSION_ENTRIES = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "updated", "mtime", "created")
"""Entries of what stores say of a file that change if the file changes, the best first."""
_log = logging.getLogger("openjepa")
_ahead: list[threading.Thread] = []
"""The thread that has made the last copy ahead, or makes it. Its name is that of the file."""


def is_url(path: str) -> bool:
    """True if `path` is a place in an object store and not on a disk: it begins as `s3://` does."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path) is not None


def find_urls(path: str) -> dict[str, str]:
    """The files that a URL means: one file, all below a folder, or those that match a pattern. URLs by path in the store.

    Raises Refusal if there are none, the store is not known, or a package is missing; OSError if it cannot be reached.
    """
    store, inner = _store(path)
    if "*" in inner or "?" in inner or "[" in inner:
        found = _answer(path, partial(store.glob, inner, detail=True))
    elif (info := _answer(path, partial(store.info, inner)))["type"] == "file":  # a server of files cannot list them
        found = {inner: info}
    else:
        found = _answer(path, partial(store.find, inner, detail=True))
    names = [name for name, info in found.items() if info["type"] != "directory"]
    if not names:
        raise Refusal(f"data.path={path!r} matches no file: check the folder and the name of the bucket")
    return {name: str(store.unstrip_protocol(name)) for name in sorted(names)}


# ----------------------------------------------------------------------------------------------------------------------- copies


def on_disk(file: str) -> Path:
    """The file on this machine's disks: `file` itself, or the copy of a URL, which is made now unless it is there.

    For files that are used once after another, as in a stream. Raises Refusal if the disk is too small, or the file does not
    exist; OSError if the store cannot be reached.
    """
    if not is_url(file):
        return Path(file)
    for thread in _ahead:
        if thread.name == file:
            thread.join()
    return _copies([file], "streams", "a file")[0]


def begin_copy(file: str) -> None:
    """Begins to make the copy for which `on_disk` will be asked next, in a thread. Does nothing while it makes another.

    If it fails, `on_disk` tries again and raises the error.
    """
    if is_url(file) and not any(thread.is_alive() for thread in _ahead):
        _ahead[:] = [threading.Thread(target=_copy_ahead, args=(file,), name=file, daemon=True)]
        _ahead[0].start()


def _copy_ahead(file: str) -> None:
    with suppress(Exception):
        _copies([file], "streams", "a file", style="none")


def all_on_disk(files: Sequence[str]) -> list[str]:
    """The same for files that are used together, as those of a list. Their copies stay until somebody removes them."""
    if not any(map(is_url, files)):
        return list(files)
    return [str(file) for file in _copies(files, "lists", f"the {len(files):,} files")]


def stamps_of(files: Iterable[str]) -> bytes:
    """Hash of the stamps of several files, here or in stores. Reads none of them."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(_digest(file, _info(file)) if is_url(file) else file_stamp(file))
    return digest.digest()


def _copies(urls: Sequence[str], kind: str, what: str, style: Style = "auto") -> list[Path]:
    infos = {url: _info(url) for url in urls}
    places = {url: _place(url, info, kind) for url, info in infos.items()}
    missing = [url for url, place in places.items() if not place.exists()]
    if missing:
        folder = _cache() / kind
        folder.mkdir(parents=True, exist_ok=True)
        needed = sum(int(infos[url]["size"]) for url in missing)
        _make_room(needed)
        require_space(folder, needed + SPARE_BYTES, f"the copies of {what} of {urls[0]} (HF_DATASETS_CACHE: another disk)")
        with progress("copying", needed // 10**6, unit="MB", style=style) as advance:
            for url in missing:
                _copy(url, infos[url], places[url])
                advance(int(infos[url]["size"]) // 10**6)
    for place in places.values():
        if place.is_relative_to(_cache()):
            os.utime(place, ns=(time.time_ns(), place.stat().st_mtime_ns))  # the time of its last use
    return [places[url] for url in urls]


def _place(url: str, info: dict[str, Any], kind: str) -> Path:
    """Path of the copy of a file. The file itself if its store is a disk here."""
    store, inner = _store(url)
    if isinstance(store, LocalFileSystem):
        return Path(inner)
    key = _digest(url, info).hex()[:32]
    lasting = _cache() / "lists" / key / PurePosixPath(inner).name
    return lasting if lasting.exists() else _cache() / kind / key / lasting.name


def _cache() -> Path:
    from datasets import config

    return Path(config.HF_DATASETS_CACHE) / "openjepa" / "stores"


def _digest(url: str, info: dict[str, Any]) -> bytes:
    """A hash that changes if the file at `url` changes."""
    version = next((info[name] for name in VERSION_ENTRIES if info.get(name)), "")
    return hashlib.sha256(f"{url} {info['size']} {version}".encode(errors="surrogateescape")).digest()


def _make_room(needed: int) -> None:
    """Removes copies of streams' files, the least recently used first, until `needed` bytes fit."""
    for copy in sorted((_cache() / "streams").glob("*/[!.]*"), key=lambda copy: copy.stat().st_atime):
        is_enough = shutil.disk_usage(copy.parent).free >= needed + SPARE_BYTES
        if is_enough or time.time() - copy.stat().st_atime < IN_USE_SECONDS:
            return
        copy.unlink(missing_ok=True)


def _copy(url: str, info: dict[str, Any], place: Path) -> None:
    """Copies a file, unless another process has just done so."""
    store, inner = _store(url)
    size = int(info["size"])

    def read(start: int) -> bytes:
        stop = min(size, start + BLOCK_BYTES)
        return _answer(url, partial(_block, store, inner, start, stop))

    with claimed(place.parent, ".lock", wait=True):
        if place.exists():
            return
        starts = range(0, size, BLOCK_BYTES)
        with whole_file(place) as unfinished, unfinished.open("wb") as opened, ThreadPoolExecutor(AT_ONCE) as pool:
            for first in range(0, len(starts), AT_ONCE):
                opened.writelines(pool.map(read, starts[first : first + AT_ONCE]))
            opened.flush()
            # every copy of the same version gets the same time, so that features that were kept are found on any machine
            os.utime(unfinished, (time.time(), int.from_bytes(_digest(url, info)[:3])))


def _block(store: Any, inner: str, start: int, stop: int) -> bytes:
    data: bytes = store.cat_file(inner, start=start, end=stop)
    if len(data) != stop - start:
        raise OSError(errno.EIO, f"{len(data)} bytes came instead of {stop - start}")
    return data


# --------------------------------------------------------------------------------------------------------------------- requests


def _store(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it. Raises Refusal if its kind is not known, or a package is missing."""
    try:
        store, inner = fsspec.url_to_fs(url)
    except ImportError as error:
        cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
        raise Refusal(f"data.path={url!r} needs the package {cause.name}: pip install {cause.name}") from error
    except ValueError as error:
        raise Refusal(f"data.path={url!r}: {error}; known are s3, gs, abfs, https, file and others of fsspec") from error
    return store, inner


def _info(url: str) -> dict[str, Any]:
    store, inner = _store(url)
    info: dict[str, Any] = _answer(url, partial(store.info, inner))
    if info.get("size") is None:
        raise Refusal(f"data.path: the server of {url} does not say how large it is: copy it to a disk, and give that path")
    return info


def _answer(url: str, ask: Callable[[], Result]) -> Result:
    """What `ask` returns, within a time limit and repeated if it fails.

    Raises Refusal if there is no such file or it may not be read, and OSError, with the URL and the number of tries, for
    anything else.
    """
    patience = Patience()
    try:
        answer = ReadAhead(lambda _: _as_os_error(ask), 1, lambda _: url, patience)(0)
    except FileNotFoundError as error:
        raise Refusal(f"data.path: {url} does not exist") from error
    except PermissionError as error:
        raise Refusal(f"data.path: {url} may not be read ({error}): check the credentials of the store") from error
    except OSError as error:
        tries = patience.num_repeated + 1
        raise OSError(error.errno, f"{url} gave no answer ({error.strerror or error}), {tries} tries") from error
    if patience.num_repeated:
        _log.warning("%s answered at try %d", url, patience.num_repeated + 1)
    return answer


def _as_os_error(ask: Callable[[], Result]) -> Result:
    """What `ask` returns. Errors of a store's own package become those of a disk, which are repeated."""
    try:
        return ask()
    except (FileNotFoundError, PermissionError, Refusal):
        raise
    except Exception as error:  # each package raises its own kinds
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error
