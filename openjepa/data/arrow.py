"""Lists of images in Arrow tables, in memory or mapped from files."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openjepa.data.decode import DecodeError
from openjepa.data.fingerprint import file_stamp, joined_stamps
from openjepa.data.source import ListSource
from openjepa.refusals import Refusal
from openjepa.settings.data import HuggingFaceSettings

LABEL_NAMES = ("label", "labels", "cls")
"""Integer columns that are taken for labels where the files declare no class label."""


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are used."""

    image: str
    label: str | None
    class_names: tuple[str, ...] | None
    """Names of the labels 0, 1, ... where the files declare them."""


def choose_columns(schema: Any, settings: HuggingFaceSettings) -> Columns:
    """The image and label columns of an Arrow schema, by its declared features or its types; Refusal where unclear."""
    features = declared_features(schema)
    names: list[str] = list(schema.names)
    image = _chosen("image_column", settings.image_column, names, [n for n in names if _holds_images(schema, features, n)])
    if image is None:
        raise Refusal(f"data.path={settings.path!r} has no image column among {names}: name it with data.image_column")
    declared = [name for name in names if features.get(name, {}).get("_type") == "ClassLabel"]
    usual = [name for name in LABEL_NAMES if name in names and pa.types.is_integer(schema.field(name).type)]
    label = _chosen("label_column", settings.label_column, names, declared or usual[:1])
    class_names = features.get(label or "", {}).get("names")
    return Columns(image, label, tuple(class_names) if class_names else None)


def declared_features(schema: Any) -> dict[str, Any]:
    """The features that the `datasets` library wrote into a schema's metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(text).get("info", {}).get("features", {}) if text else {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _holds_images(schema: Any, features: dict[str, Any], name: str) -> bool:
    kind = schema.field(name).type
    is_encoded = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    declared = features.get(name, {}).get("_type", "Value")  # plain bytes, or a struct without a type of its own, say nothing
    return declared in ("Image", "Value") and (is_encoded or _is_bytes(kind))


def _is_bytes(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _chosen(setting: str, given: str | None, names: list[str], candidates: list[str]) -> str | None:
    """The given column, else the only candidate; None where there is none."""
    if given is not None and given not in names:
        raise Refusal(f"data.{setting}={given!r} is not a column; there are {names}")
    if given is None and len(candidates) > 1:
        raise Refusal(f"several columns could be data.{setting}: choose one of {candidates}")
    return given or (candidates[0] if candidates else None)


class ArrowSource(ListSource):
    """Rows of a table. Worker processes that cannot inherit it open it again."""

    def __init__(self, open_table: Callable[[], Any], columns: Columns, title: str, files: bytes) -> None:
        """`open_table()` returns the pyarrow table; `title` is what its rows are called in messages.

        `files`: stamp of the files that the table was made of.
        """
        self._open_table = open_table
        self._columns = columns
        self._title = title
        self._files = files
        table = self._open()
        self.labels, self.class_names = _labels(table, columns)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the table."""
        return {name: value for name, value in vars(self).items() if name not in ("_chunks", "_paths", "_firsts")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Opens the table again."""
        vars(self).update(state)
        self._open()

    def _open(self) -> Any:
        table = self._open_table()
        pieces = [_bytes_and_paths(chunk) for chunk in table.column(self._columns.image).chunks if len(chunk)]
        self._chunks = [encoded for encoded, _ in pieces]
        self._paths = [paths for _, paths in pieces]
        self._firsts: NDArray[np.int64] = np.cumsum([0] + [len(chunk) for chunk in self._chunks], dtype=np.int64)
        return table

    def __len__(self) -> int:
        """Number of rows."""
        return int(self._firsts[-1])

    def read(self, index: int) -> bytes:
        """The encoded image of a row; a row may also name a file."""
        chunk, row = self._locate(index)
        data: bytes | None = self._chunks[chunk][row].as_py()
        if data is not None:
            return data
        path = self._path(chunk, row)
        if path is None:
            raise DecodeError("the row has no image")
        return Path(path).read_bytes()

    def name(self, index: int) -> str:
        """The row, and the path of the image where the table has it."""
        path = self._path(*self._locate(index))
        return f"{self._title} row {index}" + (f" ({path})" if path else "")

    def stamp(self, index: int) -> bytes:
        """That of the table's files, and of the file that a row names in place of an image."""
        chunk, row = self._locate(index)
        path = None if self._chunks[chunk][row].is_valid else self._path(chunk, row)
        return self._files if path is None else self._files + file_stamp(path)

    def renumber(self, class_names: tuple[str, ...]) -> None:
        """Number the classes as in `class_names`, which must hold all of them."""
        assert self.class_names is not None
        unknown = sorted(set(self.class_names) - set(class_names))
        if unknown:
            raise Refusal(f"the split {self._title!r} has classes that the training split has not: {unknown[:8]}")
        if self.labels is not None:
            self.labels = np.array([class_names.index(name) for name in self.class_names], dtype=np.int64)[self.labels]
        self.class_names = class_names

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self._title} has {len(self)} rows; there is no row {index}")
        chunk = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return chunk, index - int(self._firsts[chunk])

    def _path(self, chunk: int, row: int) -> str | None:
        paths = self._paths[chunk]
        path: str | None = None if paths is None else paths[row].as_py()
        return path


