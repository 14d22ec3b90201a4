"""Rows of features on disk. They are written batch by batch, continued after an interruption, and mapped if there are many.

A file has the safetensors format: 8 bytes of length, a JSON header padded to byte 4096, one index for every record of the
source, then the rows. Index i is the number of the record that row i belongs to, or -1 if there is no row i. An unreadable
record has no row. While a file grows, its name ends in `.partial`, and its header says how many rows are safely on disk. The
next process continues there after a crash.
"""

import json
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Int, Shaped
from numpy.typing import NDArray
from torch import Tensor

from openjepa.config import object_in
from openjepa.system.shared_files import take

HEADER_BYTES, NUMBER_BYTES = 4096, 8
"""Bytes of length and header together (a multiple of every item's size and of a page); bytes of one index."""
SECONDS_BETWEEN_NOTES = 10.0
"""Seconds between two flushes of the rows to disk. Frequent flushes cost time; rare ones lose more work after a crash."""
MAPPED_BYTES = 2**26
"""Files whose rows take more bytes than this are mapped; smaller ones are read into memory."""
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}
"""Types of features and their names in safetensors."""
_AS_NUMPY = {torch.float32: np.float32, torch.bfloat16: np.int16, torch.uint8: np.uint8}


@dataclass(frozen=True)
class FeatureLayout:
    """Shape and type of a file of features."""

    num_records: int
    """Number of records of the source; the file has at most this many rows."""
    width: int
    dtype: torch.dtype

    @property
    def rows_start(self) -> int:
        """Byte at which the rows begin."""
        return HEADER_BYTES + NUMBER_BYTES * self.num_records

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * self.dtype.itemsize

    def header(self, num_rows: int, is_whole: bool) -> bytes:
        """Length and JSON header of a file that has `num_rows` rows safely on disk."""
        split = NUMBER_BYTES * self.num_records
        entries = {
            "__metadata__": {"whole": str(is_whole)},
            "indices": {"dtype": "I64", "shape": [self.num_records], "data_offsets": [0, split]},
            "rows": {
                "dtype": NAMES[self.dtype],
                "shape": [num_rows, self.width],
                "data_offsets": [split, split + num_rows * self.row_bytes],
            },
        }
        text, size = json.dumps(entries).encode(), HEADER_BYTES - NUMBER_BYTES
        assert len(text) <= size
        return size.to_bytes(NUMBER_BYTES, "little") + text.ljust(size)


@dataclass(frozen=True)
class FeatureRows:
    """Rows of features and the records they belong to. Unreadable records have no row."""

    rows: Shaped[Tensor, "n F"]
    indices: Int[Tensor, " n"]
    """The record number of each row, ascending."""


class RowWriter:
    """Appends rows to a file, which it locks for this process. As a context manager, it saves the row count on exit."""

    def __init__(self, path: Path, layout: FeatureLayout) -> None:
        """Opens the unfinished file of `path`, or continues it. Raises BlockingIOError if another process is writing it."""
        self._path, self._layout = path, layout
        path.parent.mkdir(parents=True, exist_ok=True)
        self.unfinished = path.with_name(f"{path.name}.partial")
        claim = take(self.unfinished)
        if claim is None:
            raise BlockingIOError(f"another process is writing {self.unfinished}")
        self._claim = claim
        self._file: BinaryIO = self.unfinished.open("r+b")
        found = _parsed(self._file)
        is_ours = found is not None and found.layout == layout
        self.num_rows = found.num_rows if found is not None and is_ours else 0
        """Rows written so far."""
        self._noted = self.num_rows
        self._file.truncate(layout.rows_start + self.num_rows * layout.row_bytes)  # rows beyond the count may be damaged
        self._indices = _numbers(self._file, layout, self.num_rows)
        if not is_ours:
            self._note(is_whole=False)
        self._file.seek(0, os.SEEK_END)
        self._last_note = time.monotonic()

    @property
    def dtype(self) -> torch.dtype:
        """Type of the rows."""
        return self._layout.dtype

    @property
    def next_record(self) -> int:
        """The number of the next record to read."""
        return int(self._indices[self.num_rows - 1]) + 1 if self.num_rows else 0

    def append(self, rows: Shaped[Tensor, "n F"], indices: Int[Tensor, " n"]) -> None:
        """Appends `rows`, which are on the CPU; `indices` are their record numbers."""
        self._file.write(rows.to(self.dtype).contiguous().view(torch.uint8).numpy().data)
        self._indices[self.num_rows : self.num_rows + len(rows)] = indices.numpy()
        self.num_rows += len(rows)
        if time.monotonic() - self._last_note > SECONDS_BETWEEN_NOTES:
            self._note(is_whole=False)

    def finish(self) -> FeatureRows:
        """Gives the file its final name, which means that every record was tried, and reads it."""
        self._note(is_whole=True)
        self.unfinished.replace(self._path)
        return _read(self._path, self._layout, self.num_rows)

    def __enter__(self) -> "RowWriter":
        """The writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Saves the row count, even after an error, and closes the file."""
        if self.num_rows > self._noted and self.unfinished.exists():
            self._note(is_whole=False)
        self._file.close()
        self._claim.release()

    def _note(self, is_whole: bool) -> None:
        """Flushes rows and indices to disk, then writes the header that counts them."""
        self._file.flush()
        os.pwrite(self._file.fileno(), self._indices.tobytes(), HEADER_BYTES)
        os.fsync(self._file.fileno())
        os.pwrite(self._file.fileno(), self._layout.header(self.num_rows, is_whole), 0)
        os.fsync(self._file.fileno())
        self._noted = self.num_rows
        self._last_note = time.monotonic()


