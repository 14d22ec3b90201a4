"""The work on one chunk of a microbatch in a worker: reads, decodes and crops images, changes colors, and draws masks."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from openjepa.data.decode import DecodeError, check_side, decode_image, image_size, kind_of
from openjepa.data.loading.cache import PixelCache
from openjepa.data.loading.colors import change_colors, draw_colors
from openjepa.data.loading.unreadable import fill_slots
from openjepa.data.source import ListSource, ShardRecord, ShardSource
from openjepa.data.views import NUMBERS_PER_VIEW, Box, crop_and_resize, crop_box, is_mirrored
from openjepa.operators import shared_bytes
from openjepa.refusals import few
from openjepa.seeds import derive, derive_samples, uniforms
from openjepa.system.patience import Patience, ReadAhead
from openjepa.types import InputSpec, LoaderPosition, Masks, Skipped

LARGE_FILE = 400_000
"""Number of bytes above which an image is probably much larger than its crop, so that reading its header first pays."""
REDUCED_MARGIN = 2.0
"""A JPEG is decoded at reduced size only if its crop still has this many times the pixels of the view on each side."""


class MaskDrawer(Protocol):
    """The part of a mask sampler that the loader uses."""

    grid: tuple[int, int]

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> Masks:
        """Masks of the samples [B], one row per seed of `sample_seeds`."""


@dataclass(frozen=True)
class Chunk:
    """A task for a worker: a number of slots of one microbatch."""

    step: int
    epoch: int
    num: int
    """Number of slots to fill."""
    ids: NDArray[np.int64]
    """The sample of each slot, then spare samples that replace unreadable ones."""
    next_position: LoaderPosition
    records: tuple[ShardRecord, ...] | None = None
    """The samples themselves, if the source is a stream."""
    mask_ids: NDArray[np.int64] | None = None
    """The samples of all slots of the microbatch, for the masks. Only set in its first chunk."""
    group: int = 0
    """Number, within the step, of the mask group that the microbatch belongs to."""

    def slot_ids(self) -> NDArray[np.int64]:
        """The samples [num] whose random numbers the slots use. If a sample is replaced, its successor uses its numbers."""
        return self.ids[: self.num]


@dataclass
class ChunkResult:
    """The result of a worker for one chunk."""

    chunk: Chunk
    ids: NDArray[np.int64]
    """The samples that were actually used [num]."""
    skipped: list[Skipped]
    views: dict[str, UInt8[Tensor, "V n 3 h w"]] = field(default_factory=dict)
    """Empty if the crops are made on the device (see `boxes`)."""
    boxes: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Top, left, height, width, mirrored [V, n, 5]. Empty unless the crops are made on the device."""
    masks: dict[str, Masks] = field(default_factory=dict)
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    """Names of the samples, if the source is a stream."""
    num_repeated: int = 0
    """Number of reads that were repeated."""


