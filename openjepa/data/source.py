"""Sources: the interface of every kind of data to the loader and the evaluation, and the hashes that identify a source."""

import hashlib
import os
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openjepa.records import DataFacts
from openjepa.refusals import Refusal
from openjepa.settings.sources import SOURCES, DataSettings

NO_LABEL = -1
"""Class of a record without a class (see `partial_labels`)."""
FINGERPRINT_RECORDS = 32
"""Number of records of a source whose bytes enter its fingerprint. The names of all records enter it too."""


class ListSource(ABC):
    """Records with an index, each of which can be read at any time. Picklable, because instances are sent to workers."""

    labels: NDArray[np.int64] | None = None
    """One class per record. None if not every record has one."""
    partial_labels: NDArray[np.int64] | None = None
    """One class or NO_LABEL per record, if only some records have a class. Probes use only those (`labeled_part`)."""
    class_names: tuple[str, ...] | None = None

    @property
    def is_labeled(self) -> bool:
        """True if any record has a class."""
        return self.known_labels is not None

    @property
    def known_labels(self) -> NDArray[np.int64] | None:
        """The class of each record, or NO_LABEL. None if no record has a class."""
        return self.labels if self.labels is not None else self.partial_labels

    @abstractmethod
    def __len__(self) -> int:
        """Number of records."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image file of a record. Raises OSError or Refusal if it cannot be read."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Name of the record in `skipped.jsonl` and error messages: a path, or shard and row."""

    def image_name(self, index: int) -> str:
        """The path of a record's image as its data has it, without the row that holds it; the name if the data has none."""
        return self.name(index)

    def stamp(self, index: int) -> bytes:
        """Bytes that change if the image of a record changes. This default is a checksum of the file, for records in memory.

        Sources of files return size and modification time instead, which can be had without reading the file.
        """
        try:
            return b"%08x " % zlib.crc32(self.read(index))
        except (OSError, ValueError):
            return b"unreadable "

    @cached_property
    def fingerprint(self) -> str:
        """Both hashes of the source. Computed once, because reading a million names and stamps takes seconds."""
        return source_hash(self) + stamps_hash(self)

    def set_labels(self, labels: NDArray[np.int64], class_names: tuple[str, ...] | None) -> None:
        """Sets the class of each record [n]. A class in `labels` may be NO_LABEL."""
        has_label = labels != NO_LABEL
        self.class_names = class_names
        if has_label.all():
            self.labels = labels
        elif has_label.any():
            self.partial_labels = labels


class LabelMaps(ABC):
    """One class for every pixel of each record of a source. Picklable."""

    IGNORED = 255
    """Class of a pixel that does not count."""
    class_names: tuple[str, ...] = ()

    @abstractmethod
    def read(self, index: int) -> NDArray[np.uint8]:
        """Classes of the pixels of a record [height, width], in the orientation of its image."""

    @abstractmethod
    def select(self, indices: NDArray[np.int64]) -> "LabelMaps":
        """The maps of the records `indices`, in that order."""


class UnreadImage(ABC):
    """The image file of a record that is read only where it is used."""

    is_portable: bool
    """True if it can be sent to another process, which then reads it. Otherwise only its bytes can be sent."""

    @abstractmethod
    def read(self) -> bytes:
        """The image file. Raises OSError or Refusal if it cannot be read."""


@dataclass(frozen=True)
class FilePart(UnreadImage):
    """An image file inside another file."""

    is_portable = True
    file: Path
    offset: int
    size: int
    stamp: bytes
    """Stamp of the file when it was found there."""

    def read(self) -> bytes:
        """The bytes at this place. Raises Refusal if the file has changed."""
        with self.file.open("rb", buffering=0) as opened:
            if _stamp(os.fstat(opened.fileno())) != self.stamp:
                raise Refusal(f"{self.file} has changed since its contents were listed")
            data = b""
            opened.seek(self.offset)
            while len(data) < self.size and (part := opened.read(self.size - len(data))):
                data = data + part if data else part
        if len(data) < self.size:
            raise Refusal(f"{self.file} ends in the middle of this image")
        return data


