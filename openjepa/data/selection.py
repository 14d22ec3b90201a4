"""Selection of records from a list: subsets, held-out records, and the labeled images of a low-shot protocol."""

import re
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from openjepa.data.folders.entries import SUFFIXES
from openjepa.data.source import NO_LABEL, ListSource, Splits
from openjepa.refusals import Refusal, examples
from openjepa.seeds import derive, derive_samples
from openjepa.settings.evaluation import LowShotSettings

TABLE_ROW = re.compile(r" row \d+ \((.+)\)$")
"""Names of table rows that include the path of their image."""


class Subset(ListSource):
    """The records `indices` of another list, in that order."""

    def __init__(self, source: ListSource, indices: NDArray[np.int64]) -> None:
        """`indices` are indices into `source`."""
        self._source = source
        self._indices = indices
        if source.labels is not None:
            self.labels = source.labels[indices]
        elif source.partial_labels is not None:
            self.set_labels(source.partial_labels[indices], source.class_names)
        self.class_names = source.class_names

    @property
    def whole(self) -> ListSource:
        """The list that the records are taken from."""
        return self._source

    def __len__(self) -> int:
        """Number of records."""
        return len(self._indices)

    def read(self, index: int) -> bytes:
        """The encoded image file of a record."""
        return self._source.read(int(self._indices[index]))

    def name(self, index: int) -> str:
        """Name of the record in the original list."""
        return self._source.name(int(self._indices[index]))

    def stamp(self, index: int) -> bytes:
        """Stamp of the record in the original list."""
        return self._source.stamp(int(self._indices[index]))


def labeled_part(source: ListSource) -> ListSource:
    """The records that have a class. The list itself if all or none of them have one."""
    if source.partial_labels is None:
        return source
    return Subset(source, np.flatnonzero(source.partial_labels != NO_LABEL))


def for_probes(splits: Splits) -> Splits:
    """The splits for probes, without the records that have no class."""
    train = labeled_part(splits.train) if isinstance(splits.train, ListSource) else splits.train
    return replace(splits, train=train, test=None if splits.test is None else labeled_part(splits.test))


def held_out(labels: NDArray[np.int64] | None, fraction: float, seed: int) -> NDArray[np.bool_] | None:
    """A mask [n] of the records held out to test probes: a share `fraction` of each class, rounded, but never the whole class.

    Records without a class (NO_LABEL) are not held out. Returns None if no records are held out. Raises Refusal if the fraction
    is out of range.
    """
    if not 0 <= fraction < 1:
        raise Refusal(f"data.test_fraction={fraction} must be at least 0 and less than 1")
    if labels is None:
        return None
    # Sorted by class, then by a random key: the first records of each class are held out.
    keys = derive_samples("subset", seed, np.array([0]), np.arange(len(labels)))
    ranks = ranks_in_class(labels, np.argsort(keys, kind="stable"))
    counts = np.bincount(labels[labels != NO_LABEL], minlength=1)
    num_held = np.minimum(np.floor(fraction * counts + 0.5).astype(np.int64), counts - 1)
    is_held: NDArray[np.bool_] = (labels != NO_LABEL) & (ranks < num_held[labels])
    return is_held if is_held.any() else None


def limited(splits: Splits, max_images: int, seed: int) -> Splits:
    """The splits with at most `max_images` training images, drawn with `seed` and kept in their order.

    Raises Refusal if `max_images` is below 1 or the training split is a stream.
    """
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
    """Indices of at most `max_images` images, as many of each class as possible, in ascending order. None means all.

    Images are taken in rounds: one of each class that has any left, in an order drawn with `seed`.
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
    """Number of records of the same class that precede each record in `order`, a permutation of all records: [n] -> [n]."""
    places = np.empty(len(labels), dtype=np.int64)
    places[order] = np.arange(len(labels))
    by_class = np.lexsort((places, labels))
    _, starts, counts = np.unique(labels[by_class], return_index=True, return_counts=True)
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[by_class] = np.arange(len(labels)) - np.repeat(starts, counts)
    return ranks


# -------------------------------------------------------------------------------------------------------------- low-shot


def low_shot_rows(
    source: ListSource, labels: NDArray[np.int64], settings: LowShotSettings, max_skipped: float = 0.0
) -> NDArray[np.int64]:
    """Sorted indices of the labeled images of `source`, whose classes are `labels`. One of these settings must be given.

    `percent`: that share of each class, rounded (halves up), at least one image. `images_per_class`: that many of each class.
    Both take the first images of each class in an order drawn with the seed. A smaller subset is thus part of a larger one.
    `list`: the images that a file names (see `_listed_rows`). At most a share of `max_skipped` of them may be absent.

    Raises Refusal if a class has too few images, the list cannot be read, or it names images that are absent or ambiguous.
    """
    if settings.list is not None:
        return _listed_rows(source, Path(settings.list).expanduser(), max_skipped)
    counts = np.bincount(labels)
    if settings.images_per_class is not None:
        _check_counts(source, labels, counts, settings.images_per_class)
        wanted = np.full(len(counts), settings.images_per_class, dtype=np.int64)
    else:
        assert settings.percent is not None, "no low-shot setting is given"
        wanted = np.maximum(np.floor(settings.percent * counts / 100 + 0.5).astype(np.int64), 1)
    # Sorted by a random key of each record: the first records of each class are taken.
    keys = derive_samples("subset", settings.seed, np.array([3]), np.arange(len(labels)))
    return np.flatnonzero(ranks_in_class(labels, np.argsort(keys, kind="stable")) < wanted[labels])


def _check_counts(source: ListSource, labels: NDArray[np.int64], counts: NDArray[np.int64], wanted: int) -> None:
    scarce = np.flatnonzero((counts < wanted) & (counts > 0)).tolist()
    if not scarce:
        return
    names = source.class_names if source.labels is not None and np.array_equal(source.labels, labels) else None
    words = [f"{names[label] if names else f'class {label}'} has {counts[label]}" for label in scarce]
    raise Refusal(
        f"evaluation.low_shot.images_per_class={wanted}: {len(scarce)} of {np.count_nonzero(counts)} classes have fewer images "
        f"({examples(words)}); at most {counts[counts > 0].min()} of each class can be drawn"
    )


# ------------------------------------------------------------------------------------------------------------------ lists


@dataclass(frozen=True)
class _Name:
    """An image's path, divided into the parts that a list may leave out."""

    stem: str
    suffix: str
    folders: tuple[str, ...]

    def agrees(self, other: "_Name") -> bool:
        """True if the folders agree as far as both paths have them."""
        common = min(len(self.folders), len(other.folders))
        return self.folders[len(self.folders) - common :] == other.folders[len(other.folders) - common :]


