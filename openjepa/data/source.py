"""Sources: what every kind of data looks like to the loader and to the evaluation."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


class ListSource(ABC):
    """Records with an index: any of them can be read at any time. Instances travel to worker processes (picklable)."""

    labels: NDArray[np.int64] | None = None
    """One class per record, or None."""
    class_names: tuple[str, ...] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of records."""

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The encoded image file of a record. Raises OSError or Refusal where there is none."""

    @abstractmethod
    def name(self, index: int) -> str:
        """A path, or shard and row: what `skipped.jsonl` and error messages call the record."""

    def stamp(self, index: int) -> bytes:
        """What changes with the image of a record. Here a checksum of its bytes, which suits records in memory.

        Sources of files give size and modification time of the file, which cost no reading.
        """
        try:
            return b"%08x " % zlib.crc32(self.read(index))
        except (OSError, ValueError):
            return b"unreadable "


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


class ShardSource(ABC):
    """Shards that are read front to back. The number of records may be unknown."""

    class_names: tuple[str, ...] | None = None
    num_records: int | None = None
    stamp: bytes = b""
    """What changes with the files of the shards (size and modification time); empty if they do not lie on this machine."""

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
    extra_labels: Mapping[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict)
    """Further labelings of (train, test) by name: scenes have `count` and `distance`."""
    label_maps: Mapping[str, tuple[LabelMaps, LabelMaps]] = field(default_factory=dict)
    """Labels of the pixels of (train, test) by name, where the data has any."""

    @property
    def can_test(self) -> bool:
        """Whether probes have labels to learn from and to be tested on."""
        listed = isinstance(self.train, ListSource) and self.train.labels is not None
        return listed and self.test is not None and self.test.labels is not None
