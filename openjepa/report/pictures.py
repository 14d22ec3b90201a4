"""Pictures of a run folder as data URIs, made smaller until they fit the page."""

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from openjepa.report.reading import Figure

KEEP_BYTES = 250_000
"""A file up to this size is embedded as it is."""
MAX_WIDTH = 2200
MAX_SOURCE_PIXELS = 60_000_000


@dataclass(frozen=True)
class Picture:
    """A figure ready to be shown."""

    title: str
    caption: str
    alt: str
    uri: str
    width: int
    height: int


def embed(figures: Sequence[Figure], budget: int) -> tuple[list[Picture], list[str]]:
    """The figures as data URIs of at most `budget` bytes in all, and the titles of those that could not be read."""
    pictures, failed = [], []
    for index, figure in enumerate(figures):
        share = budget // (len(figures) - index)
        encoded = _encode(figure.file, share)
        if encoded is None:
            failed.append(figure.title)
            continue
        uri, width, height = encoded
        budget -= len(uri)
        pictures.append(Picture(figure.title, figure.caption, figure.alt, uri, width, height))
    return pictures, failed


def _encode(path: Path, limit: int) -> tuple[str, int, int] | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path, formats=("PNG", "JPEG", "WEBP"))
            if image.width * image.height > MAX_SOURCE_PIXELS:
                return None
            kind = {"PNG": "png", "JPEG": "jpeg", "WEBP": "webp"}[str(image.format)]
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    size = path.stat().st_size
    if size <= min(KEEP_BYTES, limit * 3 // 4 - 40):
        return _uri(kind, path.read_bytes()), image.width, image.height
    return _recompress(image, limit)


def _recompress(image: Image.Image, limit: int) -> tuple[str, int, int] | None:
    pixels = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
    width = min(pixels.width, MAX_WIDTH)
    while width >= 200:
        height = max(1, round(pixels.height * width / pixels.width))
        stream = io.BytesIO()
        pixels.resize((width, height), Image.Resampling.LANCZOS).save(stream, "WEBP", quality=86, method=4)
        uri = _uri("webp", stream.getvalue())
        if len(uri) <= limit:
            return uri, width, height
        width = width * 3 // 4
    return None


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
