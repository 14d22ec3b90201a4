"""Passes over a list of images in batches, and the ordered map over worker processes that every pass uses.

A pass reads the evaluation view in order, or augmented views in random order. Results do not depend on the number of workers.
"""

import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from openjepa.refusals import Refusal
from openjepa.seeds import derive, derive_samples, uniforms
from openjepa.system.machine import available_cores
from openjepa.types import Skipped, ViewSpec

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


def augmented_batches(
    views: LabeledViews,
    batch_size: int,
    epoch: int,
    seed: int,
    workers: int,
    rows: NDArray[np.int64] | None = None,
    drop_last: bool = True,
    unreadable: list[Skipped] | None = None,
) -> Iterator[AugmentedBatch]:
    """One pass over the records `rows` (None means all). Their order and crops depend only on (seed, epoch).

    Records that cannot be read are left out, so a pass may be shorter than the number of records suggests. They are added to
    `unreadable` when they are found. If that is None, a warning at the end of epoch 0 gives their number. If `drop_last`, a
    last batch that is not full is dropped, unless it is the only one.
    """
    wanted = np.arange(len(views.source)) if rows is None else rows
    order = wanted[np.random.default_rng(derive("order", seed, epoch)).permutation(len(wanted))]
    tasks = ((seed, epoch, chunk) for chunk in _chunks(order, TRAINING_CHUNK))
    found: list[Skipped] = [] if unreadable is None else unreadable
    pieces = _readable(parallel_map(views, tasks, workers, _ahead(batch_size, TRAINING_CHUNK)), found)
    for images, indices in rebatched(pieces, batch_size, drop_last):
        yield AugmentedBatch(images, torch.from_numpy(views.labels[indices.numpy()]), indices)
    if unreadable is None and epoch == 0:
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
    """Number of worker processes. If `workers` is None: all cores but one, at most 16, or none if pixels are cached."""
    if workers is not None:
        return workers
    return 0 if cache != "none" else min(16, max(1, available_cores() - 1))


def check_shared_memory(workers: int, needed: int, setting: str = "system.workers") -> None:
    """Raises Refusal if `needed` bytes of results in flight do not fit into shared memory, which would kill the workers."""
    folder = Path("/dev/shm")
    if folder.is_dir() and shutil.disk_usage(folder).free < needed:
        raise Refusal(
            f"{setting}={workers} needs {needed:,} bytes of shared memory, but /dev/shm has only "
            f"{shutil.disk_usage(folder).free:,} free: use fewer workers, or enlarge it (docker run --shm-size=2g)"
        )
