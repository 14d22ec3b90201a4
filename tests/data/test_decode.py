"""Every kind of file that a folder of images may hold: handled rightly, or refused with a reason."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from openjepa.data import decode
from openjepa.data.decode import DecodeError, decode_image, image_size

DATA = Path(os.environ.get("OPENJEPA_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def picture(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Smooth colors, different in every corner, so that JPEG keeps them and a turn is seen."""
    rows, columns = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    return np.stack([255 * rows, 255 * columns, 128 + 60 * np.sin(4 * rows)], axis=-1).astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def distance(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> int:
    assert first.shape == second.shape and first.dtype == second.dtype == np.uint8
    return int(np.abs(first.astype(int) - second).max())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    assert distance(decode_image(encoded(Image.fromarray(picture()), kind)), picture()) == 0


@pytest.mark.parametrize(
    ("kind", "options"), [("JPEG", {"quality": 95}), ("WEBP", {"quality": 95}), ("JPEG", {"progressive": True})]
)
def test_lossy_formats_stay_close(kind: str, options: dict[str, object]) -> None:
    data = encoded(Image.fromarray(picture()), kind, **options)
    assert distance(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))) <= 2
    assert distance(decode_image(data), picture()) < 20


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_grayscale_fills_three_channels(kind: str) -> None:
    gray = picture()[:, :, 0]
    decoded = decode_image(encoded(Image.fromarray(gray), kind))
    assert decoded.shape == (48, 64, 3)
    assert (decoded == decoded[:, :, :1]).all() and distance(decoded[:, :, 0], gray) <= (0 if kind == "PNG" else 4)


def test_one_bit_becomes_black_and_white() -> None:
    bits = picture()[:, :, 0] > 100
    assert (
        distance(decode_image(encoded(Image.fromarray(bits), "PNG")), np.repeat(255 * bits[:, :, None], 3, 2).astype(np.uint8))
        == 0
    )


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_keep_their_range(kind: str) -> None:
    wide = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)
    decoded = decode_image(encoded(Image.fromarray(wide), kind))
    assert distance(decoded[:, :, 1], np.rint(wide / 257).astype(np.uint8)) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_pixels_without_a_known_range_are_refused(dtype: type) -> None:
    values = (1e6 * picture()[:, :, 0].astype(np.float64)).astype(dtype)
    with pytest.raises(DecodeError, match="range is not known"):
        decode_image(encoded(Image.fromarray(values), "TIFF"))


def test_palette_gives_its_colors() -> None:
    indexed = Image.fromarray(picture()).quantize(16)
    assert distance(decode_image(encoded(indexed, "PNG")), np.asarray(indexed.convert("RGB"))) == 0


def test_alpha_is_composited_over_white() -> None:
    alpha = np.full((48, 64, 1), 255, np.uint8)
    alpha[:24] = 0
    alpha[24:30] = 51  # a fifth
    decoded = decode_image(encoded(Image.fromarray(np.concatenate([picture(), alpha], axis=2)), "PNG"))
    assert (decoded[:24] == 255).all()
    assert distance(decoded[30:], picture()[30:]) == 0
    assert distance(decoded[24:30], np.rint(0.2 * picture()[24:30] + 0.8 * 255).astype(np.uint8)) <= 1


def test_transparent_palette_entry_is_white() -> None:
    indexed = Image.fromarray(np.zeros((8, 8), np.uint8), "P")
    indexed.putpalette([200, 10, 10] * 256)
    assert (decode_image(encoded(indexed, "PNG", transparency=0)) == 255).all()
    assert (decode_image(encoded(indexed, "PNG")) == [200, 10, 10]).all()


def test_cmyk_jpeg_has_the_right_colors() -> None:
    """Ink 0 is paper: a CMYK picture of no ink is white, one of full cyan has no red."""
    for ink, expected in [((0, 0, 0, 0), (255, 255, 255)), ((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))]:
        data = encoded(Image.new("CMYK", (32, 32), ink), "JPEG", quality=95)
        assert data[:2] == b"\xff\xd8"
        assert distance(decode_image(data), np.full((32, 32, 3), expected, np.uint8)) <= 3


