"""Names as words in a picture: what is no letter is written out, and letters that the usual font lacks come from others."""

from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

USUAL = "DejaVu Sans"
"""matplotlib's own: Latin, Greek, Cyrillic, Arabic and more, but no Chinese, Japanese, Korean, Indic or emoji."""
JOINERS = frozenset("\u200c\u200d")
"""Say how the letters beside them join; they have no shape."""
_SHAPELESS = JOINERS | frozenset("\ufe0e\ufe0f ")


def printable(name: str) -> str:
    r"""A name on one line: what is no letter or sign (a newline, bytes that are no UTF-8) as `\n` or `\udce9`."""
    return "".join(letter if letter.isprintable() or letter in JOINERS else ascii(letter)[1:-1] for letter in name)


def families(text: str) -> tuple[list[str], bool]:
    """Names of the fonts to draw a text with, the usual one first, and whether they have all of its letters."""
    lacking = [letter for letter in frozenset(text) - _SHAPELESS if ord(letter) not in _usual_letters()]
    others = [_family_with(letter) for letter in sorted(lacking)]
    return [USUAL, *dict.fromkeys(family for family in others if family is not None)], None not in others


@cache
def _usual_letters() -> frozenset[int]:
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(font_manager.findfont(USUAL)).get_charmap())


@cache
def _family_with(letter: str) -> str | None:
    """The family of the first installed font that has a letter."""
    from matplotlib import font_manager

    for file, family, letters in _installed():
        if (letters == ord(letter)).any():
            font_manager.fontManager.addfont(file)  # its list may be older than the font
            return family
    return None


@cache
def _installed() -> list[tuple[str, str, NDArray[np.uint32]]]:
    """File, family and letters of each font that matplotlib can draw with: of pictures in fixed sizes, as emoji, it cannot."""
    from matplotlib import font_manager, ft2font

    found = []
    for file in sorted(font_manager.findSystemFonts(), key=_is_special):
        with suppress(OSError, RuntimeError):
            font = ft2font.FT2Font(file)
            font.set_size(12, 72)
            found.append((file, font.family_name, np.fromiter(font.get_charmap(), np.uint32)))
    return found


def _is_special(file: str) -> tuple[bool, str]:
    """Upright fonts of usual weight first."""
    name = PurePath(file).name.lower()
    return any(word in name for word in ("bold", "italic", "oblique", "light", "thin", "black", "mono")), name


def undrawn_words(names: Iterable[str]) -> str:
    """What to say of names whose letters no font has."""
    listed = sorted(set(names))
    words = ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")
    return (
        f"no installed font has all letters of {words}: they are drawn as boxes; install one that has them, "
        "for example a Noto font of the script"
    )
