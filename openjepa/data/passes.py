"""Passes over a list of images in batches, and the ordered map over worker processes that every pass uses.

A pass reads the evaluation view in order, or augmented views in random order. Results do not depend on the number of workers.
"""

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from openjepa.data.augmentations import Augment
from openjepa.data.decode import decode_image
from openjepa.data.loading.unreadable import skipped_sample
from openjepa.data.loading.workers import parallel_map
from openjepa.data.source import ListSource
from openjepa.data.views import (
    NUMBERS_PER_VIEW,
    crop_and_resize,
    crop_box,
    decoded_side,
    evaluation_view,
    is_mirrored,
    resize,
)
from openjepa.engine import distributed
from openjepa.refusals import Refusal
from openjepa.seeds import derive, derive_samples, uniforms
from openjepa.system.machine import available_cores, local_processes, part_words
from openjepa.types import Skipped, ViewSpec

Task = TypeVar("Task")

EVALUATION_CHUNK = 64
"""Number of images per task of a worker, for evaluation views."""
TRAINING_CHUNK = 32
"""The same number for augmented views, which take longer."""


Piece = tuple[UInt8[Tensor, "n 3 h w"], NDArray[np.int64], list[Skipped]]
"""Result of a worker: views, their indices in the source, and the records that cannot be read."""


def rebatched(pieces: Iterable[tuple[Tensor, ...]], size: int, drop_last: bool = False) -> Iterator[tuple[Tensor, ...]]:
    """Batches of `size` rows from pieces of any length, in the same order.

    A piece is a tuple of tensors with the same number of rows, such as images and labels. A batch is a tuple of the same kind.
    If `drop_last`, a last batch that is not full is dropped, unless it is the only one.
    """
    held: list[tuple[Tensor, ...]] = []
    num_held, is_first = 0, True
    for piece in pieces:
        held.append(piece)
        num_held += len(piece[0])
        while num_held >= size:
            joined = _joined(held)
            yield tuple(column[:size] for column in joined)
            held = [tuple(column[size:] for column in joined)]
            num_held, is_first = num_held - size, False
    if num_held and (is_first or not drop_last):
        yield _joined(held)


