"""Images in the view that is evaluated, in their order, for features and probes.

Which training images are labeled where only some are: those of a list, or some of each class drawn with a seed.
"""

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from openjepa.data.decode import decode_image
from openjepa.data.folders.entries import SUFFIXES
from openjepa.data.folders.image_lists import NUM_EXAMPLES, examples
from openjepa.data.loading.unreadable import reason_of
from openjepa.data.loading.workers import parallel_map
from openjepa.data.selection import ranks_in_class
from openjepa.data.source import ListSource
from openjepa.data.views import decoded_side, evaluation_view
from openjepa.refusals import Refusal
from openjepa.seeds import derive_samples
from openjepa.settings.evaluation import LowShotSettings
from openjepa.types import Skipped

CHUNK = 64
"""Images a worker hands over at a time."""


@dataclass(frozen=True)
class EvalBatch:
    """Some images of a source."""

    images: UInt8[Tensor, "B 3 h w"]
    labels: Int[Tensor, " B"] | None
    indices: Int[Tensor, " B"]
    """Their numbers in the source; unreadable ones are left out."""


@dataclass(frozen=True)
class _EvaluationReader:
    """Decodes and resizes a chunk; the worker's part."""

    source: ListSource
    size: tuple[int, int]
    fit: str

    def __call__(self, indices: NDArray[np.int64]) -> tuple[UInt8[Tensor, "n 3 h w"], list[int], list[Skipped]]:
        records = [Record(self.source.name(index), partial(self.source.read, index)) for index in indices.tolist()]
        images, places, unreadable = evaluation_views(records, self.size, self.fit)
        return images, indices[places].tolist(), unreadable


@dataclass(frozen=True)
class Record:
    """An image file that is to be decoded."""

    name: str
    read: Callable[[], bytes]


def evaluation_views(
    records: Sequence[Record],
    size: tuple[int, int],
    fit: str,
    every: Callable[[Callable[[int], str | None], Iterable[int]], Iterable[str | None]] = map,
) -> tuple[UInt8[Tensor, "n 3 h w"], list[int], list[Skipped]]:
    """Views of the records that can be read, their places among all, and those that cannot be read with the reason.

    `every`: calls a function for every place, as `map` does, or a pool of threads.
    """
    images = torch.empty((len(records), 3, *size), dtype=torch.uint8)
    enough = decoded_side(size)

    def problem(place: int) -> str | None:
        try:
            pixels = torch.from_numpy(decode_image(records[place].read(), enough))
        except (ValueError, OSError) as error:
            return reason_of(error)
        images[place] = evaluation_view(pixels, size, fit)
        return None

    reasons = list(every(problem, range(len(records))))
    places = [place for place, reason in enumerate(reasons) if reason is None]
    unreadable = [Skipped(records[place].name, reason) for place, reason in enumerate(reasons) if reason is not None]
    return (images[places] if unreadable else images), places, unreadable


