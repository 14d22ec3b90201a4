"""Settings of networks that a file describes: sizes and numbers with which one can be built."""

from collections.abc import Mapping

from openjepa.checks.grids import check_heads, check_patch_divides, check_positions
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig, PredictorConfig
from openjepa.settings.ranges import as_setting, check_ranges

MOST_POSITIONS = 2**30
"""Numbers of a table of fixed positions."""


def check_encoder(config: EncoderConfig, names: Mapping[str, str] | None = None) -> None:
    """Raises Refusal if no encoder can have these settings. `names`: what a file calls settings, if not as we do."""

    def called(name: str) -> str:
        return (names or {}).get(name, name)

    check_ranges(config, said=lambda name, value: as_setting(called(name), value))
    check_heads(called("heads"), config.heads, called("width"), config.width)
    check_patch_divides(config.patch_size, config.image_size, called("image_size"), of="the encoder")
    if config.positions == "sincos":
        _check_table(config.width, config.grid(), called("width"), called("image_size"))
    if config.pooling == "class_token" and not config.class_token:
        raise Refusal("pooling='class_token' needs a class token (class_token=False)")


def check_predictor(config: PredictorConfig) -> None:
    """Raises Refusal if no predictor can have these settings."""
    check_ranges(config)
    check_heads("heads", config.heads, "width", config.width)
    _check_table(config.width, config.grid, "width", "grid")


def _check_table(width: int, grid: tuple[int, int], width_name: str, grid_name: str) -> None:
    check_positions(width_name, width)
    if width * grid[0] * grid[1] > MOST_POSITIONS:
        raise Refusal(f"{grid_name} gives a grid of {grid[0]}x{grid[1]} patches, too large for {width_name}={width}")
