"""JPEG files by hand, for tests: lossless ones, and changes of others."""

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def photo(height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Noise on a ramp, so that every part of the scan matters."""
    rng = np.random.default_rng(0)
    ramp = np.linspace(40, 200, width)[None, :, None]
    return np.clip(ramp + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)


def saved(pixels: NDArray[np.uint8], mode: str = "RGB", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def after(data: bytes, marker: int) -> int:
    """Where the first segment with a marker ends."""
    start = data.index(bytes([0xFF, marker])) + 2
    return start + int.from_bytes(data[start : start + 2], "big")


def lossless(pixels: NDArray[np.uint8], names: bytes = b"RGB", jfif: bool = False) -> bytes:
    """Huffman-coded differences to the left neighbor (ITU-T T.81, annex H); the lengths 0 to 16 have codes of five bits."""
    values = pixels.astype(int).reshape(*pixels.shape[:2], -1)
    channels = values.shape[2]
    left = np.concatenate([values[:, :1], values[:, :-1]], axis=1)
    left[1:, 0] = values[:-1, 0]
    left[0, 0] = 128
    bits = "".join(_difference(int(number)) for number in (values - left).ravel())
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = struct.pack(">BHHB", 8, *values.shape[:2], channels) + b"".join(
        bytes([names[at], 0x11, 0]) for at in range(channels)
    )
    table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11]) + bytes(range(17))
    start = bytes([channels]) + b"".join(bytes([names[at], 0]) for at in range(channels)) + bytes([1, 0, 0])
    head = segment(0xE0, b"JFIF\0\1\2\0\0\1\0\1\0\0") if jfif else b""
    return b"\xff\xd8" + head + segment(0xC3, frame) + segment(0xC4, table) + segment(0xDA, start) + scan + b"\xff\xd9"


def _difference(number: int) -> str:
    length = abs(number).bit_length()
    word = f"{length:05b}"
    return word if length == 0 else word + f"{number if number > 0 else number + (1 << length) - 1:0{length}b}"
