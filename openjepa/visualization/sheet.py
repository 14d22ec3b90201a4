"""A picture of images and words at exact pixel positions, drawn on matplotlib's Agg canvas without its global state.

The background is transparent and words are medium gray, so that a sheet is readable on white and on black pages. Any name can
be drawn: unprintable characters are written as escapes, and letters that the usual font lacks come from other fonts.
"""

import warnings
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image

from openjepa.refusals import needed_for

USUAL = "DejaVu Sans"
"""matplotlib's own font: Latin, Greek, Cyrillic, Arabic and more, but no Chinese, Japanese, Korean, Indic or emoji."""
JOINERS = frozenset("\u200c\u200d")
"""Characters that control how neighboring letters join. They have no shape of their own."""
_SHAPELESS = JOINERS | frozenset("\ufe0e\ufe0f ")


def printable(name: str) -> str:
    r"""A name on one line. Unprintable characters become escapes: a newline `\n`, a byte that is not UTF-8 `\udce9`."""
    return "".join(letter if letter.isprintable() or letter in JOINERS else ascii(letter)[1:-1] for letter in name)


def families(text: str) -> tuple[list[str], bool]:
    """Names of the fonts to draw a text with, the usual one first; and True if they have all of its letters."""
    lacking = [letter for letter in frozenset(text) - _SHAPELESS if ord(letter) not in _usual_letters()]
    others = [_family_with(letter) for letter in sorted(lacking)]
    return [USUAL, *dict.fromkeys(family for family in others if family is not None)], None not in others


@cache
def _usual_letters() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont(USUAL)).get_charmap())


@cache
def _family_with(letter: str) -> str | None:
    """The family of the first installed font that has the letter; None if no font has it."""
    from matplotlib import font_manager

    for file, family, letters in _installed():
        if (letters == ord(letter)).any():
            font_manager.fontManager.addfont(file)  # matplotlib's list may be older than the font
            return family
    return None


@cache
def _installed() -> list[tuple[str, str, NDArray[np.uint32]]]:
    """File, family and letters of each font that matplotlib can draw with. It cannot draw fonts of pictures, such as emoji."""
    from matplotlib import font_manager, ft2font

    found = []
    for file in sorted(font_manager.findSystemFonts(), key=_is_special):
        with suppress(OSError, RuntimeError):
            font = ft2font.FT2Font(file)
            font.set_size(12, 72)
            found.append((file, font.family_name, np.fromiter(font.get_charmap(), np.uint32)))
    return found


def _is_special(file: str) -> tuple[bool, str]:
    """Sort key that puts upright fonts of regular weight first."""
    name = PurePath(file).name.lower()
    return any(word in name for word in ("bold", "italic", "oblique", "light", "thin", "black", "mono")), name


def undrawn_words(names: Iterable[str]) -> str:
    """The warning about names with letters that no font has."""
    listed = sorted(set(names))
    words = ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
    return (
        f"no installed font has all letters of {words}: they are drawn as boxes; install one that has them, "
        "for example a Noto font of the script"
    )


GRAY = "#7d838d"
GOOD, BAD = "#1f9d63", "#d64a3a"
_DPI = 100


class Sheet:
    """A picture of width x height pixels. Positions are (left, top), measured from the upper left corner."""

    def __init__(self, width: int, height: int) -> None:
        """An empty sheet. Raises Refusal if matplotlib is missing."""
        with needed_for("a picture"):
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        self.width, self.height = width, height
        self.undrawn: list[str] = []
        """Words with letters that no font has."""
        self._figure: Any = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        self._canvas: Any = FigureCanvasAgg(self._figure)
        self._figure.patch.set_alpha(0.0)

    def image(self, pixels: UInt8[np.ndarray, "h w 3"], left: int, top: int) -> None:
        """Places the pixels at (left, top) without resampling."""
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
        """Draws one line of text whose vertical middle is at `top`. `size` is in pixels. Any font with the letters is used."""
        text = printable(text)
        fonts, has_all = families(text)
        if not has_all:
            self.undrawn.append(text)
        # parse_math would read a $ in a class name as the start of a formula.
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
        """Draws the outline of a rectangle, inside its edges."""
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
        """The picture so far. Warns about words with letters that no font has; such letters are drawn as boxes."""
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
    """Positions of the cells in a table of images of equal size."""

    cell: tuple[int, int]
    """Height and width of a cell in pixels."""
    left: int = 44
    """Width in pixels of the margin for the names of the rows."""
    top: int = 0
    gap: int = 8

    def x(self, column: int) -> int:
        """Left edge of a column."""
        return self.left + column * (self.cell[1] + self.gap)

    def y(self, row: int) -> int:
        """Top edge of a row."""
        return self.top + row * (self.cell[0] + self.gap)

    def size(self, num_columns: int, num_rows: int) -> tuple[int, int]:
        """Width and height of a sheet with these numbers of rows and columns."""
        return self.x(num_columns) - self.gap, self.y(num_rows) - self.gap


def enlarge(pixels: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], smooth: bool = True) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resizes an image to `size` (height, width): smoothly for photos, in hard squares for maps of patches."""
    resampling = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), resampling))


def table(rows: dict[str, list[UInt8[np.ndarray, "h w 3"]]], cell: tuple[int, int]) -> Sheet:
    """A sheet with named rows of images of size `cell`, one below another."""
    layout = Layout(cell)
    sheet = Sheet(*layout.size(max(len(images) for images in rows.values()), len(rows)))
    for row, (name, images) in enumerate(rows.items()):
        sheet.words(name, 26, layout.y(row) + cell[0] / 2, size=21, align="center", upwards=True)
        for column, pixels in enumerate(images):
            sheet.image(pixels, layout.x(column), layout.y(row))
    return sheet


# Five stops of a dark-to-light ramp whose lightness rises evenly (between matplotlib's inferno and a sunset).
_STOPS = np.array([[24, 22, 48], [93, 34, 110], [187, 55, 84], [244, 131, 52], [252, 238, 164]], dtype=np.float64)


def heat(shares: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Colors for shares: 0 is dark, 1 is light. Values outside [0, 1] are clipped."""
    places = np.clip(shares, 0, 1) * (len(_STOPS) - 1)
    below = np.minimum(places.astype(int), len(_STOPS) - 2)
    part = (places - below)[..., None]
    colors: NDArray[np.float64] = (1 - part) * _STOPS[below] + part * _STOPS[below + 1]
    return colors.round().astype(np.uint8)


def heat_scale(height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The color bar of `heat`, with 1 at the top."""
    return heat(np.repeat(np.linspace(1, 0, height)[:, None], width, axis=1))


def pca_colors(features: Float[np.ndarray, "n H W D"]) -> UInt8[np.ndarray, "n H W 3"]:
    """Shows the first three principal components of all patches together as red, green and blue.

    Each component is scaled from its 2nd to its 98th percentile. Its sign makes the longer tail bright, so that equal features
    always give equal colors.
    """
    flat = features.reshape(-1, features.shape[-1]).astype(np.float64)
    centered = flat - flat.mean(axis=0)
    _, vectors = np.linalg.eigh(centered.T @ centered)
    components = centered @ vectors[:, ::-1][:, :3]
    components *= np.where((components**3).sum(axis=0) < 0, -1.0, 1.0)
    low, high = np.percentile(components, (2, 98), axis=0)
    stretched: NDArray[np.float64] = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    if stretched.shape[1] < 3:
        stretched = np.pad(stretched, ((0, 0), (0, 3 - stretched.shape[1])))
    return (255 * stretched).round().astype(np.uint8).reshape(*features.shape[:-1], 3)
