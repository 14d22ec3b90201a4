"""TIFF files that Pillow would misread or not read: recognized by their tags, with the reason."""

from collections.abc import Mapping
from typing import Any, BinaryIO

from PIL.TiffImagePlugin import MAX_SAMPLESPERPIXEL, ImageFileDirectory_v2

HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""Little and big endian, each of them plain or with offsets of 64 bits."""

_BITS, _COMPRESSION, _COLORS, _FILL_ORDER, _CHANNELS, _PLANES, _EXTRA, _FORMAT, _SUBSAMPLING = (
    258, 259, 262, 266, 277, 284, 338, 339, 530,
)  # fmt: skip
_GRAY_FROM_WHITE, _GRAY, _PALETTE, _YCBCR = 0, 1, 3, 6
_COLOR_NAMES = {0: "gray, 0 is white", 1: "gray", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
_SEPARATE, _UNCOMPRESSED, _ALPHA = 2, 1, (1, 2)
_UNSIGNED = 1
_RANGELESS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}


def read_tags(file: BinaryIO) -> Mapping[int, Any] | None:
    """Tags of the first image of a TIFF file; None if they cannot be read."""
    head = file.read(8)
    try:
        tags = ImageFileDirectory_v2(head + file.read(8) if head[2:4].strip(b"\0") == b"+" else head)
        file.seek(tags.next)
        tags.load(file)
        return dict(tags)
    except Exception:  # parsers of foreign bytes raise anything
        return None


def bits_of(tags: Mapping[int, Any]) -> tuple[int, ...]:
    """Bits of each channel that Pillow looks at: in separate planes it leaves out those that are said to mean nothing."""
    bits: tuple[int, ...] = tuple(tags.get(_BITS, (1,)))
    bits = bits * int(tags.get(_CHANNELS, 1)) if len(bits) == 1 else bits
    extra = tags.get(_EXTRA, ())
    return bits[: -len(extra)] if extra and not any(extra) and tags.get(_PLANES) == _SEPARATE else bits


def describe(tags: Mapping[int, Any]) -> str:
    """`8 channels of 16 bits (gray)`."""
    bits, channels = bits_of(tags), int(tags.get(_CHANNELS, 1))
    words = "/".join(str(value) for value in bits) if len(set(bits)) > 1 else str(bits[0])
    colors = tags.get(_COLORS, _GRAY_FROM_WHITE)
    return f"{channels} channel{'s' * (channels != 1)} of {words} bits ({_COLOR_NAMES.get(colors, f'colors {colors}')})"


def unread(tags: Mapping[int, Any]) -> str:
    """What to say of a file that Pillow does not know."""
    try:
        return f"TIFF with {describe(tags)}, which cannot be read"
    except (IndexError, TypeError, ValueError):
        return "damaged TIFF: its tags cannot be read"


def refusal(tags: Mapping[int, Any]) -> str | None:
    """Why the pixels of a TIFF file cannot be had from Pillow: it says so, or gives wrong ones. None if they can."""
    try:
        return _refusal(tags)
    except (TypeError, ValueError):  # tags of the wrong type, which Pillow refuses
        return None


def _refusal(tags: Mapping[int, Any]) -> str | None:
    bits = bits_of(tags)
    for number in set(tags.get(_FORMAT, (_UNSIGNED,))) & set(_RANGELESS):
        return f"{_RANGELESS[number]} pixels, whose range is not known"
    if not bits:
        return None
    if max(bits) >= 32:
        return f"{max(bits)}-bit pixels, whose range is not known"
    if len(bits) > MAX_SAMPLESPERPIXEL:
        return f"{describe(tags)}: which of them to show is not known"
    if tags.get(_COLORS) == _GRAY_FROM_WHITE and max(bits) > 8:
        return f"{describe(tags)}, which Pillow shows as a negative"
    if tags.get(_COLORS) == _YCBCR and _is_plain(tags) and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        return "YCbCr with subsampled colors and without compression, which Pillow misreads"
    if tags.get(_PLANES) == _SEPARATE and _misread_planes(tags, bits):
        remedy = "with PlanarConfiguration 1" if len(bits) == 1 else "with interleaved channels"
        return f"{describe(tags)} in separate planes, which Pillow misreads: save it {remedy}"
    return None


def _is_plain(tags: Mapping[int, Any]) -> bool:
    return bool(tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED)


def _misread_planes(tags: Mapping[int, Any], bits: tuple[int, ...]) -> bool:
    """Found by comparing all layouts with the values written: uncompressed planes are read as if of 8 bits, black being 0.

    Compressed ones are read rightly, but for the alpha of gray and palette images.
    """
    if _is_plain(tags):
        colors = tags.get(_COLORS)
        is_simple = (set(bits) == {8} and colors != _GRAY_FROM_WHITE) or (bits == (1,) and colors == _GRAY)
        return not is_simple or tags.get(_FILL_ORDER, 1) != 1
    return tags.get(_COLORS) in (_GRAY, _PALETTE) and any(kind in _ALPHA for kind in tags.get(_EXTRA, ()))
