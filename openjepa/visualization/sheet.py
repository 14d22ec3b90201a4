"""A picture made of images and words at exact pixel places, drawn with matplotlib's Agg canvas and none of its global state.

The background is transparent and words are of a middle gray, so that a sheet is readable on white and on black pages.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from openjepa.system.packages import needed_for
from openjepa.visualization.fonts import families, printable, undrawn_words

GRAY = "#7d838d"
GOOD, BAD = "#1f9d63", "#d64a3a"
_DPI = 100


class Sheet:
    """Width x height pixels; places are (left, top) from the upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        """An empty sheet. Raises Refusal where matplotlib is missing."""
        with needed_for("a picture"):
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        self.width, self.height = width, height
        self.undrawn: list[str] = []
        """What has letters that no font has."""
        self._figure: Any = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        self._canvas: Any = FigureCanvasAgg(self._figure)
        self._figure.patch.set_alpha(0.0)

    def image(self, pixels: UInt8[np.ndarray, "h w 3"], left: int, top: int) -> None:
        """Puts pixels there as they are, without resampling."""
        self._figure.figimage(pixels, xo=left, yo=self.height - top - pixels.shape[0], origin="upper")

    def words(
        self,
        text: str,
        left: float,
        top: float,
        size: float = 20,
        align: str = "left",
        bold: bool = False,
        color: str = GRAY,
        upwards: bool = False,
    ) -> None:
        """One line whose vertical middle is at `top`; `size` in pixels. Whatever is in a name is drawn, if a font has it."""
        text = printable(text)
        fonts, has_all = families(text)
        if not has_all:
            self.undrawn.append(text)
        # parse_math would read a $ in a class name as a formula.
        self._figure.text(
            left / self.width,
            1 - top / self.height,
            text,
            fontsize=size * 72 / _DPI,
            color=color,
            ha=align,
            va="center",
            rotation=90 if upwards else 0,
            rotation_mode="anchor",
            fontfamily=fonts,
            fontweight="bold" if bold else "normal",
            parse_math=False,
        )

    def frame(self, left: float, top: float, width: float, height: float, color: str, thickness: float = 5) -> None:
        """The outline of a rectangle, drawn inside it."""
        from matplotlib.patches import Rectangle

        inset = thickness / 2
        corner = (left + inset, self.height - top - height + inset)
        outline = Rectangle(
            corner,
            width - thickness,
            height - thickness,
            transform=None,
            fill=False,
            edgecolor=color,
            linewidth=thickness * 72 / _DPI,
            joinstyle="miter",
        )
        self._figure.add_artist(outline)

    def pixels(self) -> UInt8[np.ndarray, "h w 4"]:
        """What is drawn so far. Warns of words with letters that no font has, which are boxes."""
        if self.undrawn:
            warnings.warn(undrawn_words(self.undrawn), UserWarning, stacklevel=2)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self._canvas.draw()
        return np.asarray(self._canvas.buffer_rgba()).copy()

    def save(self, path: Path) -> None:
        """Writes a PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.pixels()).save(path, compress_level=6)


@dataclass(frozen=True)
class Layout:
    """Where the cells of a table of equal images lie."""

    cell: tuple[int, int]
    """Height and width in pixels."""
    left: int = 44
    """Room for the names of the rows."""
    top: int = 0
    gap: int = 8

    def x(self, column: int) -> int:
        """Left edge of a column."""
        return self.left + column * (self.cell[1] + self.gap)

    def y(self, row: int) -> int:
        """Top edge of a row."""
        return self.top + row * (self.cell[0] + self.gap)

    def size(self, num_columns: int, num_rows: int) -> tuple[int, int]:
        """Width and height of a sheet with so many cells."""
        return self.x(num_columns) - self.gap, self.y(num_rows) - self.gap


def enlarge(pixels: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], smooth: bool = True) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Pixels at (height, width) `size`: photos smoothly, maps of patches in hard squares."""
    resampling = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), resampling))


def table(rows: dict[str, list[UInt8[np.ndarray, "h w 3"]]], cell: tuple[int, int]) -> Sheet:
    """A sheet with one named row of images of size `cell` under another."""
    layout = Layout(cell)
    sheet = Sheet(*layout.size(max(len(images) for images in rows.values()), len(rows)))
    for row, (name, images) in enumerate(rows.items()):
        sheet.words(name, 26, layout.y(row) + cell[0] / 2, size=21, align="center", upwards=True)
        for column, pixels in enumerate(images):
            sheet.image(pixels, layout.x(column), layout.y(row))
    return sheet
