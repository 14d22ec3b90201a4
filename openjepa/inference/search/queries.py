"""What is looked for: images, regions of images and rows of the table, as vectors that the table's can be compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from openjepa.data.views import resize
from openjepa.inference.embedding.table import FeatureTable, Manifest
from openjepa.inference.encoder import Encoder
from openjepa.inference.images import Picture, pixels_of
from openjepa.inference.search.gallery import thumbnail
from openjepa.inference.search.regions import Box, box_in_view, box_of, patches_inside, view_over
from openjepa.inference.search.vectors import Vectors, picked, pooled
from openjepa.refusals import Refusal
from openjepa.weights.fingerprint import weights_hash
from openjepa.weights.loading import Choice, load_any


@dataclass(frozen=True)
class Query:
    """One query."""

    name: str
    """Its path or row."""
    vector: Float[Tensor, " D"]
    """In fp64, with the mean of the table, or of its places, still in it."""
    row: int | None = None
    """Its own row, where it is from the table."""
    pixels: UInt8[np.ndarray, "h w 3"] | None = None
    """The image, where it was read."""
    region: Box | None = None
    places: tuple[slice, slice] | None = None
    """Rows and columns of the table's grid that the region covers, where the table holds patches to compare with."""

    @property
    def window(self) -> tuple[int, int] | None:
        """How many rows and columns of patches are compared."""
        return None if self.places is None else (_length(self.places[0]), _length(self.places[1]))


def matching_encoder(table: FeatureTable, subject: str | None = None) -> Encoder:
    """The encoder that made the table. `subject`: where it lies now.

    Raises Refusal where it cannot be read, or has other weights.
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
    """An image, or the region (left, top, width, height) of it. Raises Refusal for what is no image or no region of it.

    An image is prepared as those of the table were. The vector of a region is the average of its patches. In a table of patches
    they have the places of the table's grid: the encoder sees the region in a view of the table's size. In one of pooled
    features they are of all of the image at its own shape.
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
    """Features of the patches of a view over the box, and the part of the box in it."""
    full, (top, left) = view_over(manifest, (pixels.shape[0], pixels.shape[1]), box)
    view = resize(pixels, full, "bicubic")[:, top : top + manifest.size[0], left : left + manifest.size[1]]
    seen = view.permute(1, 2, 0).contiguous().numpy()
    patches = encoder.embed_patches(seen, view="squash", size=manifest.size, precision=manifest.precision)[0]
    return patches, box_in_view(manifest, full, (top, left), box)


def _length(places: slice) -> int:
    return int(places.stop - places.start)


def _as_the_table(encoder: Encoder, manifest: Manifest, image: Picture) -> Float[Tensor, " D"]:
    """One vector, made as those of the table."""
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
    """An image of the table by its number, with the features that are stored. Raises Refusal where there is none."""
    return Query(f"row {row}: {table.rows[row].path}", pooled(picked(table, [row]))[0], row=row)


def row_number(table: FeatureTable, text: str) -> int:
    """The row that a number or the name of an image means. Raises Refusal where there is none, or several."""
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
    """The vectors of all queries, less the mean of those of the table."""
    return vectors.less_mean(torch.stack([query.vector for query in queries]))
