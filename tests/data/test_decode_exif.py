"""EXIF orientation: every way to write it, in every format, against what Pillow makes of it."""

import io
import struct
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageOps

from openjepa.data.decode import decode_image, image_size

PICTURE = np.arange(16 * 24 * 3, dtype=np.uint8).reshape(16, 24, 3) // 4
CODES = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 11: "f", 12: "d", 16: "Q"}
"""Types of TIFF 6.0 that hold numbers, and LONG8 of BigTIFF: its entries are of another size, but damaged files have it."""


def written(kind: int, order: str, numbers: list[float], offset: int = 8, before: int = 0) -> bytes:
    """A TIFF structure with an orientation entry in its first directory, after `before` others."""
    payload = b"".join(struct.pack(order + CODES[kind], number) for number in numbers)
    entries = [struct.pack(order + "HHII", 0x0100 + at, 4, 1, 7) for at in range(before)]
    end = offset + 2 + 12 * (before + 1) + 4
    value = payload.ljust(4, b"\0") if len(payload) <= 4 else struct.pack(order + "I", end)
    entries.append(struct.pack(order + "HHI", 0x0112, kind, len(numbers)) + value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", offset)
    return head.ljust(offset, b"\0") + struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4) + payload


def with_exif(tiff: bytes, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    options = {"quality": 90} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(PICTURE).save(buffer, kind, exif=b"Exif\0\0" + tiff, **options)
    return buffer.getvalue()


def turned_by_pillow(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data)))


def compare(data: bytes) -> bool:
    """Our pixels and size are Pillow's; returns whether it turned the image."""
    expected = np.asarray(turned_by_pillow(data).convert("RGB"))
    stored = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert decode_image(data).shape == expected.shape and image_size(data) == expected.shape[:2]
    assert np.abs(decode_image(data).astype(int) - expected).max() <= 2
    return expected.shape != stored.shape or bool((expected != stored).any())


def test_the_orientation_of_the_report() -> None:
    """Big endian, LONG: read as SHORT it is 0."""
    data = with_exif(b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x04\0\0\0\x01\0\0\0\x06\0\0\0\0")
    assert image_size(data) == (24, 16)
    expected = Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_270)
    assert np.abs(decode_image(data).astype(int) - np.asarray(expected)).max() <= 2


@pytest.mark.filterwarnings("ignore")  # Pillow's, of odd entries
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", CODES)
def test_every_type_and_value(kind: int, order: str) -> None:
    turned = 0
    for value in range(10):
        turned += compare(with_exif(written(kind, order, [value])))
    integers = kind in (3, 4, 6, 8, 9, 16)
    assert turned == (7 if integers or kind in (11, 12) else 0)  # Pillow takes BYTE and UNDEFINED as text


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("order", "kind", "offset", "before"), list(product("<>", (3, 4, 9), (9, 10, 26, 300), (0, 3))))
def test_wherever_the_directory_lies(order: str, kind: int, offset: int, before: int) -> None:
    assert compare(with_exif(written(kind, order, [6], offset, before)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("numbers", [[], [6, 6], [3, 6], [1, 6], [8, 0, 0, 0, 0]])
@pytest.mark.parametrize(("order", "kind"), list(product("<>", (1, 3, 4, 8, 9))))
def test_other_counts_than_one(order: str, kind: int, numbers: list[float]) -> None:
    compare(with_exif(written(kind, order, numbers)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_the_same_in_other_formats(kind: str) -> None:
    for (order, number_type), value in product(product("<>", CODES), (0, 3, 6, 9)):
        compare(with_exif(written(number_type, order, [value]), kind))


@pytest.mark.filterwarnings("ignore")
def test_wherever_it_is_cut_off_or_changed() -> None:
    whole = written(3, ">", [6], 12, 2)
    for length in range(len(whole)):
        compare(with_exif(whole[:length]))
    for place in range(len(whole)):
        compare(with_exif(whole[:place] + b"\x2b" + whole[place + 1 :]))


def test_two_segments_and_a_doubled_mark() -> None:
    plain = with_exif(written(3, "<", [6]))
    length = 2 + int.from_bytes(plain[plain.index(b"\xff\xe1") + 2 :][:2], "big")
    start = plain.index(b"\xff\xe1")
    segment = plain[start : start + length]
    assert compare(plain[:start] + segment + segment + plain[start + length :])
    assert compare(with_exif(b"Exif\0\0" + written(3, "<", [6])))


@pytest.mark.parametrize(("value", "turned"), [(6, True), (3, True), (1, False), (9, False)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_xmp_counts_if_exif_says_nothing(kind: str, value: int, turned: bool) -> None:
    words = f'<x:xmpmeta><rdf:Description tiff:Orientation="{value}"/></x:xmpmeta>'.encode()
    buffer = io.BytesIO()
    if kind == "JPEG":
        Image.fromarray(PICTURE).save(buffer, "JPEG", quality=90, xmp=words)
    else:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_itxt("XML:com.adobe.xmp", words.decode())
        Image.fromarray(PICTURE).save(buffer, "PNG", pnginfo=info)
    assert compare(buffer.getvalue()) == turned
