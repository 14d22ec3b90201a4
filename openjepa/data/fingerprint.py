"""Hashes of a data source: what was computed of its images is known by them."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from openjepa.data.source import ListSource

FINGERPRINT_RECORDS = 32
"""Records of a source whose bytes enter its fingerprint, beside the names of all."""


def source_hash(source: ListSource) -> str:
    """Hash of a source: the names of all records and the bytes of some, evenly spread."""
    digest = hashlib.sha256(str(len(source)).encode())
    for index in range(len(source)):
        digest.update(source.name(index).encode(errors="surrogateescape"))
    for index in range(0, len(source), max(1, len(source) // FINGERPRINT_RECORDS)):
        try:
            digest.update(source.read(index))
        except (OSError, ValueError):
            digest.update(b"unreadable")
    return digest.hexdigest()


def stamps_hash(source: ListSource) -> str:
    """Hash of the stamps of all records: changes if an image is overwritten in place. One `stat` of each file."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.stamp(index))
    return digest.hexdigest()


def file_stamp(path: str | Path) -> bytes:
    """Size and modification time of a file, of the target if it is a link; `missing` if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a million of them: making a Path of each costs as much as the call
    except OSError:
        return b"missing "
    return b"%d %d " % (status.st_size, status.st_mtime_ns)


def joined_stamps(files: Iterable[str | Path]) -> bytes:
    """The stamps of several files that hold records together, as a hash."""
    return hashlib.sha256(b"".join(file_stamp(file) for file in files)).digest()
