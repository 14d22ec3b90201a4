"""Some of the records of a list."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from openjepa.data.source import ListSource, Splits
from openjepa.refusals import Refusal
from openjepa.seeds import derive, derive_samples


class Subset(ListSource):
    """The records `indices` of another list, in that order."""

    def __init__(self, source: ListSource, indices: NDArray[np.int64]) -> None:
        """`indices`: numbers in `source`."""
        self._source = source
        self._indices = indices
        self.labels = None if source.labels is None else source.labels[indices]
        self.class_names = source.class_names

    def __len__(self) -> int:
        """Number of records."""
        return len(self._indices)

    def read(self, index: int) -> bytes:
        """The encoded image file of a record."""
        return self._source.read(int(self._indices[index]))

    def name(self, index: int) -> str:
        """Its name in the other list."""
        return self._source.name(int(self._indices[index]))

    def stamp(self, index: int) -> bytes:
        """That of the record in the other list."""
        return self._source.stamp(int(self._indices[index]))


def limited(splits: Splits, max_images: int, seed: int) -> Splits:
    """The splits with at most `max_images` training images, drawn with the seed and kept in their order."""
    train = splits.train
    if max_images < 1:
        raise Refusal(f"data.max_images={max_images} must be at least 1")
    if not isinstance(train, ListSource):
        raise Refusal("data.max_images needs a list of images, not a stream: leave it unset with data.streaming")
    if max_images >= len(train):
        return splits
    keys = derive_samples("subset", seed, np.array([1]), np.arange(len(train)))
    chosen = np.sort(np.argsort(keys, kind="stable")[:max_images])
    extra = {name: (labels[chosen], test) for name, (labels, test) in splits.extra_labels.items()}
    maps = {name: (labels.select(chosen), test) for name, (labels, test) in splits.label_maps.items()}
    description = f"{splits.description}; of these {max_images:,} training images are used"
    return replace(splits, train=Subset(train, chosen), extra_labels=extra, label_maps=maps, description=description)


def balanced_rows(labels: NDArray[np.int64], max_images: int | None, seed: int) -> NDArray[np.int64]:
    """Rows of at most `max_images` images, as many of each class as possible, in their order. None: all rows.

    Images are taken in rounds, one of each class that has any left, in an order drawn with the seed.
    """
    if max_images is None or max_images >= len(labels):
        return np.arange(len(labels))
    if max_images < 1:
        raise Refusal(f"max_train_images={max_images} must be at least 1")
    order = np.random.default_rng(derive("subset", seed, 2)).permutation(len(labels))
    rounds = ranks_in_class(labels, order)
    by_round = order[np.argsort(rounds[order], kind="stable")]
    return np.sort(by_round[:max_images])


def ranks_in_class(labels: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many records of its own class stand before each record in `order`, a permutation of all: [n] -> [n]."""
    places = np.empty(len(labels), dtype=np.int64)
    places[order] = np.arange(len(labels))
    by_class = np.lexsort((places, labels))
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[by_class] = np.arange(len(labels)) - np.repeat(starts, counts)
    return ranks
