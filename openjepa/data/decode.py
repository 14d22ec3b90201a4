"""Decodes the bytes of an image file into uint8 RGB pixels, or raises a DecodeError that says what is wrong with the file.

JPEG files go through libjpeg-turbo (simplejpeg), everything else through Pillow. Treatment of unusual files:
    EXIF orientation      applied: that of EXIF, or of XMP if there is no EXIF, as Pillow understands it
    grayscale, 1 bit      copied into three channels
    palette, CMYK, YCbCr  converted to RGB
    alpha                 composited over white, as a web page would show it
    12, 16 bits           the upper eight bits, rounded
    32 bits, signed,      refused: their range is not known
      floating-point
    animation, pages      the first frame
    odd JPEGs             unknown versions, bytes between segments, fill after the pixels, no end marker: read if all pixels
                          are present (`openjepa.data.image_formats`)
    truncated or damaged  refused, even if a decoder could show half of the image
    odd TIFFs             refused if Pillow would give wrong pixels (`openjepa.data.image_formats`)
"""

import ctypes
import io
import struct
import threading
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image, ImageFile, UnidentifiedImageError, _imaging
from PIL.TiffImagePlugin import TiffImageFile

from openjepa.data import image_formats
from openjepa.data.source import ListSource
from openjepa.refusals import Refusal

MAX_PIXELS = 200_000_000
"""Larger images are refused before they are decoded (600 MB as RGB). No photo for training is that large."""
PILLOW_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that Pillow may open: pictures that start no other program (EPS would)."""

NUM_CHECKED = 256
"""Number of records at the start of a source, one of which must be usable."""

_MAX_12_BITS, _MAX_16_BITS = 4095, 65535
_NEARLY_BLACK = 16
"""Value in 8 bits of the largest 12-bit number if white is the largest 16-bit number."""

_ORIENTATION = 0x0112
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_INTEGERS = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}
"""Types of TIFF 6.0 that hold one number, and their format in `struct`. Pillow reads BYTE as text, not as a number."""


class DecodeError(Refusal):
    """Raised if a file is not a usable image. The message is the reason, without the file's name."""

    def __init__(self, reason: str, kind: str = "") -> None:
        """`kind`: the reason without what only this file has; by default the whole reason."""
        super().__init__(reason)
        self.kind = kind or reason


