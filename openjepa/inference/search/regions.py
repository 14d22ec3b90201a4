"""Parts of images: what `--region` means, the patches inside of it, and where a window of patches lies in its image."""

from dataclasses import dataclass
from math import ceil, floor, isfinite

from openjepa.data.views import central_crop
from openjepa.inference.embedding.table import Manifest
from openjepa.refusals import Refusal

_SLACK = 1e-6


@dataclass(frozen=True)
class Box:
    """A rectangle in fractions of the image's width and height."""

    left: float
    top: float
    width: float
    height: float


def box_of(region: tuple[float, float, float, float], size: tuple[int, int], name: str) -> Box:
    """The region (left, top, width, height) of an image of (height, width) pixels.

    Fractions where no number is above 1, else pixels. `name`: of the image, for messages. Raises Refusal where the region is
    empty or leaves the image.
    """
    left, top, width, height = region
    if not all(isfinite(number) for number in region):
        raise Refusal(f"--region {' '.join(map(str, region))} must be four finite numbers")
    pixels = max(region) > 1
    full_width, full_height = (float(size[1]), float(size[0])) if pixels else (1.0, 1.0)
    shown, unit = " ".join(f"{value:g}" for value in region), "pixels" if pixels else "fractions of the image"
    if not (width > 0 and height > 0):
        raise Refusal(f"--region {shown} is empty: its last two numbers are width and height, and must be above 0")
    if min(left, top) < 0 or left + width > full_width * (1 + _SLACK) or top + height > full_height * (1 + _SLACK):
        raise Refusal(
            f"--region {shown} ({unit}: left, top, width, height) leaves {name}, which is {size[1]} x {size[0]} pixels: left + "
            f"width may be {full_width:g} at most, top + height {full_height:g}"
        )
    return Box(left / full_width, top / full_height, width / full_width, height / full_height)


def patches_inside(box: Box, grid: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the patches whose center lies in the box. Raises Refusal where the box is smaller than a patch."""
    rows, columns = grid
    if box.width * columns < 1 - _SLACK or box.height * rows < 1 - _SLACK:
        raise Refusal(
            f"the region is {box.width * columns:.2f} patches wide and {box.height * rows:.2f} high, but nothing smaller than "
            f"a patch has features of its own: it must span at least {1 / columns:.3f} of the width and {1 / rows:.3f} of the "
            "height of this image (a --region with a number above 1 is in pixels)"
        )
    return _centers(box.top, box.height, rows), _centers(box.left, box.width, columns)


def _centers(start: float, length: float, number: int) -> slice:
    """Cells of `number` equal ones on [0, 1] whose center lies in [start, start + length]; at least one."""
    first = min(max(0, ceil(start * number - 0.5 - _SLACK)), number - 1)
    last = min(floor((start + length) * number - 0.5 + _SLACK), number - 1)
    return slice(first, max(first, last) + 1)


def view_over(manifest: Manifest, size: tuple[int, int], box: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size that an image of (height, width) pixels is resized to, and top and left of what the encoder shall see of it.

    As the images of the table were, except that of `crop` the view lies over the box instead of in the center, as far as the
    image goes.
    """
    if manifest.view == "squash":
        return manifest.size, (0, 0)
    covering, _ = central_crop(size[0], size[1], manifest.size)
    middles = ((box.top + box.height / 2) * covering[0], (box.left + box.width / 2) * covering[1])
    top, left = (
        round(min(max(0.0, middle - side / 2), full - side))
        for middle, side, full in zip(middles, manifest.size, covering, strict=True)
    )
    return covering, (top, left)


def box_in_view(manifest: Manifest, full: tuple[int, int], corner: tuple[int, int], box: Box) -> Box:
    """The part of a box that `view_over` shows, in fractions of the view."""
    (top, bottom), (left, right) = (
        tuple(min(max(0.0, (end * whole - start) / side), 1.0) for end in ends)
        for ends, whole, start, side in zip(
            ((box.top, box.top + box.height), (box.left, box.left + box.width)), full, corner, manifest.size, strict=True
        )
    )
    return Box(left, top, right - left, bottom - top)


def box_of_window(manifest: Manifest, size: tuple[int, int], place: tuple[int, int], window: tuple[int, int]) -> Box:
    """Where in an image of (height, width) pixels a window of patches lies, given its first row and column.

    The grid covers what the encoder saw: all of the image (`squash`), or its center (`crop`).
    """
    (rows, columns), (height, width) = manifest.shape[:2], manifest.size
    patch_height, patch_width = height / rows, width / columns
    full, offset = (size, (0, 0)) if manifest.view == "squash" else central_crop(size[0], size[1], (height, width))
    if manifest.view == "squash":
        full = (height, width)
    top, left = offset[0] + place[0] * patch_height, offset[1] + place[1] * patch_width
    return Box(left / full[1], top / full[0], window[1] * patch_width / full[1], window[0] * patch_height / full[0])
