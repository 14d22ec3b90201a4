"""Shared parts of Parquet files, tars and the Hub: readers of splits, columns of images in Arrow's types, lists of rows."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from openjepa.config import object_in
from openjepa.data.decode import DecodeError
from openjepa.data.folders.entries import SUFFIXES
from openjepa.data.source import ListSource, Pieces, ShardSource, file_stamp
from openjepa.data.tables.labels import LabelColumn, is_text, value_type
from openjepa.refusals import Refusal
from openjepa.settings.sources import HuggingFaceSettings
from openjepa.system.shared_files import whole_file

LABEL_NAMES = ("label", "labels", "cls")
"""Columns of numbers or words that count as labels if the files declare no class label."""
EXAMPLE_ROWS = 16
"""Number of rows of a column of words that decide if the words are paths of images."""


class SplitReader(ABC):
    """Opens the splits of one data set."""

    splits: tuple[str, ...]
    """Names of the existing splits."""
    left_out: tuple[str, ...] = ()
    """Counts of other files that may have been meant as data, in words."""

    @abstractmethod
    def open_list(self, split: str) -> ListSource:
        """The images of a split, without their labels."""

    @abstractmethod
    def label_column(self, split: str) -> LabelColumn | None:
        """The labels of a split in the order of its images. None if the split has no label column."""

    @abstractmethod
    def open_stream(self, split: str) -> ShardSource:
        """The shards of a split, to be read from front to back."""


# ---------------------------------------------------------------------------------------------------------------------- columns


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are used."""

    image: str
    label: str | None
    class_names: tuple[str, ...] | None
    """Names of the labels 0, 1, ... if the files declare them."""


def choose_columns(schema: Any, settings: HuggingFaceSettings, examples: Callable[[str], Sequence[object]]) -> Columns:
    """The image and label columns of an Arrow schema, according to its declared features or its types.

    `examples(name)` returns the first values of a column that may hold paths of images. Raises Refusal if there is no image
    column, or several columns are possible.
    """
    features = declared_features(schema)
    names: list[str] = list(schema.names)
    images = [name for name in names if _holds_images(schema, features, name)]
    if not images and settings.image_column is None:
        images = [name for name in names if _may_be_paths(schema.field(name).type) and _are_paths(examples(name))]
    image = _chosen("image_column", settings.image_column, names, images)
    if image is None:
        raise Refusal(f"data.path={settings.path!r} has no image column among {names}: name it with data.image_column")
    declared = [name for name in names if features.get(name, {}).get("_type") == "ClassLabel"]
    usual = [name for name in LABEL_NAMES if name in names and _may_be_classes(schema.field(name).type)]
    label = _chosen("label_column", settings.label_column, names, declared or usual[:1])
    class_names = features.get(label or "", {}).get("names")
    return Columns(image, label, tuple(class_names) if class_names else None)


def declared_features(schema: Any) -> dict[str, Any]:
    """The features that the `datasets` library wrote into the metadata of a schema."""
    text = (schema.metadata or {}).get(b"huggingface", b"{}").decode(errors="replace")
    features = object_in(text, "the metadata of the table", "write the file again").get("info", {}).get("features", {})
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


def _holds_images(schema: Any, features: dict[str, Any], name: str) -> bool:
    kind = value_type(schema.field(name).type)
    is_encoded = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    declared = features.get(name, {}).get("_type", "Value")  # for plain bytes, or a struct without a declared type
    return declared in ("Image", "Value") and (is_encoded or _is_bytes(kind))


def _is_bytes(kind: Any) -> bool:
    return bool(
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _may_be_paths(kind: Any) -> bool:
    """True if a column holds words, or structs with a word named `path`."""
    kind = value_type(kind)
    if pa.types.is_struct(kind):
        at = kind.get_field_index("path")
        return at >= 0 and is_text(value_type(kind.field(at).type))
    return is_text(kind)


def _are_paths(values: Sequence[object]) -> bool:
    """True if there are words and all of them are names of image files."""
    paths = [value.get("path") if isinstance(value, dict) else value for value in values]
    words = [str(path) for path in paths if path]
    return bool(words) and all("://" not in word and Path(word).suffix.lower() in SUFFIXES for word in words)


def _may_be_classes(kind: Any) -> bool:
    kind = value_type(kind)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind) or is_text(kind))


def _chosen(setting: str, given: str | None, names: list[str], candidates: list[str]) -> str | None:
    """The given column, or else the only candidate. None if there is none. Raises Refusal if the choice is not possible."""
    if given is not None and given not in names:
        raise Refusal(f"data.{setting}={given!r} is not a column; there are {names}")
    if given is None and len(candidates) > 1:
        raise Refusal(f"several columns could be data.{setting}: choose one of {candidates}")
    return given or (candidates[0] if candidates else None)


