"""The files of a checkpoint: their checksums, the room that they need, and the folders that are removed or set aside.

A folder is a checkpoint if its name is `step_<number>` and its files match `manifest.json`, which holds their sizes and their
BLAKE2b and is written last. Nothing else counts: no clock, no time of a file, no name of a machine or of a process.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from rich.filesize import decimal

from openjepa.config import readable_object
from openjepa.refusals import Refusal
from openjepa.system.shared_files import file_digest, flush_folder, require_space

MANIFEST = "manifest.json"
KEPT_FREE_BYTES = 64 * 2**20
"""Bytes that a checkpoint must leave on the disk, for exported networks and logs."""
LATE_SECONDS = 10.0
"""How long a file of another machine is looked for on a shared disk, which remembers for seconds what is absent."""
_TEMPORARY = ".writing-"

Fault = TypeVar("Fault")
Checksum = tuple[int, str]
"""The size of a file in bytes, and its BLAKE2b."""


def step_folder(folder: Path, step: int) -> Path:
    """The folder of the checkpoint after `step` steps. Its name does not depend on the processes that write it."""
    return folder / f"step_{step:08d}"


def newest_first(folder: Path) -> list[Path]:
    """The folders of checkpoints, whole or broken, from the last step to the first."""
    return sorted(folder.glob("step_*"), reverse=True)


def begin_checkpoint(final: Path, needed: int) -> Path:
    """Makes the empty folder in which the checkpoint `final` is written under another name, and returns it.

    Removes what killed processes have left. Raises Refusal, before anything is written, if the disk has less than `needed`
    bytes and a reserve.
    """
    remove_unfinished(final.parent)
    what = f"{final.name} and {decimal(KEPT_FREE_BYTES)} of other files"
    require_space(final.parent, needed + KEPT_FREE_BYTES, what, _advice(final))
    temporary = final.with_name(f"{_TEMPORARY}{final.name}")
    temporary.mkdir()
    return temporary


def write_failed(final: Path, error: OSError) -> Refusal:
    """A refusal for an error of the disk, such as a full one, while the checkpoint `final` was written."""
    return Refusal(f"{final} could not be written: {error.strerror or error}: {_advice(final)}")


def _advice(final: Path) -> str:
    """What the user can do about a disk that is full or broken."""
    whole = next((path.name for path in newest_first(final.parent)), None)
    left = (
        "there is no earlier one" if whole is None else f"the one before, {whole}, is as it was, and the run continues from it"
    )
    return f"make room there, or move the run to another disk, and give the same command again; {left}"


def checksums(folder: Path, paths: Iterable[Path]) -> dict[str, Checksum]:
    """The checksum of each of `paths`, by its name inside `folder`."""
    return {str(path.relative_to(folder)): (path.stat().st_size, file_digest(path, "blake2b")) for path in paths}


def write_manifest(folder: Path, files: Mapping[str, Checksum]) -> None:
    """Writes the manifest and flushes it and all folders to disk. The other files must be flushed already.

    `files`: those that have checksums already, made by the processes that wrote them; the rest is added here. Raises Refusal if
    one is not there: another machine has written it to a disk of its own.
    """

    def look() -> Path | None:
        paths = {folder / name: size for name, (size, _) in files.items()}
        return next((path for path, size in paths.items() if not _is_listed(path) or path.stat().st_size != size), None)

    absent = _looked_for(look)
    if absent is not None:
        raise Refusal(
            f"{absent} was written by another process, which does not see the same folder: run.output must be on a disk that "
            "all machines share"
        )
    there = sorted(path for path in folder.rglob("*") if path.name != MANIFEST)
    rest = [path for path in there if path.is_file() and str(path.relative_to(folder)) not in files]
    flushed_text(folder / MANIFEST, json.dumps({**files, **checksums(folder, rest)}, indent=1))
    for path in [*there, folder]:
        if path.is_dir():
            flush_folder(path)


def flushed_text(path: Path, text: str) -> None:
    """Writes a file and flushes it to disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def manifest_of(folder: Path) -> dict[str, Checksum] | None:
    """The checksums that the manifest of a checkpoint holds; None if it cannot be read."""
    entries = readable_object(folder / MANIFEST)
    if entries is None or not all(map(_is_entry, entries.values())):
        return None
    return {name: (size, digest) for name, (size, digest) in entries.items()}


def damage(path: Path, checksum: Checksum) -> str | None:
    """Words for how a file differs from its checksum; None if it does not."""
    size, digest = checksum
    if not path.is_file():
        return "is missing"
    if path.stat().st_size != size:
        return f"has {path.stat().st_size} bytes instead of {size}"
    return None if file_digest(path, "blake2b") == digest else "does not match its checksum"


def lasting_damage(folder: Path, files: Mapping[str, Checksum], wait: bool) -> str | None:
    """Words for the first of `files` in `folder` that differs from its checksum, even if it is looked at again. Else None.

    `wait`: another machine may have written them, so that one may appear on a shared disk only after some seconds.
    """

    def look() -> str | None:
        for name, checksum in files.items():
            words = damage(folder / name, checksum) if _is_listed(folder / name) else "is missing"
            if words is not None:
                return f"{name} {words}"
        return None

    return _looked_for(look) if wait else look()


def _looked_for(look: Callable[[], Fault | None]) -> Fault | None:
    """What `look` finds wrong, again and again for LATE_SECONDS, or None as soon as nothing is."""
    end = time.monotonic() + LATE_SECONDS
    while (fault := look()) is not None and time.monotonic() < end:
        time.sleep(LATE_SECONDS / 20)
    return fault


def _is_listed(path: Path) -> bool:
    """True if the folder of `path` lists it. A shared disk then asks for the names anew, which it does not for one name."""
    return path.parent.is_dir() and path in path.parent.iterdir()


def _is_entry(value: object) -> bool:
    """True if a value of a manifest is a size and a checksum."""
    return isinstance(value, list) and [type(item) for item in value] == [int, str]


def remove_unfinished(folder: Path) -> None:
    """Removes the folders of checkpoints whose writing was broken off."""
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def prune(folder: Path, keep_every: int | None) -> None:
    """Removes old checkpoints. The newest two and those at multiples of `keep_every` steps are kept."""
    for path in newest_first(folder)[2:]:
        if keep_every is None or int(path.name.removeprefix("step_")) % keep_every != 0:
            shutil.rmtree(path, ignore_errors=True)


def set_aside(folder: Path, latest: Path | None) -> None:
    """Renames the checkpoints after `latest` to `broken_*`, in place of older ones of that name."""
    for broken in newest_first(folder):
        if latest is None or broken.name > latest.name:
            aside = folder / f"broken_{broken.name}"
            shutil.rmtree(aside, ignore_errors=True)
            broken.replace(aside)