def turned(upright: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """How a camera stores an upright picture under an EXIF orientation (EXIF 2.3, table 'Orientation')."""
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }
    return np.ascontiguousarray(stored[orientation])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x010F] = "maker"  # an entry before the one that counts
    exif[0x0112] = orientation
    options = {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(turned(picture(), orientation)), kind, exif=exif, **options)
    assert distance(decode_image(data), picture()) <= (6 if kind == "JPEG" else 0)
    assert image_size(data) == (48, 64)


def test_damaged_exif_counts_as_upright() -> None:
    data = encoded(Image.fromarray(picture()), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\0\0")
    assert image_size(data) == (48, 64)
    assert decode_image(data).shape == (48, 64, 3)


@pytest.mark.parametrize("exif", [b"II*\0", b"XX", b"MM\0*\0\0\0\x08\0\x05\x01", b"II*\0\xff\xff\xff\xff"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_damaged_exif_of_other_formats_counts_as_upright(exif: bytes, kind: str) -> None:
    data = encoded(Image.fromarray(picture()), kind, exif=b"Exif\0\0" + exif, **({"lossless": True} if kind == "WEBP" else {}))
    assert distance(decode_image(data), picture()) == 0
    assert image_size(data) == (48, 64)


def test_animations_give_their_first_frame() -> None:
    frames = [Image.fromarray(np.full((20, 30, 3), value, np.uint8)) for value in (40, 200)]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert distance(decode_image(data), np.full((20, 30, 3), 40, np.uint8)) <= 2, kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_truncated_files_are_refused_at_any_length(kind: str) -> None:
    """Also where a decoder would show a part: half an image must not be trained on."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for share in (0.02, 0.3, 0.6, 0.95):
        with pytest.raises(DecodeError):
            decode_image(data[: int(share * len(data))])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"hello, I am a text\n" * 10, "not an image"),
        (b"\xff\xd8\xff", "damaged JPEG header: size and colors cannot be read"),
        (bytes(5000), "not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError, match=reason):
        decode_image(data)
    with pytest.raises(DecodeError, match=reason):
        image_size(data)


def test_programs_are_not_started_for_a_file() -> None:
    with pytest.raises(DecodeError, match="not an image"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


def empty_png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(b"")) + part(b"IEND", b"")


def test_absurdly_large_images_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for width, height in ((60_000, 60_000), (20_000, 10_001)):
            with pytest.raises(DecodeError, match=r"pixels|Bomb"):
                decode_image(empty_png(width, height))
    data = bytearray(encoded(Image.fromarray(picture()), "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", 60_000, 60_000)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(decode.simplejpeg, "decode_jpeg", never)
    with pytest.raises(DecodeError, match="60000 x 60000 pixels, more than the limit"):
        decode_image(bytes(data))


def test_reduced_decoding_keeps_what_was_asked_for() -> None:
    large = np.asarray(Image.fromarray(picture()).resize((1024, 768), Image.Resampling.BICUBIC))
    data = encoded(Image.fromarray(large), "JPEG", quality=95)
    for min_side, expected in ((0, 768), (700, 768), (385, 768), (384, 384), (200, 288), (100, 192), (96, 96)):
        decoded = decode_image(data, min_side)
        assert min(decoded.shape[:2]) <= max(expected, min_side) and min(decoded.shape[:2]) >= min_side
        reference = np.asarray(Image.fromarray(large).resize(decoded.shape[1::-1], Image.Resampling.BOX))
        assert distance(decoded, reference) <= 6


@pytest.mark.data
def test_real_photos_equal_pillow() -> None:
    files = sorted((DATA / "imagenet-sample-100").rglob("*.jpg"))
    if not files:
        pytest.skip(f"needs imagenet-sample-100 in {DATA} (OPENJEPA_DATA)")
    for file in files[:20]:
        data = file.read_bytes()
        reference = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        difference = decode_image(data).astype(int) - reference
        assert 10 * np.log10(255**2 / max(1e-9, (difference**2).mean())) > 45, file