def decode_image(data: bytes, min_side: int = 0) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of an image file.

    If `min_side` is positive, a JPEG may be decoded at a reduced size by the exact DCT-domain scaling of libjpeg. This is done
    if it at least halves the image and leaves a short side of at least `min_side` pixels. Large photos become several times
    cheaper. Raises DecodeError if the file is not a usable image.
    """
    if not data:
        raise DecodeError("empty file")
    if not data.startswith(image_formats.JPEG_START):
        return _decode_with_pillow(data)
    return _decode_jpeg(data, min_side)


def image_size(data: bytes) -> tuple[int, int]:
    """Height and width after the EXIF orientation is applied, from the header alone.

    Raises DecodeError if the file is not a usable image.
    """
    if not data:
        raise DecodeError("empty file")
    if data.startswith(image_formats.JPEG_START):
        header = image_formats.jpeg_header(data)
        height, width, _ = _jpeg_size(data, header)
        return (width, height) if _jpeg_orientation(header) >= 5 else (height, width)
    with _SILENCE:
        image = _open_with_pillow(io.BytesIO(data))
        # for a TIFF, Pillow gives the size of the image after it has applied the orientation itself
        turned = image.format != "TIFF" and _orientation_of(image) >= 5
    return (image.width, image.height) if turned else (image.height, image.width)


def mode_and_size(file: Path) -> tuple[str, tuple[int, int]] | None:
    """Pillow's mode of a picture (the kind of its pixels), and its width and height as stored, from the header alone.

    Returns None if the file is not a usable picture.
    """
    try:
        with _SILENCE, file.open("rb") as opened:
            image = _open_with_pillow(opened)
            return image.mode, image.size
    except (DecodeError, OSError):
        return None


def _jpeg_size(data: bytes, header: image_formats.JpegHeader) -> tuple[int, int, str]:
    """Height, width and color space of a JPEG. Raises DecodeError if it has more than MAX_PIXELS or cannot be read."""
    if header.bits not in (0, 8):
        raise DecodeError(f"JPEG of {header.bits} bits per channel, which cannot be read: save it with 8")
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (KeyError, ValueError) as error:
        if header.channels not in (0, 1, 3, 4):  # 0: no frame was found
            raise DecodeError(f"JPEG of {header.channels} channels, which cannot be read") from error
        # a KeyError has only the number that stands for unknown colors
        why = error if isinstance(error, ValueError) else "size and colors cannot be read"
        raise DecodeError(f"damaged JPEG header: {why}", "damaged JPEG header") from error
    _check_size(width, height)
    if header.frame in image_formats.LOSSLESS and colorspace not in ("RGB", "Gray"):
        raise DecodeError(f"lossless JPEG in {colorspace}, which cannot be read: save it as RGB or gray")
    return height, width, colorspace


def _decode_jpeg(data: bytes, min_side: int) -> UInt8[np.ndarray, "h w 3"]:
    header = image_formats.jpeg_header(data)
    height, width, colorspace = _jpeg_size(data, header)
    # if asked for a reduced lossless image, libjpeg-turbo writes beyond its memory
    is_reduced = min(height, width) >= 2 * min_side and header.frame not in image_formats.LOSSLESS
    reduce = min_side if is_reduced else 0
    output = _output(header, colorspace)
    try:
        pixels = _strictly(data, output, reduce)
    except (ValueError, MemoryError) as error:
        pixels = _mended(data, output, reduce, error)
    return _upright(_rgb_of_jpeg(pixels), _jpeg_orientation(header))


def _output(header: image_formats.JpegHeader, colorspace: str) -> str:
    """Color space to ask simplejpeg for. libjpeg converts no colors of lossless images, and does not mix inks."""
    if colorspace in ("CMYK", "YCCK"):
        return "CMYK"
    return "GRAY" if colorspace == "Gray" and header.frame in image_formats.LOSSLESS else "RGB"


def _strictly(data: bytes, output: str, reduce: int) -> UInt8[np.ndarray, "h w c"]:
    """Decoded pixels. Raises ValueError if libjpeg warns of anything. `reduce` is a sufficient short side, 0 for full size."""
    factor = 2 if reduce else 1
    return simplejpeg.decode_jpeg(data, output, min_height=reduce, min_width=reduce, min_factor=factor)  # type: ignore[no-any-return]


def _mended(data: bytes, output: str, reduce: int, first: Exception) -> UInt8[np.ndarray, "h w c"]:
    """The pixels of a file that libjpeg warns of. Raises DecodeError if some of them are missing."""
    reason = None
    for version in image_formats.mended_jpegs(data):
        try:
            return _strictly(version, output, reduce)
        except (ValueError, MemoryError) as error:
            reason = reason or error
    raise DecodeError(f"damaged JPEG: {reason or first}", "damaged JPEG") from first


def _rgb_of_jpeg(pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w 3"]:
    if pixels.shape[2] == 4:
        inks = 255 - pixels  # Adobe stores them inverted, and so do all other programs
        return np.array(Image.fromarray(inks, "CMYK").convert("RGB"))
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _jpeg_orientation(header: image_formats.JpegHeader) -> int:
    if header.exif is None and header.xmp is None:
        return 1
    with _SILENCE:
        return _orientation_in(header.exif, header.xmp)


def _orientation_of(image: Image.Image) -> int:
    """EXIF orientation (1 to 8) of an image of Pillow. 1 if it has none or a damaged one."""
    try:
        value: Any = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # parsers of untrusted files can raise anything
        return 1
    return _known_orientation(value)


def _orientation_in(exif: bytes | None, xmp: bytes | None) -> int:
    """EXIF orientation from the segments of a JPEG. Usual ones are read here, fifty times as fast as by Pillow's parser."""
    value = _usual_value(exif) if exif is not None else 0
    if value is None or (value == 0 and xmp is not None and b"tiff:Orientation" in xmp):
        carrier = Image.new("1", (1, 1))  # Pillow's parser needs an image
        carrier.info = {name: part for name, part in (("exif", exif), ("xmp", xmp)) if part is not None}
        return _orientation_of(carrier)
    return _known_orientation(value)