def evaluation_batches(
    source: ListSource,
    image_size: tuple[int, int],
    batch_size: int = 256,
    workers: int = 0,
    *,
    fit: str = "crop",
    max_images: int | None = None,
    seed: int = 0,
    first: int = 0,
    unreadable: list[Skipped] | None = None,
) -> Iterator[EvalBatch]:
    """The images of a source in order, `batch_size` at a time.

    `fit`: `crop` (short side to 256/224 of the size, center crop) or `squash`. `max_images`: only so many, drawn with the seed.
    `first`: records with smaller numbers are passed over. Images that cannot be read are left out and added to `unreadable`;
    where that is None, a warning at the end counts them.
    """
    indices = np.arange(len(source))
    if max_images is not None and max_images < len(source):
        keys = derive_samples("subset", seed, np.array([2]), indices)
        indices = np.sort(np.argsort(keys, kind="stable")[:max_images])
    indices = indices[indices >= first]
    found: list[Skipped] = [] if unreadable is None else unreadable
    chunks = (indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK))
    reader = _EvaluationReader(source, image_size, fit)
    images: list[Tensor] = []
    numbers: list[int] = []
    for chunk_images, used, failed in parallel_map(reader, chunks, workers, ahead=2 * -(-batch_size // CHUNK)):
        images.append(chunk_images)
        numbers.extend(used)
        found.extend(failed)
        while len(numbers) >= batch_size:
            joined = torch.cat(images)
            yield _batch(source, joined[:batch_size], numbers[:batch_size])
            images, numbers = [joined[batch_size:]], numbers[batch_size:]
    if numbers:
        yield _batch(source, torch.cat(images), numbers)
    if unreadable is None and found:
        warnings.warn(
            f"{len(found)} of {len(indices)} images to be evaluated cannot be read and are left out; the first is "
            f"{found[0].name}: {found[0].reason}",
            stacklevel=2,
        )


def _batch(source: ListSource, images: Tensor, numbers: list[int]) -> EvalBatch:
    labels = None if source.labels is None else torch.from_numpy(source.labels[numbers])
    return EvalBatch(images, labels, torch.tensor(numbers, dtype=torch.int64))


TABLE_ROW = re.compile(r" row \d+ \((.+)\)$")
"""How rows of tables are named that keep the path of their image."""


def low_shot_rows(
    source: ListSource, labels: NDArray[np.int64], settings: LowShotSettings, max_skipped: float = 0.0
) -> NDArray[np.int64]:
    """Sorted numbers of the labeled images of `source`, whose classes are `labels`; one of the settings must be given.

    `percent`: of each class the nearest whole number (halves up), at least one. `images_per_class`: so many of each class. Both
    take the first images of each class in an order drawn with the seed, so that a smaller subset lies within a larger one.
    `list`: the images that a file names (see `_listed_rows`), of which a share of `max_skipped` may be absent.
    Raises Refusal where a class has too few images, or the list cannot be read or names images that cannot be told apart or
    are not there.
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
    # In the order of a random key that is the record's own: the first of each class are taken.
    keys = derive_samples("subset", settings.seed, np.array([3]), np.arange(len(labels)))
    return np.flatnonzero(ranks_in_class(labels, np.argsort(keys, kind="stable")) < wanted[labels])


def _check_counts(source: ListSource, labels: NDArray[np.int64], counts: NDArray[np.int64], wanted: int) -> None:
    few = np.flatnonzero((counts < wanted) & (counts > 0)).tolist()
    if not few:
        return
    names = source.class_names if source.labels is not None and np.array_equal(source.labels, labels) else None
    words = [f"{names[label] if names else f'class {label}'} has {counts[label]}" for label in few[:NUM_EXAMPLES]]
    raise Refusal(
        f"evaluation.low_shot.images_per_class={wanted}: {len(few)} of {np.count_nonzero(counts)} classes have fewer images "
        f"({', '.join(words)}); at most {counts[counts > 0].min()} of each class can be drawn"
    )


# ------------------------------------------------------------------------------------------------------------------ lists


@dataclass(frozen=True)
class _Name:
    """An image's path in parts that lists write or leave out."""

    stem: str
    suffix: str
    folders: tuple[str, ...]

    def agrees(self, other: "_Name") -> bool:
        """Whether the folders are the same as far as both are written."""
        common = min(len(self.folders), len(other.folders))
        return self.folders[len(self.folders) - common :] == other.folders[len(other.folders) - common :]


def _name(path: str) -> _Name:
    stem, suffix = _stem(path)
    return _Name(stem, suffix, PurePosixPath(path).parts[:-1])


def _stem(path: str) -> tuple[str, str]:
    """Name of the file without the suffix, and the suffix. Only those of images are suffixes: names may have dots."""
    file = path.rpartition("/")[2]
    stem, dot, suffix = file.rpartition(".")
    return (stem, dot + suffix) if (dot + suffix).lower() in SUFFIXES else (file, "")


def _listed_rows(source: ListSource, file: Path, max_skipped: float) -> NDArray[np.int64]:
    """The images that the lines of a file name: `n01440764_10043.JPEG`, with or without folders and suffix.

    Blank lines and those that start with # are skipped. Suffix and folders decide only where several images have the same name,
    but folders that both write must agree. What is named twice counts once, with a warning. Absent images are left out with
    a warning, up to a share of `max_skipped`.
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
    """Names and numbers of the images that have one of these stems."""
    known: dict[str, list[tuple[_Name, int]]] = defaultdict(list)
    for row in range(len(source)):
        path = source.name(row)
        if path.endswith(")") and (in_table := TABLE_ROW.search(path)):
            path = in_table[1]
        stem, _ = _stem(path)  # of a million names; only few are needed in parts
        if stem in stems:
            known[stem].append((_name(path), row))
    return known


def _matches(name: _Name, known: dict[str, list[tuple[_Name, int]]]) -> list[int]:
    agreeing = [(other, row) for other, row in known.get(name.stem, []) if name.agrees(other)]
    exact = [(other, row) for other, row in agreeing if other.suffix == name.suffix]
    return [row for _, row in exact or agreeing]


def _refuse(file: Path, lines: list[str], describe: Callable[[str], str], what: str) -> None:
    """Raises Refusal where there are such lines."""
    if lines:
        shown = ", ".join(describe(line) for line in lines[:NUM_EXAMPLES]) + (", ..." if len(lines) > NUM_EXAMPLES else "")
        raise Refusal(
            f"evaluation.low_shot.list={str(file)!r}: {len(lines)} of its names {what}: {shown}; the list must name images of "
            "the whole training split by their file names"
        )
