"""Rows of features on disk: written as they come, continued after an interruption, mapped when read where they are many.

One file in the safetensors format: 8 bytes of length, a JSON text that fills up the first 4096 bytes, then the rows. While it
grows its name ends in `.partial`, and the text says how many rows are safely on disk; a killed program continues there.
"""

import fcntl
import json
import os
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from openjepa.refusals import Refusal

HEADER_BYTES = 4096
"""Of length and text together: a multiple of every item's size and of a page."""
SECONDS_BETWEEN_NOTES = 10.0
"""So often the rows are flushed to disk and counted. More often costs time, less often loses more of it."""
MAPPED_BYTES = 2**26
"""Larger files are mapped, smaller ones are read into memory."""
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}
"""Of the types of features, in safetensors."""
_AS_NUMPY = {torch.float32: np.float32, torch.bfloat16: np.int16, torch.uint8: np.uint8}


class RowWriter:
    """Appends rows to a file that other processes leave alone; a context that notes what is there when it is left."""

    def __init__(self, path: Path, shape: tuple[int, int], dtype: torch.dtype) -> None:
        """Opens or continues the unfinished file of `path`. Raises BlockingIOError where another process is writing it."""
        self._path, self._shape, self.dtype = path, shape, dtype
        path.parent.mkdir(parents=True, exist_ok=True)
        self.unfinished = path.with_name(f"{path.name}.partial")
        self._file: BinaryIO = os.fdopen(os.open(self.unfinished, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check_name()
        except OSError:
            self._file.close()
            raise
        known = _noted_rows(self._file, shape, dtype)
        self.num_rows = 0 if known is None else known
        """Rows written so far."""
        self._noted = self._safe = self.num_rows
        self._file.truncate(HEADER_BYTES + self.num_rows * self._row_bytes)  # what was not noted may be damaged
        self._file.seek(0, os.SEEK_END)
        if known is None:
            self._write_header()
        self._last_note = time.monotonic()

    def append(self, rows: Shaped[Tensor, "n F"], can_continue: bool = True) -> None:
        """Adds rows on the CPU. `can_continue`: a program that is killed now may continue after them."""
        self._file.write(rows.to(self.dtype).contiguous().view(torch.uint8).numpy().data)
        self.num_rows += len(rows)
        self._safe = self.num_rows if can_continue else self._safe
        if time.monotonic() - self._last_note > SECONDS_BETWEEN_NOTES:
            self._note()

    def finish(self) -> Shaped[Tensor, "n F"]:
        """Gives the file its name, which only a whole one has, and reads it. Raises Refusal where rows lack."""
        if self.num_rows != self._shape[0]:
            raise Refusal(f"{self._path} needs {self._shape[0]} rows, not {self.num_rows}")
        self._safe = self.num_rows
        self._note()
        self.unfinished.replace(self._path)
        return _read(self._path, self._shape, self.dtype)

    def take(self) -> Shaped[Tensor, "n F"]:
        """The rows there are, of a file that is deleted: they go with the tensor."""
        self._file.flush()
        rows = _read(self.unfinished, (self.num_rows, self._shape[1]), self.dtype)
        self.unfinished.unlink()
        return rows

    def __enter__(self) -> "RowWriter":
        """The writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Notes how far it has come, also after an error, and lets go of the file."""
        if self._safe > self._noted and self.unfinished.exists():
            self._note()
        self._file.close()

    def _check_name(self) -> None:
        """Raises BlockingIOError where another process has finished the file between our opening and locking it."""
        there = self.unfinished.stat() if self.unfinished.exists() else None
        if there is None or there.st_ino != os.fstat(self._file.fileno()).st_ino:
            raise BlockingIOError(f"{self.unfinished} has just been finished by another process")

    @property
    def _row_bytes(self) -> int:
        return self._shape[1] * self.dtype.itemsize

    def _note(self) -> None:
        """The rows reach the disk before the number that counts them does."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._noted = self._safe
        self._write_header()
        os.fsync(self._file.fileno())
        self._last_note = time.monotonic()

    def _write_header(self) -> None:
        os.pwrite(self._file.fileno(), _header(self._shape, self.dtype, self._noted), 0)
        self._file.seek(0, os.SEEK_END)


def read_rows(path: Path) -> Shaped[Tensor, "n F"] | None:
    """The rows of a whole file; None where there is no such file.

    Those of a large file are mapped: in memory only while they are used, and never to be written to.
    """
    try:
        with path.open("rb") as file:
            found = _parsed(file)
    except OSError:
        return None
    if found is None or found[2] != found[0][0]:
        return None
    shape, dtype, _ = found
    return _read(path, shape, dtype)


def _header(shape: tuple[int, int], dtype: torch.dtype, noted: int) -> bytes:
    num_bytes = shape[0] * shape[1] * dtype.itemsize
    described = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [0, num_bytes]}
    text = json.dumps({"__metadata__": {"noted_rows": str(noted)}, "rows": described}).encode()
    size = HEADER_BYTES - 8
    assert len(text) <= size
    return size.to_bytes(8, "little") + text.ljust(size)


def _noted_rows(file: BinaryIO, shape: tuple[int, int], dtype: torch.dtype) -> int | None:
    """How many rows of an unfinished file can be relied on; None where it is new, damaged, or made for others."""
    found = _parsed(file)
    return found[2] if found is not None and found[:2] == (shape, dtype) else None


def _parsed(file: BinaryIO) -> tuple[tuple[int, int], torch.dtype, int] | None:
    """Shape, type and noted rows; None where the file says none of this, or holds fewer rows than it says."""
    try:
        text = json.loads(file.read(HEADER_BYTES)[8:])
        rows, columns = text["rows"]["shape"]
        dtype = {name: dtype for dtype, name in NAMES.items()}[text["rows"]["dtype"]]
        noted = int(text["__metadata__"]["noted_rows"])
    except (ValueError, KeyError, TypeError):
        return None
    there = os.fstat(file.fileno()).st_size - HEADER_BYTES
    return ((rows, columns), dtype, noted) if there >= noted * columns * dtype.itemsize else None


def _read(path: Path, shape: tuple[int, int], dtype: torch.dtype) -> Shaped[Tensor, "n F"]:
    count = shape[0] * shape[1]
    if count * dtype.itemsize <= MAPPED_BYTES:
        return torch.from_numpy(np.fromfile(path, _AS_NUMPY[dtype], count, offset=HEADER_BYTES)).view(dtype).view(shape)
    mapped = np.memmap(path, dtype=_AS_NUMPY[dtype], mode="r", offset=HEADER_BYTES, shape=shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch has no read-only tensors; nobody writes to features
        return torch.from_numpy(mapped).view(dtype)