def _known_orientation(value: Any) -> int:
    """The orientation that equals `value`, or 1 if none does. A fraction or a floating-point number may equal one, too."""
    return next((known for known in range(2, 9) if value == known), 1)


def _usual_value(exif: bytes) -> int | None:
    """The orientation entry of the first directory, or 0 if there is none. None if anything about it is unusual."""
    order = _ORDERS.get(exif[len(image_formats.EXIF_START) : len(image_formats.EXIF_START) + 4])
    if order is None or len(exif) < len(image_formats.EXIF_START) + 10:
        return None
    start = len(image_formats.EXIF_START) + int(struct.unpack_from(order + "I", exif, len(image_formats.EXIF_START) + 4)[0])
    if start + 2 > len(exif):
        return None
    (num_entries,) = struct.unpack_from(order + "H", exif, start)
    if start + 2 + 12 * num_entries > len(exif):
        return None
    for entry in range(start + 2, start + 2 + 12 * num_entries, 12):
        tag, kind, count = struct.unpack_from(order + "HHI", exif, entry)
        if tag == _ORIENTATION:
            if kind not in _INTEGERS or count != 1:
                return None
            return int(struct.unpack_from(order + _INTEGERS[kind], exif, entry + 8)[0]) or 9  # 0 is present, but unknown
    return 0


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undoes an EXIF orientation. Images of orientation 2, 4, 5 and 7 are mirrored; those of 5 to 8 lie on their side."""
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
    """The PILLOW_FORMATS that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in PILLOW_FORMATS if name in Image.OPEN)


class _Silence:
    """Context in which no warning of Pillow is shown. The checks of this file cover the warnings that matter.

    `warnings.catch_warnings` alone is not made for threads: the first thread to leave would restore the filters of all. Here
    the filters are restored when the last thread leaves.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._filters.__exit__(None, None, None)


_SILENCE = _Silence()


@cache
def _silence_libtiff() -> None:
    """Keeps libtiff from printing errors, which also arrive as exceptions. Has no effect if Pillow is linked differently."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(_imaging.__file__).TIFFSetErrorHandler(None)


def _open_with_pillow(file: BinaryIO) -> ImageFile.ImageFile:
    tags = None
    if file.read(4) in image_formats.TIFF_STARTS:
        _silence_libtiff()
        file.seek(0)
        tags = image_formats.tiff_tags(file)
        _check_tiff(tags)
    file.seek(0)
    try:
        image = Image.open(file, formats=_readable_formats())
    except UnidentifiedImageError as error:
        raise DecodeError("not an image" if tags is None else image_formats.unread_tiff(tags)) from error
    except Exception as error:  # parsers of untrusted files can raise anything
        raise DecodeError(f"{type(error).__name__}: {error}", type(error).__name__) from error
    _check_size(image.width, image.height)
    return image


def _check_tiff(tags: Mapping[int, Any] | None) -> None:
    if tags is not None and (reason := image_formats.tiff_refusal(tags)):
        raise DecodeError(reason)


def _decode_with_pillow(data: bytes) -> UInt8[np.ndarray, "h w 3"]:
    with _SILENCE:
        image = _open_with_pillow(io.BytesIO(data))
        try:
            image.seek(0)
        except Exception as error:  # as above
            raise _damaged(image, error) from error
        return pillow_pixels(image)


