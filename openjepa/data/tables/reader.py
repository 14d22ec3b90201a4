"""What reads the splits of a data set that are tables, tars, or on the Hub."""

from abc import ABC, abstractmethod

from openjepa.data.source import ListSource, ShardSource
from openjepa.data.tables.labels import LabelColumn


class SplitReader(ABC):
    """Opens the splits of one data set."""

    splits: tuple[str, ...]
    """Names of the splits that there are."""
    left_out: tuple[str, ...] = ()
    """What lay beside the files that may have been meant as some, in words and counted."""

    @abstractmethod
    def open_list(self, split: str) -> ListSource:
        """The images of a split, without their labels."""

    @abstractmethod
    def label_column(self, split: str) -> LabelColumn | None:
        """The labels of a split in the order of its images, or None if it has no such column."""

    @abstractmethod
    def open_stream(self, split: str) -> ShardSource:
        """The shards of a split, front to back."""
