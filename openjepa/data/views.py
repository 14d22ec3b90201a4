"""Training crops and evaluation views of an image. Boxes are (top, left, height, width) in pixels."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor

from openjepa.refusals import Refusal
from openjepa.types import ViewSpec

Box = tuple[int, int, int, int]

CROP_TRIES = 10
NUMBERS_PER_VIEW = 2 * CROP_TRIES + 3
"""Number of uniform numbers per view of one sample: area and shape of each try, two for the position, one for mirroring."""
EVALUATION_MARGIN = 256 / 224
"""Size to which evaluation resizes an image before it takes the center, as a multiple of the crop."""
MAX_LENGTHS = 8
"""Largest length of a resized image, as a multiple of its crop; a longer one is cut before it is resized. At 224 pixels, an
image of 1 x 10,000 pixels would otherwise take 2 GB, and all but its middle would be thrown away."""


def crop_box(numbers: Sequence[float], height: int, width: int, view: ViewSpec) -> Box:
    """RandomResizedCrop (Szegedy et al., 2014) of one image, from its own NUMBERS_PER_VIEW numbers, uniform in [0, 1).

    Each of 10 tries draws an area (uniform, as a fraction of the image) and a width / height (log-uniform). The first box that
    fits is placed uniformly. If none fits, the result is the largest central box within the range of shapes.
    """
    area_low, area_range = height * width * view.scale[0], height * width * (view.scale[1] - view.scale[0])
    log_low, log_range = math.log(view.aspect[0]), math.log(view.aspect[1] / view.aspect[0])
    for attempt in range(CROP_TRIES):
        area = area_low + area_range * numbers[attempt]
        root_aspect = math.exp((log_low + log_range * numbers[CROP_TRIES + attempt]) / 2)
        box_width, box_height = round(math.sqrt(area) * root_aspect), round(math.sqrt(area) / root_aspect)
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(numbers[2 * CROP_TRIES] * (height - box_height + 1))
            left = int(numbers[2 * CROP_TRIES + 1] * (width - box_width + 1))
            return top, left, box_height, box_width
    box_height = min(height, max(1, round(width / view.aspect[0])))  # cuts images that are too narrow
    box_width = min(width, max(1, round(height * view.aspect[1])))  # and those that are too wide
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def is_mirrored(numbers: Sequence[float], view: ViewSpec) -> bool:
    """True if the view is mirrored: half of the views, if `view.horizontal_flip`."""
    return view.horizontal_flip and numbers[2 * CROP_TRIES + 2] < 0.5


def resize(
    pixels: UInt8[Tensor, "h w 3"], size: tuple[int, int], interpolation: str, flip: bool = False
) -> UInt8[Tensor, "3 oh ow"]:
    """Antialiased resize to `size` (height, width), mirrored if `flip`. `pixels` may be a part of a larger image."""
    if pixels.shape[:2] == size:
        resized = pixels.permute(2, 0, 1)
    else:
        # torch has a vectorized uint8 kernel for the layout with three interleaved channels.
        planes = pixels.permute(2, 0, 1).unsqueeze(0)
        resized = F.interpolate(planes, size=size, mode=interpolation, antialias=True)[0]
    return resized.flip(-1) if flip else resized


def crop_and_resize(
    pixels: UInt8[Tensor, "h w 3"], box: Box, size: tuple[int, int], interpolation: str, flip: bool = False
) -> UInt8[Tensor, "3 oh ow"]:
    """The box (top, left, height, width) of an image, resized to `size`, mirrored if `flip`."""
    top, left, height, width = box
    return resize(pixels[top : top + height, left : left + width], size, interpolation, flip)


def shrink_to_short_side(pixels: UInt8[Tensor, "h w 3"], short_side: int) -> UInt8[Tensor, "h2 w2 3"]:
    """The image with its short side reduced to `short_side` pixels (antialiased bicubic). Smaller images stay as they are."""
    height, width = pixels.shape[:2]
    if min(height, width) <= short_side:
        return pixels
    factor = short_side / min(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    return resize(pixels, size, "bicubic").permute(1, 2, 0).contiguous()


def evaluation_view(pixels: UInt8[Tensor, "h w 3"], size: tuple[int, int], fit: str = "crop") -> UInt8[Tensor, "3 oh ow"]:
    """The evaluation view, antialiased bicubic.

    `crop`: resize so that the image just covers 256/224 of `size`, then take the center (at 224: short side 256, as in the
    paper). Ends of very long images, which would be cut off anyway, are removed before resizing.
    `squash`: resize the whole image to `size`, whatever its shape.
    Raises Refusal if `fit` is not known.
    """
    if fit == "squash":
        return resize(pixels, size, "bicubic")
    if fit != "crop":
        raise Refusal(f"fit={fit!r} is not known: use 'crop' or 'squash'")
    pixels = _middle(pixels, size)
    covering, (top, left) = central_crop(pixels.shape[0], pixels.shape[1], size)
    resized = resize(pixels, covering, "bicubic")
    return resized[:, top : top + size[0], left : left + size[1]]


def decoded_side(size: tuple[int, int]) -> int:
    """Number of pixels that a decoder must keep on the short side of an image for a view of `size`.

    A crop of an image that was decoded at reduced size differs a little from one of the full image. At twice the size, the
    difference does not matter.
    """
    return 2 * round(max(size) * EVALUATION_MARGIN)


def _middle(pixels: UInt8[Tensor, "h w 3"], size: tuple[int, int]) -> UInt8[Tensor, "h2 w2 3"]:
    """The middle of an image that would be more than MAX_LENGTHS times as long as its crop. Other images stay as they are."""
    factor = _covering_factor(pixels.shape[0], pixels.shape[1], size)
    for axis, wanted in enumerate(size):
        length = pixels.shape[axis]
        kept = min(length, math.ceil(MAX_LENGTHS * wanted / factor))
        kept = min(length, kept + (length - kept) % 2)  # so that the center does not move
        pixels = pixels.narrow(axis, (length - kept) // 2, kept)
    return pixels


def whole_view(pixels: UInt8[Tensor, "h w 3"], short_side: int, patch_size: int) -> UInt8[Tensor, "3 oh ow"]:
    """The whole image, antialiased bicubic, with its short side near `short_side`. Both sides become multiples of a patch."""
    factor = short_side / min(pixels.shape[:2])
    height, width = (max(1, round(side * factor / patch_size)) * patch_size for side in pixels.shape[:2])
    return resize(pixels, (height, width), "bicubic")


def central_crop(height: int, width: int, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The steps of `crop` for an image: the size to resize it to, and top and left of the crop of `size` within that."""
    factor = _covering_factor(height, width, size)
    # As in the evaluations that results are compared with, the long side is rounded down and the offset to the nearest.
    covering = (max(size[0], int(height * factor + 1e-6)), max(size[1], int(width * factor + 1e-6)))
    return covering, (round((covering[0] - size[0]) / 2), round((covering[1] - size[1]) / 2))


def _covering_factor(height: int, width: int, size: tuple[int, int]) -> float:
    return max(round(size[0] * EVALUATION_MARGIN) / height, round(size[1] * EVALUATION_MARGIN) / width)
