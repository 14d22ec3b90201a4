"""Generated images for tests: colored shapes on noise, the same for the same seed."""

from pathlib import Path

import numpy as np
from PIL import Image


def shape_image(seed: int, size: int = 32) -> Image.Image:
    """A disk or a square of a random color on a noisy background; which of the two is `seed % 2`."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 80, (size, size, 3)) + rng.integers(0, 60, (1, 1, 3))
    y, x = np.mgrid[:size, :size]
    center, radius = rng.uniform(0.3, 0.7, 2) * size, rng.uniform(0.15, 0.3) * size
    offset = np.stack([y - center[0], x - center[1]])
    inside = (offset**2).sum(0) < radius**2 if seed % 2 else np.abs(offset).max(0) < radius
    pixels[inside] = rng.integers(120, 255, 3)
    return Image.fromarray(pixels.astype(np.uint8))


def write_folder(folder: Path, number: int, size: int = 32, classes: bool = True) -> Path:
    """`number` images as <folder>/<class>/<i>.png, or flat."""
    for i in range(number):
        place = folder / ("disk" if i % 2 else "square") if classes else folder
        place.mkdir(parents=True, exist_ok=True)
        shape_image(i, size).save(place / f"{i:04d}.png")
    return folder
