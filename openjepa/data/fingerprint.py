"""A hash of a data source: what was computed of its images is known by it."""

import hashlib

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
