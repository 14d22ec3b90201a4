"""Queries: vectors of images, of regions of images, or of rows of the table, to be compared with those of the table."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from openjepa.data.views import central_crop, resize
from openjepa.inference.embedding.table import FeatureTable, Manifest
from openjepa.inference.encoder import Encoder
from openjepa.inference.images import Picture, pixels_of
from openjepa.inference.search.gallery import thumbnail
from openjepa.inference.search.vectors import Vectors, picked, pooled
from openjepa.refusals import Refusal
from openjepa.weights.contents import weights_hash
from openjepa.weights.formats import Choice, load_any

_SLACK = 1e-6


@dataclass(frozen=True)
class Box:
    """A rectangle in fractions of the image's width and height."""

    left: float
    top: float
    width: float
    height: float


def box_of(region: tuple[float, float, float, float], size: tuple[int, int], name: str) -> Box:
    """The box of a region.

    `region`: left, top, width and height; fractions if none is above 1, else pixels. `size`: height and width of the image in
    pixels. `name`: what messages call the image. Raises Refusal if the region is empty or leaves the image.
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
    """Rows and columns of the patches whose center lies in the box. Raises Refusal if the box is smaller than a patch."""
    rows, columns = grid
    if box.width * columns < 1 - _SLACK or box.height * rows < 1 - _SLACK:
        raise Refusal(
            f"the region is {box.width * columns:.2f} patches wide and {box.height * rows:.2f} high, but nothing smaller than "
            f"a patch has features of its own: it must span at least {1 / columns:.3f} of the width and {1 / rows:.3f} of the "
            "height of this image (a --region with a number above 1 is in pixels)"
        )
    return _centers(box.top, box.height, rows), _centers(box.left, box.width, columns)


def _centers(start: float, length: float, number: int) -> slice:
    """Cells whose center lies in [start, start + length], if [0, 1] is divided into `number` equal cells; at least one."""
    first = min(max(0, ceil(start * number - 0.5 - _SLACK)), number - 1)
    last = min(floor((start + length) * number - 0.5 + _SLACK), number - 1)
    return slice(first, max(first, last) + 1)


def view_over(manifest: Manifest, size: tuple[int, int], box: Box) -> tuple[tuple[int, int], tuple[int, int]]:
    """The size to which an image is resized, and top and left of the view that the encoder sees of it, all in pixels.

    `size`: height and width of the image in pixels. The image is prepared as those of the table, except that the view of `crop`
    is centered on the box instead of on the image, as far as the image reaches.
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
    """The box in the image that a window of patches covers.

    `size`: height and width of the image in pixels. `place`: first row and column of the window. `window`: its rows and
    columns. The grid covers what the encoder saw: the whole image (`squash`) or its center (`crop`).
    """
    (rows, columns), (height, width) = manifest.shape[:2], manifest.size
    patch_height, patch_width = height / rows, width / columns
    full, offset = (size, (0, 0)) if manifest.view == "squash" else central_crop(size[0], size[1], (height, width))
    if manifest.view == "squash":
        full = (height, width)
    top, left = offset[0] + place[0] * patch_height, offset[1] + place[1] * patch_width
    return Box(left / full[1], top / full[0], window[1] * patch_width / full[1], window[0] * patch_height / full[0])


@dataclass(frozen=True)
class Query:
    """One query, ready to be compared."""

    name: str
    """Path or row of the image."""
    vector: Float[Tensor, " D"]
    """Vector in fp64. The mean of the table, or the means of its places, are not subtracted yet."""
    row: int | None = None
    """Row of the query, if it is an image of the table."""
    pixels: UInt8[np.ndarray, "h w 3"] | None = None
    """Pixels of the image, if it was read."""
    region: Box | None = None
    places: tuple[slice, slice] | None = None
    """Rows and columns of the table's grid that the region covers, if the table holds patches."""

    @property
    def window(self) -> tuple[int, int] | None:
        """Rows and columns of patches that are compared; None if whole images are."""
        return None if self.places is None else (_length(self.places[0]), _length(self.places[1]))


def matching_encoder(table: FeatureTable, subject: str | None = None) -> Encoder:
    """Loads the encoder that made the table. `subject`: where it is now; None: where it was.

    Raises Refusal if it cannot be read or has other weights.
    """
    manifest, place = table.manifest, subject or table.manifest.subject
    try:
        encoder = Encoder(load_any(place, Choice(encoder=manifest.encoder, heads=manifest.heads, predictor=False)))
    except (ValueError, OSError) as error:
        raise Refusal(
            f"the encoder that made {table.path} cannot be read: {error}. Say where it lies now: --subject RUN|ENCODER"
        ) from error
    if weights_hash(encoder.network) != manifest.weights:
        raise Refusal(
            f"{place} has other weights than those that made {table.path}, and features of two encoders cannot be compared: "
            "name the right encoder with --subject, or embed the images again (openjepa embed)"
        )
    return encoder