def _joined(pieces: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return pieces[0] if len(pieces) == 1 else tuple(torch.cat(column) for column in zip(*pieces, strict=True))


# ------------------------------------------------------------------------------------------------------------- evaluation view


@dataclass(frozen=True)
class EvalBatch:
    """Some images of a source, in the evaluation view."""

    images: UInt8[Tensor, "B 3 h w"]
    labels: Int[Tensor, " B"] | None
    indices: Int[Tensor, " B"]
    """Indices of the images in the source. Unreadable images are absent."""


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

    `fit`: `crop` (short side to 256/224 of the size, center crop) or `squash`. `max_images`: largest number of images; if the
    source has more, they are drawn with `seed`. `first`: records with a smaller index are left out. Images that cannot be read
    are left out and added to `unreadable`. If that is None, a warning at the end gives their number.
    """
    indices = np.arange(len(source))
    if max_images is not None and max_images < len(source):
        keys = derive_samples("subset", seed, np.array([2]), indices)
        indices = np.sort(np.argsort(keys, kind="stable")[:max_images])
    indices = indices[indices >= first]
    found: list[Skipped] = [] if unreadable is None else unreadable
    reader = _EvaluationReader(source, image_size, fit)
    pieces = _readable(
        parallel_map(reader, _chunks(indices, EVALUATION_CHUNK), workers, _ahead(batch_size, EVALUATION_CHUNK)), found
    )
    for images, numbers in rebatched(pieces, batch_size):
        labels = None if source.labels is None else torch.from_numpy(source.labels[numbers.numpy()])
        yield EvalBatch(images, labels, numbers)
    if unreadable is None:
        _warn(found, len(indices), "to be evaluated")


def shared_evaluation_batches(
    source: ListSource, image_size: tuple[int, int], batch_size: int, workers: int, *, fit: str, first: int
) -> Iterator[EvalBatch]:
    """`evaluation_batches` without labels, of which each process that has joined gets every N-th.

    Batches are taken from `batch_size` records, readable or not. All processes get equally many, and some may be empty.
    """
    reader, records = _EvaluationReader(source, image_size, fit), np.arange(first, len(source))
    own = _own_pieces(reader, lambda piece: list(_chunks(piece, EVALUATION_CHUNK)), records, batch_size, workers, image_size)
    for images, numbers, _ in own:
        yield EvalBatch(images, None, torch.from_numpy(numbers))


@dataclass(frozen=True)
class _EvaluationReader:
    """Decodes and resizes a chunk of images. This is the part that runs in a worker."""

    source: ListSource
    size: tuple[int, int]
    fit: str

    def __call__(self, indices: NDArray[np.int64]) -> Piece:
        records = [ImageRecord(self.source.name(index), partial(self.source.read, index)) for index in indices.tolist()]
        images, places, unreadable = evaluation_views(records, self.size, self.fit)
        return images, indices[places], unreadable


@dataclass(frozen=True)
class ImageRecord:
    """An image file to be decoded."""

    name: str
    read: Callable[[], bytes]


def evaluation_views(
    records: Sequence[ImageRecord],
    size: tuple[int, int],
    fit: str,
    every: Callable[[Callable[[int], Skipped | None], Iterable[int]], Iterable[Skipped | None]] = map,
) -> tuple[UInt8[Tensor, "n 3 h w"], list[int], list[Skipped]]:
    """Evaluation views of the readable records, their places among all records, and the unreadable records with reasons.

    `every` calls a function for every place. It is `map`, or the `map` of a pool of threads.
    """
    images = torch.empty((len(records), 3, *size), dtype=torch.uint8)
    enough = decoded_side(size)

    def problem(place: int) -> Skipped | None:
        try:
            pixels = torch.from_numpy(decode_image(records[place].read(), enough))
        except (ValueError, OSError) as error:
            return skipped_sample(records[place].name, error)
        images[place] = evaluation_view(pixels, size, fit)
        return None

    problems = list(every(problem, range(len(records))))
    places = [place for place, found in enumerate(problems) if found is None]
    unreadable = [found for found in problems if found is not None]
    return (images[places] if unreadable else images), places, unreadable


# ----------------------------------------------------------------------------------------------------------- augmented views


@dataclass(frozen=True)
class LabeledViews:
    """Makes training views of labeled images."""

    source: ListSource
    labels: NDArray[np.int64]
    """One class per record."""
    view: ViewSpec
    """Size, crop, interpolation and mirroring."""
    fit: str = "random_crop"
    """`random_crop`: RandomResizedCrop as set in `view`. `squash`: the whole image, resized. `crop`: the test view, without
    randomness. Mirroring is `view.horizontal_flip` in all three."""
    augment: Augment | None = None
    """Applied to the finished view, with a seed of its own."""

    def __call__(self, task: tuple[int, int, NDArray[np.int64]]) -> Piece:
        """The views of the records `indices`, where the task is (seed, epoch, indices). This part runs in a worker."""
        seed, epoch, indices = task
        seeds = derive_samples("crop", seed, np.array([epoch]), indices)
        numbers = uniforms(seeds, NUMBERS_PER_VIEW)
        images = torch.empty((len(indices), 3, *self.view.size), dtype=torch.uint8)
        used: list[int] = []
        unreadable: list[Skipped] = []
        for index, row, own_seed in zip(indices.tolist(), numbers.tolist(), seeds.tolist(), strict=True):
            try:
                view = self._view(index, row)
            except (ValueError, OSError) as error:
                unreadable.append(skipped_sample(self.source.name(index), error))
                continue
            images[len(used)] = view if self.augment is None else self.augment(view, own_seed)
            used.append(index)
        return images[: len(used)], np.array(used, dtype=np.int64), unreadable

    def _view(self, index: int, numbers: list[float]) -> UInt8[Tensor, "3 h w"]:
        height, width = self.view.size
        # a random crop may be a small part of the image, so only the other views may be decoded at reduced size
        enough = 0 if self.fit == "random_crop" else decoded_side((height, width))
        pixels = torch.from_numpy(decode_image(self.source.read(index), enough))
        flip = is_mirrored(numbers, self.view)
        if self.fit == "random_crop":
            box = crop_box(numbers, pixels.shape[0], pixels.shape[1], self.view)
            return crop_and_resize(pixels, box, self.view.size, self.view.interpolation, flip)
        if self.fit == "squash":
            return resize(pixels, self.view.size, self.view.interpolation, flip)
        view = evaluation_view(pixels, self.view.size, self.fit)
        return view.flip(-1) if flip else view


@dataclass(frozen=True)
class AugmentedBatch:
    """Views of some records with their labels."""

    images: UInt8[Tensor, "B 3 h w"]
    labels: Int[Tensor, " B"]
    indices: Int[Tensor, " B"]
    """Indices of the records in the source."""


@dataclass(frozen=True)
class SharedPass:
    """How processes that have joined make one pass together."""

    gather: Callable[[UInt8[Tensor, "n 3 h w"]], Tensor]
    """From the images that this process has decoded to the rows of all processes, in their order: images or features."""
    piece: int
    """Number of records that each process decodes at a time."""


def augmented_batches(
    views: LabeledViews,
    batch_size: int,
    epoch: int,
    seed: int,
    workers: int,
    rows: NDArray[np.int64] | None = None,
    drop_last: bool = True,
    unreadable: list[Skipped] | None = None,
    together: SharedPass | None = None,
) -> Iterator[AugmentedBatch]:
    """One pass over the records `rows` (None means all). Their order and crops depend only on (seed, epoch).

    Records that cannot be read are left out, so a pass may be shorter than the number of records suggests. They are added to
    `unreadable` when they are found. If that is None, a warning at the end of epoch 0 gives their number. If `drop_last`, a
    last batch that is not full is dropped, unless it is the only one.

    `together`: all processes get the batches that a single one would get, and each decodes a share of the records. The images
    of a batch are then what `together.gather` makes of them, also in a single process.
    """
    wanted = np.arange(len(views.source)) if rows is None else rows
    order = wanted[np.random.default_rng(derive("order", seed, epoch)).permutation(len(wanted))]
    found: list[Skipped] = [] if unreadable is None else unreadable

    def tasks_of(records: NDArray[np.int64]) -> list[tuple[int, int, NDArray[np.int64]]]:
        return [(seed, epoch, chunk) for chunk in _chunks(records, TRAINING_CHUNK)]

    is_shared = together is not None and distributed.world_size() > 1
    if together is not None and is_shared:
        own = _own_pieces(views, tasks_of, order, together.piece, workers, views.view.size)
        pieces = _pieces_of_all(own, together.gather, found)
    else:
        pieces = _readable(parallel_map(views, tasks_of(order), workers, _ahead(batch_size, TRAINING_CHUNK)), found)
    for images, indices in rebatched(pieces, batch_size, drop_last):
        made = images if together is None or is_shared else together.gather(images)
        yield AugmentedBatch(made, torch.from_numpy(views.labels[indices.numpy()]), indices)
    if unreadable is None and epoch == 0 and distributed.is_main():
        _warn(found, len(order), "to train on")


# -------------------------------------------------------------------------------------------------------- shared by both passes


def _chunks(indices: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    return (indices[first : first + size] for first in range(0, len(indices), size))


def _ahead(batch_size: int, chunk: int) -> int:
    """Number of chunks in flight that make two batches."""
    return 2 * -(-batch_size // chunk)


def _readable(pieces: Iterable[Piece], unreadable: list[Skipped]) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and indices of the readable records. The other records are added to `unreadable`."""
    for images, numbers, failed in pieces:
        unreadable.extend(failed)
        yield images, torch.from_numpy(numbers)


def _own_pieces(
    function: Callable[[Task], Piece],
    tasks_of: Callable[[NDArray[np.int64]], Sequence[Task]],
    records: NDArray[np.int64],
    size: int,
    workers: int,
    image_size: tuple[int, int],
) -> Iterator[Piece]:
    """Every N-th piece of `size` records, for each of N processes equally many. `tasks_of`: the tasks of `function` for one."""
    processes, rank = distributed.world_size(), distributed.rank()
    starts = [(turn + rank) * size for turn in range(0, -(-len(records) // size), processes)]
    own = [tasks_of(records[start : start + size]) for start in starts]
    done = parallel_map(function, chain.from_iterable(own), workers, 2 * max(map(len, own), default=0))
    nothing: Piece = torch.empty((0, 3, *image_size), dtype=torch.uint8), records[:0], []
    for tasks in own:
        images, numbers, failed = zip(nothing, *islice(done, len(tasks)), strict=True)
        yield torch.cat(images), np.concatenate(numbers), list(chain.from_iterable(failed))


def _pieces_of_all(
    own: Iterable[Piece], gather: Callable[[Tensor], Tensor], unreadable: list[Skipped]
) -> Iterator[tuple[Tensor, Tensor]]:
    """As `_readable`, for the pieces of all processes. `own`: those of this one. `gather`: as in `SharedPass`."""
    for images, numbers, failed in own:
        made, of_all = gather(images), distributed.gathered((numbers, failed))
        unreadable.extend(chain.from_iterable(some for _, some in of_all))
        yield made, torch.from_numpy(np.concatenate([part for part, _ in of_all]))


def _warn(unreadable: list[Skipped], num_images: int, purpose: str) -> None:
    """Warns with the number of images that could not be read, if there are any."""
    if unreadable:
        first = unreadable[0]
        warnings.warn(
            f"{len(unreadable)} of {num_images} images {purpose} cannot be read and are left out; the first is "
            f"{first.name}: {first.reason}",
            stacklevel=3,
        )


# ------------------------------------------------------------------------------------------------------------- worker processes


def choose_workers(workers: int | None, cache: str = "none") -> int:
    """Number of worker processes. If `workers` is None: all cores but one, at most 16, or none if pixels are cached.

    Processes that torchrun has started on this machine divide its cores.
    """
    if workers is not None:
        return workers
    return 0 if cache != "none" else min(16, max(1, available_cores() // local_processes() - 1))


def check_shared_memory(workers: int, needed: int, setting: str = "system.workers") -> None:
    """Raises Refusal if `needed` bytes of results in flight do not fit into shared memory, which would kill the workers.

    The processes that torchrun has started on this machine divide it, so call it before any of them has workers.
    """
    folder = Path("/dev/shm")
    if folder.is_dir() and (free := shutil.disk_usage(folder).free // local_processes()) < needed:
        raise Refusal(
            f"{setting}={workers} needs {needed:,} bytes of shared memory, but /dev/shm has only "
            f"{free:,} free{part_words(local_processes())}: use fewer workers, or enlarge it "
            "(docker run --shm-size=2g)"
        )