def pillow_pixels(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """RGB pixels of the current frame of an image that Pillow opened or made, by the same rules as for files.

    Raises DecodeError if the image is not usable.
    """
    _check_size(image.width, image.height)
    tags = image.tag_v2 if isinstance(image, TiffImageFile) else None
    _check_tiff(tags)
    largest = _MAX_12_BITS if tags is not None and image_formats.tiff_bits(tags) == (12,) else _MAX_16_BITS
    with _SILENCE:
        try:
            image.load()
            return _upright(_to_rgb(image, largest), _orientation_of(image))
        except DecodeError:
            raise
        except Exception as error:  # as above
            raise _damaged(image, error) from error


def remark(data: bytes, pixels: UInt8[np.ndarray, "h w 3"]) -> str | None:
    """A note for the user about a usable file that was decoded to `pixels`. None if there is nothing to say.

    Microscopes and medical devices store pixels of 12 or fewer bits in 16 bits. Such images come out nearly black.
    """
    if int(pixels.max()) > _NEARLY_BLACK or data.startswith(image_formats.JPEG_START):
        return None
    with _SILENCE:
        image = _open_with_pillow(io.BytesIO(data))
    if image.mode.startswith("I") or any(";16" in str(part.args) for part in image.tile):
        return "nearly black: pixels of 12 or fewer bits stored in 16; multiply them so that white is 65535"
    return None


def _damaged(image: Image.Image, error: Exception) -> DecodeError:
    kind = f"damaged {image.format or 'image'}"
    return DecodeError(f"{kind}: {type(error).__name__}: {error}", kind)


def _to_rgb(image: Image.Image, largest: int) -> NDArray[np.uint8]:
    """Converts a loaded image to RGB. `largest` is the value of white in images of more than eight bits."""
    if image.mode.startswith("I"):
        return _from_many_bits(np.asarray(image), largest)
    if image.mode == "F":
        raise DecodeError("floating-point pixels, whose range is not known")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))  # a copy: arrays that share Pillow's memory are read-only


def _from_many_bits(values: NDArray[np.generic], largest: int) -> NDArray[np.uint8]:
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > largest:
        raise DecodeError("32-bit pixels, whose range is not known")
    gray = ((255 * wide + largest // 2) // largest).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


# --------------------------------------------------------------------------------------------------------------- usable images


def reason_of(error: Exception) -> str:
    """Why a sample cannot be used, without its path, which is shown beside the reason."""
    words = error.strerror if isinstance(error, OSError) else str(error)
    return words or str(error) or type(error).__name__


def kind_of(error: Exception) -> str:
    """The part of the reason that samples may share, to count them by."""
    return error.kind if isinstance(error, DecodeError) else reason_of(error)


def check_usable(source: ListSource, what: str, min_side: int = 1) -> None:
    """Raises Refusal unless one of the first images can be decoded and has at least `min_side` pixels on both sides.

    `what` names the source in the message.
    """
    if not len(source):
        raise Refusal(f"{what} holds no rows")
    kinds: Counter[str] = Counter()
    num = min(NUM_CHECKED, len(source))
    first = ""
    for index in range(num):
        try:
            pixels = decode_image(source.read(index))
            check_side(pixels.shape[0], pixels.shape[1], min_side)
            return
        except (DecodeError, OSError) as error:
            kinds[kind_of(error)] += 1
            first = first or f"{source.name(index)}: {error}"
    common = "; ".join(f"{count}x {kind}" for kind, count in kinds.most_common(3))
    raise Refusal(f"none of the first {num} images of {what} can be used ({common}). The first is {first}")


def check_side(height: int, width: int, min_side: int) -> None:
    """Raises DecodeError if a side of an image is shorter than `min_side` pixels (a patch)."""
    if min(height, width) < min_side:
        raise DecodeError(f"{width} x {height} pixels, smaller than a patch of {min_side}")
