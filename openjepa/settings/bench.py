"""Settings of the benchmarks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from openjepa.settings.models import Size


@dataclass(frozen=True)
class StepBench:
    """What `openjepa bench step` times: a recipe, or I-JEPA at the sizes given here."""

    recipe: Annotated[str, tyro.conf.Positional] = ""
    """Time this recipe; the sizes below are then ignored."""
    preset: str | None = None
    """Preset of the recipe."""
    size: Size = "small"
    """Size of the encoder."""
    patch_size: int = 16
    """Side of a patch in pixels."""
    image_size: int = 224
    """Side of the images in pixels."""
    batch_size: int = 32
    """Images per step."""
    predictor_width: int = 192
    """Width of the predictor."""
    predictor_depth: int = 6
    """Blocks of the predictor."""
    repeats: int = 7
    """Interleaved rounds, of which the median is reported."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """`auto`, `bf16` or `fp32`."""
    threads: int | None = None
    """Threads on the CPU. None: all cores."""
    compile: bool = False
    """Compile the transformer blocks."""
    output: Path | None = None
    """Also write the result to this JSON file."""


@dataclass(frozen=True)
class DataBench:
    """What `openjepa bench data` times."""

    path: Path | None = None
    """Folder of images. None: generated JPEGs of 500 x 375 pixels."""
    image_size: int = 224
    """Side of the crops."""
    repeats: int = 7
    """Interleaved rounds."""
    images: int = 128
    """Files per round at most."""
