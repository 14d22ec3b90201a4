"""Images decoded once and kept as uint8 pixels, in memory or on the device."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from openjepa.data.decode import DecodeError, decode_image
from openjepa.data.loading.unreadable import check_side, reason_of
from openjepa.data.loading.workers import parallel_map
from openjepa.data.source import ListSource
from openjepa.data.views import shrink_to_short_side
from openjepa.refusals import Refusal
from openjepa.system.memory import available_memory

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
    progress: Callable[[int, int], None] | None = None,
    max_bytes: int | None = None,
) -> PixelCache:
    """Decode every image of a source, reduced to `short_side` (smaller ones stay as they are).

    `progress(done, total)` is called now and then. `max_bytes`: refuse to keep more (default: 80 % of the free memory).
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
        if progress is not None:
            progress(done, total)
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
