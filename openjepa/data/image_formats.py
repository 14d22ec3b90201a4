"""What the segments of a JPEG file say, and the same file without the faults that hide no pixel (ITU-T T.81, annex B)."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from openjepa.data import exif

START = b"\xff\xd8"
LOSSLESS = frozenset([0xC3, 0xC7, 0xCB, 0xCF])
"""Frames whose pixels are predicted from their neighbors, without a cosine transform."""

_SCAN, _END, _JFIF, _EXIF_OR_XMP, _PROFILE, _ADOBE = 0xDA, 0xD9, 0xE0, 0xE1, 0xE2, 0xEE
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SEQUENTIAL = frozenset([0xC0, 0xC1, 0xC9])
_PROGRESSIVE = frozenset([0xC2, 0xCA])
# Markers without a length field: restarts, start and end, and one for temporary use.
_BARE = frozenset([0x01, *range(0xD0, 0xDA)])
_NO_MARKER = (0x00, 0xFF)
_SEGMENT = struct.Struct(">BBH")
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_ICC_PROFILE = b"ICC_PROFILE\0"
# A marker; what lies before it is no segment. Inside a scan zeros follow 0xFF bytes that are data, and restarts belong to it.
# Fill bytes may stand before a marker; a pattern that took them in would start anew at each of a long run.
_MARKER = re.compile(rb"\xff[^\x00\xff]")
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_FILL = 3
"""So many equal bytes at the end of a scan are no accident."""


@dataclass(frozen=True, slots=True)
class Header:
    """The segments before the first scan that matter here."""

    frame: int = 0
    """Marker of the frame (0xC0 is baseline); 0 if there is none."""
    bits: int = 0
    """Bits per channel."""
    channels: int = 0
    exif: bytes | None = None
    """The TIFF structure with the marker `Exif`, continued in further segments as Pillow joins them."""
    xmp: bytes | None = None


def read_header(data: bytes) -> Header:
    """Of a damaged file what can be read."""
    frame, bits, channels = 0, 0, 0
    exif_part, xmp = None, None
    for marker, start, end in _segments(data):
        if marker == _SCAN:
            break
        if marker in _FRAMES:
            if end - start >= 6:
                frame, bits, channels = marker, data[start], data[start + 5]
        elif marker == _EXIF_OR_XMP and data.startswith(exif.MARK, start):
            exif_part = data[start:end] if exif_part is None else exif_part + data[start + len(exif.MARK) : end]
        elif marker == _EXIF_OR_XMP and data.startswith(_XMP, start):
            xmp = data[start + len(_XMP) : end]
    return Header(frame, bits, channels, exif_part, xmp)


def mended(data: bytes) -> Iterator[bytes]:
    """The file without faults that hide no pixel, in two versions: if one of them decodes without a warning, all is there.

    The faults: an unknown version of JFIF, an unknown color transform of Adobe, a color profile of which parts are missing (it
    is not applied anyway), parameters of a sequential scan that only progressive ones have, bytes between segments, no end
    marker, and in the second version equal bytes at the end of a scan (a single one counts at the end of the last): only the
    decoder knows whether they belong to it. Bytes that differ from one another stay: a scan damaged in its middle leaves such,
    too. Yields nothing if scans are missing, or if fill stands in the place of the end.
    """
    header = read_header(data)
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
            pieces.append(struct.pack(">H", end - start + 2) + _known(marker, data[start:end], header))
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
    return b"".join([START, *pieces, bytes([0xFF, _END])])


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker of each segment, and where its contents begin and end; the last one may be cut off."""
    position, size, read = len(START), len(data), _SEGMENT.unpack_from
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


def _known(marker: int, body: bytes, header: Header) -> bytes:
    """The contents of a segment; what a decoder does not know as it reads it anyway."""
    if marker == _JFIF and body.startswith(b"JFIF\0") and body[5:6] != b"\x01":
        return body[:5] + b"\x01\x02" + body[7:]
    if marker == _ADOBE and body.startswith(b"Adobe") and len(body) >= 12:
        meant = {3: (1, 0), 4: (2, 0)}.get(header.channels, (0,))
        return body if body[11] in meant else body[:11] + bytes([meant[0]]) + body[12:]
    if marker == _SCAN and header.frame in _SEQUENTIAL:
        return body[:-3] + b"\x00\x3f\x00"
    return body


def _without_fill(scan: bytes, shortest: int) -> bytes:
    """The data of a scan without the equal bytes at its end, if they are at least `shortest`."""
    bare = scan.rstrip(scan[-1:])
    if bare.endswith(b"\xff"):  # a zero that marks the byte before it as data
        bare += b"\x00"
    return bare if len(scan) - len(bare) >= shortest else scan


def _is_complete(data: bytes, header: Header) -> bool:
    """Whether the scans say all of every channel: of a progressive file that is cut off between two scans they do not."""
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