@dataclass(frozen=True)
class ChunkReader:
    """Turns chunks into results. It is sent to the workers, so it holds nothing that belongs to one process."""

    source: ListSource | ShardSource
    inputs: InputSpec
    sampler: MaskDrawer
    seed: int
    min_side: int
    """Images with a shorter side, in pixels, cannot be used."""
    cache: PixelCache | None = None
    boxes_only: bool = False
    """True if the crops are made on the device."""
    patience: Patience = field(default_factory=Patience)

    def __call__(self, chunk: Chunk) -> ChunkResult:
        """The crops, labels and masks of the chunk."""
        numbers, repeated_before = self._numbers(chunk), self.patience.num_repeated
        read = None if self.cache is not None else self._read_ahead(chunk)
        result = ChunkResult(chunk, chunk.slot_ids(), [])
        for name, view in self.inputs.views.items():
            if self.boxes_only:
                result.boxes[name] = np.empty((view.count, chunk.num, 5), dtype=np.int64)
            else:
                result.views[name] = _empty_pixels((view.count, chunk.num, 3, *view.size))

        def fill(slot: int, place: int) -> None:
            if self.boxes_only:
                self._fill_boxes(result, slot, place, numbers[slot])
            else:
                self._fill_views(result, slot, place, numbers[slot], read)

        places, result.skipped = fill_slots(chunk.num, len(chunk.ids), fill, lambda place: self._name(chunk, place))
        result.ids = chunk.ids[places]
        if not self.boxes_only:
            for name, drawn in draw_colors(self.inputs.views, chunk.slot_ids(), self.seed, chunk.epoch).items():
                change_colors(result.views[name].flatten(0, 1), drawn)
        self._add_labels(result, places)
        self._add_masks(result)
        result.num_repeated = self.patience.num_repeated - repeated_before
        result.chunk = replace(chunk, records=None)  # the bytes of the images need not go back
        return result

    def describe(self, chunk: Chunk) -> str:
        """What a chunk is, in words: its step and the images of its slots."""
        return f"step {chunk.step}: {few([self._name(chunk, place) for place in range(chunk.num)])}"

    def _numbers(self, chunk: Chunk) -> list[list[float]]:
        """NUMBERS_PER_VIEW uniform numbers for each view of each slot."""
        seeds = derive_samples("crop", self.seed, np.array([chunk.epoch]), chunk.slot_ids())
        num_views = sum(view.count for view in self.inputs.views.values())
        numbers: list[list[float]] = uniforms(seeds, num_views * NUMBERS_PER_VIEW).tolist()
        return numbers

    def _fill_boxes(self, result: ChunkResult, slot: int, place: int, numbers: Sequence[float]) -> None:
        assert self.cache is not None
        height, width = self.cache.size(int(result.chunk.ids[place]))
        used = 0
        for name, view in self.inputs.views.items():
            for index in range(view.count):
                mine = numbers[used : used + NUMBERS_PER_VIEW]
                result.boxes[name][index, slot] = (*crop_box(mine, height, width, view), is_mirrored(mine, view))
                used += NUMBERS_PER_VIEW

    def _fill_views(
        self, result: ChunkResult, slot: int, place: int, numbers: Sequence[float], read: Callable[[int], bytes] | None
    ) -> None:
        pixels, (height, width) = (
            self._cached(int(result.chunk.ids[place])) if read is None else self._pixels(read(place), numbers)
        )
        used = 0
        for name, view in self.inputs.views.items():
            for index in range(view.count):
                mine = numbers[used : used + NUMBERS_PER_VIEW]
                box = _scaled(crop_box(mine, height, width, view), (height, width), (pixels.shape[0], pixels.shape[1]))
                crop = crop_and_resize(pixels, box, view.size, view.interpolation, is_mirrored(mine, view))
                result.views[name][index, slot] = crop
                used += NUMBERS_PER_VIEW

    def _cached(self, index: int) -> tuple[UInt8[Tensor, "h w 3"], tuple[int, int]]:
        assert self.cache is not None
        pixels = self.cache.pixels(index)
        return pixels, (pixels.shape[0], pixels.shape[1])

    def _pixels(self, data: bytes, numbers: Sequence[float]) -> tuple[UInt8[Tensor, "h w 3"], tuple[int, int]]:
        """Pixels of a candidate, and the height and width that boxes refer to: those of the image before any reduction."""
        size, min_side = (0, 0), 0
        if len(data) > LARGE_FILE:
            size = image_size(data)
            min_side = self._enough_side(size, numbers)
        decoded = decode_image(data, min_side)
        size = size if min_side else (decoded.shape[0], decoded.shape[1])
        check_side(*size, self.min_side)
        return torch.from_numpy(decoded), size

    def _enough_side(self, size: tuple[int, int], numbers: Sequence[float]) -> int:
        """Short side at which every crop still has REDUCED_MARGIN times the pixels of its view on each side."""
        needed, used = 0.0, 0
        for view in self.inputs.views.values():
            for _ in range(view.count):
                _, _, height, width = crop_box(numbers[used : used + NUMBERS_PER_VIEW], *size, view)
                needed = max(needed, view.size[0] / height, view.size[1] / width)
                used += NUMBERS_PER_VIEW
        return int(REDUCED_MARGIN * needed * min(size)) + 1

    def _read_ahead(self, chunk: Chunk) -> ReadAhead[bytes]:
        return ReadAhead(partial(self._read, chunk), chunk.num, partial(self._name, chunk), self.patience)

    def _read(self, chunk: Chunk, place: int) -> bytes:
        try:
            if chunk.records is not None:
                return chunk.records[place].read()
            assert isinstance(self.source, ListSource)
            return self.source.read(int(chunk.ids[place]))
        except ValueError as error:
            raise DecodeError(str(error), kind_of(error)) from error

    def _name(self, chunk: Chunk, place: int) -> str:
        if chunk.records is not None:
            return chunk.records[place].name
        assert isinstance(self.source, ListSource)
        return self.source.name(int(chunk.ids[place]))

    def _add_labels(self, result: ChunkResult, places: list[int]) -> None:
        records = result.chunk.records
        if records is not None:
            labels = [records[place].label for place in places]
            result.names = tuple(records[place].name for place in places)
            if all(label is not None for label in labels):
                result.labels = np.array(labels, dtype=np.int64)
        elif isinstance(self.source, ListSource) and self.source.labels is not None:
            result.labels = self.source.labels[result.ids]

    def _add_masks(self, result: ChunkResult) -> None:
        chunk = result.chunk
        if chunk.mask_ids is None:
            return
        result.masks = draw_masks(
            self.sampler, self.inputs, chunk.mask_ids, seed=self.seed, epoch=chunk.epoch, step=chunk.step, group=chunk.group
        )


