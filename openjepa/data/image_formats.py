"""Facts about image files that their decoders do not give: JPEG segments, and tags of TIFF files.

JPEG: the header's segments, and the same file without faults that hide no pixel (ITU-T T.81, annex B).
TIFF: files that Pillow would misread or not read. They are recognized by their tags, and refused with a reason.
"""

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from PIL.TiffImagePlugin import MAX_SAMPLESPERPIXEL, ImageFileDirectory_v2

JPEG_START = b"\xff\xd8"
LOSSLESS = frozenset([0xC3, 0xC7, 0xCB, 0xCF])
"""Frame markers of lossless JPEGs, whose pixels are predicted from their neighbors without a cosine transform."""

_SCAN, _END, _JFIF, _EXIF_OR_XMP, _PROFILE, _ADOBE = 0xDA, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = frozenset([0xC0, 0xC1, 0xC9])
_PROGRESSIVE = frozenset([0xC2, 0xCA])
# Markers without a length field: restarts, start and end of the image, and one for temporary use.
_BARE = frozenset([0x01, *range(0xD0, 0xDA)])
_NO_MARKER = (0x00, 0xFF)
_SEGMENT = struct.Struct(">BBH")
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC_PROFILE = b"ICC_PROFILE\0"
# A marker. Bytes between a segment and the next marker belong to no segment. Inside a scan, a zero follows each 0xFF byte that
# is data, and restart markers belong to the scan. Fill bytes may stand before a marker. They are not part of the pattern,
# because a search would then start again at each byte of a long run of them.
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_FILL = 3
"""Number of equal bytes at the end of a scan that cannot be a coincidence."""

EXIF_START = b"Exif\0\0"
"""First bytes of the EXIF of a JPEG. A TIFF structure follows."""

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF: little and big endian, both with offsets of 32 and of 64 bits."""

_BITS, _COMPRESSION, _COLORS, _FILL_ORDER, _CHANNELS, _PLANES, _EXTRA, _SAMPLE_FORMAT, _SUBSAMPLING = (
    258, 259, 262, 266, 277, 284, 338, 339, 530,
)  # fmt: skip
_GRAY_FROM_WHITE, _GRAY, _PALETTE, _YCBCR = 0, 1, 3, 6
_COLOR_NAMES = {0: "gray, 0 is white", 1: "gray", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab"}
_SEPARATE, _UNCOMPRESSED, _ALPHA = 2, 1, (1, 2)
_UNSIGNED = 1
_RANGELESS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}


# ------------------------------------------------------------------------------------------------------------------------- JPEG


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """The facts used here from the segments before the first scan."""

    frame: int = 0
    """Marker of the frame (0xC0 is baseline). 0 if there is none."""
    bits: int = 0
    """Bits per channel."""
    channels: int = 0
    exif: bytes | None = None
    """The TIFF structure with the marker `Exif` in front. Further EXIF segments are appended, as Pillow does it."""
    xmp: bytes | None = None


def jpeg_header(data: bytes) -> JpegHeader:
    """Reads the header of a JPEG. If it is damaged, reads as much as possible."""
    frame, bits, channels = 0, 0, 0
    exif_part, xmp = None, None
    for marker, start, end in _segments(data):
        if marker == _SCAN:
            break
        if marker in _FRAMES:
            if end - start >= 6:
                frame, bits, channels = marker, data[start], data[start + 5]
        elif marker == _EXIF_OR_XMP and data.startswith(EXIF_START, start):
            exif_part = data[start:end] if exif_part is None else exif_part + data[start + len(EXIF_START) : end]
        elif marker == _EXIF_OR_XMP and data.startswith(_XMP, start):
            xmp = data[start + len(_XMP) : end]
    return JpegHeader(frame, bits, channels, exif_part, xmp)


def mended_jpegs(data: bytes) -> Iterator[bytes]:
    """Two versions of a JPEG file without faults that hide no pixel. If one decodes without a warning, no pixel is missing.

    These faults are removed: an unknown version of JFIF, an unknown color transform of Adobe, an incomplete color profile
    (profiles are not applied anyway), parameters of a sequential scan that only progressive ones have, bytes between segments,
    and a missing end marker.

    The second version also lacks the equal bytes at the end of a scan, because only the decoder can tell whether they belong to
    it. At the end of the last scan, a single byte is enough. Bytes that differ from one another stay, because a scan damaged in
    its middle leaves such bytes, too. Yields nothing if scans are missing, or if there is fill instead of the end marker.
    """
    header = jpeg_header(data)
    pieces: list[bytes] = []
    scans: dict[int, bytes] = {}
    has_end = False
    for marker, start, end in _segments(data):
        if has_end := marker == _END:
            break
        if marker == _PROFILE and data.startswith(_ICC_PROFILE, start):
            continue
        pieces.append(bytes([0xFF, marker]))
        if marker not in _BARE:
            pieces.append(struct.pack(">H", end - start + 2) + _as_it_is_read(marker, data[start:end], header))
        if marker == _SCAN:
            following = _AFTER_SCAN.search(data, end)
            scans[len(pieces)] = data[end : following.start() if following else len(data)].rstrip(b"\xff")
            pieces.append(scans[len(pieces)])
    if not scans or not _is_complete(data, header):
        return
    last = max(scans)
    bare = {place: _without_fill(scan, 1 if place == last else _FILL) for place, scan in scans.items()}
    if has_end or scans[last] == _without_fill(scans[last], _FILL):
        yield _joined(pieces)
    if has_end:
        yield _joined([bare.get(place, piece) for place, piece in enumerate(pieces)])


def _joined(pieces: list[bytes]) -> bytes:
    return b"".join([JPEG_START, *pieces, bytes([0xFF, _END])])


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker of each segment, with the positions at which its contents begin and end. The last segment may be cut off."""
    position, size, read = len(JPEG_START), len(data), _SEGMENT.unpack_from
    while position + 2 <= size:
        if position + 4 <= size:
            first, marker, length = read(data, position)
        else:
            first, marker, length = data[position], data[position + 1], 0
        if first != 0xFF or marker in _NO_MARKER:
            if not (found := _MARKER.search(data, position)):
                return
            position = found.start()
        elif marker in _BARE:
            position += 2
            yield marker, position, position
        else:
            start, position = position + 4, position + 2 + (length if length > 2 else 2)
            yield marker, min(start, size), min(position, size)
            if marker == _SCAN:
                following = _AFTER_SCAN.search(data, position)
                position = following.start() if following else size


