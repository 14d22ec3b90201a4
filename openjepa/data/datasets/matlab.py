"""Just enough of MATLAB's file format (version 5) to read an array of structures: ImageNet's meta.mat, without scipy.

Source: "MAT-File Format" (The MathWorks), chapter 1. Only little-endian files; text and full numeric arrays inside structures.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openjepa.refusals import Refusal

Value = str | NDArray[np.float64] | None
"""Text, numbers in column order, or None for what is not read (cells, nested structures, sparse arrays)."""

HEADER_BYTES = 128
MATRIX, COMPRESSED = 14, 15
"""Types of data elements that hold others."""
TEXT_ENCODINGS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le"}
"""By the type of the element that holds the characters."""
NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
"""Type of the element -> numpy's name."""
STRUCTURE, CHARACTERS, FIRST_NUMERIC = 2, 4, 6
"""Classes of arrays; all from FIRST_NUMERIC on are numbers."""


def read_structures(file: Path, name: str) -> list[dict[str, Value]]:
    """The elements of the array of structures `name`, in column order.

    Raises Refusal where the file is no such file, is damaged, or has no such array.
    """
    data = file.read_bytes()
    if len(data) < HEADER_BYTES or data[126:128] != b"IM":
        raise Refusal(f"{file} is no MATLAB file of version 5 (little-endian)")
    try:
        for kind, content in _elements(data[HEADER_BYTES:]):
            matrix = next(_elements(zlib.decompress(content)))[1] if kind == COMPRESSED else content
            parts = list(_elements(matrix))
            if parts[2][1] == name.encode() and _array_class(parts) == STRUCTURE:
                return _structures(parts)
    except (struct.error, zlib.error, IndexError, KeyError, StopIteration, UnicodeDecodeError) as error:
        raise Refusal(f"{file} is damaged ({type(error).__name__}: {error})") from error
    raise Refusal(f"{file} has no array of structures {name!r}")


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of the data elements that stand one after another. Raises IndexError where one is cut off."""
    position = 0
    while position < len(data):
        word = struct.unpack_from("<I", data, position)[0]
        if word >> 16:  # up to four bytes stand in the tag itself, beside their number
            kind, size, start, end = word & 0xFFFF, word >> 16, position + 4, position + 8
        else:
            kind, size, start = word, struct.unpack_from("<I", data, position + 4)[0], position + 8
            end = start + size if kind == COMPRESSED else start + -(-size // 8) * 8
        if start + size > len(data):
            raise IndexError(f"an element of {size} bytes is cut off")
        yield kind, data[start : start + size]
        position = end


def _array_class(parts: list[tuple[int, bytes]]) -> int:
    return parts[0][1][0]  # the lowest byte of the flags


def _structures(parts: list[tuple[int, bytes]]) -> list[dict[str, Value]]:
    """Parts: flags, dimensions, name, length of a field's name, the names, then the fields of one element after another."""
    length = struct.unpack("<i", parts[3][1])[0]
    padded = parts[4][1]
    fields = [padded[start : start + length].split(b"\0")[0].decode() for start in range(0, len(padded), length)]
    values = [_value(content) for _, content in parts[5:]]
    return [dict(zip(fields, values[start : start + len(fields)], strict=True)) for start in range(0, len(values), len(fields))]


def _value(matrix: bytes) -> Value:
    """Contents of one array."""
    parts = list(_elements(matrix))
    if not parts:  # an empty array may have no parts at all
        return np.empty(0)
    kind = _array_class(parts)
    if kind == CHARACTERS:
        return parts[3][1].decode(TEXT_ENCODINGS[parts[3][0]])
    if kind < FIRST_NUMERIC:
        return None
    return np.frombuffer(parts[3][1], dtype=NUMBERS[parts[3][0]]).astype(np.float64)