def _bytes_and_paths(chunk: Any) -> tuple[Any, Any]:
    if not pa.types.is_struct(chunk.type):
        return chunk, None
    fields = dict(zip([field.name for field in chunk.type], chunk.flatten(), strict=True))
    return fields["bytes"], fields.get("path")


def _labels(table: Any, columns: Columns) -> tuple[NDArray[np.int64] | None, tuple[str, ...] | None]:
    """Labels and class names; None where there are none or not all rows have one (the library writes -1)."""
    if columns.label is None:
        return None, None
    column = table.column(columns.label)
    if column.null_count:
        return None, columns.class_names
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        names, labels = np.unique(column.to_numpy(), return_inverse=True)
        return labels.astype(np.int64), tuple(str(name) for name in names)
    if not pa.types.is_integer(column.type):
        raise Refusal(f"data.label_column={columns.label!r} holds {column.type}: classes are whole numbers or words")
    labels = column.to_numpy().astype(np.int64)
    return (None if len(labels) and labels.min() < 0 else labels), columns.class_names


def read_parquet(files: tuple[str, ...], columns: Columns) -> Any:
    """One table of the used columns of Parquet files, in memory."""
    wanted = [columns.image] + ([columns.label] if columns.label else [])
    return pa.concat_tables([pq.read_table(file, columns=wanted, memory_map=True) for file in files])


def open_parquet(files: list[str], settings: HuggingFaceSettings, title: str) -> ArrowSource:
    """The rows of Parquet files, read into memory."""
    columns = choose_columns(pq.read_schema(files[0]), settings)
    return ArrowSource(partial(read_parquet, tuple(files), columns), columns, title, joined_stamps(files))


def open_dataset(dataset: Any, settings: HuggingFaceSettings, title: str, files: Sequence[str] = ()) -> ArrowSource:
    """The rows of a `datasets.Dataset`, whose Arrow files are mapped into memory.

    `files`: those it was made of. None on this machine: it is known by the folders of its Arrow files, which the library
    names after the commit on the Hub, and by their sizes.
    """
    columns = choose_columns(dataset.features.arrow_schema, settings)
    prepared = [Path(entry["filename"]) for entry in dataset.cache_files]
    known = "".join(f"{file.parent.name} {file.name} {file.stat().st_size} " for file in prepared).encode()
    return ArrowSource(partial(_table_of, dataset), columns, title, joined_stamps(files) if files else known)


def _table_of(dataset: Any) -> Any:
    return dataset.data.table