def _as_it_is_read(marker: int, body: bytes, header: JpegHeader) -> bytes:
    """The contents of a segment. Values that a decoder warns of are replaced by those that it uses instead."""
    if marker == _JFIF and body.startswith(b"JFIF\0") and body[5:6] != b"\x01":
        return body[:5] + b"\x01\x02" + body[7:]
    if marker == _ADOBE and body.startswith(b"Adobe") and len(body) >= 12:
        meant = {3: (1, 0), 4: (2, 0)}.get(header.channels, (0,))
        return body if body[11] in meant else body[:11] + bytes([meant[0]]) + body[12:]
    if marker == _SCAN and header.frame in _SEQUENTIAL:
        return body[:-3] + b"\x00\x3f\x00"
    return body


def _without_fill(scan: bytes, shortest: int) -> bytes:
    """The data of a scan without the equal bytes at its end, if there are at least `shortest` of them."""
    bare = scan.rstrip(scan[-1:])
    if bare.endswith(b"\xff"):  # the removed zero marked this byte as data
        bare += b"\x00"
    return bare if len(scan) - len(bare) >= shortest else scan


def _is_complete(data: bytes, header: JpegHeader) -> bool:
    """True if the scans hold all data of every channel. False for a progressive file that is cut off between two scans."""
    if header.frame not in _PROGRESSIVE | _SEQUENTIAL:
        return True
    missing: dict[int, set[int]] = {}
    for marker, start, end in _segments(data):
        body = data[start:end]
        if marker in _FRAMES:
            missing = {body[at]: set(range(64)) for at in range(6, len(body), 3)}
        if marker == _SCAN and body and len(body) == 4 + 2 * body[0]:
            first, last, precision = body[-3:] if header.frame in _PROGRESSIVE else (0, 63, 0)
            exact = range(first, last + 1) if precision & 15 == 0 else ()
            for at in range(1, 1 + 2 * body[0], 2):
                missing.get(body[at], set()).difference_update(exact)
    return not any(missing.values())


# ------------------------------------------------------------------------------------------------------------------------- TIFF


