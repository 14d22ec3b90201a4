"""Crops of a whole batch on the device: the antialiased resize of each box as two batched matrix products."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from openjepa.refusals import Refusal

CHUNK = 256
"""Images cropped at a time; bounds the memory for their resize matrices."""


def crop_batch(
    pixels_flat: UInt8[Tensor, "pixels 3"],
    starts: Int[Tensor, " B"],
    widths: Int[Tensor, " B"],
    boxes: Int[Tensor, "B 5"],
    largest: tuple[int, int],
    size: tuple[int, int],
    interpolation: str,
) -> UInt8[Tensor, "B 3 oh ow"]:
    """The boxes (top, left, height, width, mirrored) of images that lie one behind the other, resized to `size`.

    Equal to `interpolate(antialias=True)` of each box to within one of 255 levels. `largest`: a height and width that no box
    exceeds, known without asking the device.
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
    # Beyond a box its last row or column is repeated; the weights there are zero.
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
    """Matrices that resize the first `lengths` of `largest` samples to `out`, antialiased.

    Output i lies at (i + 1/2) * length / out in the input; an input sample is weighted by the filter (triangle, or the cubic of
    Keys, 1981, with a = -1/2) of its distance, which is measured in output samples where the image shrinks.
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
