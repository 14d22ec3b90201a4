"""Settings of the multi-block masks that cannot work on a grid, told before anything is drawn."""

import numpy as np
from jaxtyping import Int

from openjepa.refusals import Refusal
from openjepa.settings.derived import resolved
from openjepa.settings.masks import MultiblockSettings

REFERENCE_PATCHES = 14 * 14
"""The grid that `min_keep` is meant for."""


def check_ranges(settings: MultiblockSettings, grid: tuple[int, int]) -> None:
    """Refusal: a value that makes no sense on any grid, or a grid with a side of no patches."""
    if min(grid) < 1:
        raise Refusal(f"a grid of {grid[0]}x{grid[1]} patches has no room for masks: use larger images or smaller patches")
    for name in ("target_scale", "context_scale"):
        low, high = getattr(settings, name)
        if not 0 < low <= high <= 1:
            raise Refusal(f"masks.{name}={(low, high)} must be two ascending fractions of the patches in (0, 1]")
    for name in ("target_aspect", "context_aspect"):
        low, high = getattr(settings, name)
        if not 0 < low <= high:
            raise Refusal(f"masks.{name}={(low, high)} must be two ascending positive numbers")
    if settings.num_targets < 1:
        raise Refusal(f"masks.num_targets={settings.num_targets} must be at least 1")
    if not 0 < settings.context_ratio <= 1:
        raise Refusal(f"masks.context_ratio={settings.context_ratio} must be a fraction of the patches in (0, 1]")
    for name in ("min_keep", "max_redraws"):
        if getattr(settings, name) < 0:
            raise Refusal(f"masks.{name}={getattr(settings, name)} must not be negative")


def scaled_min_keep(min_keep: int, grid: tuple[int, int]) -> int:
    """`min_keep` of an unbiased context: meant for 14x14 patches or more, in proportion on smaller grids."""
    return int(min_keep * min(1.0, grid[0] * grid[1] / REFERENCE_PATCHES))


def check_targets_fit(settings: MultiblockSettings, grid: tuple[int, int], largest_target: int) -> None:
    """Refusal: one target block may cover the whole grid, so that no redraw could leave a context."""
    if largest_target >= grid[0] * grid[1]:
        raise Refusal(
            f"masks.target_scale={settings.target_scale} lets one target cover all of {grid[0]}x{grid[1]} patches: "
            "lower its second value, or use a larger grid"
        )


def check_context_fits(
    settings: MultiblockSettings, grid: tuple[int, int], num_available: Int[np.ndarray, " S"], needed: int
) -> None:
    """Refusal: more than half of the draws leave the context fewer than `needed` patches.

    `num_available` are the patches left in many draws.
    """
    median, num_patches = int(np.median(num_available)), grid[0] * grid[1]
    if median >= needed:
        return
    where = (
        f"on a grid of {grid[0]}x{grid[1]} patches, where the targets leave the context at most {median} in half of the draws"
    )
    if median < 1:
        raise Refusal(
            f"masks.num_targets={settings.num_targets} with masks.target_scale={settings.target_scale} do not fit {where}: "
            "use fewer or smaller targets, or a larger grid"
        )
    if settings.context_cut == "none":
        fits = next(value for value in range(resolved(settings.min_keep), -1, -1) if scaled_min_keep(value, grid) < median)
        raise Refusal(f"masks.min_keep={settings.min_keep} is too many {where}: the largest value that fits is {fits}")
    raise Refusal(
        f"masks.context_ratio={settings.context_ratio} asks for {needed} patches {where}: "
        f"the largest value that fits is {int(10000 * median / num_patches) / 10000}"
    )


def check_official_sizes(
    settings: MultiblockSettings, grid: tuple[int, int], smallest_target: int, smallest_context: int
) -> None:
    """Refusal: blocks of at most `min_keep` patches, which the released code would draw again for ever."""
    for block, smallest in (("target", smallest_target), ("context", smallest_context)):
        if smallest <= resolved(settings.min_keep):
            advice = f"the largest value that fits is {smallest - 1}"
            if smallest < 1:
                advice = f"no value fits: use a larger grid or masks.{block}_scale"
            raise Refusal(
                f"masks.min_keep={settings.min_keep} with masks.mode='official' on {grid[0]}x{grid[1]} patches: a {block} "
                f"block (masks.{block}_scale) may have only {smallest} patches and would be drawn again for ever; {advice}"
            )
