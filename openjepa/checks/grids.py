"""Checks that masks can be drawn on a grid of patches."""

import math

from openjepa.refusals import Refusal
from openjepa.settings.derived import resolved
from openjepa.settings.fields import check_ranges
from openjepa.settings.masks import BlockwiseSettings, RandomPatchesSettings, RandomTargetsSettings


def check_blockwise(masks: BlockwiseSettings, grid: tuple[int, int]) -> None:
    """Raises Refusal if the blocks of `masks` cannot be drawn on a grid. `grid`: rows and columns of patches."""
    if min(grid) < 2:
        fix = "use a smaller model.patch_size or a larger data.image_size"
        raise Refusal(f"masks.strategy=blockwise needs at least 2x2 patches; this grid is {grid[0]}x{grid[1]}: {fix}")
    if not masks.ratios or len(masks.ratios) != len(masks.spreads):
        fix = f"give one of each, e.g. masks.spreads {' '.join(['0.0'] * max(1, len(masks.ratios)))}"
        raise Refusal(f"masks.ratios={_words(masks.ratios)} and masks.spreads={_words(masks.spreads)} do not match: {fix}")
    for ratio, spread in zip(masks.ratios, masks.spreads, strict=True):
        if not 0 <= spread <= ratio <= 1 - spread:
            raise Refusal(
                f"masks.ratios={ratio:g} with masks.spreads={spread:g} must stay between 0 and 1: "
                f"the largest spread here is {max(0.0, min(ratio, 1 - ratio)):g}"
            )
    smallest, largest, room = min_block_of(masks, grid), masks.max_block, (grid[0] - 1) * (grid[1] - 1)
    if smallest > room:
        raise Refusal(f"masks.min_block={smallest} does not fit into {grid[0]}x{grid[1]} patches: use at most {room}")
    if largest is not None and largest < smallest:
        raise Refusal(
            f"masks.max_block={largest} is less than the smallest block, {smallest} patches: raise it or set masks.min_block"
        )


def min_block_of(masks: BlockwiseSettings, grid: tuple[int, int]) -> int:
    """Fewest patches of a block: `min_block`, or the square of a third of the grid's shorter side if it is None."""
    return max(1, (min(grid) // 3) ** 2) if masks.min_block is None else masks.min_block


def most_masked_of(masks: BlockwiseSettings, grid: tuple[int, int]) -> int:
    """Most patches that can be masked in an image."""
    wished = max(ratio + spread for ratio, spread in zip(masks.ratios, masks.spreads, strict=True))
    return int(round(wished * grid[0] * grid[1], 6))  # so that 120/196 x 196 is 120


def check_random_patches(masks: RandomPatchesSettings, grid: tuple[int, int]) -> None:
    """Raises Refusal if every patch of a grid would be masked, or none. `grid`: rows and columns of patches."""
    num_patches = grid[0] * grid[1]
    if num_patches < 2:
        fix = "use a smaller model.patch_size or a larger data.image_size"
        raise Refusal(f"masks.strategy=random_patches needs at least 2 patches; this grid is {grid[0]}x{grid[1]}: {fix}")
    check_ranges(masks, "masks.")
    if num_visible_of(masks, grid) == 0:
        largest = math.floor(1e4 * (1 - 1.5 / num_patches)) / 1e4  # far enough from the rounding at 1 - 1 / N
        words = f"{grid[0]}x{grid[1]} patches leaves none visible"
        raise Refusal(f"masks.ratio={masks.ratio:g} of {words}: use masks.ratio={largest:g} or less")


def num_visible_of(masks: RandomPatchesSettings, grid: tuple[int, int]) -> int:
    """Number of visible patches: int(N (1 - ratio)), rounded as in the published programs. 9, not 10, of 100 at 0.9."""
    return int(grid[0] * grid[1] * (1 - resolved(masks.ratio)))


def check_rasterized(grid: tuple[int, int]) -> None:
    """Raises Refusal if a grid has no four quadrants. `grid`: rows and columns of patches."""
    if min(grid) < 2:
        fix = "use a smaller model.patch_size or a larger data.image_size"
        raise Refusal(f"masks.strategy=rasterized needs at least 2x2 patches; this grid is {grid[0]}x{grid[1]}: {fix}")


def check_random_targets(masks: RandomTargetsSettings, grid: tuple[int, int]) -> None:
    """Raises Refusal if every patch of a grid would be a target, or none. `grid`: rows and columns of patches."""
    num_patches = grid[0] * grid[1]
    if num_patches < 2:
        fix = "use a smaller model.patch_size or a larger data.image_size"
        raise Refusal(f"masks.strategy=random_targets needs at least 2 patches; this grid is {grid[0]}x{grid[1]}: {fix}")
    check_ranges(masks, "masks.")
    number, where = num_targeted_of(masks, grid), f"masks.target_ratio={masks.target_ratio:g} of {grid[0]}x{grid[1]} patches"
    if number == 0:
        raise Refusal(f"{where} makes none a target: use masks.target_ratio={math.ceil(1e4 / num_patches) / 1e4:g} or more")
    if number == num_patches:
        largest = math.floor(1e4 * (1 - 1 / num_patches)) / 1e4
        raise Refusal(f"{where} leaves none to the context: use masks.target_ratio={largest:g} or less")


def num_targeted_of(masks: RandomTargetsSettings, grid: tuple[int, int]) -> int:
    """Number of target patches, rounded to the nearest."""
    return round(grid[0] * grid[1] * masks.target_ratio)


def _words(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values) or "()"
