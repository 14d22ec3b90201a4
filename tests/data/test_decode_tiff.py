"""TIFF files of every layout: what Pillow reads rightly is accepted, what it misreads refused with the reason."""

import io
import logging
import struct
import threading
import warnings
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image

from openjepa.data.decode import DecodeError, decode_image, image_size, pillow_pixels, remark
from tests.helpers.tiff_files import (
    CMYK,
    COLOR_CHANNELS,
    GRAY,
    GRAY_FROM_WHITE,
    PALETTE,
    RGB,
    SIDE,
    YCBCR,
    Layout,
    shown,
    values_of,
    written,
)

LAYOUTS = [
    Layout(colors, bits, order, separate, extra, compressed, rows_per_strip=rows)
    for colors, bits, order, separate, extra, compressed, rows in product(
        COLOR_CHANNELS, (1, 4, 8, 12, 16), "<>", (False, True), ((), (0,), (1,), (2,)), (False, True), (16, 5)
    )
    if (colors != PALETTE or bits <= 8) and not (colors == YCBCR and extra) and not (compressed and rows == 5)
]
LAYOUTS += [replace(layout, tiled=True) for layout in LAYOUTS if layout.bits in (8, 16) and layout.rows_per_strip == 16]
LAYOUTS += [replace(layout, predictor=True) for layout in LAYOUTS if layout.bits in (8, 16) and layout.compressed]
LAYOUTS += [replace(layout, fill_order=2) for layout in LAYOUTS if not (layout.compressed or layout.extra) and layout.bits < 12]


@pytest.mark.parametrize("colors", COLOR_CHANNELS)
def test_whatever_is_read_is_right(colors: int) -> None:
    """Rounding apart: 1 of 255, a few where Pillow divides by an alpha or converts colors with whole numbers."""
    read = 0
    for layout in (layout for layout in LAYOUTS if layout.colors == colors):
        tolerance = 3 if layout.extra or colors in (CMYK, YCBCR) else 1
        try:
            pixels = decode_image(written(layout))
        except DecodeError as error:
            assert str(error)
            continue
        read += 1
        assert np.abs(pixels - shown(layout)).max() <= tolerance + 0.01, layout
        assert image_size(written(layout)) == (SIDE, SIDE)
    assert read > 20


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("extra", [(), (0,), (2,)])
def test_separate_planes_of_16_bits(order: str, tiled: bool, extra: tuple[int, ...]) -> None:
    """Pillow gives half the numbers of the wrong planes; compressed ones it reads rightly."""
    layout = Layout(RGB, 16, order, separate=True, extra=extra, tiled=tiled)
    for read in (decode_image, image_size):
        with pytest.raises(DecodeError, match=r"channels of 16 bits \(RGB\) in separate planes, which Pillow misreads"):
            read(written(layout))
    with pytest.raises(DecodeError, match="separate planes"):
        pillow_pixels(Image.open(io.BytesIO(written(layout))))
    for good in (replace(layout, compressed=True), replace(layout, separate=False), replace(layout, bits=8, extra=())):
        assert np.abs(decode_image(written(good)) - shown(good)).max() <= 3