@dataclass(frozen=True)
class ShardRecord:
    """One sample of a shard."""

    name: str
    data: bytes | UnreadImage
    """The encoded image file. Use `read` to get its bytes."""
    label: int | None = None
    problem: str | None = None
    """Why there is no image. None if there is one, or if this shows only when it is read."""

    def read(self) -> bytes:
        """The encoded image file. Raises OSError or Refusal if there is none."""
        if self.problem is not None:
            raise Refusal(self.problem)
        return self.data if isinstance(self.data, bytes) else self.data.read()

    def to_send(self) -> "ShardRecord":
        """The record as it is sent to another process: with its image file, unless that process can read it as well."""
        if self.problem is not None or isinstance(self.data, bytes) or self.data.is_portable:
            return self
        try:
            return replace(self, data=self.data.read())
        except (ValueError, OSError) as error:
            return replace(self, data=b"", problem=str(error))


class ShardSource(ABC):
    """Shards whose records are listed from front to back. The number of records may be unknown."""

    class_names: tuple[str, ...] | None = None
    num_records: int | None = None
    stamp: bytes = b""
    """Bytes that change if a file of the shards changes (its size or time). Empty if the files are not on this machine."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of shards."""

    def prepare(self, shard: int) -> None:  # noqa: B027 (files on a disk need nothing)
        """Begins to bring here the shard that is read next, if that takes long. Called while the one before it is used."""

    @abstractmethod
    def read_shard(self, shard: int) -> Iterator[ShardRecord]:
        """The records of a shard in their stored order. Does not read the image files of records that are `UnreadImage`.

        All processes of a run must get the same records. What is damaged in the shard itself is a record with a problem. Raises
        OSError if the shard cannot be reached.
        """


@dataclass(frozen=True)
class Splits:
    """The splits of a data set. Pretraining and probes learn from `train`. Probes are tested on `test`."""

    train: ListSource | ShardSource
    test: ListSource | None = None
    description: str = ""
    """One line for the report: the kind of data and the number of images."""
    name: str = ""
    """Name of the data, with which `description` begins."""
    pixels: str = ""
    """Size of the stored pictures in words, if they all have the same size."""
    remarks: tuple[str, ...] = ()
    """What probes leave out or cannot get right, in words for the terminal. Also part of `description`."""
    extra_labels: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict)
    """Further labelings of (train, test) by name. Scenes have `count` and `distance`."""
    left_out: tuple[str, ...] = ()
    """Counts of files beside the images that may have been meant as images, in words. Also part of `description`."""
    unused: tuple[str, ...] = ()
    """Images in splits that are not used, in words. Also part of `description`."""
    label_maps: Mapping[str, tuple[LabelMaps, LabelMaps]] = field(default_factory=dict)
    """Labels of the pixels of (train, test) by name. Empty if the data has none."""

    @property
    def not_used(self) -> tuple[str, ...]:
        """Everything that is not used, in words. For commands that do not print the description."""
        return (*self.unused, *self.left_out)

    def facts(self) -> DataFacts:
        """Name and sizes of the data, for the records of a run."""
        train = self.train if isinstance(self.train, ListSource) else None
        labels = None if train is None else train.known_labels
        classes = None if labels is None else len(np.unique(labels[labels != NO_LABEL]))
        return DataFacts(
            self.name,
            self.pixels,
            train_images=None if train is None else len(train),
            test_images=None if self.test is None else len(self.test),
            classes=classes,
        )

    @property
    def can_test(self) -> bool:
        """True if probes have labels both to learn from and to be tested on."""
        return all(isinstance(source, ListSource) and source.is_labeled for source in (self.train, self.test))


# ----------------------------------------------------------------------------------------------------------------- hashes


