"""Parquet files, in memory, mapped, or streamed. They are read a few rows at a time, so that no row group is too large."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openjepa.data.decode import DecodeError
from openjepa.data.source import ListSource, ShardRecord, ShardSource, joined_stamps
from openjepa.data.tables.arrow import (
    EXAMPLE_ROWS,
    ArrowSource,
    Columns,
    ImageRows,
    SplitReader,
    choose_columns,
    decoded,
    prepared_file,
    row_name,
)
from openjepa.data.tables.labels import LabelColumn, from_arrow, is_text, stream_label, value_type
from openjepa.data.tables.object_stores import all_on_disk, on_disk, stamps_of
from openjepa.refusals import Refusal
from openjepa.settings.sources import HuggingFaceSettings
from openjepa.system.machine import available_memory

IN_MEMORY_SHARE = 0.25
"""Images that take at most this share of the free memory, uncompressed, are read into memory. Others are mapped."""
BATCH_BYTES = 64 * 2**20
"""Number of bytes that are read at a time, on average."""
BATCH_ROWS = 256
"""Largest number of rows that are read at a time. Repeated images take little space in a file, but all of it in memory."""


class ParquetReader(SplitReader):
    """Parquet files by split."""

    def __init__(self, files: dict[str, list[str]], settings: HuggingFaceSettings) -> None:
        """`files` are paths by split."""
        self._files = files
        self._settings = settings
        self.splits = tuple(files)

    def open_list(self, split: str) -> ListSource:
        """The images of a split: in memory if they fit, or else mapped from Arrow files that are prepared once."""
        files, image = tuple(all_on_disk(self._files[split])), self._columns(split).image
        needed = sum(uncompressed_bytes(file, [image]) for file in files)
        limit = int(IN_MEMORY_SHARE * available_memory())
        rows = partial(fitting_rows, limit=limit) if needed <= limit else mapped_rows
        return ArrowSource(partial(rows, files, image), split, joined_stamps(files))

    def label_column(self, split: str) -> LabelColumn | None:
        """The labels of a split, or None. Reads only their column."""
        columns = self._columns(split)
        if columns.label is None:
            return None
        title = f"data.label_column={columns.label!r} of the split {split!r}"
        parts = [_labels(file, columns.label) for file in all_on_disk(self._files[split])]
        return from_arrow(title, _joined(parts, title), columns.class_names)

    def open_stream(self, split: str) -> ShardSource:
        """The files of a split as shards, one per file."""
        return ParquetShards(tuple(self._files[split]), self._columns(split), split)

    def _columns(self, split: str) -> Columns:
        file = str(on_disk(self._files[split][0]))
        with _opened(file) as parquet:
            return choose_columns(parquet.schema_arrow, self._settings, partial(_first_values, file))


def uncompressed_bytes(file: str, names: list[str]) -> int:
    """Lower bound on the bytes of some columns after decompression. The metadata may count a repeated image only once."""
    with _opened(file) as parquet:
        return sum(_group_bytes(parquet.metadata.row_group(group), names) for group in range(parquet.num_row_groups))


def _group_bytes(group: Any, names: list[str]) -> int:
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(c.total_uncompressed_size for c in columns if any(f"{c.path_in_schema}.".startswith(f"{n}.") for n in names))


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    """Opens the file, and closes it afterwards. Raises Refusal if it cannot be read."""
    try:
        parquet = pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error
    with parquet:
        yield parquet


def _batches(file: str, parquet: Any, name: str) -> Iterator[Any]:
    """The rows of a column in small batches. A whole row group may be more than Arrow can hold in one array."""
    _type_of(file, parquet, name)
    groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
    largest = max((_group_bytes(group, [name]) // max(1, group.num_rows) for group in groups), default=0)
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest)))
    try:
        batches = parquet.iter_batches(batch_size=rows, columns=[name])
        while (batch := next(batches, None)) is not None:
            yield batch
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(file, error) from error


def _type_of(file: str, parquet: Any, name: str) -> Any:
    """The type of the values of a column. Raises Refusal if the file has no such column."""
    if name not in parquet.schema_arrow.names:
        raise Refusal(f"{file} has no column {name!r}, as other files do; it has {parquet.schema_arrow.names}")
    return value_type(parquet.schema_arrow.field(name).type)


def _unreadable(file: str, error: Exception) -> Refusal:
    return Refusal(f"{file} cannot be read as Parquet ({error}): get it again, or move it away")


def read_image_column(files: tuple[str, ...], image: str) -> Iterator[ImageRows]:
    """The image column of some files, a few rows at a time."""
    for file in files:
        with _opened(file) as parquet:
            for batch in _batches(file, parquet, image):
                yield ImageRows(batch.column(image), str(Path(file).parent))


def fitting_rows(files: tuple[str, ...], image: str, limit: int) -> Iterable[ImageRows]:
    """The image column in memory, or mapped if it turns out to need more than `limit` bytes."""
    pieces: list[ImageRows] = []
    taken = 0
    for piece in read_image_column(files, image):
        pieces.append(piece)
        taken += piece.num_bytes
        if taken > limit:
            pieces.clear()
            return mapped_rows(files, image)
    return pieces


def mapped_rows(files: tuple[str, ...], image: str) -> Iterator[ImageRows]:
    """The image column, mapped into memory from Arrow files in the cache."""
    for file in files:
        arrow = prepared_file(Path(file), f"images {image}", partial(_write_images, file, image))
        with pa.memory_map(str(arrow)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
        for chunk in table.column(image).chunks:
            yield ImageRows(chunk, str(Path(file).parent))


def _write_images(file: str, image: str, target: Path) -> None:
    """Writes the image column of a Parquet file as an Arrow file, with categories replaced by their values."""
    with _opened(file) as parquet:
        schema = pa.schema([(image, _type_of(file, parquet, image))])
        with pa.ipc.new_file(str(target), schema) as writer:
            for batch in _batches(file, parquet, image):
                writer.write_batch(pa.record_batch([decoded(batch.column(image))], schema=schema))


def _labels(file: str, name: str) -> Any:
    """The label column of a file. Arrow's different types of text become one."""
    with _opened(file) as parquet:
        kind = _type_of(file, parquet, name)
        column = pa.chunked_array([decoded(batch.column(name)) for batch in _batches(file, parquet, name)], kind)
        return column.cast(pa.large_string()) if is_text(kind) else column


