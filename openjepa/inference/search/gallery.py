"""The images of a table, found again through its manifest."""

import hashlib
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from openjepa.config import from_dict
from openjepa.data.decode import decode_image, image_size
from openjepa.data.source import ListSource
from openjepa.data.views import shrink_to_short_side
from openjepa.inference.embedding.embed_plan import EmbeddedImages, open_images
from openjepa.inference.embedding.table import FeatureTable, Manifest, TableRow
from openjepa.inference.search.pairs import File
from openjepa.refusals import Refusal
from openjepa.settings.run import CHOICES
from openjepa.settings.sources import DataSettings

THUMBNAIL = 256
"""Short side, in pixels, to which images are reduced for contact sheets."""

Change = Literal["none", "number", "files"]
"""Change of the images since they were embedded, as far as the table can tell. `number`: images were added or removed. `files`:
files have other sizes or times."""


class Gallery:
    """The images of a table. Opened by `open_gallery`."""

    def __init__(self, images: EmbeddedImages, change: Change = "none") -> None:
        """`images`: the embedded sources; single images of a stream cannot be read. `change`: of the images since then."""
        self.change = change
        self._sources = {name: source for name, source in images.sources.items() if isinstance(source, ListSource)}

    @cached_property
    def _numbers(self) -> dict[tuple[str, str], int]:
        """Numbers of the images by split and name. Needed if images were added or removed since."""
        return {(split, source.name(index)): index for split, source in self._sources.items() for index in range(len(source))}

    def read(self, row: TableRow) -> bytes:
        """The bytes of an image's file. Raises Refusal or OSError if it is gone."""
        source, index = self._located(row)
        return source.read(index)

    def image_name(self, row: TableRow) -> str:
        """The path of an image as its data has it; the name of the row if the image is gone."""
        try:
            source, index = self._located(row)
        except Refusal:
            return row.path
        return source.image_name(index)

    def _located(self, row: TableRow) -> tuple[ListSource, int]:
        source = self._sources.get(row.split)
        if source is None:
            raise Refusal(f"the split {row.split!r} is a stream or is gone: its images cannot be read one by one")
        if row.index < len(source) and source.name(row.index) == row.path:
            return source, row.index
        if (row.split, row.path) not in self._numbers:
            raise Refusal(f"{row.path} is not among the images any more")
        return source, self._numbers[row.split, row.path]

    def pixels(self, row: TableRow) -> UInt8[np.ndarray, "h w 3"]:
        """RGB pixels of an image. Raises Refusal or OSError if it cannot be read."""
        return decode_image(self.read(row))

    def thumbnail(self, row: TableRow) -> UInt8[np.ndarray, "h w 3"] | None:
        """The image with a short side of at most `THUMBNAIL` pixels; None if it cannot be read."""
        try:
            pixels = decode_image(self.read(row), THUMBNAIL)
        except (ValueError, OSError):
            return None
        return thumbnail(torch.from_numpy(pixels))

    def file(self, row: TableRow) -> File | None:
        """Size, bytes and digest of an image's file; None if it cannot be read."""
        try:
            data = self.read(row)
            height, width = image_size(data)
        except (ValueError, OSError):
            return None
        return File(height, width, len(data), hashlib.sha256(data).hexdigest())


def thumbnail(pixels: UInt8[Tensor, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The image, reduced to a short side of at most `THUMBNAIL` pixels."""
    return shrink_to_short_side(pixels, THUMBNAIL).numpy()


def label_name(manifest: Manifest, row: TableRow) -> str:
    """Name of an image's class, or its number if it has no name; empty without a label."""
    if row.label is None:
        return ""
    names = manifest.class_names
    return names[row.label] if 0 <= row.label < len(names) else str(row.label)


def open_gallery(table: FeatureTable, data_path: str | None = None) -> Gallery:
    """Opens the images of a table. `data_path`: where they lie now; None: where they were.

    `change` of the gallery tells if the images have changed. Raises Refusal or OSError if they cannot be found.
    """
    manifest = table.manifest
    entries = dict(manifest.data)
    options = CHOICES["data"].options
    if entries.get("source") not in options:
        raise Refusal(f"the table does not say which data source its images are from ({entries.get('source')!r})")
    if data_path is not None:
        entries["path"] = data_path
    settings: DataSettings = from_dict(options[entries["source"]], entries)
    is_train, is_test = manifest.splits == ("train",), manifest.splits == ("test",)
    images = open_images(settings, "train" if is_train else "test" if is_test else "all", manifest.seed)
    return Gallery(images, _change(images, table))


def _change(images: EmbeddedImages, table: FeatureTable) -> Change:
    """How the images have changed. Files are looked at only if their number is the same and the table notes their stamps."""
    sources = images.sources.values()
    lengths = [len(source) for source in sources if isinstance(source, ListSource)]
    if len(lengths) == len(sources) and sum(lengths) != len(table) + table.manifest.skipped:
        return "number"
    return "files" if table.manifest.files and table.manifest.files != images.stamped() else "none"
