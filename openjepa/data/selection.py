"""Some of the records of a list."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from openjepa.data.source import NO_LABEL, ListSource, Splits
from openjepa.data.tables.labels import set_labels
from openjepa.refusals import Refusal
from openjepa.seeds import derive, derive_samples


class Subset(ListSource):
    """The records `indices` of another list, in that order."""

    def __init__(self, source: ListSource, indices: NDArray[np.int64]) -> None:
        """`indices`: numbers in `source`."""
        self._source = source
        self._indices = indices
        if source.labels is not None:
            self.labels = source.labels[indices]
        elif source.partial_labels is not None:
            set_labels(self, source.partial_labels[indices], source.class_names)
        self.class_names = source.class_names

    @property
    def whole(self) -> ListSource:
        """The other list."""
        return self._source

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


def labeled_part(source: ListSource) -> ListSource:
    """The records that have a class, if only some have one; else the whole list."""
    if source.partial_labels is None:
        return source
    return Subset(source, np.flatnonzero(source.partial_labels != NO_LABEL))


def for_probes(splits: Splits) -> Splits:
    """The splits without records that have no class, which pretraining alone can use."""
    train = labeled_part(splits.train) if isinstance(splits.train, ListSource) else splits.train
    return replace(splits, train=train, test=None if splits.test is None else labeled_part(splits.test))


def held_out(labels: NDArray[np.int64] | None, fraction: float, seed: int) -> NDArray[np.bool_] | None:
    """Which records are held out to test probes: of each class the nearest whole number to the fraction, never all.

    Records without a class (NO_LABEL) are not held out. Returns None if none are. Raises Refusal for an impossible fraction.
    """
    if not 0 <= fraction < 1:
        raise Refusal(f"data.test_fraction={fraction} must be at least 0 and less than 1")
    if labels is None:
        return None
    # Sorted by class, then by a random key: the first of each class are held out.
    keys = derive_samples("subset", seed, np.array([0]), np.arange(len(labels)))
    ranks = ranks_in_class(labels, np.argsort(keys, kind="stable"))
    counts = np.bincount(labels[labels != NO_LABEL], minlength=1)
    num_held = np.minimum(np.floor(fraction * counts + 0.5).astype(np.int64), counts - 1)
    is_held: NDArray[np.bool_] = (labels != NO_LABEL) & (ranks < num_held[labels])
    return is_held if is_held.any() else None


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
