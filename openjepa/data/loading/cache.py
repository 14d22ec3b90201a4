"""Images decoded once and kept as uint8 pixels, in memory or on the device.

What a worker does: read, decode and crop a chunk of a microbatch, change colors, and draw the microbatch's masks.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from openjepa.data.decode import DecodeError, decode_image, image_size
from openjepa.data.loading.colors import change_colors, draw_colors
from openjepa.data.loading.unreadable import check_side, fill_slots, reason_of
from openjepa.data.loading.workers import parallel_map
from openjepa.data.source import ListSource, ShardRecord, ShardSource
from openjepa.data.views import NUMBERS_PER_VIEW, Box, crop_and_resize, crop_box, is_mirrored, shrink_to_short_side
from openjepa.operators import shared_bytes
from openjepa.refusals import Refusal
from openjepa.seeds import derive, derive_samples, uniforms
from openjepa.system.console import silent
from openjepa.system.memory import available_memory
from openjepa.types import InputSpec, LoaderPosition, Masks, Skipped

MEMORY_SHARE = 0.8
"""Largest part of the free memory that a cache may take."""
CHUNK = 256
"""Images a worker decodes at a time."""


@dataclass
class PixelCache:
    """Decoded images, one behind the other."""

    pixels_flat: UInt8[Tensor, "pixels 3"]
    starts: NDArray[np.int64]
    """First pixel of each image."""
    sizes: NDArray[np.int64]
    """Height and width of each image [N, 2]; zero where it could not be read."""
    reasons: dict[int, str] = field(default_factory=dict)
    """Why images could not be read."""

    def __len__(self) -> int:
        """Number of images, the unreadable ones included."""
        return len(self.starts)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image; raises DecodeError where there is none."""
        if index in self.reasons:
            raise DecodeError(self.reasons[index])
        height, width = self.sizes[index].tolist()
        return height, width

    def pixels(self, index: int) -> UInt8[Tensor, "h w 3"]:
        """An image, without a copy; raises DecodeError where there is none."""
        height, width = self.size(index)
        return self.pixels_flat.narrow(0, int(self.starts[index]), height * width).view(height, width, 3)

    def without_pixels(self) -> "PixelCache":
        """Sizes and reasons alone."""
        return replace(self, pixels_flat=self.pixels_flat[:0].clone())


@dataclass(frozen=True)
class _Shrinker:
    """Decodes and shrinks a chunk of images; the worker's part."""

    source: ListSource
    short_side: int
    min_side: int

    def __call__(self, indices: range) -> tuple[UInt8[Tensor, "pixels 3"], NDArray[np.int64], dict[int, str]]:
        parts, sizes, reasons = [], np.zeros((len(indices), 2), dtype=np.int64), {}
        for place, index in enumerate(indices):
            try:
                decoded = decode_image(self.source.read(index), 2 * self.short_side)
                check_side(decoded.shape[0], decoded.shape[1], self.min_side)
            except (ValueError, OSError) as error:
                reasons[index] = reason_of(error)
                continue
            pixels = shrink_to_short_side(torch.from_numpy(decoded), self.short_side)
            sizes[place] = pixels.shape[:2]
            parts.append(pixels.reshape(-1, 3))
        flat = torch.cat(parts) if parts else torch.empty((0, 3), dtype=torch.uint8)
        return flat, sizes, reasons


