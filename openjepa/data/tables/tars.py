"""WebDataset tars. Consecutive files whose names agree up to the first dot of the file name form one sample.

The image of a sample is its file with the suffix of an image, in upper or lower case. Different samples may have different
suffixes. The label is the file `.cls` of the sample, or the one that `data.label_column` names. If the first tar begins with a
file `__classes__`, which holds names as a JSON list, these are the classes that the numbers in `.cls` stand for.
"""

import gzip
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from openjepa.config import value_in
from openjepa.data.decode import DecodeError
from openjepa.data.folders.entries import SUFFIXES
from openjepa.data.source import FilePart, JoinedBytes, ListSource, ShardRecord, ShardSource, file_stamp
from openjepa.data.tables.arrow import SplitReader, prepared_file, row_name
from openjepa.data.tables.labels import CANONICAL_NUMBER, WHOLE_NUMBER, LabelColumn, from_words, stream_label
from openjepa.data.tables.object_stores import all_on_disk, begin_copy, on_disk, stamps_of
from openjepa.refusals import Refusal
from openjepa.settings.sources import HuggingFaceSettings

CLASS_FIELD = "cls"
"""Ending of the file with the label of a sample, a number as text, unless `data.label_column` names another."""
CLASS_NAMES_FILE = "__classes__"
"""Name of the file with the names of the classes. Readers of tars pass by files whose names begin like this."""
BLOCK = 512
"""Number of bytes in a block of a tar."""
GZIP_START = b"\x1f\x8b"
INDEX_VERSION = 2
_HALVES = "surrogatepass"
"""Error handler that turns words with halves of characters (surrogates) into bytes and back without loss."""


@dataclass(frozen=True)
class _Fields:
    """The files of a sample that are used. A field is the part of a file name after the first dot, in lower case."""

    image: str | None
    """Field of the image. None means the one with the suffix of an image."""
    label: str | None
    """Field of the label. None means `cls`."""

    def is_image(self, field: str) -> bool:
        """True if a file is the image."""
        return field == self.image if self.image else f".{field.rpartition('.')[2]}" in SUFFIXES

    def is_label(self, field: str) -> bool:
        """True if a file holds the label, either as a whole or (`json.KEY`) under one of its keys."""
        wanted = self.label or CLASS_FIELD
        return field == wanted or (field == "json" and wanted.startswith("json."))

    def label_text(self, field: str, data: bytes) -> str | None:
        """The label in the contents of its file. None if there is none."""
        text = data.decode("utf-8", errors="replace")
        if field != "json":
            return text
        try:
            content = value_in(text, field)
        except Refusal:
            return None
        _, _, key = (self.label or "").partition(".")
        value = content.get(key) if key and isinstance(content, dict) else content
        if value is None or isinstance(value, dict | list):
            return None
        return str(value).encode(errors="backslashreplace").decode()  # halves of characters cannot be written to a file


@dataclass(frozen=True)
class _Member:
    """A file in a tar."""

    key: str
    """The part of the name that all files of a sample share."""
    field: str
    name: str
    offset: int
    size: int
    data: bytes | None
    """Its contents, if they were requested."""
    problem: str | None
    """Why it has no contents of its own. None if it has."""


@dataclass(frozen=True)
class _Sample:
    """The image of a sample, or why there is none, and the sample's label as text."""

    name: str
    image: _Member | None
    label: str | None
    problem: str | None


class TarReader(SplitReader):
    """WebDataset tars by split, with or without gzip compression."""

    def __init__(self, files: dict[str, list[str]], settings: HuggingFaceSettings) -> None:
        """`files` are paths by split."""
        self._files = files
        self._settings = settings
        image, label = settings.image_column, settings.label_column
        if label is not None and not label.startswith("json."):  # the case of JSON keys matters
            label = label.lower()
        self._fields = _Fields(image.lower() if image is not None else None, label)
        self.splits = tuple(files)

    def open_list(self, split: str) -> ListSource:
        """The samples of a split, read from their positions in the tars. A compressed tar is unpacked once, into the cache."""
        files = all_on_disk(self._files[split])
        return TarSource(split, files, [self._index(file) for file in files])

    def label_column(self, split: str) -> LabelColumn | None:
        """The labels of a split, from the index. Labels from `.cls` are numbers if all of them are."""
        words = _words([self._index(file) for file in all_on_disk(self._files[split])], "label")
        if not any(words):
            return None
        numbers = WHOLE_NUMBER if self._fields.label is None else CANONICAL_NUMBER
        title = f"data.label_column={self._fields.label or CLASS_FIELD!r} of the split {split!r}"
        column = from_words(title, words, numbers)
        is_numbered = all(isinstance(value, int) for value in column.values)
        return replace(column, names=self._class_names(split)) if is_numbered else column

    def open_stream(self, split: str) -> ShardSource:
        """The tars of a split as shards, one per tar."""
        return TarShards(tuple(self._files[split]), self._fields, split, self._class_names(split))

    def _class_names(self, split: str) -> tuple[str, ...] | None:
        """The names of the classes, from the first tar. They belong to `.cls`, not to labels that a setting names."""
        return _class_names_in(on_disk(self._files[split][0])) if self._fields.label in (None, CLASS_FIELD) else None

    def _index(self, file: str) -> Any:
        return _index(Path(file), self._fields)


