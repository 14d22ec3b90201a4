"""Classes from label columns, which hold numbers from 0 on, words, or catalogue numbers such as product codes."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openjepa.data.source import NO_LABEL
from openjepa.refusals import Refusal

Value = int | str
LARGEST = 2**63 - 1
"""Largest class number that the arrays can hold."""
WHOLE_NUMBER = re.compile(r"[+-]?\d+")
CANONICAL_NUMBER = re.compile(r"0|-?[1-9]\d*")
"""A number as programs write it. Codes with leading zeros are words, so that `007` and `7` stay two classes."""


@dataclass(frozen=True)
class LabelColumn:
    """The labels of one split, as its files hold them."""

    title: str
    """Setting, column and split, for messages."""
    codes: NDArray[np.int64]
    """Index in `values` of the label of each record. NO_LABEL if the record has none."""
    values: tuple[Value, ...]
    """The labels that occur, in sorted order."""
    names: tuple[str, ...] | None = None
    """Names of the classes 0, 1, ... if the files declare them."""


def from_words(title: str, words: Sequence[str | None], numbers: re.Pattern[str] | None = None) -> LabelColumn:
    """The column of labels that are text. Blank text means no label. If all labels match `numbers`, they become numbers."""
    cleaned = [(word or "").strip() for word in words]
    found = sorted(set(cleaned) - {""})
    meant: dict[str, Value] = {word: word for word in found}
    if numbers is not None and all(numbers.fullmatch(word) for word in found):
        meant = {word: int(word) for word in found}
    values = tuple(sorted(set(meant.values())))
    places = {value: place for place, value in enumerate(values)}
    codes = [places[meant[word]] if word else NO_LABEL for word in cleaned]
    return LabelColumn(title, np.array(codes, dtype=np.int64), values)


def from_arrow(title: str, column: Any, names: tuple[str, ...] | None) -> LabelColumn | None:
    """The labels of a chunked Arrow array: whole numbers (floating-point ones too), truth values, words, or categories.

    Returns None if they are floating-point numbers that are not whole. Raises Refusal for other types.
    """
    import pyarrow as pa

    kind = value_type(column.type)
    if pa.types.is_dictionary(column.type):
        column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], kind)
    if pa.types.is_null(kind) or pa.types.is_boolean(kind) or is_text(kind):
        return from_words(title, [None if value is None else str(value) for value in column.to_pylist()])
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise Refusal(f"{title} holds {column.type}: classes are whole numbers or words")
    present = np.asarray(column.is_valid().to_numpy()).astype(np.bool_)
    numbers = column.drop_null().to_numpy()
    if pa.types.is_floating(kind):  # pandas converts whole numbers to floating point if one is missing
        finite = np.isfinite(numbers)
        present[present] = finite
        numbers = numbers[finite]
        if not np.array_equal(numbers, np.round(numbers)):
            return None
    values, inverse = np.unique(numbers, return_inverse=True)
    codes = np.full(len(present), NO_LABEL, dtype=np.int64)
    codes[present] = inverse
    return LabelColumn(title, codes, tuple(int(value) for value in values.tolist()), names)


def value_type(kind: Any) -> Any:
    """The type of the values. For categories, the type of the values that they stand for."""
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text(kind: Any) -> bool:
    """True if an Arrow type holds words."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


class Numbering:
    """Numbers the classes of a data set, in the same way for all of its splits.

    Labels 0 to n-1 stay as they are. Other numbers become names, and are replaced by their index in sorted order. Words are
    numbered in sorted order too, with those of the first split first. -1 means no label, as in the `datasets` library. It is a
    class of its own if there are other negative numbers, or only -1 and 1.
    """

    def __init__(self, columns: Sequence[LabelColumn], as_they_are: bool = False) -> None:
        """`columns`: the training split's first. `as_they_are`: keep numbers that no file declares, as for a stream."""
        self._declared = next((column.names for column in columns if column.names is not None), None)
        numbers = {value for column in columns for value in column.values if isinstance(value, int)}
        self._is_marked = all(number >= NO_LABEL for number in numbers) and numbers != {-1, 1}
        self._as_words = self._declared is not None or any(isinstance(v, str) for column in columns for v in column.values)
        self._places: dict[Value, int] = {}
        if self._as_words:
            self._add(self._declared or ())
            for column in columns:
                self._add(sorted(str(key) for key in self._keys(column) if key is not None))
            return
        keys = sorted({int(key) for column in columns for key in self._keys(column) if key is not None})
        self._stays = as_they_are or keys == list(range(len(keys)))
        self._add(keys)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes. None if they are just 0 to n-1."""
        return None if not self._as_words and self._stays else tuple(str(key) for key in self._places)

    def labels(self, column: LabelColumn) -> NDArray[np.int64]:
        """The classes of the records. NO_LABEL if a record has none. New classes get the next numbers."""
        keys = self._keys(column)
        if not self._as_words and self._stays:
            numbers = [NO_LABEL if key is None else int(key) for key in keys]
        else:
            self._add([key for key in keys if key is not None])
            numbers = [NO_LABEL if key is None else self._places[key] for key in keys]
        return np.array([*numbers, NO_LABEL], dtype=np.int64)[column.codes]  # the code NO_LABEL (-1) selects the last entry

    def _add(self, keys: Iterable[Value]) -> None:
        for key in keys:
            self._places.setdefault(key, len(self._places))

    def _keys(self, column: LabelColumn) -> list[Value | None]:
        """The class name or number of each of the column's values. None if a value means no label."""
        names = column.names or self._declared
        keys: list[Value | None] = []
        for value in column.values:
            if isinstance(value, str):
                keys.append(value)
            elif value == NO_LABEL and (self._is_marked or names is not None):
                keys.append(None)
            elif names is None:
                keys.append(str(value) if self._as_words else value)
            elif 0 <= value < len(names):
                keys.append(names[value])
            else:
                raise Refusal(f"{column.title} holds the class {value}, but the files declare {len(names)} classes from 0 on")
        return keys


def stream_label(value: object) -> int | None:
    """The class of a record of a stream, a whole number from 0 on. Words cannot be numbered before all of them are known."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return int(value) if isinstance(value, int) and 0 <= value <= LARGEST else None
