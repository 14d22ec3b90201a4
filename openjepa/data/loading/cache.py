"""Images decoded once and kept as uint8 pixels, in memory or on the device. Cuts the crops of a whole batch from them there."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from openjepa.data.decode import DecodeError, check_side, decode_image
from openjepa.data.loading.unreadable import skipped_sample
from openjepa.data.loading.workers import parallel_map
from openjepa.data.source import ListSource
from openjepa.data.views import shrink_to_short_side
from openjepa.refusals import Refusal
from openjepa.system.console import silent
from openjepa.system.machine import available_memory, local_processes, part_words
from openjepa.types import Skipped

MEMORY_SHARE = 0.8
"""Largest share of the free memory that the caches of all processes of a machine may take together."""
CHUNK = 256
"""Number of images that a worker decodes at a time, and that are cropped at a time on the device. Bounds the memory of both."""


@dataclass
class PixelCache:
    """Decoded images, one after the other in a single tensor."""

    pixels_flat: UInt8[Tensor, "pixels 3"]
    starts: NDArray[np.int64]
    """Index of the first pixel of each image [N]."""
    sizes: NDArray[np.int64]
    """Height and width of each image [N, 2]. Zero if the image could not be read."""
    skipped: dict[int, Skipped] = field(default_factory=dict)
    """The images that could not be read, by their indices."""

    def __len__(self) -> int:
        """Number of images, including the unreadable ones."""
        return len(self.starts)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image. Raises DecodeError if it could not be read."""
        if index in self.skipped:
            raise DecodeError(self.skipped[index].reason, self.skipped[index].kind)
        height, width = self.sizes[index].tolist()
        return height, width

    def pixels(self, index: int) -> UInt8[Tensor, "h w 3"]:
        """The pixels of an image, without a copy. Raises DecodeError if it could not be read."""
        height, width = self.size(index)
        return self.pixels_flat.narrow(0, int(self.starts[index]), height * width).view(height, width, 3)

    def without_pixels(self) -> "PixelCache":
        """The cache with only its sizes and skipped images."""
        return replace(self, pixels_flat=self.pixels_flat[:0].clone())


@dataclass(frozen=True)
class _Shrinker:
    """Decodes and shrinks a chunk of images. This is the part that runs in a worker."""

    source: ListSource
    short_side: int
    min_side: int

    def __call__(self, indices: range) -> tuple[UInt8[Tensor, "pixels 3"], NDArray[np.int64], dict[int, Skipped]]:
        parts, sizes, skipped = [], np.zeros((len(indices), 2), dtype=np.int64), {}
        for place, index in enumerate(indices):
            try:
                decoded = decode_image(self.source.read(index), 2 * self.short_side)
                check_side(decoded.shape[0], decoded.shape[1], self.min_side)
            except (ValueError, OSError) as error:
                skipped[index] = skipped_sample(self.source.name(index), error)
                continue
            pixels = shrink_to_short_side(torch.from_numpy(decoded), self.short_side)
            sizes[place] = pixels.shape[:2]
            parts.append(pixels.reshape(-1, 3))
        flat = torch.cat(parts) if parts else torch.empty((0, 3), dtype=torch.uint8)
        return flat, sizes, skipped


def build_cache(
    source: ListSource,
    short_side: int,
    min_side: int = 1,
    workers: int = 0,
    advance: Callable[[int], None] = silent,
    max_bytes: int | None = None,
) -> PixelCache:
    """Decodes every image of a source and shrinks it to `short_side`. Smaller images keep their size.

    `min_side`: images with a shorter side count as unreadable. `workers`: number of processes; 0 works in this one. `advance`
    is called now and then with the number of images done since its last call. Raises Refusal if more than `max_bytes` would be
    kept (default: 80 % of the free memory, which the processes of a machine divide).
    """
    limit = int(MEMORY_SHARE * available_memory() / local_processes()) if max_bytes is None else max_bytes
    total = len(source)
    chunks = (range(first, min(total, first + CHUNK)) for first in range(0, total, CHUNK))
    sizes, skipped, done = np.zeros((total, 2), dtype=np.int64), {}, 0
    parts: list[Tensor] = []
    for flat, chunk_sizes, chunk_skipped in parallel_map(_Shrinker(source, short_side, min_side), chunks, workers):
        parts.append(flat.clone() if workers else flat)  # the worker's memory is given back and reused
        sizes[done : done + len(chunk_sizes)] = chunk_sizes
        skipped.update(chunk_skipped)
        done += len(chunk_sizes)
        num_bytes = sum(part.nbytes for part in parts)
        _check_memory(num_bytes * total // max(1, done), limit, total, short_side)
        advance(len(chunk_sizes))
    lengths = sizes[:, 0] * sizes[:, 1]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    return PixelCache(_joined(parts, int(lengths.sum())), starts, sizes, skipped)


def _joined(parts: list[Tensor], num_pixels: int) -> UInt8[Tensor, "pixels 3"]:
    """One tensor of all parts. Each part is freed as soon as it is copied, so that the peak stays near one copy."""
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
            f"{limit:,} bytes that may be used{part_words(local_processes())}: set data.cache=none, or a "
            "smaller data.cache_size or data.max_images"
        )


