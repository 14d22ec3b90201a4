"""Color changes of DINO's first large view, by openjepa and by Pillow: `OMP_NUM_THREADS=1 python -m benchmarks.colors`.

Both apply the same operations in the same order, with the same random draws, to the same views. They take turns in every round.
Figures are processor time of one thread, and ratios are computed within a round. Pillow's blur approximates the Gaussian by
boxes. Pillow gets images of its own type, so conversion from and to tensors is not counted.
"""

import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from benchmarks.records import keep, origin
from openjepa.data.loading.colors import BRIGHTNESS, CONTRAST, HUE, NEUTRAL, SATURATION, DrawnColors, change_colors, draw_colors
from openjepa.engine.device import keep_freed_memory
from openjepa.experiments.generated_photos import generate_photo
from openjepa.settings.methods import DinoSettings
from openjepa.types import ColorChange, ViewSpec

ENHANCERS: dict[int, Callable[[Image.Image], ImageEnhance._Enhance]] = {
    BRIGHTNESS: ImageEnhance.Brightness,
    CONTRAST: ImageEnhance.Contrast,
    SATURATION: ImageEnhance.Color,
}


@dataclass(frozen=True)
class Options:
    """What is timed."""

    sizes: tuple[int, ...] = (224, 96, 32)
    """Sides of the views."""
    views: int = 64
    """Views of a round."""
    repeats: int = 7
    """Rounds."""
    output: Path | None = None
    """JSON file."""


def main() -> None:
    """Runs and prints."""
    options = tyro.cli(Options)
    torch.set_num_threads(1)
    keep_freed_memory()
    result = {
        **origin(),
        "pillow": Image.__version__,
        "repeats": options.repeats,
        "views": options.views,
        "by_side": {side: compare(side, options) for side in options.sizes},
    }
    keep(result, options.output)


def compare(side: int, options: Options) -> dict[str, float]:
    """Milliseconds a view, and how many times as long Pillow takes."""
    settings = DinoSettings()
    change = ColorChange(
        jitter=settings.jitter,
        jitter_probability=settings.jitter_probability,
        grayscale_probability=settings.grayscale_probability,
        blur_probability=settings.blur_probability[0],
        blur_sigma=settings.blur_sigma,
        solarize_probability=settings.solarize_probability[0],
    )
    drawn = draw_colors({"view": ViewSpec((side, side), colors=(change,))}, np.arange(options.views), 0, 0)["view"]
    images = [photo(number, side) for number in range(options.views)]
    pixels = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])
    ours, pillow = [], []
    for number in range(options.repeats + 1):
        copied = pixels.clone()
        start = time.process_time()
        change_colors(copied, drawn)
        middle = time.process_time()
        for row, image in enumerate(images):
            with_pillow(image, drawn, row)
        if number:  # the first round warms up
            ours.append(1000 * (middle - start) / options.views)
            pillow.append(1000 * (time.process_time() - middle) / options.views)
    ratio = statistics.median(theirs / mine for mine, theirs in zip(ours, pillow, strict=True))
    return {"ours_ms": statistics.median(ours), "pillow_ms": statistics.median(pillow), "pillow_over_ours": ratio}


def photo(number: int, side: int) -> Image.Image:
    """A generated photo at the size of a view."""
    return Image.open(io.BytesIO(generate_photo(number % 8))).resize((side, side), Image.Resampling.BICUBIC)


def with_pillow(image: Image.Image, drawn: DrawnColors, row: int) -> Image.Image:
    """The same changes in Pillow, the hue by its 8-bit HSV."""
    for part in drawn.order[row]:
        strength = float(drawn.strengths[row, part])
        if strength == NEUTRAL[part]:
            continue
        if part == HUE:
            hue, saturation, value = image.convert("HSV").split()
            turned = np.array(hue) + np.uint8(round(strength * 255) % 256)
            image = Image.merge("HSV", (Image.fromarray(turned), saturation, value)).convert("RGB")
        else:
            image = ENHANCERS[int(part)](image).enhance(strength)
    if drawn.gray[row]:
        image = image.convert("L").convert("RGB")
    if drawn.sigma[row] > 0:
        image = image.filter(ImageFilter.GaussianBlur(float(drawn.sigma[row])))
    return ImageOps.solarize(image) if drawn.solarized[row] else image


if __name__ == "__main__":
    main()