def _index(file: Path, fields: _Fields) -> Any:
    """Names, positions, labels and problems of the samples of a tar. Read once, then kept in the cache."""
    place = prepared_file(file, f"index {INDEX_VERSION} {fields}", partial(_write_index, file, fields))
    with pa.OSFile(str(place)) as opened:
        return pa.ipc.open_file(opened).read_all()


def _class_names_in(file: Path) -> tuple[str, ...] | None:
    """The names of the classes with which a tar begins. None if it begins with anything else."""
    names: Any = None
    with (
        suppress(tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile),  # what is damaged is said when it is read
        _open(file) as stream,
        tarfile.open(fileobj=stream, mode="r:") as tar,
    ):
        info = tar.next()
        content = tar.extractfile(info) if info is not None and info.name == CLASS_NAMES_FILE else None
        names = content and value_in(content.read().decode(errors="replace"), f"{CLASS_NAMES_FILE} in {file}", "pack it again")
    return tuple(map(str, names)) if isinstance(names, list) else None


def _write_index(file: Path, fields: _Fields, target: Path) -> None:
    table = _listed(file, fields)
    with pa.ipc.new_file(str(target), table.schema) as writer:
        writer.write_table(table)


def _listed(file: Path, fields: _Fields) -> Any:
    found = list(_samples(unpacked(file), fields, with_images=False))
    images = [sample.image for sample in found]
    return pa.table(
        {
            "name": _texts(sample.name for sample in found),
            "offset": pa.array([image.offset if image else 0 for image in images], pa.int64()),
            "size": pa.array([image.size if image else 0 for image in images], pa.int64()),
            "label": _texts(sample.label for sample in found),
            "problem": _texts(sample.problem for sample in found),
        }
    )


def _texts(words: Iterable[str | None]) -> Any:
    """A column of words as bytes, because text in Arrow, unlike names in tars and strings in JSON, has no half characters."""
    return pa.array([None if word is None else word.encode(errors=_HALVES) for word in words], pa.binary())


def _words(indices: list[Any], name: str) -> list[str | None]:
    """The words of such a column, from all tars."""
    values = chain.from_iterable(index.column(name).to_pylist() for index in indices)
    return [None if value is None else value.decode(errors=_HALVES) for value in values]


def unpacked(file: Path) -> Path:
    """The tar itself, or its copy in the cache if it is compressed. Samples can be read at any position of it."""
    if not _is_compressed(file):
        return file
    return prepared_file(file, "unpacked", partial(_unpack, file))


def _unpack(file: Path, target: Path) -> None:
    try:
        with gzip.open(file) as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, 2**20)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Refusal(f"{file} cannot be unpacked ({error}): get it again, or move it away") from error


def _is_compressed(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(GZIP_START)) == GZIP_START


# ---------------------------------------------------------------------------------------------------------------- reading


def _samples(file: Path, fields: _Fields, with_images: bool) -> Iterator[_Sample]:
    """The samples of a tar in their order. If `with_images`, the contents of their images are read too."""
    for _, members in groupby(_members(file, fields, with_images), key=lambda member: member.key):
        yield _sample(list(members), fields)


def _sample(members: list[_Member], fields: _Fields) -> _Sample:
    images = [member for member in members if fields.is_image(member.field)]
    texts = (
        fields.label_text(member.field, member.data) for member in members if fields.is_label(member.field) and member.data
    )
    label = next((text for text in texts if text is not None), None)
    if len(images) == 1:
        return _Sample(images[0].name, images[0], label, images[0].problem)
    named = ", ".join(member.field for member in images or members)
    problem = f"the sample has several images ({named}): choose one with data.image_column"
    if not images:
        problem = next((member.problem for member in members if member.problem), f"the sample has no image, only {named}")
    return _Sample(members[0].name, None, label, problem)


def _members(file: Path, fields: _Fields, with_images: bool) -> Iterator[_Member]:
    """The files that belong to samples. If the rest of a damaged tar cannot be read, the last file holds the reason."""
    try:
        with _open(file, is_scanned=not with_images) as stream:
            yield from _whole_members(file, stream, fields, with_images)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield _damaged(file, str(error))


def _whole_members(file: Path, stream: BinaryIO, fields: _Fields, with_images: bool) -> Iterator[_Member]:
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # otherwise it would keep a record of every file
            if (member := _member(tar, info, fields, with_images)) is not None:
                yield member
    if not isinstance(stream, gzip.GzipFile) and _is_cut(stream, tar.offset):
        yield _damaged(file, "something else than a file follows")


def _open(file: Path, is_scanned: bool = False) -> BinaryIO:
    """Opens a tar. `is_scanned`: only its headers will be read, so that nothing beyond them should be."""
    if _is_compressed(file):
        return cast(BinaryIO, gzip.open(file))
    return file.open("rb", buffering=0 if is_scanned else -1)