def draw_masks(
    sampler: MaskDrawer, inputs: InputSpec, ids: NDArray[np.int64], *, seed: int, epoch: int, step: int, group: int
) -> dict[str, Masks]:
    """The masks of the samples `ids` [B] for every masked view: V x B x contexts rows each, in the order of `Batch.masks`.

    Each view and each context of it has its own seed. The first context's is that of a method with one context.
    """
    masks, drawn = {}, 0
    for name in inputs.masked_views:
        count = inputs.views[name].count
        seeds = [derive("mask", seed, number) if number else seed for number in range(drawn, drawn + count)]
        sample_seeds = np.concatenate([_context_seeds(one, epoch, ids, inputs.contexts) for one in seeds])
        masks[name] = sampler(sample_seeds, derive("group", seeds[0], step, group), step)
        drawn += count
    return masks


def _context_seeds(seed: int, epoch: int, ids: NDArray[np.int64], contexts: int) -> NDArray[np.int64]:
    """Seeds [B x contexts] of the masks of one view: those of the first sample's contexts, then of the second's."""
    seeds = [derive("mask", seed, 0, number) if number else seed for number in range(contexts)]
    return np.stack([derive_samples("mask", one, np.array([epoch]), ids) for one in seeds], axis=1).reshape(-1)


def _empty_pixels(shape: tuple[int, ...]) -> UInt8[Tensor, "..."]:
    """Uninitialized memory for pixels. In a worker it is shared with the main process, as in torch's own collation."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    return shared_bytes(math.prod(shape)).view(shape)


def _scaled(box: Box, drawn_on: tuple[int, int], decoded: tuple[int, int]) -> Box:
    """The box on the reduced image that corresponds to `box` on the full image."""
    if drawn_on == decoded:
        return box
    top, left, height, width = box
    rows, columns = decoded[0] / drawn_on[0], decoded[1] / drawn_on[1]
    first_row, first_column = round(top * rows), round(left * columns)
    last_row, last_column = round((top + height) * rows), round((left + width) * columns)
    return first_row, first_column, max(1, last_row - first_row), max(1, last_column - first_column)