def build_cache(
    source: ListSource,
    short_side: int,
    min_side: int = 1,
    workers: int = 0,
    advance: Callable[[int], None] = silent,
    max_bytes: int | None = None,
) -> PixelCache:
    """Decode every image of a source, reduced to `short_side` (smaller ones stay as they are).

    `advance` is told how many more are done, now and then. `max_bytes`: refuse to keep more (default: 80 % of the free memory).
    """
    limit = int(MEMORY_SHARE * available_memory()) if max_bytes is None else max_bytes
    total = len(source)
    chunks = (range(first, min(total, first + CHUNK)) for first in range(0, total, CHUNK))
    sizes, reasons, done = np.zeros((total, 2), dtype=np.int64), {}, 0
    parts: list[Tensor] = []
    for flat, chunk_sizes, chunk_reasons in parallel_map(_Shrinker(source, short_side, min_side), chunks, workers):
        parts.append(flat.clone() if workers else flat)  # a worker's memory is handed back
        sizes[done : done + len(chunk_sizes)] = chunk_sizes
        reasons.update(chunk_reasons)
        done += len(chunk_sizes)
        num_bytes = sum(part.nbytes for part in parts)
        _check_memory(num_bytes * total // max(1, done), limit, total, short_side)
        advance(len(chunk_sizes))
    lengths = sizes[:, 0] * sizes[:, 1]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return PixelCache(_joined(parts, int(lengths.sum())), starts, sizes, reasons)


def _joined(parts: list[Tensor], num_pixels: int) -> UInt8[Tensor, "pixels 3"]:
    """One tensor of all parts; each is freed as soon as it is copied, so that the peak stays near one copy."""
    flat = torch.empty((num_pixels, 3), dtype=torch.uint8)
    first = 0
    parts.reverse()
    while parts:
        part = parts.pop()
        flat[first : first + len(part)] = part
        first += len(part)
    return flat


def _check_memory(expected: int, limit: int, total: int, short_side: int) -> None:
    if expected > limit:
        raise Refusal(
            f"data.cache needs about {expected:,} bytes for {total:,} images of short side {short_side}, more than the "
            f"{limit:,} bytes that may be used: set data.cache=none, or a smaller data.cache_size or data.max_images"
        )


LARGE_FILE = 400_000
"""Bytes above which an image is probably much larger than its crop, so that a look at its header pays."""
REDUCED_MARGIN = 2.0
"""A JPEG is decoded at reduced size only where its crop still has so many times the pixels of the view on each side."""


class MaskDrawer(Protocol):
    """What the loader knows of a mask sampler."""

    grid: tuple[int, int]

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> Masks:
        """Masks of the samples [B]."""


@dataclass(frozen=True)
class Chunk:
    """A task: some slots of one microbatch."""

    step: int
    epoch: int
    num: int
    """Slots to fill."""
    ids: NDArray[np.int64]
    """Sample of each slot, then the spares."""
    next_position: LoaderPosition
    records: tuple[ShardRecord, ...] | None = None
    """Streams: the samples themselves."""
    mask_ids: NDArray[np.int64] | None = None
    """In the first chunk of a microbatch: the samples of all its slots, for the masks."""
    group: int = 0
    """Mask group of the microbatch within its step."""

    def slot_ids(self) -> NDArray[np.int64]:
        """The samples whose random numbers the slots use [num]; one that is replaced leaves its own to its successor."""
        return self.ids[: self.num]


@dataclass
class ChunkResult:
    """Its answer."""

    chunk: Chunk
    ids: NDArray[np.int64]
    """Samples that were really used [num]."""
    skipped: list[Skipped]
    views: dict[str, UInt8[Tensor, "V n 3 h w"]] = field(default_factory=dict)
    """Empty where the crops are made on the device."""
    boxes: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """For crops on the device: top, left, height, width, mirrored [V, n, 5]."""
    masks: dict[str, Masks] = field(default_factory=dict)
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    """Streams: what the samples are called."""


@dataclass(frozen=True)
class ChunkReader:
    """Turns chunks into results. Travels to the workers, so it holds nothing that belongs to one process."""

    source: ListSource | ShardSource
    inputs: InputSpec
    sampler: MaskDrawer
    seed: int
    min_side: int
    """Smaller images cannot be used."""
    cache: PixelCache | None = None
    boxes_only: bool = False
    """The crops are made on the device."""

    def __call__(self, chunk: Chunk) -> ChunkResult:
        """Crops, labels and masks of the chunk."""
        numbers = self._numbers(chunk)
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
                self._fill_views(result, slot, place, numbers[slot])

        places, result.skipped = fill_slots(chunk.num, len(chunk.ids), fill, lambda place: self._name(chunk, place))
        result.ids = chunk.ids[places]
        if not self.boxes_only:
            for name, drawn in draw_colors(self.inputs.views, chunk.slot_ids(), self.seed, chunk.epoch).items():
                change_colors(result.views[name].flatten(0, 1), drawn)
        self._add_labels(result, places)
        self._add_masks(result)
        result.chunk = replace(chunk, records=None)  # what came as bytes need not go back
        return result

    def _numbers(self, chunk: Chunk) -> list[list[float]]:
        """NUMBERS_PER_VIEW for each view of each slot."""
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

    def _fill_views(self, result: ChunkResult, slot: int, place: int, numbers: Sequence[float]) -> None:
        pixels, (height, width) = self._pixels(result.chunk, place, numbers)
        used = 0
        for name, view in self.inputs.views.items():
            for index in range(view.count):
                mine = numbers[used : used + NUMBERS_PER_VIEW]
                box = _scaled(crop_box(mine, height, width, view), (height, width), (pixels.shape[0], pixels.shape[1]))
                crop = crop_and_resize(pixels, box, view.size, view.interpolation, is_mirrored(mine, view))
                result.views[name][index, slot] = crop
                used += NUMBERS_PER_VIEW

    def _pixels(self, chunk: Chunk, place: int, numbers: Sequence[float]) -> tuple[UInt8[Tensor, "h w 3"], tuple[int, int]]:
        """Pixels of a candidate, and the height and width that boxes are drawn on (larger, where it was decoded reduced)."""
        if self.cache is not None:
            pixels = self.cache.pixels(int(chunk.ids[place]))
            return pixels, (pixels.shape[0], pixels.shape[1])
        data = self._read(chunk, place)
        size, min_side = (0, 0), 0
        if len(data) > LARGE_FILE:
            size = image_size(data)
            min_side = self._enough_side(size, numbers)
        decoded = decode_image(data, min_side)
        size = size if min_side else (decoded.shape[0], decoded.shape[1])
        check_side(*size, self.min_side)
        return torch.from_numpy(decoded), size

    def _enough_side(self, size: tuple[int, int], numbers: Sequence[float]) -> int:
        """Short side at which every crop still has REDUCED_MARGIN times the pixels of its view."""
        needed, used = 0.0, 0
        for view in self.inputs.views.values():
            for _ in range(view.count):
                _, _, height, width = crop_box(numbers[used : used + NUMBERS_PER_VIEW], *size, view)
                needed = max(needed, view.size[0] / height, view.size[1] / width)
                used += NUMBERS_PER_VIEW
        return int(REDUCED_MARGIN * needed * min(size)) + 1

    def _read(self, chunk: Chunk, place: int) -> bytes:
        try:
            if chunk.records is not None:
                return chunk.records[place].read()
            assert isinstance(self.source, ListSource)
            return self.source.read(int(chunk.ids[place]))
        except ValueError as error:
            raise DecodeError(str(error)) from error

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
    """The masks of the samples `ids` [B] for every masked view: V x B rows each, view by view, each with a seed of its own."""
    masks, drawn = {}, 0
    for name in inputs.masked_views:
        count = inputs.views[name].count
        seeds = [derive("mask", seed, number) if number else seed for number in range(drawn, drawn + count)]
        sample_seeds = np.concatenate([derive_samples("mask", one, np.array([epoch]), ids) for one in seeds])
        masks[name] = sampler(sample_seeds, derive("group", seeds[0], step, group), step)
        drawn += count
    return masks


def _empty_pixels(shape: tuple[int, ...]) -> UInt8[Tensor, "..."]:
    """Memory for pixels; in a worker it is shared with the main process, which saves a copy, as in torch's own collation."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    return shared_bytes(math.prod(shape)).view(shape)


def _scaled(box: Box, drawn_on: tuple[int, int], decoded: tuple[int, int]) -> Box:
    """A box on the full image as one on its reduced decoding."""
    if drawn_on == decoded:
        return box
    top, left, height, width = box
    rows, columns = decoded[0] / drawn_on[0], decoded[1] / drawn_on[1]
    first_row, first_column = round(top * rows), round(left * columns)
    last_row, last_column = round((top + height) * rows), round((left + width) * columns)
    return first_row, first_column, max(1, last_row - first_row), max(1, last_column - first_column)
