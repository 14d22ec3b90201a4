"""Contact sheets: queries with their neighbors, groups of near-duplicates, and outliers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from openjepa.search.regions import Box
from openjepa.visualization.sheet import BAD, GOOD, GRAY, Sheet, enlarge
from openjepa.whole_files import whole_file

CELL = 168
"""Side of the square that each image is fitted into, in pixels."""
COLUMNS = 6
"""Neighbors or outliers in a line."""
_GAP, _CAPTION, _HEAD, _QUERY_GAP = 10, 19, 34, 40
_HIT = "#e8a33d"
KEPT, REMOVED = GOOD, BAD
"""Frames of images of a group of near-duplicates."""
_LETTERS = 21
"""Letters of a caption that fit below an image."""


@dataclass(frozen=True)
class Picture:
    """One image of a sheet."""

    pixels: UInt8[np.ndarray, "h w 3"] | None
    """None: it cannot be read any more."""
    captions: tuple[str, ...]
    """Lines below it."""
    box: Box | None = None
    """A part of it that is framed."""
    color: str | None = None
    """Of a frame around all of it."""
    box_color: str = _HIT


@dataclass(frozen=True)
class Line:
    """Images in a row under a heading; `lead` stands before them, apart."""

    heading: str
    pictures: tuple[Picture, ...]
    lead: Picture | None = None


def query_picture(name: str, pixels: UInt8[np.ndarray, "h w 3"] | None, region: Box | None) -> Picture:
    """A query as it stands before its neighbors."""
    return Picture(pixels, ("query", shortened(name)), region, box_color=GOOD)


def draw(lines: Sequence[Line]) -> Sheet:
    """All lines below each other; lines longer than COLUMNS go on below. Raises ValueError where matplotlib is missing."""
    left = CELL + _QUERY_GAP if any(line.lead is not None for line in lines) else 0
    captions = max((len(item.captions) for line in lines for item in _all(line)), default=0)
    step = CELL + captions * _CAPTION + _GAP
    heights = [_HEAD + max(1, -(-len(line.pictures) // COLUMNS)) * step for line in lines]
    columns = max(1, min(COLUMNS, max((len(line.pictures) for line in lines), default=1)))
    sheet = Sheet(left + columns * (CELL + _GAP) - _GAP, max(1, sum(heights)))
    top = 0
    for line, height in zip(lines, heights, strict=True):
        sheet.words(line.heading, 0, top + _HEAD / 2 - 2, size=18, bold=True)
        if line.lead is not None:
            _put(sheet, line.lead, 0, top + _HEAD)
        for number, picture in enumerate(line.pictures):
            row, column = divmod(number, COLUMNS)
            _put(sheet, picture, left + column * (CELL + _GAP), top + _HEAD + row * step)
        top += height
    return sheet


def save(sheet: Sheet, path: Path) -> Path:
    """Writes a PNG that is never seen half-written."""
    with whole_file(path) as unfinished:
        Image.fromarray(sheet.pixels()).save(unfinished, format="PNG")
    return path


def _all(line: Line) -> tuple[Picture, ...]:
    return line.pictures if line.lead is None else (line.lead, *line.pictures)


def _put(sheet: Sheet, picture: Picture, left: int, top: int) -> None:
    """An image in the middle of its cell, its frames and its captions."""
    x, y, width, height = left, top, CELL, CELL
    if picture.pixels is None:
        sheet.frame(left, top, CELL, CELL, GRAY, 1)
        sheet.words("not readable", left + CELL / 2, top + CELL / 2, size=15, align="center")
    else:
        height, width = fitted((picture.pixels.shape[0], picture.pixels.shape[1]), CELL)
        x, y = left + (CELL - width) // 2, top + (CELL - height) // 2
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
    """The largest (height, width) of the same shape that fits into a square; no side below 1."""
    factor = side / max(size)
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def shortened(name: str, letters: int = _LETTERS) -> str:
    """The last part of a path; of a long one the beginning and the end."""
    last = PurePath(name).name or name
    if len(last) <= letters:
        return last
    end = (letters - 1) * 2 // 3
    return f"{last[: letters - 1 - end]}…{last[-end:]}"
