"""The binary version of CIFAR: files of fixed-size records, mapped into memory. The pickled version is never opened.

A record is one label byte (CIFAR-10) or a coarse and a fine one (CIFAR-100), then 3,072 bytes: the red, the green and the blue
plane of 32 x 32 pixels, row by row (as the data sets' official page describes them).
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from openjepa.data.source import ListSource
from openjepa.refusals import Refusal

SIDE = 32
PIXEL_BYTES = 3 * SIDE * SIDE
PPM_HEADER = f"P6 {SIDE} {SIDE} 255\n".encode()


class CifarBinary(ListSource):
    """Records of one or more files, in their order. Labels are the last label byte of each record."""

    def __init__(
        self, files: tuple[Path, ...], num_label_bytes: int, num_classes: int, class_names: tuple[str, ...] | None
    ) -> None:
        """Raises Refusal where a file is no whole number of records, or a label is not below `num_classes`."""
        self._files = files
        self._num_label_bytes = num_label_bytes
        self._open()
        parts = [records[:, num_label_bytes - 1].astype(np.int64) for records in self._records]
        for file, labels in zip(files, parts, strict=True):
            _check_labels(file, labels, num_classes)
        self.labels = np.concatenate(parts)
        self.class_names = class_names

    def _open(self) -> None:
        self._records = [_map_records(file, self._num_label_bytes + PIXEL_BYTES) for file in self._files]
        self._firsts: NDArray[np.int64] = np.cumsum([0] + [len(records) for records in self._records], dtype=np.int64)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the mapped files, which would travel as copies."""
        return {name: value for name, value in vars(self).items() if name not in ("_records", "_firsts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps the files again."""
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        """Number of records."""
        return int(self._firsts[-1])

    def read(self, index: int) -> bytes:
        """The image as a PPM file, which keeps every pixel."""
        file, row = self._locate(index)
        planes = self._records[file][row, self._num_label_bytes :].reshape(3, SIDE, SIDE)
        return PPM_HEADER + planes.transpose(1, 2, 0).tobytes()

    def name(self, index: int) -> str:
        """The file and the number of the record in it."""
        file, row = self._locate(index)
        return f"{self._files[file].name} record {row}"

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} records; there is no record {index}")
        file = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return file, index - int(self._firsts[file])


def _map_records(file: Path, record_bytes: int) -> UInt8[np.ndarray, "n bytes"]:
    size = file.stat().st_size
    if size == 0 or size % record_bytes:
        raise Refusal(
            f"{file} has {size:,} bytes; expected: a whole number of records of {record_bytes:,} bytes. "
            "Unpack the archive again"
        )
    return np.memmap(file, dtype=np.uint8, mode="r", shape=(size // record_bytes, record_bytes))


def _check_labels(file: Path, labels: NDArray[np.int64], num_classes: int) -> None:
    if labels.max() >= num_classes:
        row = int(np.flatnonzero(labels >= num_classes)[0])
        raise Refusal(
            f"{file}: record {row} has the label {labels[row]}; expected: below {num_classes}. Is it another data set's file?"
        )
