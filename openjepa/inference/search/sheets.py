"""Contact sheets: queries with their neighbors, groups of near-duplicates, and outliers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from openjepa.inference.search.queries import Box
from openjepa.system.shared_files import whole_file
from openjepa.visualization.sheet import BAD, GOOD, GRAY, Sheet, enlarge, printable

CELL = 168
"""Side of the square that each image is fitted into, in pixels."""
COLUMNS = 6
"""Most images in a row."""
_MARGIN, _GAP, _CAPTION, _HEAD, _QUERY_GAP = 12, 10, 19, 34, 40
_WIDTH_OF_WORDS = 560
"""Room for a heading above a few images, in pixels."""
_HIT = "#e8a33d"
KEPT, REMOVED = GOOD, BAD
"""Frame colors of kept and removed images of a group of near-duplicates."""
_LETTERS = 20
"""Number of letters of a caption that fit below an image."""


@dataclass(frozen=True)
class Picture:
    """One image of a sheet."""

    pixels: UInt8[np.ndarray, "h w 3"] | None
    """Pixels of the image; None if it can no longer be read."""
    captions: tuple[str, ...]
    """Lines of text below the image."""
    box: Box | None = None
    """Part of the image that gets a frame."""
    color: str | None = None
    """Color of a frame around the whole image; None: no frame."""
    box_color: str = _HIT


@dataclass(frozen=True)
class Line:
    """Images in a row under a heading. `lead` is an image set apart at the left."""

    heading: str
    pictures: tuple[Picture, ...]
    lead: Picture | None = None


def query_picture(name: str, pixels: UInt8[np.ndarray, "h w 3"] | None, region: Box | None) -> Picture:
    """The picture of a query, which stands before its neighbors. `region`: framed if it is given."""
    return Picture(pixels, ("query", shortened(name)), region, box_color=GOOD)


def draw(lines: Sequence[Line]) -> Sheet:
    """Draws all lines below each other, short ones side by side. A line of more than COLUMNS images continues below.

    Raises Refusal if matplotlib is missing.
    """
    left = _MARGIN + (CELL + _QUERY_GAP if any(line.lead is not None for line in lines) else 0)
    captions = max((len(item.captions) for line in lines for item in _all(line)), default=0)
    step = CELL + captions * _CAPTION + _GAP
    places, top, right = [], _MARGIN, left + CELL
    for band in _bands(lines):
        head = _HEAD if any(line.heading for line in band) else 0
        x = left
        for line in band:
            places.append((line, x if line.lead is None else _MARGIN, x, top, top + head))
            x += _num_columns(line) * (CELL + _GAP) + _QUERY_GAP
        right = max(right, x - _QUERY_GAP - _GAP)
        top += head + max(_num_rows(line) for line in band) * step
    sheet = Sheet(max(right, _WIDTH_OF_WORDS) + _MARGIN, top + _MARGIN)
    for line, start, first, head_top, image_top in places:
        sheet.words(line.heading, start, head_top + _HEAD / 2 - 2, size=18, bold=True)
        if line.lead is not None:
            _put(sheet, line.lead, _MARGIN, image_top)
        for number, picture in enumerate(line.pictures):
            row, column = divmod(number, _num_columns(line))
            _put(sheet, picture, first + column * (CELL + _GAP), image_top + row * step)
    return sheet


def _bands(lines: Sequence[Line]) -> list[list[Line]]:
    """Groups lines that share a band, side by side. Only lines with images and without a lead do, up to COLUMNS images."""
    bands: list[list[Line]] = []
    free = 0
    for line in lines:
        number = len(line.pictures)
        if line.lead is None and 0 < number <= free:
            bands[-1].append(line)
            free -= number
        else:
            bands.append([line])
            free = COLUMNS - number if line.lead is None and number else 0
    return bands


def _num_columns(line: Line) -> int:
    """Number of columns that makes all rows about equally long: for ten images five and five, not six and four."""
    number = len(line.pictures)
    return -(-number // max(1, _num_rows(line)))


def _num_rows(line: Line) -> int:
    return max(-(-len(line.pictures) // COLUMNS), 1 if line.lead is not None else 0)


def save(sheet: Sheet, path: Path) -> Path:
    """Writes a PNG file, which nobody sees half-written. Returns `path`."""
    with whole_file(path) as unfinished:
        Image.fromarray(sheet.pixels()).save(unfinished, format="PNG")
    return path


def _all(line: Line) -> tuple[Picture, ...]:
    return line.pictures if line.lead is None else (line.lead, *line.pictures)


def _put(sheet: Sheet, picture: Picture, left: int, top: int) -> None:
    """Draws an image at the bottom of its cell, with its frames and captions."""
    x, y, width, height = left, top, CELL, CELL
    if picture.pixels is None:
        sheet.frame(left, top, CELL, CELL, GRAY, 1)
        sheet.words("not readable", left + CELL / 2, top + CELL / 2, size=15, align="center")
    else:
        height, width = fitted((picture.pixels.shape[0], picture.pixels.shape[1]), CELL)
        x, y = left + (CELL - width) // 2, top + CELL - height
        sheet.image(enlarge(picture.pixels, (height, width)), x, y)
    if picture.color is not None:
        sheet.frame(x, y, width, height, picture.color, 4)
    if picture.box is not None:
        box = picture.box
        sheet.frame(x + box.left * width, y + box.top * height, box.width * width, box.height * height, picture.box_color, 3)
    for number, words in enumerate(picture.captions):
        middle = top + CELL + (number + 0.5) * _CAPTION + 2
        sheet.words(words, left + CELL / 2, middle, size=14, align="center", bold=number == 0)


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The largest (height, width) of the same aspect ratio that fits into a square of `side` pixels; no side is below 1."""
    factor = side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def shortened(name: str, letters: int = _LETTERS) -> str:
    """The last part of a path. If it is longer than `letters`, its middle is left out.

    A row of a Parquet file, `train row 7 (train/dog/7.jpg)`, becomes the last part of the path in parentheses.
    """
    inner = name[name.index("(") + 1 : -1] if name.endswith(")") and "(" in name else name
    last = printable(PurePath(inner).name or name)
    if len(last) <= letters:
        return last
    end = (letters - 1) * 2 // 3
    return f"{last[: letters - 1 - end]}…{last[-end:]}"