def _name(path: str) -> _Name:
    stem, suffix = _stem(path)
    return _Name(stem, suffix, PurePosixPath(path).parts[:-1])


def _stem(path: str) -> tuple[str, str]:
    """File name without the suffix, and the suffix. Only image suffixes count, because names may contain dots."""
    file = path.rpartition("/")[2]
    stem, dot, suffix = file.rpartition(".")
    return (stem, dot + suffix) if (dot + suffix).lower() in SUFFIXES else (file, "")


def _listed_rows(source: ListSource, file: Path, max_skipped: float) -> NDArray[np.int64]:
    """The images that the lines of a file name: `n01440764_10043.JPEG`, with or without folders and suffix.

    Blank lines and lines that start with # are skipped. Suffix and folders matter only if several images have the same name,
    except that folders must agree if both have them. An image that is named twice counts once, with a warning. Absent images
    are left out with a warning, up to a share of `max_skipped`.
    """
    lines = _read_list(file)
    known = _rows_by_stem(source, {_name(line).stem for line in lines})
    found = {line: _matches(_name(line), known) for line in lines}
    absent = [line for line, rows in found.items() if not rows]
    if len(absent) > max_skipped * len(found) or len(absent) == len(found):
        _refuse(file, absent, lambda line: line, "are not among the training images")
    elif absent:
        warnings.warn(f"{file} names {len(absent)} of {len(found)} images that are not there: {examples(absent)}", stacklevel=2)
    several = [line for line, rows in found.items() if len(rows) > 1]
    _refuse(
        file,
        several,
        lambda line: f"{line} ({', '.join(source.name(row) for row in found[line][:2])})",
        "could be several images",
    )
    there = [found[line][0] for line in lines if found[line]]
    rows = np.unique(np.array(there, dtype=np.int64))
    if len(rows) < len(there):
        warnings.warn(f"{file} names {len(there) - len(rows)} images more than once; they count once", stacklevel=2)
    return rows


def _read_list(file: Path) -> list[str]:
    setting = f"evaluation.low_shot.list={str(file)!r}"
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{setting} cannot be read ({type(error).__name__}); give a text file with one image per line") from error
    lines = [line for line in lines if line and not line.startswith("#")]
    if not lines:
        raise Refusal(f"{setting} names no images; it must have one image per line")
    return lines


def _rows_by_stem(source: ListSource, stems: set[str]) -> dict[str, list[tuple[_Name, int]]]:
    """Names and indices of the images that have one of these stems."""
    known: dict[str, list[tuple[_Name, int]]] = defaultdict(list)
    for row in range(len(source)):
        path = source.name(row)
        if path.endswith(")") and (in_table := TABLE_ROW.search(path)):
            path = in_table[1]
        stem, _ = _stem(path)  # there may be a million names; only a few need to be parsed further
        if stem in stems:
            known[stem].append((_name(path), row))
    return known


def _matches(name: _Name, known: dict[str, list[tuple[_Name, int]]]) -> list[int]:
    agreeing = [(other, row) for other, row in known.get(name.stem, []) if name.agrees(other)]
    exact = [(other, row) for other, row in agreeing if other.suffix == name.suffix]
    return [row for _, row in exact or agreeing]


def _refuse(file: Path, lines: list[str], describe: Callable[[str], str], what: str) -> None:
    """Raises Refusal with the first of `lines`, unless there are none."""
    if lines:
        shown = examples([describe(line) for line in lines])
        raise Refusal(
            f"evaluation.low_shot.list={str(file)!r}: {len(lines)} of its names {what}: {shown}; the list must name images of "
            "the whole training split by their file names"
        )
