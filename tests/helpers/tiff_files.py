"""TIFF files by hand, for tests: any layout of channels, bits and planes, and what it shows (TIFF 6.0)."""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GRAY_FROM_WHITE, GRAY, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
COLOR_CHANNELS = {GRAY_FROM_WHITE: 1, GRAY: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
_TYPES = {"B": 1, "H": 3, "I": 4, "b": 6, "h": 8, "i": 9}

Tags = dict[int, tuple[str, list[int]]]


@dataclass(frozen=True)
class Layout:
    colors: int = RGB
    bits: int = 8
    order: str = "<"
    separate: bool = False
    extra: tuple[int, ...] = ()
    compressed: bool = False
    predictor: bool = False
    tiled: bool = False
    number_format: int = 1
    rows_per_strip: int = 16
    fill_order: int = 1

    def channels(self) -> int:
        return COLOR_CHANNELS[self.colors] + len(self.extra)


SIDE = 16


def values_of(layout: Layout) -> NDArray[np.uint64]:
    """Random numbers [h, w, channels]; colors that are multiplied by an alpha are not above it."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << min(layout.bits, 62), (SIDE, SIDE, layout.channels()), dtype=np.int64)
    if 1 in layout.extra:
        colors = COLOR_CHANNELS[layout.colors]
        values[:, :, :colors] = np.minimum(values[:, :, :colors], values[:, :, colors : colors + 1])
    return values.astype(np.uint64)


def palette_of(layout: Layout) -> NDArray[np.int64]:
    return 257 * np.random.default_rng(1).integers(0, 256, (3, 1 << layout.bits))


def written(layout: Layout, values: NDArray[np.uint64] | None = None, more: Tags | None = None) -> bytes:
    """The file; `more` tags replace those of the layout."""
    values = values_of(layout) if values is None else values
    strips = _strips(layout, values)
    height, width, channels = values.shape
    tags: Tags = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [layout.bits] * channels),
        259: ("H", [8 if layout.compressed else 1]),
        262: ("H", [layout.colors]),
        266: ("H", [layout.fill_order]),
        277: ("H", [channels]),
        284: ("H", [2 if layout.separate else 1]),
        317: ("H", [2 if layout.predictor else 1]),
        339: ("H", [layout.number_format] * channels),
    }
    places, position = [], 8
    for strip in strips:
        places.append(position)
        position += len(strip)
    if layout.tiled:
        tags |= {322: ("I", [SIDE]), 323: ("I", [SIDE]), 324: ("I", places), 325: ("I", [len(strip) for strip in strips])}
    else:
        tags |= {278: ("I", [layout.rows_per_strip]), 273: ("I", places), 279: ("I", [len(strip) for strip in strips])}
    if layout.extra:
        tags[338] = ("H", list(layout.extra))
    if layout.colors == PALETTE:
        tags[320] = ("H", palette_of(layout).ravel().tolist())
    if layout.colors == YCBCR:
        tags[530] = ("H", [1, 1])
    return _assembled(layout.order, b"".join(strips), tags | (more or {}))


def _strips(layout: Layout, values: NDArray[np.uint64]) -> list[bytes]:
    planes = np.split(values, values.shape[2], axis=2) if layout.separate else [values]
    rows = SIDE if layout.tiled else layout.rows_per_strip
    return [_packed(layout, plane[first : first + rows]) for plane in planes for first in range(0, len(plane), rows)]


def _packed(layout: Layout, values: NDArray[np.uint64]) -> bytes:
    numbers = values.astype(np.int64)
    if layout.predictor:
        numbers[:, 1:] = (numbers[:, 1:] - numbers[:, :-1].copy()) % (1 << layout.bits)
    rows = numbers.reshape(len(numbers), -1)
    if layout.bits % 8 == 0:
        data = rows.astype(f"{layout.order}u{layout.bits // 8}").tobytes()
    else:
        words = ["".join(f"{number:0{layout.bits}b}" for number in row) for row in rows.tolist()]
        data = b"".join(int(word.ljust(-(-len(word) // 8) * 8, "0"), 2).to_bytes(-(-len(word) // 8), "big") for word in words)
    if layout.fill_order == 2:
        data = bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)
    data = zlib.compress(data) if layout.compressed else data
    return data + bytes(len(data) % 2)


def _assembled(order: str, body: bytes, tags: Tags) -> bytes:
    start = 8 + len(body)
    end = start + 2 + 12 * len(tags) + 4
    entries, long_values = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        value = struct.pack(f"{order}{len(numbers)}{kind}", *numbers)
        entries += struct.pack(order + "HHI", tag, _TYPES[kind], len(numbers))
        if len(value) <= 4:
            entries += value.ljust(4, b"\0")
        else:
            entries += struct.pack(order + "I", end + len(long_values))
            long_values += value + bytes(len(value) % 2)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    return head + body + struct.pack(order + "H", len(tags)) + entries + bytes(4) + long_values


def shown(layout: Layout) -> NDArray[np.float64]:
    """What the file shows [h, w, 3] in 0 to 255, alpha over white."""
    values = values_of(layout)
    levels = values / ((1 << layout.bits) - 1)
    colors = levels[:, :, : COLOR_CHANNELS[layout.colors]]
    if layout.colors == PALETTE:
        rgb = (palette_of(layout).T / 65535)[values[:, :, 0].astype(int)]
    elif layout.colors == CMYK:
        rgb = (1 - colors[:, :, :3]) * (1 - colors[:, :, 3:])
    elif layout.colors == YCBCR:  # JFIF
        y, blue, red = (255 * colors).transpose(2, 0, 1)
        blue, red = blue - 128, red - 128
        rgb = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1).clip(0, 255) / 255
    else:
        gray = 1 - colors if layout.colors == GRAY_FROM_WHITE else colors
        rgb = np.broadcast_to(gray, (SIDE, SIDE, 3))
    for place, kind in enumerate(layout.extra, start=colors.shape[2]):
        alpha = levels[:, :, place : place + 1]
        rgb = rgb * alpha + 1 - alpha if kind == 2 else (rgb + 1 - alpha).clip(0, 1) if kind == 1 else rgb
    return 255 * rgb