# ----------------------------------------------------------------------------------------------- crops on the device


def crop_batch(
    pixels_flat: UInt8[Tensor, "pixels 3"],
    starts: Int[Tensor, " B"],
    widths: Int[Tensor, " B"],
    boxes: Int[Tensor, "B 5"],
    largest: tuple[int, int],
    size: tuple[int, int],
    interpolation: str,
) -> UInt8[Tensor, "B 3 oh ow"]:
    """Crops of images that lie one after the other in `pixels_flat`, resized to `size`.

    `boxes`: top, left, height, width, mirrored. `starts`, `widths`: first pixel and width of each image. `largest`: a height
    and width that no box exceeds, known without asking the device. Each crop equals `interpolate(antialias=True)` of its box to
    within one of 255 levels.
    """
    parts = [
        _crop_chunk(pixels_flat, starts[part], widths[part], boxes[part], largest, size, interpolation)
        for part in (slice(first, first + CHUNK) for first in range(0, len(starts), CHUNK))
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _crop_chunk(
    pixels_flat: Tensor,
    starts: Tensor,
    widths: Tensor,
    boxes: Tensor,
    largest: tuple[int, int],
    size: tuple[int, int],
    interpolation: str,
) -> Tensor:
    tops, lefts, box_heights, box_widths, mirrored = boxes.unbind(1)
    rows = torch.arange(largest[0], device=boxes.device)
    columns = torch.arange(largest[1], device=boxes.device)
    # Beyond a box, its last row or column is repeated. The weights there are zero.
    rows_inside = torch.minimum(rows[None, :], box_heights[:, None] - 1) + tops[:, None]  # [B, h]
    columns_inside = torch.minimum(columns[None, :], box_widths[:, None] - 1) + lefts[:, None]  # [B, w]
    places = starts[:, None, None] + rows_inside[:, :, None] * widths[:, None, None] + columns_inside[:, None, :]
    pixels = pixels_flat[places].permute(0, 3, 1, 2).to(torch.float32)  # [B, 3, h, w]
    vertical = resize_matrices(box_heights, largest[0], size[0], interpolation)
    horizontal = resize_matrices(box_widths, largest[1], size[1], interpolation)
    horizontal = torch.where(mirrored.bool()[:, None, None], horizontal.flip(1), horizontal)
    narrow = pixels @ horizontal.transpose(1, 2)[:, None]  # [B, 3, h, ow]
    return (vertical[:, None] @ narrow).round_().clamp_(0, 255).to(torch.uint8)


def resize_matrices(lengths: Int[Tensor, " B"], largest: int, out: int, interpolation: str) -> Float[Tensor, "B out largest"]:
    """Matrices that resize the first `lengths` of `largest` samples to `out` samples, antialiased.

    Output i lies at (i + 1/2) * length / out in the input. The weight of an input sample is the filter at its distance from
    there. If the image shrinks, the distance is measured in output samples. The filter is a triangle, or the cubic of Keys
    (1981) with a = -1/2. Raises Refusal if `interpolation` is not known.
    """
    scale = lengths[:, None, None] / out
    centers = (torch.arange(out, device=lengths.device)[None, :, None] + 0.5) * scale
    samples = torch.arange(largest, device=lengths.device)[None, None, :]
    distance = ((samples + 0.5 - centers) / scale.clamp(min=1)).abs()
    if interpolation == "bilinear":
        weights = (1 - distance).clamp(min=0)
    elif interpolation == "bicubic":
        near = (1.5 * distance - 2.5) * distance * distance + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    else:
        raise Refusal(f"data.interpolation={interpolation!r} is not known: use 'bilinear' or 'bicubic'")
    weights = weights * (samples < lengths[:, None, None])
    return weights / weights.sum(dim=2, keepdim=True)
