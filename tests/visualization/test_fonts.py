"""Names in pictures: bytes that are no text, and letters of scripts that the usual font lacks."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from openjepa.visualization import sheet
from openjepa.visualization.sheet import Sheet

UNDECODABLE = b"caf\xe9".decode(errors="surrogateescape")
SCRIPTS = {
    "Chinese": "犬",
    "Japanese": "ねこ",
    "Korean": "개",
    "Devanagari": "कुत्ता",
    "Thai": "หมา",
    "emoji": "🐶",
    "Egyptian": "𓃡",
}
"""In the usual font there is none of these."""


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A list of the fonts that are installed, empty at first."""
    files: list[str] = []
    known = list(font_manager.fontManager.ttflist)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(files))
    sheet._installed.cache_clear()
    sheet._family_with.cache_clear()
    yield files
    sheet._installed.cache_clear()
    sheet._family_with.cache_clear()
    font_manager.fontManager.ttflist[:] = known


def make_font(path: Path, letters: str, family: str) -> str:
    """A font whose letters are filled squares."""
    builder = FontBuilder(1000, isTTF=True)
    names = [".notdef", *(f"letter{ord(letter):x}" for letter in letters)]
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names[1:], strict=True)})
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square, empty = pen.glyph(), TTGlyphPen(None).glyph()
    builder.setupGlyf({name: square if number else empty for number, name in enumerate(names)})
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def drawn(text: str) -> np.ndarray:
    """How much of each pixel is covered by the words."""
    sheet = Sheet(400, 40)
    sheet.words(text, 5, 20)
    return sheet.pixels()[..., 3]


@pytest.mark.parametrize("name", [UNDECODABLE, "a\nb", "\x1b[31m", "\x00", "\udc80\udcff", "\ufffe"])
def test_what_is_no_letter_is_written_out(name: str, no_fonts: list[str]) -> None:
    expected = {UNDECODABLE: r"caf\udce9", "a\nb": r"a\nb", "\x1b[31m": r"\x1b[31m"}
    assert sheet.printable(name) == expected.get(name, sheet.printable(name)) and sheet.printable(name).isascii()
    np.testing.assert_array_equal(drawn(name), drawn(sheet.printable(name)))


@pytest.mark.parametrize("name", ["café", "собака", "σκύλος", "كلب", "$5^2$ a_b", "naïve, 50 %"])
def test_the_usual_font_has_these(name: str, no_fonts: list[str]) -> None:
    assert sheet.families(name) == ([sheet.USUAL], True)
    assert drawn(name).any()


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_installed_font_with_the_letters_is_used(script: str, no_fonts: list[str], tmp_path: Path) -> None:
    name = SCRIPTS[script]
    no_fonts.append(make_font(tmp_path / "other.ttf", "ꙮ", "Nothing of Use"))
    no_fonts.append(str(tmp_path / "gone.ttf"))
    no_fonts.append(make_font(tmp_path / "squares.ttf", "".join(sorted(set(name))), f"Squares {script}"))
    assert sheet.families(f"{name} dog") == ([sheet.USUAL, f"Squares {script}"], True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        covered = drawn(name[0])
    rows, columns = np.nonzero(covered > 250)
    # a filled square of 0.8 of 20 pixels: an empty box, which stands for what is missing, is not filled
    assert (covered[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] > 250).all()
    assert 14 <= rows.max() - rows.min() + 1 <= 17 and 14 <= columns.max() - columns.min() + 1 <= 17


@pytest.mark.parametrize("script", SCRIPTS)
def test_letters_that_no_font_has_are_named_once(script: str, no_fonts: list[str]) -> None:
    sheet = Sheet(400, 80)
    for name in (SCRIPTS[script], "dog", SCRIPTS[script], UNDECODABLE):
        sheet.words(name, 5, 20)
    assert sheet.undrawn == [SCRIPTS[script]] * 2
    with pytest.warns(UserWarning, match="drawn as boxes; install") as caught:
        sheet.pixels()
    (said,) = [str(warning.message) for warning in caught]
    assert said.count(SCRIPTS[script]) == 1 and "dog" not in said


def test_many_names_are_counted() -> None:
    assert "a, b, c, d, e and 2 more: " in sheet.undrawn_words("gfedcbaabc")


def test_joiners_need_no_letter(no_fonts: list[str]) -> None:
    assert sheet.families("a\u200db\u200c\ufe0f") == ([sheet.USUAL], True)
    assert sheet.printable("a\u200db\u202e") == "a\u200db\\u202e"
