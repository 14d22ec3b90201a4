"""Checks that sizes fit each other: images and patches, widths and heads, and all sizes of a network in a file."""

from collections.abc import Mapping

from openjepa.refusals import Refusal
from openjepa.settings.models import PATCH_SIZES, EncoderConfig, PredictorConfig
from openjepa.settings.ranges import Said, as_setting, check_ranges

MOST_POSITIONS = 2**30
"""Most values in a table of fixed positions."""


def check_patch_divides(
    patch: int,
    size: tuple[int, int],
    size_name: str = "data.image_size",
    patch_name: str = "model.patch_size",
    of: str | None = None,
    said: Said = as_setting,
) -> None:
    """Raises Refusal, naming values that fit, unless the sides of an image are multiples of the patch size.

    `size`: height and width in pixels. `size_name`, `patch_name`: names of the settings. `said`: formats them. `of`: what has
    this patch size, if no setting can change it.
    """
    if all(side >= patch and side % patch == 0 for side in size):
        return
    patches = said(patch_name, patch) if of is None else f"the patch size {patch} of {of}"
    fitting = [number for number in PATCH_SIZES if of is None and min(size) > 0 and not any(side % number for side in size)]
    instead = f"{patch_name} one of {', '.join(map(str, fitting))}, or " if fitting else ""
    nearest = said(size_name, tuple(nearest_multiple(side, patch) for side in dict.fromkeys(size)))
    raise Refusal(f"{patches} does not divide {said(size_name, f'{size[0]}x{size[1]}')}: use {instead}{nearest}")


def nearest_multiple(side: int, patch: int) -> int:
    """The multiple of `patch` nearest to `side`, in pixels; at least one patch."""
    return max(patch, round(side / patch) * patch)


def check_heads(name: str, heads: int, width_name: str, width: int) -> None:
    """Raises Refusal, naming numbers of heads that fit, unless `heads` divides `width`."""
    if width % heads:
        fitting = [number for number in range(1, 33) if width % number == 0]
        raise Refusal(f"{name}={heads} does not divide {width_name} ({width}); heads that do: {', '.join(map(str, fitting))}")


def check_positions(name: str, width: int) -> None:
    """Raises Refusal unless sine-cosine positions can have this width."""
    if width % 4:
        low = max(4, width // 4 * 4)
        raise Refusal(f"{name}={width} must be a multiple of 4 for sine-cosine positions, e.g. {low} or {low + 4}")


def check_encoder(config: EncoderConfig, names: Mapping[str, str] | None = None) -> None:
    """Raises Refusal if no encoder can have these settings. `names`: the file's own names of settings, for errors."""

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