def tiff_tags(file: BinaryIO) -> Mapping[int, Any] | None:
    """Tags of the first image of a TIFF file. None if they cannot be read."""
    head = file.read(8)
    try:
        tags = ImageFileDirectory_v2(head + file.read(8) if head[2:4].strip(b"\0") == b"+" else head)
        file.seek(tags.next)
        tags.load(file)
        return dict(tags)
    except Exception:  # parsers of untrusted files can raise anything
        return None


def tiff_bits(tags: Mapping[int, Any]) -> tuple[int, ...]:
    """Bits of each channel that Pillow considers. In separate planes, it ignores extra channels declared to mean nothing."""
    bits: tuple[int, ...] = tuple(tags.get(_BITS, (1,)))
    bits = bits * int(tags.get(_CHANNELS, 1)) if len(bits) == 1 else bits
    extra = tags.get(_EXTRA, ())
    return bits[: -len(extra)] if extra and not any(extra) and tags.get(_PLANES) == _SEPARATE else bits


def described_tiff(tags: Mapping[int, Any]) -> str:
    """Channels, bits and colors in words, such as `8 channels of 16 bits (gray)`."""
    bits, channels = tiff_bits(tags), int(tags.get(_CHANNELS, 1))
    words = "/".join(str(value) for value in bits) if len(set(bits)) > 1 else str(bits[0])
    colors = tags.get(_COLORS, _GRAY_FROM_WHITE)
    return f"{channels} channel{'s' * (channels != 1)} of {words} bits ({_COLOR_NAMES.get(colors, f'colors {colors}')})"


def unread_tiff(tags: Mapping[int, Any]) -> str:
    """Why a TIFF file that Pillow does not recognize cannot be read."""
    try:
        return f"TIFF with {described_tiff(tags)}, which cannot be read"
    except (IndexError, TypeError, ValueError):
        return "damaged TIFF: its tags cannot be read"


def tiff_refusal(tags: Mapping[int, Any]) -> str | None:
    """Why Pillow cannot give the right pixels of a TIFF file. None if it can."""
    try:
        return _tiff_refusal(tags)
    except (TypeError, ValueError):  # tags of the wrong type, which Pillow refuses
        return None


def _tiff_refusal(tags: Mapping[int, Any]) -> str | None:
    bits = tiff_bits(tags)
    for number in set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))) & set(_RANGELESS):
        return f"{_RANGELESS[number]} pixels, whose range is not known"
    if not bits:
        return None
    if max(bits) >= 32:
        return f"{max(bits)}-bit pixels, whose range is not known"
    if len(bits) > MAX_SAMPLESPERPIXEL:
        return f"{described_tiff(tags)}: which of them to show is not known"
    if tags.get(_COLORS) == _GRAY_FROM_WHITE and max(bits) > 8:
        return f"{described_tiff(tags)}, which Pillow shows as a negative"
    if tags.get(_COLORS) == _YCBCR and _is_plain(tags) and tuple(tags.get(_SUBSAMPLING, (2, 2))) != (1, 1):
        return "YCbCr with subsampled colors and without compression, which Pillow misreads"
    if tags.get(_PLANES) == _SEPARATE and _misread_planes(tags, bits):
        remedy = "with PlanarConfiguration 1" if len(bits) == 1 else "with interleaved channels"
        return f"{described_tiff(tags)} in separate planes, which Pillow misreads: save it {remedy}"
    return None


def _is_plain(tags: Mapping[int, Any]) -> bool:
    return bool(tags.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED)


def _misread_planes(tags: Mapping[int, Any], bits: tuple[int, ...]) -> bool:
    """True if Pillow would misread separate planes. Found by comparing all layouts with the values written.

    Pillow reads uncompressed planes as if they had 8 bits and black were 0. It reads compressed ones correctly, except for the
    alpha of gray and palette images.
    """
    if _is_plain(tags):
        colors = tags.get(_COLORS)
        is_simple = (set(bits) == {8} and colors != _GRAY_FROM_WHITE) or (bits == (1,) and colors == _GRAY)
        return not is_simple or tags.get(_FILL_ORDER, 1) != 1
    return tags.get(_COLORS) in (_GRAY, _PALETTE) and any(kind in _ALPHA for kind in tags.get(_EXTRA, ()))
