"""Parquet files, in memory, mapped, or streamed. They are read a few rows at a time, so that no row group is too large."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

import pyarrow as pa
import pyarrow.parquet as pq

from openjepa.data.source import ListSource, ShardRecord, ShardSource, UnreadImage, file_stamp, joined_stamps
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
from openjepa.data.tables.object_stores import all_on_disk, begin_copy, on_disk, stamps_of
from openjepa.refusals import Refusal
from openjepa.settings.sources import HuggingFaceSettings
from openjepa.system.machine import available_memory
from openjepa.system.patience import may_pass, read_patiently

IN_MEMORY_SHARE = 0.25
"""Images that take at most this share of the free memory, uncompressed, are read into memory. Others are mapped."""
BATCH_BYTES = 64 * 2**20
"""Number of bytes that are read at a time, on average."""
BUFFER_BYTES = 2**20
"""Number of bytes of a stream's file that are read at a time. Without it, the images of a whole row group would be."""
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


def _batches(file: str, parquet: Any, name: str, part: str | None = None, groups: range | None = None) -> Iterator[Any]:
    """The rows of a column in small batches. A whole row group may be more than Arrow can hold in one array.

    `part`: the only field of a column of structs to be read. `groups`: the only row groups to be read.
    """
    _type_of(file, parquet, name)
    try:
        batches = parquet.iter_batches(
            batch_size=_rows_at_a_time(parquet, name),
            columns=[f"{name}.{part}" if part else name],
            row_groups=None if groups is None else list(groups),
        )
        while (batch := next(batches, None)) is not None:
            yield batch
    except (pa.ArrowException, OSError) as error:
        if may_pass(error):
            raise
        raise _unreadable(file, error) from error


def _rows_at_a_time(parquet: Any, name: str) -> int:
    groups = [parquet.metadata.row_group(number) for number in range(parquet.num_row_groups)]
    largest = max((_group_bytes(group, [name]) // max(1, group.num_rows) for group in groups), default=0)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, largest)))


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
    with _opened(file) as parquet:
        return _label_values(file, parquet, name)


def _label_values(file: str, parquet: Any, name: str) -> Any:
    """The label column of a file. Arrow's different types of text become one."""
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
    """Parquet files. The images of a row group are read when one of them is needed."""

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

    def prepare(self, shard: int) -> None:
        """Begins to copy the file of a shard from its store."""
        begin_copy(self._files[shard])

    def read_shard(self, shard: int) -> Iterator[ShardRecord]:
        """The rows of a file. If they cannot be listed, the only record has no image but the reason."""
        title, file = f"{self._title} shard {shard}", str(on_disk(self._files[shard]))
        try:
            listed = read_patiently(partial(_list_rows, file, self._columns), file)
        except Refusal as error:
            yield ShardRecord(row_name(title, 0, None), b"", problem=str(error))
            return
        row = 0
        for number in range(listed.metadata.num_row_groups):
            group = _Group(listed, number)
            for place in range(listed.metadata.row_group(number).num_rows):
                name = row_name(title, row, listed.paths[row] if listed.paths else None)
                label = stream_label(listed.labels[row] if listed.labels else None)
                yield ShardRecord(name, _Row(group.piece(place), place % listed.piece_rows), label)
                row += 1


@dataclass(frozen=True)
class _ListedRows:
    """What is known of the rows of a Parquet file before their images are read."""

    file: str
    stamp: bytes
    metadata: Any
    image: str
    """Name of the image column."""
    labels: list[Any] | None
    paths: list[str | None] | None
    piece_rows: int
    """Number of rows whose images are read at a time."""

    def open(self) -> Any:
        """The file, opened. Raises Refusal if it has changed since its rows were listed."""
        if file_stamp(self.file) != self.stamp:
            raise Refusal(f"{self.file} has changed since its rows were listed")
        return _open_shard(self.file, self.metadata)


def _list_rows(file: str, columns: Columns) -> _ListedRows:
    """Raises Refusal if the file is damaged where its rows are listed, and OSError if it cannot be reached."""
    stamp = file_stamp(file)
    with _open_shard(file) as parquet:
        labels = None if columns.label is None else _label_values(file, parquet, columns.label).to_pylist()
        paths = _paths(file, parquet, columns.image)
        return _ListedRows(file, stamp, parquet.metadata, columns.image, labels, paths, _rows_at_a_time(parquet, columns.image))


def _open_shard(file: str, metadata: Any = None) -> Any:
    try:
        # not mapped: a mapped file that is cut or goes away would end the process
        return pq.ParquetFile(file, metadata=metadata, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except pa.ArrowException as error:
        raise _unreadable(file, error) from error


def _paths(file: str, parquet: Any, image: str) -> list[str | None] | None:
    """The paths in the image column, without the images. None if the column has none."""
    kind = _type_of(file, parquet, image)
    is_field = pa.types.is_struct(kind) and kind.get_field_index("path") >= 0
    if not is_field and not is_text(kind):
        return None
    pieces = (ImageRows(batch.column(0)) for batch in _batches(file, parquet, image, "path" if is_field else None))
    return [rows.path(row) for rows in pieces for row in range(len(rows))]


class _Piece:
    """Some rows of a row group."""

    def __init__(self, group: "_Group", number: int) -> None:
        self.group, self.number = group, number
        self.images: ImageRows | None = None
        """None until they are read."""


@dataclass(frozen=True)
class _Row(UnreadImage):
    """The image of a row, which is read together with its piece."""

    is_portable = False
    piece: _Piece
    place: int

    def read(self) -> bytes:
        """Raises OSError or Refusal if there is no image."""
        if self.piece.images is None:
            self.piece.group.read_to(self.piece.number)
        assert self.piece.images is not None
        return self.piece.images.read(self.place)


class _Group:
    """A row group. The images of its pieces are read in order, up to one that is needed. Pieces that nobody uses are left."""

    def __init__(self, listed: _ListedRows, number: int) -> None:
        self._listed, self._number = listed, number
        self._pieces: list[ReferenceType[_Piece]] = []
        self._rows: Iterator[ImageRows] = iter(())
        self._num_read = 0
        self._problem: Refusal | None = None

    def piece(self, place: int) -> _Piece:
        """The piece of the row `place`. Call it for one row after the other."""
        known = self._pieces[-1]() if place % self._listed.piece_rows else None
        if known is None:
            known = _Piece(self, len(self._pieces))
            self._pieces.append(ref(known))
        return known

    def read_to(self, number: int) -> None:
        """Reads all pieces up to `number` that are in use. Raises Refusal if they cannot be read, now or later again."""
        if self._problem is None:
            try:
                return read_patiently(partial(self._read_to, number), self._listed.file)
            except (OSError, Refusal) as error:
                self._problem = error if isinstance(error, Refusal) else _unreadable(self._listed.file, error)
        raise self._problem

    def _read_to(self, number: int) -> None:
        rows, self._rows = self._rows, iter(())  # after an error, a repetition begins at the first piece
        if self._num_read == 0:
            rows = self._all_rows()
        first, self._num_read = self._num_read, 0
        for place in range(first, number + 1):
            images = next(rows)
            piece = self._pieces[place]()
            if piece is not None:
                piece.images = images
        self._rows, self._num_read = rows, number + 1

    def _all_rows(self) -> Iterator[ImageRows]:
        listed, folder = self._listed, str(Path(self._listed.file).parent)
        with listed.open() as parquet:
            for batch in _batches(listed.file, parquet, listed.image, groups=range(self._number, self._number + 1)):
                yield ImageRows(batch.column(0), folder)
