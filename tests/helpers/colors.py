"""A probe on generated images whose class is their color, or nothing that is in them; with a tiny untrained encoder."""

import io
from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from openjepa.data.source import ListSource
from openjepa.evaluation.protocol import ImageProbe, LabeledImages
from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig

CONFIG = EncoderConfig(
    width=24, depth=5, heads=2, mlp_ratio=2.0, patch_size=8, image_size=(16, 16), initialization="fan_in", class_token=True
)
CPU = torch.device("cpu")


class Colors(ListSource):
    """Images of one color each, with a little noise: the color is that of `classes`."""

    def __init__(self, classes: NDArray[np.int64], seed: int) -> None:
        palette = np.random.default_rng(5).integers(30, 225, (int(classes.max()) + 1, 3))
        rng = np.random.default_rng(seed)
        noise = rng.integers(-10, 10, (len(classes), 16, 16, 3))
        self._pixels = (palette[classes][:, None, None] + noise).astype(np.uint8)

    def __len__(self) -> int:
        return len(self._pixels)

    def read(self, index: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(self._pixels[index]).save(buffer, "png")
        return buffer.getvalue()

    def name(self, index: int) -> str:
        return str(index)


class Broken(ListSource):
    """A source some of whose records are not images."""

    def __init__(self, source: ListSource, broken: Collection[int]) -> None:
        self._source, self._broken = source, broken

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> bytes:
        return b"no image" if index in self._broken else self._source.read(index)

    def name(self, index: int) -> str:
        return f"image {index}"


def color_probe(classes: int = 3, train: int = 60, test: int = 30, *, noise: bool = False, benchmark: str = "") -> ImageProbe:
    """`noise`: the labels are drawn, whatever the color."""
    sides = []
    for seed, number in ((0, train), (1, test)):
        colors = np.arange(number) % classes
        labels = np.random.default_rng(7 + seed).permutation(colors) if noise else colors
        sides.append(LabeledImages(Colors(colors, seed), labels))
    torch.manual_seed(0)
    encoder = build_encoder(CONFIG).eval().requires_grad_(False)
    return ImageProbe(encoder, CONFIG, sides[0], sides[1], "crop", (16, 16), CPU, "fp32", benchmark)