def _is_cut(stream: BinaryIO, end: int) -> bool:
    """True if the last file is followed by anything but the zeros that end a tar. The library would accept it as the end."""
    stream.seek(end)
    return any(stream.read(BLOCK))


def _damaged(file: Path, reason: str) -> _Member:
    return _Member("", "", file.name, 0, 0, None, f"the rest of the tar {file} cannot be read ({reason})")


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo, fields: _Fields, with_images: bool) -> _Member | None:
    """A file of a tar. None if it belongs to no sample: a folder, a hidden file, or a file without a suffix."""
    folder, _, base = info.name.rpartition("/")
    stem, dot, field = base.partition(".")
    is_link = info.issym() or info.islnk()
    if not (stem and dot) or stem.startswith("__") or not (info.isreg() or is_link):
        return None
    problem = f"a link to {info.linkname}, which is not followed in a tar" if is_link else None
    if info.issparse():
        problem = "a file with holes, as tar --sparse stores it"
    wanted = fields.is_label(field.lower()) or (with_images and fields.is_image(field.lower()))
    content = tar.extractfile(info) if wanted and problem is None else None
    data = None if content is None else content.read()
    return _Member(f"{folder}/{stem}", field.lower(), info.name, info.offset_data, info.size, data, problem)


class TarSource(ListSource):
    """Samples of tars, each read from its position."""

    def __init__(self, title: str, files: list[str], indices: list[Any]) -> None:
        """`files` are tars, `indices` their tables (`_write_index`). `title` is the name of the samples in messages."""
        self._title = title
        self._files = [unpacked(Path(file)) for file in files]
        self._stamps = [file_stamp(file) for file in files]
        self._file_numbers = np.repeat(np.arange(len(files)), [index.num_rows for index in indices])
        self._offsets, self._sizes = (_numbers(indices, name) for name in ("offset", "size"))
        self._names = JoinedBytes.join(list(chain.from_iterable(index.column("name").to_pylist() for index in indices)))
        problems = _words(indices, "problem")
        self._problems = {row: problem for row, problem in enumerate(problems) if problem is not None}

    def __len__(self) -> int:
        """Number of samples."""
        return len(self._offsets)

    def read(self, index: int) -> bytes:
        """The image file of a sample. Raises DecodeError or OSError if it cannot be read."""
        if index in self._problems:
            raise DecodeError(self._problems[index])
        with self._files[self._file_numbers[index]].open("rb") as file:
            file.seek(self._offsets[index])
            data: bytes = file.read(int(self._sizes[index]))
        if len(data) < self._sizes[index]:
            raise DecodeError("the tar ends in the middle of this file")
        return data

    def stamp(self, index: int) -> bytes:
        """Stamp of the sample's tar."""
        return self._stamps[int(self._file_numbers[index])]

    def name(self, index: int) -> str:
        """The row, and the name of the image in its tar."""
        return row_name(self._title, index, self.image_name(index))

    def image_name(self, index: int) -> str:
        """The name of the image in its tar."""
        return self._names[index].decode(errors=_HALVES)


def _numbers(indices: list[Any], name: str) -> NDArray[np.int64]:
    return np.concatenate([index.column(name).to_numpy() for index in indices])


class TarShards(ShardSource):
    """Tars, whose samples are listed from front to back."""

    def __init__(self, files: tuple[str, ...], fields: _Fields, title: str, class_names: tuple[str, ...] | None) -> None:
        """`title` is the name of the records in messages."""
        self._files = files
        self._fields = fields
        self.class_names = class_names
        self._title = title
        self.stamp = stamps_of(files)

    def __len__(self) -> int:
        """Number of tars."""
        return len(self._files)

    def prepare(self, shard: int) -> None:
        """Begins to copy the file of a shard from its store."""
        begin_copy(self._files[shard])

    def read_shard(self, shard: int) -> Iterator[ShardRecord]:
        """The samples of a tar. If the rest of it cannot be read, the last record has no image but the reason.

        The images of a plain tar are not read, but only their places, which stay in the cache. A compressed tar is read whole.
        """
        file, title = on_disk(self._files[shard]), f"{self._title} shard {shard}"
        if _is_compressed(file):
            for row, sample in enumerate(_samples(file, self._fields, with_images=True)):
                data = sample.image.data if sample.image is not None else None
                yield ShardRecord(row_name(title, row, sample.name), data or b"", _number(sample.label), sample.problem)
            return
        stamp = file_stamp(file)
        try:
            index = _index(file, self._fields)
        except OSError:  # if it is the cache that cannot be written, a stream does without
            index = _listed(file, self._fields)
        names, labels, problems = (_words([index], name) for name in ("name", "label", "problem"))
        offsets, sizes = (index.column(name).to_pylist() for name in ("offset", "size"))
        for row, name in enumerate(names):
            part = FilePart(file, offsets[row], sizes[row], stamp)
            yield ShardRecord(row_name(title, row, name), part, _number(labels[row]), problems[row])


def _number(label: str | None) -> int | None:
    return stream_label(int(label)) if label is not None and WHOLE_NUMBER.fullmatch(label.strip()) else None
