"""Sources: what every kind of data looks like to the loader and to the evaluation, and the hashes that tell sources apart."""

import hashlib
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openjepa.records import DataFacts
from openjepa.refusals import Refusal

NO_LABEL = -1
"""Class of a record that has none (`partial_labels`)."""
FINGERPRINT_RECORDS = 32
"""Records of a source whose bytes enter its fingerprint, beside the names of all."""


class ListSource(ABC):
    """Records with an index: any of them can be read at any time. Instances travel to worker processes (picklable)."""

    labels: NDArray[np.int64] | None = None
    """One class per record; None if not every record has one."""
    partial_labels: NDArray[np.int64] | None = None
    """One class or NO_LABEL per record, if only some records have a class. Probes use those alone (`labeled_part`)."""
    class_names: tuple[str, ...] | None = None

    @property
    def is_labeled(self) -> bool:
        """Whether any record has a class."""
        return self.known_labels is not None

    @property
    def known_labels(self) -> NDArray[np.int64] | None:
        """The class of each record, or NO_LABEL; None if no record has one."""
        return self.labels if self.labels is not None else self.partial_labels

    @abstractmethod
    def __len__(self) -> int:
        """Number of records."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image file of a record. Raises OSError or Refusal if it cannot be had."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What `skipped.jsonl` and error messages call the record: a path, or shard and row."""

    def image_name(self, index: int) -> str:
        """The path of a record's image as its data has it, without the row that holds it; the name if the data has none."""
        return self.name(index)

    def stamp(self, index: int) -> bytes:
        """Bytes that change if the image of a record changes: here a checksum of its file, which suits records in memory.

        Sources of files give size and modification time instead, which cost no reading.
        """
        try:
            return b"%08x " % zlib.crc32(self.read(index))
        except (OSError, ValueError):
            return b"unreadable "

    @cached_property
    def fingerprint(self) -> str:
        """Both hashes of the source, computed once: reading a million names and stamps takes seconds."""
        return source_hash(self) + stamps_hash(self)

    def set_labels(self, labels: NDArray[np.int64], class_names: tuple[str, ...] | None) -> None:
        """Gives the records their classes. A class in `labels` may be NO_LABEL."""
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
        """The maps of some records, in that order."""


@dataclass(frozen=True)
class ShardRecord:
    """One sample of a shard."""

    name: str
    data: bytes
    label: int | None = None
    problem: str | None = None
    """The reason if it has no image."""

    def read(self) -> bytes:
        """The encoded image file. Raises Refusal if there is none."""
        if self.problem is not None:
            raise Refusal(self.problem)
        return self.data


class ShardSource(ABC):
    """Shards that are read front to back. The number of records may be unknown."""

    class_names: tuple[str, ...] | None = None
    num_records: int | None = None
    stamp: bytes = b""
    """Bytes that change if a file of the shards changes (its size or time); empty if the files are not on this machine."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of shards."""

    @abstractmethod
    def read_shard(self, shard: int) -> Iterator[ShardRecord]:
        """The records of a shard in their stored order."""


@dataclass(frozen=True)
class Splits:
    """The splits of a data set. Pretraining and the probes learn from `train`; probes are tested on `test`."""

    train: ListSource | ShardSource
    test: ListSource | None = None
    description: str = ""
    """One line for the report: what it is and how many images."""
    name: str = ""
    """What the data is called; the first words of `description`."""
    pixels: str = ""
    """Size of the stored pictures in words, if all have the same."""
    remarks: tuple[str, ...] = ()
    """What probes leave out or cannot answer, in words for the terminal. `description` says it too."""
    extra_labels: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict)
    """Further labelings of (train, test) by name: scenes have `count` and `distance`."""
    left_out: tuple[str, ...] = ()
    """Files beside the images that may have been meant as images, counted, in words. `description` says it too."""
    unused: tuple[str, ...] = ()
    """Images in splits that are not used, in words. `description` says it too."""
    label_maps: Mapping[str, tuple[LabelMaps, LabelMaps]] = field(default_factory=dict)
    """Labels of the pixels of (train, test) by name; empty if the data has none."""

    @property
    def not_used(self) -> tuple[str, ...]:
        """Everything that is not used, in words, for a command that does not print the description."""
        return (*self.unused, *self.left_out)

    def facts(self) -> DataFacts:
        """What the data is called and holds, for the records of a run."""
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
        """Whether probes have labels to learn from and to be tested on."""
        return all(isinstance(source, ListSource) and source.is_labeled for source in (self.train, self.test))


# ----------------------------------------------------------------------------------------------------------------- hashes


def source_hash(source: ListSource) -> str:
    """Hash of the names of all records, and of the bytes of some of them, evenly spread."""
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
    """Hash of the stamps of all records. It changes if an image is overwritten in place; costs one `stat` of each file."""
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(source.stamp(index))
    return digest.hexdigest()


def file_stamp(path: str | Path) -> bytes:
    """Size and modification time of a file, of the target if it is a link; `missing` if there is none."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a million of them: making a Path of each costs as much as the call
    except OSError:
        return b"missing "
    return b"%d %d " % (status.st_size, status.st_mtime_ns)


def joined_stamps(files: Iterable[str | Path]) -> bytes:
    """The stamps of several files that hold records together, as a hash."""
    return hashlib.sha256(b"".join(file_stamp(file) for file in files)).digest()


# ------------------------------------------------------------------------------------------------- what sources are made of


class JoinedBytes:
    """Byte strings one behind the other in one array.

    A million Python objects would be copied into each worker process as soon as they are touched there; one array is shared.
    """

    def __init__(self, content: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        """`ends` [n]: where each string ends within `content`."""
        self._content = content
        self._ends = ends

    @classmethod
    def join(cls, strings: Sequence[bytes]) -> "JoinedBytes":
        """The strings in their order."""
        content = np.frombuffer(b"".join(strings), dtype=np.uint8)
        return cls(content, np.cumsum([len(string) for string in strings], dtype=np.int64))

    def __len__(self) -> int:
        """Number of strings."""
        return len(self._ends)

    def __getitem__(self, index: int) -> bytes:
        """The string with this number."""
        start = int(self._ends[index - 1]) if index else 0
        return self._content[start : int(self._ends[index])].tobytes()


class Pieces:
    """Records that are kept in pieces one after another, such as files: which piece holds a record, and at which row."""

    def __init__(self, lengths: Iterable[int]) -> None:
        """`lengths`: records of each piece."""
        self._firsts: NDArray[np.int64] = np.cumsum([0, *lengths], dtype=np.int64)

    def __len__(self) -> int:
        """Number of records."""
        return int(self._firsts[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """Number of the piece, and the row in it. Raises IndexError if there is no record `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"there are {len(self)} records; there is no record {index}")
        piece = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return piece, index - int(self._firsts[piece])


def class_numbers(words: Iterable[str], class_names: Iterable[str]) -> NDArray[np.int64]:
    """The place among `class_names` of each of `words`. Raises KeyError if one is not there."""
    numbers = {name: number for number, name in enumerate(class_names)}
    return np.array([numbers[word] for word in words], dtype=np.int64)
