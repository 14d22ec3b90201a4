"""Labeled training views in epochs: what probes that train on augmented images and fine-tuning see."""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from openjepa.data.decode import decode_image
from openjepa.data.loading.unreadable import reason_of
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
from openjepa.seeds import derive, derive_samples, uniforms
from openjepa.types import Skipped, ViewSpec

Augment = Callable[[UInt8[Tensor, "3 h w"], int], UInt8[Tensor, "3 h w"]]
"""(view, seed) -> view of equal size. Picklable, and a pure function of both."""
CHUNK = 32
"""Images a worker hands over at a time."""


@dataclass(frozen=True)
class LabeledViews:
    """How training views of labeled images are made."""

    source: ListSource
    labels: NDArray[np.int64]
    """One class per record."""
    view: ViewSpec
    """Size, crop, filter and mirroring."""
    fit: str = "random_crop"
    """`random_crop`: RandomResizedCrop as `view` says; `squash`: the whole image resized; `crop`: the test view nothing drawn.
    Mirroring is `view.horizontal_flip` in all of them."""
    augment: Augment | None = None
    """Applied to the finished view with a seed of its own."""

    def __call__(
        self, task: tuple[int, int, NDArray[np.int64]]
    ) -> tuple[UInt8[Tensor, "n 3 h w"], NDArray[np.int64], list[Skipped]]:
        """The views of some records in an epoch, their numbers, and the records that cannot be read; the worker's part."""
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
                unreadable.append(Skipped(self.source.name(index), reason_of(error)))
                continue
            images[len(used)] = view if self.augment is None else self.augment(view, own_seed)
            used.append(index)
        return images[: len(used)], np.array(used, dtype=np.int64), unreadable

    def _view(self, index: int, numbers: list[float]) -> UInt8[Tensor, "3 h w"]:
        height, width = self.view.size
        # a random crop may take a small part of the image, so that only the other views may be decoded at reduced size
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
    """Their numbers in the source."""


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
    """One pass over the records `rows` (None: all) in an order and with crops that depend on (seed, epoch) alone.

    Records that cannot be read are left out, so that the pass may be shorter than the number of records says, and are added to
    `unreadable` as they are found, so that it holds all of them when the pass has ended; where that is None, a warning at the
    end of epoch 0 counts them. `drop_last` leaves out a last batch that is not full, unless it is the only one.
    """
    wanted = np.arange(len(views.source)) if rows is None else rows
    order = wanted[np.random.default_rng(derive("order", seed, epoch)).permutation(len(wanted))]
    tasks = ((seed, epoch, order[first : first + CHUNK]) for first in range(0, len(order), CHUNK))
    images: list[Tensor] = []
    numbers: list[NDArray[np.int64]] = []
    found: list[Skipped] = [] if unreadable is None else unreadable
    waiting, any_yet = 0, False
    for chunk, used, failed in parallel_map(views, tasks, workers, ahead=2 * -(-batch_size // CHUNK)):
        images.append(chunk)
        numbers.append(used)
        found.extend(failed)
        waiting += len(used)
        while waiting >= batch_size:
            joined, indices = torch.cat(images), np.concatenate(numbers)
            yield _batch(views, joined[:batch_size], indices[:batch_size])
            images, numbers, waiting, any_yet = [joined[batch_size:]], [indices[batch_size:]], waiting - batch_size, True
    if waiting and not (drop_last and any_yet):
        yield _batch(views, torch.cat(images), np.concatenate(numbers))
    if unreadable is None and epoch == 0 and found:
        warnings.warn(
            f"{len(found)} of {len(order)} images to train on cannot be read and are left out; the first is "
            f"{found[0].name}: {found[0].reason}",
            stacklevel=2,
        )


def _batch(views: LabeledViews, images: Tensor, indices: NDArray[np.int64]) -> AugmentedBatch:
    return AugmentedBatch(images, torch.from_numpy(views.labels[indices]), torch.from_numpy(indices))
