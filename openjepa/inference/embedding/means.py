"""The mean of all features of a table, kept in its manifest with what it is the mean of. Free of torch.

A centered search needs it, and computing it takes as long as the search. It counts only where the table still has as many rows,
and in a sample of them the same numbers: of features that were filtered, normalized or mixed up since, it is computed anew.
"""

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openjepa.inference.embedding.table import FeatureTable, Manifest

SAMPLE = 1024
"""Rows of an array, evenly spread, that are compared: all of a small one. What others may have changed moves the mean by less
than a thousandth of the change. Parquet files cannot be changed in place, and who writes them anew drops the mean."""


def evenly_spread(number: int, at_most: int) -> list[int]:
    """So many of `number` rows, ascending; all where there are no more."""
    return sorted({int(row) for row in np.linspace(0, number - 1, min(at_most, number))})


class Tally:
    """What is known of features once all are written: their checksum and their mean."""

    def __init__(self, manifest: Manifest, num_rows: int) -> None:
        """`num_rows`: as many as will come."""
        self._dtype, self._shape = np.dtype(manifest.dtype), manifest.shape
        self._sum, self._num_rows = np.zeros(manifest.shape), 0
        self._wanted, self._sample = evenly_spread(num_rows, SAMPLE), 0
        self.checksum = 0
        """CRC-32 of all features."""

    def add(self, data: bytes) -> None:
        """Whole rows."""
        self.checksum = zlib.crc32(data, self.checksum)
        rows = np.frombuffer(data, self._dtype).reshape(-1, *self._shape)
        inside = range(self._num_rows, self._num_rows + len(rows))
        for row in self._wanted:
            if row in inside:
                self._sample = zlib.crc32(rows[row - inside.start].tobytes(), self._sample)
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._num_rows += len(rows)

    def mean(self) -> dict[str, Any]:
        """As the manifest holds it: base64 of little-endian fp32 with its CRC-32, number of rows, CRC-32 of some of them."""
        values = (self._sum / self._num_rows).astype("<f4").tobytes()
        return {
            "values": base64.b64encode(values).decode(),
            "rows": self._num_rows,
            "checksum": zlib.crc32(values),
            "sample": self._sample,
        }


def kept_mean(table: FeatureTable) -> NDArray[np.float32] | None:
    """Mean of the features of all images [*shape]; None where the table keeps none, or not that of these features."""
    kept = table.manifest.mean
    try:
        data = base64.b64decode(kept["values"], validate=True)
        values = np.frombuffer(data, "<f4").reshape(table.manifest.shape)
    except (KeyError, ValueError, TypeError):
        return None
    if kept.get("rows") != len(table) or kept.get("checksum") != zlib.crc32(data):
        return None
    return values if table.path.suffix != ".npy" or kept.get("sample") == _of_sample(table) else None


def _of_sample(table: FeatureTable) -> int:
    checksum = 0
    for row in evenly_spread(len(table), SAMPLE):
        checksum = zlib.crc32(np.ascontiguousarray(table.features(row)).tobytes(), checksum)
    return checksum