def _joined(parts: list[Any], title: str) -> Any:
    """The labels of several files as one column of their common type, because files may have numbers of different sizes."""
    try:
        schemas = [pa.schema([("label", part.type)]) for part in parts]
        kind = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        return pa.chunked_array([chunk for part in parts for chunk in part.cast(kind).chunks], kind)
    except pa.ArrowException as error:
        raise Refusal(f"{title} is not of the same type in all files ({error})") from error


def _first_values(file: str, name: str) -> list[object]:
    with _opened(file) as parquet:
        batch = next(_batches(file, parquet, name), None)
        return [] if batch is None else [value for value in batch.column(name)[:EXAMPLE_ROWS].to_pylist()]


class ParquetShards(ShardSource):
    """Parquet files, read from front to back."""

    def __init__(self, files: tuple[str, ...], columns: Columns, title: str) -> None:
        """`title` is the name of the records in messages."""
        self._files = files
        self._columns = columns
        self._title = title
        self.class_names = columns.class_names
        self.stamp = stamps_of(files)

    def __len__(self) -> int:
        """Number of files."""
        return len(self._files)

    def read_shard(self, shard: int) -> Iterator[ShardRecord]:
        """The rows of a file. If the rest of it cannot be read, the last record has no image but the reason."""
        title, row = f"{self._title} shard {shard}", 0
        try:
            for images, labels in self._pieces(str(on_disk(self._files[shard]))):
                for place in range(len(images)):
                    yield _record(row_name(title, row, images.path(place)), images, place, labels[row] if labels else None)
                    row += 1
        except Refusal as error:
            yield ShardRecord(row_name(title, row, None), b"", problem=str(error))

    def _pieces(self, file: str) -> Iterator[tuple[ImageRows, list[Any] | None]]:
        """Some rows at a time, each time with the labels of the whole file."""
        image, label = self._columns.image, self._columns.label
        labels = None if label is None else _labels(file, label).to_pylist()
        for images in read_image_column((file,), image):
            yield images, labels


def _record(name: str, images: ImageRows, place: int, label: object) -> ShardRecord:
    try:
        return ShardRecord(name, images.read(place), stream_label(label))
    except (DecodeError, OSError) as error:
        return ShardRecord(name, b"", stream_label(label), problem=str(error))