def image_query(encoder: Encoder, manifest: Manifest, image: Picture, name: str, region: Sequence[float] | None) -> Query:
    """The query for an image, or for a region of it. `region`: left, top, width, height; None: the whole image.

    A whole image is prepared as those of the table. The vector of a region is the average of its patches. For a table of
    patches the encoder sees the region in a view of the table's size, so that its patches have places on the table's grid. For
    pooled features the patches are those of the whole image in its own aspect ratio. Raises Refusal if `image` is not an image
    or has no such region.
    """
    pixels = pixels_of(image)
    shown = thumbnail(pixels)
    if region is None:
        return Query(name, _as_the_table(encoder, manifest, image), pixels=shown)
    box = box_of(_four(region), (pixels.shape[0], pixels.shape[1]), name)
    if manifest.kind == "patches":
        patches, part = _patches_over(encoder, manifest, pixels, box)
    else:
        whole = encoder.embed_patches(pixels.numpy(), view="whole", size=manifest.size, precision=manifest.precision)
        patches, part = whole[0], box
    rows, columns = patches_inside(part, (patches.shape[0], patches.shape[1]))
    vector = patches[rows, columns].double().mean(dim=(0, 1))
    places = (rows, columns) if manifest.kind == "patches" else None
    return Query(name, vector, pixels=shown, region=box, places=places)


def _patches_over(
    encoder: Encoder, manifest: Manifest, pixels: UInt8[Tensor, "h w 3"], box: Box
) -> tuple[Float[Tensor, "H W D"], Box]:
    """Features of the patches of a view over the box, and the part of the box that lies in this view."""
    full, (top, left) = view_over(manifest, (pixels.shape[0], pixels.shape[1]), box)
    view = resize(pixels, full, "bicubic")[:, top : top + manifest.size[0], left : left + manifest.size[1]]
    seen = view.permute(1, 2, 0).contiguous().numpy()
    patches = encoder.embed_patches(seen, view="squash", size=manifest.size, precision=manifest.precision)[0]
    return patches, box_in_view(manifest, full, (top, left), box)


def _length(places: slice) -> int:
    return int(places.stop - places.start)


def _as_the_table(encoder: Encoder, manifest: Manifest, image: Picture) -> Float[Tensor, " D"]:
    """The vector of a whole image, made as those of the table."""
    view, size, precision = manifest.view, manifest.size, manifest.precision
    if manifest.kind == "patches":
        patches = encoder.embed_patches(image, view=view, size=size, precision=precision)
        return pooled(patches.double())[0]
    return encoder.embed(image, pooling=manifest.pooling, view=view, size=size, precision=precision)[0].double()


def _four(region: Sequence[float]) -> tuple[float, float, float, float]:
    if len(region) != 4:
        raise Refusal(f"a region has four numbers (left, top, width, height), not {len(region)}")
    left, top, width, height = region
    return left, top, width, height


def row_query(table: FeatureTable, row: int) -> Query:
    """The query for row `row` of the table, with its stored features."""
    return Query(f"row {row}: {table.rows[row].path}", pooled(picked(table, [row]))[0], row=row)


def row_number(table: FeatureTable, text: str) -> int:
    """The row that `text` means: a row number, or the name of an image. Raises Refusal if there is no such row or several."""
    if text.lstrip("-").isdigit():
        row = int(text)
        if not 0 <= row < len(table):
            raise Refusal(f"--row {row} is not in {table.path}, whose rows are 0 to {len(table) - 1}")
        return row
    found = [number for number, item in enumerate(table.rows) if item.path == text]
    if len(found) == 1:
        return found[0]
    if found:
        raise Refusal(f"--row {text} means several rows of {table.path}: give one of the numbers {found[:8]}")
    alike = [item.path for item in table.rows if Path(item.path).name == Path(text).name][:3]
    hint = f"did you mean {' or '.join(map(repr, alike))}?" if alike else f"its names look like {table.rows[0].path!r}."
    raise Refusal(f"--row {text} is not in {table.path}: {hint} For an image elsewhere use --image")


def stacked(queries: Sequence[Query], vectors: Vectors) -> Float[Tensor, "Q D"]:
    """The vectors of all queries, with the mean of the table subtracted."""
    return vectors.less_mean(torch.stack([query.vector for query in queries]))