REFUSED = {
    "8 channels of 16 bits (gray)": Layout(GRAY, 16, extra=(0,) * 7),
    "8 channels of 8 bits (RGB)": Layout(RGB, 8, extra=(0,) * 5),
    "floating-point": Layout(RGB, 32, number_format=3),
    "floating-point ": Layout(GRAY, 32, number_format=3),
    "floating-point  ": Layout(GRAY, 16, number_format=3),
    "signed": Layout(GRAY, 8, number_format=2),
    "signed ": Layout(GRAY, 16, number_format=2, order=">"),
    "complex": Layout(GRAY, 32, number_format=5),
    "32-bit pixels": Layout(GRAY, 32),
    "32-bit pixels ": Layout(RGB, 32, separate=True, compressed=True),
    "16 bits (gray, 0 is white), which Pillow shows as a negative": Layout(GRAY_FROM_WHITE, 16),
    "5 channels of 12 bits (RGB), which cannot be read": Layout(RGB, 12, extra=(0, 0)),
    "2 channels of 16 bits (gray), which cannot be read": Layout(GRAY, 16, extra=(2,)),
    "1 channel of 16 bits (gray) in separate planes, which Pillow misreads: save it with PlanarConfiguration 1": Layout(
        GRAY, 16, separate=True
    ),
    "3 channels of 16 bits (RGB) in separate planes, which Pillow misreads: save it with interleaved channels": Layout(
        RGB, 16, separate=True
    ),
    "2 channels of 8 bits (gray) in separate planes": Layout(GRAY, 8, separate=True, extra=(2,), compressed=True),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_read_is_refused_with_the_reason_and_nothing_else(
    reason: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    data = written(REFUSED[reason])
    with caplog.at_level(logging.INFO):
        for read in (decode_image, image_size, decode_image):
            with pytest.raises(DecodeError) as refusal:
                read(data)
            assert reason.strip() in str(refusal.value)
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_subsampled_colors_without_compression_are_refused() -> None:
    for more in ({530: ("H", [2, 2])}, {530: ("H", [2, 1])}):
        with pytest.raises(DecodeError, match="subsampled colors"):
            decode_image(written(Layout(YCBCR), more=more))


def test_damaged_compressed_files_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(written(Layout(RGB, 16, compressed=True)))
    data[8:40] = bytes(32)
    for _ in range(2):
        with pytest.raises(DecodeError, match="damaged TIFF"):
            decode_image(bytes(data))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "numbers"), [("H", [6]), ("I", [6]), ("i", [6]), ("B", [6]), ("H", [0]), ("H", [9])])
def test_orientation_of_every_type(order: str, kind: str, numbers: list[int]) -> None:
    values = values_of(Layout())[:10]
    data = written(Layout(order=order, rows_per_strip=10), values, {0x0112: (kind, numbers)})
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image)
    np.testing.assert_array_equal(decode_image(data), expected)
    assert image_size(data) == expected.shape[:2] == ((16, 10) if numbers == [6] and kind != "B" else (10, 16))


def test_changed_tags_give_pixels_or_a_reason() -> None:
    rng = np.random.default_rng(0)
    for layout in (Layout(), Layout(GRAY, 16, ">"), Layout(separate=True, compressed=True)):
        data = written(layout)
        (start,) = struct.unpack_from(layout.order + "I", data, 4)
        for _ in range(50):
            changed = bytearray(data)
            changed[int(rng.integers(start, len(data)))] = int(rng.integers(256))
            for read in (decode_image, image_size):
                try:
                    read(bytes(changed))
                except DecodeError as error:
                    assert str(error)


@pytest.mark.parametrize("bits", [12, 16])
def test_12_bits_have_their_own_white(bits: int) -> None:
    layout = Layout(GRAY, bits)
    assert np.abs(decode_image(written(layout)) - shown(layout)).max() <= 0.51


def as_png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    return buffer.getvalue()


def test_12_bits_in_16_are_remarked_on() -> None:
    gray = values_of(Layout(GRAY, 16))
    dark = (gray // 16).clip(0, 4095)
    colors = values_of(Layout(RGB, 16)) // 16
    black = [
        written(Layout(GRAY, 16), dark),
        written(Layout(GRAY, 16, ">", compressed=True), dark),
        written(Layout(RGB, 16), colors),
        as_png(dark[:, :, 0].astype(np.uint16)),
    ]
    for data in black:
        pixels = decode_image(data)
        assert pixels.max() <= 16
        assert "nearly black: pixels of 12 or fewer bits stored in 16" in (remark(data, pixels) or "")
    night = np.full((8, 8, 3), 5, np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(night).save(buffer, "JPEG")
    plain = [
        written(Layout(GRAY, 16), gray),
        written(Layout(GRAY, 12), dark),
        as_png(gray[:, :, 0].astype(np.uint16)),
        as_png(night),  # dark, but of eight bits
        buffer.getvalue(),
    ]
    for data in plain:
        assert remark(data, decode_image(data)) is None


def test_warnings_stay_away_in_threads_and_come_back_afterwards() -> None:
    """Pillow warns of the entry; the filters are those of before when all threads are done."""
    data = written(Layout(), more={0x0112: ("H", [1, 1])})
    before = list(warnings.filters)
    seen: list[str] = []

    def read() -> None:
        try:
            for _ in range(30):
                decode_image(data)
        except Exception as error:
            seen.append(repr(error))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        threads = [threading.Thread(target=read) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not seen and list(warnings.filters) == before
