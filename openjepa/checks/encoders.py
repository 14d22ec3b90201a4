"""Settings of networks that a file describes: sizes and numbers with which one can be built."""

import math
from collections.abc import Mapping
from dataclasses import fields

from openjepa.checks.grids import check_heads, check_patch_divides, check_positions
from openjepa.refusals import Refusal
from openjepa.settings.fields import BELOW_ONE, POSITIVE, Range, check_range
from openjepa.settings.models import EncoderConfig, PredictorConfig

RANGES: dict[str, Range] = {
    "width": (1, 2**16, "between 1 and 65536"),
    "encoder_width": (1, 2**16, "between 1 and 65536"),
    "depth": (1, 1000, "between 1 and 1000"),
    "heads": (1, 2**16, "between 1 and 65536"),
    "mlp_ratio": (math.nextafter(0, 1), 64, "above 0 and at most 64"),
    "patch_size": (1, 1024, "between 1 and 1024"),
    "image_size": (1, 2**16, "between 1 and 65536"),
    "grid": (1, 2**14, "between 1 and 16384"),
    "resampling_offset": BELOW_ONE,
    "layer_scale": (-math.inf, math.inf, "a finite number"),
    "drop_path": BELOW_ONE,
    "layer_norm_eps": POSITIVE,
    "pixel_mean": (-math.inf, math.inf, "finite numbers"),
    "pixel_std": POSITIVE,
}
"""Far beyond every network there is, so that none of a size that no memory holds is begun."""
MOST_POSITIONS = 2**30
"""Numbers of a table of fixed positions."""


def check_encoder(config: EncoderConfig, names: Mapping[str, str] | None = None) -> None:
    """Raises Refusal for the first setting that no encoder can have. `names`: what a file calls settings, if not as we do."""
    called = {name: (names or {}).get(name, name) for name in RANGES}
    _check_numbers(config, called)
    check_heads(called["heads"], config.heads, called["width"], config.width)
    height, width = config.image_size
    if min(height, width) < config.patch_size:  # what does not divide is refused when the network is built
        check_patch_divides(config.patch_size, config.image_size, called["patch_size"], called["image_size"])
    if config.positions == "sincos":
        _check_table(config.width, config.grid(), called["width"], called["image_size"])
    if config.pooling == "class_token" and not config.class_token:
        raise Refusal("pooling='class_token' needs a class token (class_token=False)")


def check_predictor(config: PredictorConfig) -> None:
    """Raises Refusal for the first setting that no predictor can have."""
    _check_numbers(config, {name: name for name in RANGES})
    check_heads("heads", config.heads, "width", config.width)
    _check_table(config.width, config.grid, "width", "grid")


def _check_numbers(config: EncoderConfig | PredictorConfig, called: Mapping[str, str]) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if field.name in RANGES and item is not None:
                check_range(called[field.name], item, RANGES[field.name])


def _check_table(width: int, grid: tuple[int, int], width_name: str, grid_name: str) -> None:
    check_positions(width_name, width)
    if width * grid[0] * grid[1] > MOST_POSITIONS:
        raise Refusal(f"{grid_name} gives a grid of {grid[0]}x{grid[1]} patches, too large for {width_name}={width}")
