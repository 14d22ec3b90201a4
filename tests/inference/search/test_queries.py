"""Regions and windows: fractions and pixels, which patches lie inside, and where a window lies in an image."""

from dataclasses import replace

import numpy as np
import pytest

from openjepa.data.views import central_crop, evaluation_view
from openjepa.inference.search.queries import FractionBox, box_in_view, box_of, box_of_window, patches_inside, view_over
from openjepa.inference.search.sheets import SheetLine, SheetPicture, draw_lines, fitted, shortened
from openjepa.visualization.sheet import printable
from tests.helpers.feature_tables import plain_manifest


def test_numbers_up_to_1_are_fractions_and_others_pixels() -> None:
    assert box_of((0.25, 0.5, 0.75, 0.5), (40, 80), "x") == FractionBox(0.25, 0.5, 0.75, 0.5)
    assert box_of((20, 20, 60, 20), (40, 80), "x") == FractionBox(0.25, 0.5, 0.75, 0.5)
    assert box_of((0, 0, 1, 1), (40, 80), "x") == FractionBox(0, 0, 1, 1)
    with pytest.raises(ValueError, match=r"leaves x, which is 80 x 40 pixels: left \+ width may be 80"):
        box_of((20, 0, 61, 20), (40, 80), "x")
    with pytest.raises(ValueError, match="leaves"):
        box_of((-0.1, 0, 0.5, 0.5), (40, 80), "x")


@pytest.mark.parametrize("seed", range(20))
def test_patches_inside_are_those_with_their_center_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(2, 9, 2).tolist()
    height, width = rng.uniform(1 / rows, 1), rng.uniform(1 / columns, 1)
    top, left = rng.uniform(0, 1 - height), rng.uniform(0, 1 - width)
    inside = patches_inside(FractionBox(left, top, width, height), (rows, columns))
    centers = [(np.arange(number) + 0.5) / number for number in (rows, columns)]
    for found, center, start, length in zip(inside, centers, (top, left), (height, width), strict=True):
        expected = np.flatnonzero((center >= start) & (center <= start + length))
        assert list(range(found.start, found.stop)) == expected.tolist() and len(expected) >= 1


@pytest.mark.parametrize("view", ["crop", "squash"])
@pytest.mark.parametrize("size", [(90, 160), (200, 64), (64, 64)])
def test_a_window_lies_where_its_pixels_are(view: str, size: tuple[int, int]) -> None:
    import torch

    manifest = replace(plain_manifest(np.ones((1, 4, 4, 3), np.float16)), view=view, size=(32, 32))  # type: ignore[arg-type]
    box = box_of_window(manifest, size, (1, 2), (2, 1))
    pixels = torch.zeros(*size, 3, dtype=torch.uint8)
    top, left = round(box.top * size[0]), round(box.left * size[1])
    pixels[top : top + round(box.height * size[0]), left : left + round(box.width * size[1])] = 255
    seen = evaluation_view(pixels, (32, 32), view)[0].double() / 255
    wanted = torch.zeros(32, 32, dtype=torch.float64)
    wanted[8:24, 16:24] = 1  # patches of 8 pixels: rows 1 and 2, column 2
    assert float((seen - wanted).abs().mean()) < 0.03


@pytest.mark.parametrize("size", [(90, 160), (200, 64), (64, 64)])
def test_a_view_lies_over_the_box(size: tuple[int, int]) -> None:
    manifest = replace(plain_manifest(np.ones((1, 4, 4, 3), np.float16)), view="crop", size=(32, 32))
    middle, corner = FractionBox(0.4, 0.4, 0.2, 0.2), FractionBox(0.9, 0.9, 0.1, 0.1)
    full, start = view_over(manifest, size, middle)
    expected = central_crop(*size, (32, 32))
    assert full == expected[0] and start == pytest.approx(expected[1], abs=1)
    full, start = view_over(manifest, size, corner)
    assert start == (full[0] - 32, full[1] - 32)
    part = box_in_view(manifest, full, start, corner)
    assert (part.left + part.width, part.top + part.height) == pytest.approx((1, 1))
    assert (part.width * 32, part.height * 32) == pytest.approx((0.1 * full[1], 0.1 * full[0]))
    assert box_in_view(manifest, full, start, FractionBox(0, 0, 1, 1)) == FractionBox(0, 0, 1, 1)
    squashed = replace(manifest, view="squash")
    assert view_over(squashed, size, corner) == ((32, 32), (0, 0))
    kept = box_in_view(squashed, (32, 32), (0, 0), middle)
    assert (kept.left, kept.top, kept.width, kept.height) == pytest.approx((0.4, 0.4, 0.2, 0.2))


def test_names_are_shortened_to_their_end() -> None:
    assert shortened("a/b/cat.png") == "cat.png"
    assert shortened("a/b (c).png") == "b (c).png"
    assert shortened("x" * 30 + "0123456789.png") == "xxxxxxx…23456789.png"
    assert len(shortened("y" * 99)) == 20


@pytest.mark.filterwarnings("ignore:no installed font")
def test_odd_names_are_on_one_line_and_drawn() -> None:
    assert printable("ä/日本/a\nb\x1b[31m\udce9.png") == r"ä/日本/a\nb\x1b[31m\udce9.png"
    names = ("日本語.png", "$x_1$.png", "new\nline.png", "byte\udce9.png", "$", "a (b)", "()", ".")
    sheet = draw_lines([SheetLine("", (SheetPicture(None, (shortened(name),)),)) for name in names])
    assert sheet.pixels()[..., 3].any()


def test_a_box_is_framed_where_it_lies() -> None:
    picture = SheetPicture(np.zeros((84, 168, 3), np.uint8), (), FractionBox(0.5, 0.25, 0.25, 0.5))
    pixels = draw_lines([SheetLine("", (picture,))]).pixels()
    black = np.argwhere((pixels[..., :3].max(axis=2) == 0) & (pixels[..., 3] == 255))
    frame = np.argwhere(np.abs(pixels[..., :3].astype(int) - (0xE8, 0xA3, 0x3D)).max(axis=2) < 8)
    top, left = black.min(axis=0)
    assert frame.min(axis=0) == pytest.approx([top + 21, left + 84], abs=1)
    assert frame.max(axis=0) + 1 == pytest.approx([top + 63, left + 126], abs=1)


def test_images_are_fitted_and_sheets_grow_with_their_lines() -> None:
    assert fitted((50, 100), 168) == (84, 168) and fitted((1000, 1), 168) == (168, 1)
    pixels = np.full((20, 30, 3), 200, np.uint8)
    one = draw_lines([SheetLine("a", (SheetPicture(pixels, ("x",)),) * 2)])
    pair = draw_lines([SheetLine("a", (SheetPicture(pixels, ("x",)),) * 2)] * 2)
    rows = draw_lines([SheetLine("a", (SheetPicture(None, ("x",)),) * 10)])
    assert pair.height == one.height and pair.width > one.width  # two short lines stand side by side
    assert rows.height > 1.5 * one.height and rows.width < 6 * 178  # five and five