def source_hash(source: ListSource) -> str:
    """Hash of the names of all records, and of the bytes of some records at regular intervals."""
    digest = hashlib.sha256(str(len(source)).encode())
    for index in range(len(source)):
        digest.update(source.name(index).encode(errors="surrogateescape"))
    for index in range(0, len(source), max(1, len(source) // FINGERPRINT_RECORDS)):
        try:
            digest.update(source.read(index))
        except (OSError, ValueError):
            digest.update(b"unreadable")
    return digest.hexdigest()


def stamps_hash(source: ListSource) -> str:
    """Hash of the stamps of all records. It changes if an image is overwritten in place, and costs one `stat` per file."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.stamp(index))
    return digest.hexdigest()


def file_stamp(path: str | Path) -> bytes:
    """Size and modification time of a file, or of the target if it is a link. `missing` if there is no file."""
    try:
        return _stamp(os.stat(path))  # noqa: PTH116 - called a million times; making a Path each time would double the cost
    except OSError:
        return b"missing "


def _stamp(status: os.stat_result) -> bytes:
    return b"%d %d " % (status.st_size, status.st_mtime_ns)


def joined_stamps(files: Iterable[str | Path]) -> bytes:
    """Hash of the stamps of several files that hold records together."""
    return hashlib.sha256(b"".join(file_stamp(file) for file in files)).digest()


# --------------------------------------------------------------------------------------------------- building blocks of sources


class JoinedBytes:
    """Byte strings one after the other in a single array.

    A million Python objects would be copied into each worker process as soon as they are used there. One array is shared.
    """

    def __init__(self, content: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        """`ends` [n] is the position in `content` where each string ends."""
        self._content = content
        self._ends = ends

    @classmethod
    def join(cls, strings: Sequence[bytes]) -> "JoinedBytes":
        """Joins the strings in their order."""
        content = np.frombuffer(b"".join(strings), dtype=np.uint8)
        return cls(content, np.cumsum([len(string) for string in strings], dtype=np.int64))

    def __len__(self) -> int:
        """Number of strings."""
        return len(self._ends)

    def __getitem__(self, index: int) -> bytes:
        """The string number `index`."""
        start = int(self._ends[index - 1]) if index else 0
        return self._content[start : int(self._ends[index])].tobytes()


class Pieces:
    """Records in several consecutive pieces, such as files. Finds the piece and the row of a record."""

    def __init__(self, lengths: Iterable[int]) -> None:
        """`lengths` are the numbers of records of the pieces."""
        self._firsts: NDArray[np.int64] = np.cumsum([0, *lengths], dtype=np.int64)

    def __len__(self) -> int:
        """Number of records."""
        return int(self._firsts[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Index of the piece, and the row in it. Raises IndexError if there is no record `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} records; there is no record {index}")
        piece = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return piece, index - int(self._firsts[piece])


def class_numbers(words: Iterable[str], class_names: Iterable[str]) -> NDArray[np.int64]:
    """The position of each of `words` in `class_names`. Raises KeyError if one is absent."""
    numbers = {name: number for number, name in enumerate(class_names)}
    return np.array([numbers[word] for word in words], dtype=np.int64)


def data_set_name(settings: DataSettings) -> str:
    """Name of the data set in names of runs and in results: the last part of its path without wildcards, or the source."""
    path: str = vars(settings).get("path") or ""  # sources that read files have this setting
    parts = [part for part in path.split("/") if part not in ("", ".", "..", "~") and "*" not in part]
    return re.sub(r"[^\w.-]+", "-", parts[-1]) if parts else settings.source


def open_splits(settings: DataSettings, seed: int) -> Splits:
    """Opens the source that the settings choose. If `max_images` is set, keeps at most that many training images."""
    splits: Splits = SOURCES[settings.source].load()(settings, seed)
    if settings.max_images is None:
        return splits
    from openjepa.data.selection import limited

    return limited(splits, settings.max_images, seed)
