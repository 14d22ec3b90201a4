"""Bytes of an image file -> uint8 RGB pixels, or a DecodeError that says what is wrong with the file.

JPEG files go through libjpeg-turbo (simplejpeg), everything else through Pillow. What is made of unusual files:
    EXIF orientation      applied
    grayscale, 1 bit      copied into three channels
    palette, CMYK, YCbCr  converted to RGB
    alpha                 composited over white, as a page would show it
    16 bits per channel   the upper eight bits, rounded; 32-bit and floating-point pixels are refused: their range is not known
    animation, pages      the first frame
    truncated or damaged  refused, also where a decoder could show half of the image
"""

import io
import struct
import warnings
from functools import cache

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from openjepa.refusals import Refusal

MAX_PIXELS = 200_000_000
"""Larger images are refused before they are decoded (600 MB as RGB); no photo for training is that large."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What Pillow may open: formats that are pictures and start no other program (EPS would)."""

_ORIENTATION = 0x0112
_JPEG_START = b"\xff\xd8"
# Markers without a length field: padding and restart markers.
_BARE_MARKERS = frozenset([0x01, 0xFF, *range(0xD0, 0xD8)])


class DecodeError(Refusal):
    """The file is no image that can be used; the message is the reason, without the file's name."""


def decode_image(data: bytes, min_side: int = 0) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an image file.

    `min_side`: where positive, a JPEG may be decoded at a reduced size (the exact DCT-domain scaling of libjpeg) as long as its
    short side keeps at least so many pixels and shrinks at least to a half. This makes large photos several times cheaper.
    Raises DecodeError.
    """
    if not data:
        raise DecodeError("empty file")
    if data[:2] != _JPEG_START:
        return _decode_with_pillow(data)
    return _decode_jpeg(data, min_side)


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width after the EXIF orientation, from the header alone. Raises DecodeError."""
    if not data:
        raise DecodeError("empty file")
    if data[:2] == _JPEG_START:
        height, width, _ = _jpeg_header(data)
        return (width, height) if jpeg_orientation(data) >= 5 else (height, width)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open_with_pillow(data)
        # the size that Pillow gives of a TIFF is that of the image it will turn by itself
        turned = image.format != "TIFF" and _pillow_orientation(image) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def _jpeg_header(data: bytes) -> tuple[int, int, str]:
    """Height, width and color space of a JPEG, after the check against MAX_PIXELS."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise DecodeError(f"damaged JPEG header: {error}") from error
    _check_size(width, height)
    return height, width, colorspace


def _decode_jpeg(data: bytes, min_side: int) -> UInt8[np.ndarray, "h w 3"]:
    height, width, colorspace = _jpeg_header(data)
    if colorspace in ("CMYK", "YCCK"):
        return _decode_with_pillow(data)  # it knows that Adobe stores these inverted
    reduce = min_side if min(height, width) >= 2 * min_side else 0
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", min_height=reduce, min_width=reduce, min_factor=2 if reduce else 1)
    except (ValueError, MemoryError) as error:
        raise DecodeError(f"damaged JPEG: {error}") from error
    return _upright(pixels, jpeg_orientation(data))


def jpeg_orientation(data: bytes) -> int:
    """EXIF orientation (1 to 8) of a JPEG; 1 where it has none or a damaged one."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _BARE_MARKERS:
            position += 1 if marker == 0xFF else 2
            continue
        if marker == 0xDA:  # the pixels start here
            break
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker == 0xE1 and data[position + 4 : position + 10] == b"Exif\0\0":
            return _exif_orientation(data[position + 10 : position + 2 + length])
        position += 2 + length
    return 1


def _exif_orientation(tiff: bytes) -> int:
    """Orientation tag of the first directory of a TIFF structure, 1 where it cannot be read."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 10:
        return 1
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (num_entries,) = struct.unpack_from(order + "H", tiff, start)
    for entry in range(start + 2, min(start + 2 + 12 * num_entries, len(tiff) - 11), 12):
        tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == _ORIENTATION:
            return value if 1 <= value <= 8 else 1
    return 1


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation: 2, 4, 5, 7 are mirrored, 5 to 8 lie on their side."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels if orientation == 1 else np.ascontiguousarray(pixels)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width} x {height} pixels, more than the limit of {MAX_PIXELS}")
    if width < 1 or height < 1:
        raise DecodeError(f"{width} x {height} pixels")


@cache
def _readable_formats() -> tuple[str, ...]:
    """Those of FORMATS that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _open_with_pillow(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_readable_formats())
    except Exception as error:  # parsers of foreign bytes raise anything
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else f"{type(error).__name__}: {error}"
        raise DecodeError(reason) from error
    _check_size(image.width, image.height)
    return image


def _decode_with_pillow(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    # Pillow warns of large images, damaged EXIF and odd transparency; what matters of these is checked here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = _open_with_pillow(data)
        try:
            image.seek(0)
        except Exception as error:  # as above
            raise _damaged(image, error) from error
        return pillow_pixels(image)


def pillow_pixels(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an image that Pillow opened or made, by the rules for files: what it shows in its present frame.

    Raises DecodeError.
    """
    _check_size(image.width, image.height)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image.load()
            return _upright(_to_rgb(image), _pillow_orientation(image))
        except DecodeError:
            raise
        except Exception as error:  # as above
            raise _damaged(image, error) from error


def _damaged(image: Image.Image, error: Exception) -> DecodeError:
    return DecodeError(f"damaged {image.format or 'image'}: {type(error).__name__}: {error}")


def _pillow_orientation(image: Image.Image) -> int:
    """EXIF orientation (1 to 8) of an image of Pillow; 1 where it has none or a damaged one."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # parsers of foreign bytes raise anything
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode.startswith("I"):
        return _from_16_bits(np.asarray(image))
    if image.mode == "F":
        raise DecodeError("floating-point pixels, whose range is not known")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))  # a copy: arrays that share Pillow's memory are read-only


def _from_16_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise DecodeError("32-bit pixels, whose range is not known")
    gray = ((wide + 128) // 257).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)