# ------------------------------------------------------------------------------------------------------------------------- rows


def decoded(column: Any) -> Any:
    """The array with categories replaced by their values."""
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _no_images(kind: Any) -> Refusal:
    return Refusal(f"the image column holds {kind}: images are bytes, or paths of files")


class ImageRows:
    """The image column of some rows: encoded images, paths of files, or both."""

    def __init__(self, column: Any, folder: str = "") -> None:
        """`column` is an Arrow array. Relative paths start from `folder`. Raises Refusal if the column has another type."""
        column = decoded(column)
        self.num_bytes: int = column.nbytes
        """Number of bytes of the rows in memory."""
        self._length = len(column)
        self._folder = folder
        self._encoded: Any = None
        self._paths: Any = None
        if pa.types.is_struct(column.type):
            fields = dict(zip([field.name for field in column.type], column.flatten(), strict=True))
            self._encoded, self._paths = fields.get("bytes"), fields.get("path")
            if (self._encoded is not None and not _is_bytes(self._encoded.type)) or (
                self._paths is not None and not is_text(self._paths.type)
            ):
                raise _no_images(column.type)
        elif is_text(column.type):
            self._paths = column
        elif _is_bytes(column.type):
            self._encoded = column
        else:
            raise _no_images(column.type)

    def __len__(self) -> int:
        """Number of rows."""
        return self._length

    def path(self, row: int) -> str | None:
        """The path of an image, as written in the table."""
        path: str | None = None if self._paths is None else self._paths[row].as_py()
        return path

    def file(self, row: int) -> Path | None:
        """The file that a row names instead of an image. None if the row holds the image, or neither.

        A path with a zero byte does not count, because no file can have such a name.
        """
        if self._encoded is not None and self._encoded[row].is_valid:
            return None
        path = self.path(row)
        return Path(self._folder) / path if path and "\0" not in path else None

    def read(self, row: int) -> bytes:
        """The encoded image, from the row or from the file that it names. Raises DecodeError or OSError if there is none."""
        data: bytes | None = None if self._encoded is None else self._encoded[row].as_py()
        if data is not None:
            return data
        file = self.file(row)
        if file is None:
            raise DecodeError("the row has no image")
        return file.read_bytes()


class ArrowSource(ListSource):
    """Rows of a table. Worker processes that cannot inherit the table open it again."""

    def __init__(self, open_rows: Callable[[], Iterable[ImageRows]], title: str, files: bytes) -> None:
        """`open_rows()` yields the rows, piece by piece. `title` is their name in messages.

        `files` is the stamp of the files that the rows are read from.
        """
        self._open_rows = open_rows
        self._title = title
        self._files = files
        self._open()

    def __getstate__(self) -> dict[str, Any]:
        """The state without the images."""
        return {name: value for name, value in vars(self).items() if name not in ("_pieces", "_places")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Opens the table again."""
        vars(self).update(state)
        self._open()

    def _open(self) -> None:
        self._pieces = [piece for piece in self._open_rows() if len(piece)]
        self._places = Pieces(len(piece) for piece in self._pieces)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._places)

    def read(self, index: int) -> bytes:
        """The encoded image of a row, or of the file that it names. Raises DecodeError or OSError if there is none."""
        piece, row = self._locate(index)
        return piece.read(row)

    def name(self, index: int) -> str:
        """The row, and the path of the image if the table has one."""
        piece, row = self._locate(index)
        return row_name(self._title, index, piece.path(row))

    def image_name(self, index: int) -> str:
        """The path of the image if the table has it, else the name of the row."""
        piece, row = self._locate(index)
        return piece.path(row) or self.name(index)

    def stamp(self, index: int) -> bytes:
        """Stamp of the table's files, and of the file that a row names instead of an image."""
        piece, row = self._locate(index)
        file = piece.file(row)
        return self._files if file is None else self._files + file_stamp(file)

    def _locate(self, index: int) -> tuple[ImageRows, int]:
        piece, row = self._places.locate(index)
        return self._pieces[piece], row


def row_name(title: str, row: int, path: str | None) -> str:
    """Name of a row in messages."""
    return f"{title} row {row}" + (f" ({path})" if path else "")


# ----------------------------------------------------------------------------------------------------- files that are made once


def prepared_file(file: Path, what: str, write: Callable[[Path], None]) -> Path:
    """A file made from `file` by `write(path)`, now or earlier. It is made again if the size or time of `file` changes.

    `what` names everything else that its contents depend on. Raises OSError if the cache cannot be written.
    """
    from datasets import config

    key = hashlib.sha256(f"{file.resolve()} {what} ".encode(errors="surrogateescape") + file_stamp(file))
    target = Path(config.HF_DATASETS_CACHE) / "openjepa" / key.hexdigest()[:32]
    if not target.exists():
        with whole_file(target) as unfinished:
            write(unfinished)
    return target