def read_rows(path: Path) -> FeatureRows | None:
    """The rows of a complete file; None if there is no such file.

    A large file is mapped, so that rows are in memory only while they are used. Never write to them.
    """
    try:
        with path.open("rb") as file:
            found = _parsed(file)
    except OSError:
        return None
    return _read(path, found.layout, found.num_rows) if found is not None and found.is_whole else None


@dataclass(frozen=True)
class _Parsed:
    """The header of a file, parsed."""

    layout: FeatureLayout
    num_rows: int
    is_whole: bool


def _parsed(file: BinaryIO) -> _Parsed | None:
    """The header of a file; None if the file is not ours or holds fewer rows than its header says."""
    try:
        text = object_in(file.read(HEADER_BYTES)[NUMBER_BYTES:].decode(), file.name)
        rows, width = text["rows"]["shape"]
        (num_records,) = text["indices"]["shape"]
        dtype = {name: dtype for dtype, name in NAMES.items()}[text["rows"]["dtype"]]
        found = _Parsed(FeatureLayout(num_records, width, dtype), rows, text["__metadata__"]["whole"] == "True")
    except (ValueError, KeyError, TypeError):
        return None
    layout = found.layout
    return found if os.fstat(file.fileno()).st_size >= layout.rows_start + rows * layout.row_bytes else None


def _numbers(file: BinaryIO, layout: FeatureLayout, num_rows: int) -> NDArray[np.int64]:
    """The record number of each row; -1 for rows that do not exist yet."""
    file.seek(HEADER_BYTES)
    known = np.frombuffer(file.read(NUMBER_BYTES * num_rows), np.int64)
    return np.concatenate([known, np.full(layout.num_records - num_rows, -1, np.int64)])


def _read(path: Path, layout: FeatureLayout, num_rows: int) -> FeatureRows:
    with path.open("rb") as file:
        indices = torch.from_numpy(_numbers(file, layout, num_rows)[:num_rows])
    return FeatureRows(_read_rows(path, layout, num_rows), indices)


def _read_rows(path: Path, layout: FeatureLayout, num_rows: int) -> Shaped[Tensor, "n F"]:
    shape, dtype, start = (num_rows, layout.width), layout.dtype, layout.rows_start
    if num_rows * layout.row_bytes <= MAPPED_BYTES:
        count = num_rows * layout.width
        return torch.from_numpy(np.fromfile(path, _AS_NUMPY[dtype], count, offset=start)).view(dtype).view(shape)
    mapped = np.memmap(path, dtype=_AS_NUMPY[dtype], mode="r", offset=start, shape=shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch has no read-only tensors, and nothing writes to features
        return torch.from_numpy(mapped).view(dtype)
