"""Rectangular blocks on a grid of patches: sizes with their probabilities, positions, covered patches.

Also checks, before anything is drawn, that settings of masks with blocks can work on a grid.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from openjepa.refusals import Refusal
from openjepa.settings.derived import resolved
from openjepa.settings.masks import MultiblockSettings, SingleBlockSettings
from openjepa.types import BlockMasks

RAREST = 0.01
"""Block sizes less probable than this are left out, so that few token shapes occur (at 14x14 they are 2 % of all draws)."""
_RESOLUTION = 512
"""Number of equidistant values at which scale and aspect are each tabulated."""
REFERENCE_PATCHES = 14 * 14
"""Number of patches of the grid that `min_keep` refers to."""


@dataclass(frozen=True)
class BlockSizes:
    """The possible sizes of a block, with their probabilities."""

    sizes: Int[np.ndarray, "S 2"]
    """Rows and columns of each size."""
    probabilities: Float[np.ndarray, " S"]

    def pick(self, uniform: Float[np.ndarray, "*B"]) -> Int[np.ndarray, "*B 2"]:
        """Sizes drawn with their probabilities. Inverts the distribution function at `uniform` numbers in [0, 1)."""
        sizes: Int[np.ndarray, "*B 2"] = self.sizes[self.picked(uniform)]
        return sizes

    def picked(self, uniform: Float[np.ndarray, "*B"]) -> Int[np.ndarray, "*B"]:
        """Numbers of the sizes that `pick` draws."""
        steps = np.cumsum(self.probabilities)[:-1]
        numbers: Int[np.ndarray, "*B"] = np.searchsorted(steps, uniform, side="right")
        return numbers

    @property
    def areas(self) -> Int[np.ndarray, " S"]:
        """Number of patches of each size."""
        areas: Int[np.ndarray, " S"] = self.sizes.prod(axis=1)
        return areas


def block_sizes(
    grid: tuple[int, int], scale: tuple[float, float], aspect: tuple[float, float], relative: bool = False
) -> BlockSizes:
    """Sizes of a block whose scale (fraction of the patches) and aspect (height / width) are uniform and independent.

    I-JEPA, section 3: U(0.15, 0.2) and U(0.75, 1.5) for targets. Sides are rounded to whole patches and do not exceed the grid.
    If the grid is too narrow for an aspect, the block is made longer to keep its area. If `relative`, aspect 1 is that of the
    grid.
    """
    height, width = grid
    middle = (np.arange(_RESOLUTION) + 0.5) / _RESOLUTION
    area = height * width * (scale[0] + middle * (scale[1] - scale[0]))[:, None]
    ratio = (aspect[0] + middle * (aspect[1] - aspect[0]))[None, :] * (height / width if relative else 1.0)
    rows, columns = np.sqrt(area * ratio), np.sqrt(area / ratio)
    rows, columns = np.where(columns > width, area / width, rows), np.where(rows > height, area / height, columns)
    sides = np.clip(np.rint(rows), 1, height).astype(np.int64), np.clip(np.rint(columns), 1, width).astype(np.int64)
    counts = np.bincount((sides[0] * (width + 1) + sides[1]).reshape(-1))
    occurring = np.flatnonzero(counts)
    sizes, share = np.stack(np.divmod(occurring, width + 1), axis=1), counts[occurring] / counts.sum()
    often = share >= min(RAREST, share.max())
    return BlockSizes(sizes[often], share[often] / share[often].sum())


def place_blocks(
    uniform: Float[np.ndarray, "*B 2"], sizes: Int[np.ndarray, "*B 2"], grid: tuple[int, int]
) -> Int[np.ndarray, "*B 2"]:
    """Top and left of blocks, uniform over every position at which the block lies in the grid."""
    corners: Int[np.ndarray, "*B 2"] = (uniform * (np.array(grid) - sizes + 1)).astype(np.int64)
    return corners


def covered(
    corners: Int[np.ndarray, "*B 2"], sizes: Int[np.ndarray, "*B 2"], grid: tuple[int, int], rolled: bool = False
) -> Bool[np.ndarray, "*B H W"]:
    """True for the patches that lie in each block. If `rolled`, blocks go on at the opposite border."""
    in_rows = within(corners[..., 0], sizes[..., 0], grid[0], rolled)
    in_columns = within(corners[..., 1], sizes[..., 1], grid[1], rolled)
    inside: Bool[np.ndarray, "*B H W"] = in_rows[..., :, None] & in_columns[..., None, :]
    return inside


def within(
    start: Int[np.ndarray, "*B"], length: Int[np.ndarray, "*B"], num: int, rolled: bool = False
) -> Bool[np.ndarray, "*B n"]:
    """True for the numbers from 0 to num - 1 that lie in [start, start + length). If `rolled`, 0 comes after num - 1."""
    distance = np.arange(num) - start[..., None]
    if rolled:
        distance %= num
    inside: Bool[np.ndarray, "*B n"] = (distance >= 0) & (distance < length[..., None])
    return inside


def raster_indices(corners: Int[np.ndarray, "*B 2"], size: tuple[int, int], width: int) -> Int[np.ndarray, "*B T"]:
    """Raster indices, ascending, of the patches of blocks of one size, on a grid with `width` columns."""
    offsets = (np.arange(size[0])[:, None] * width + np.arange(size[1])[None, :]).reshape(-1)
    indices: Int[np.ndarray, "*B T"] = (corners[..., 0] * width + corners[..., 1])[..., None] + offsets
    return indices


def target_and_rest(target: Bool[np.ndarray, "B N"], grid: tuple[int, int]) -> BlockMasks:
    """Masks with one target, and all other patches as context. Every image must have the same number of target patches."""
    context, chosen = (np.nonzero(patches)[1].reshape(len(target), -1) for patches in (~target, target))
    return BlockMasks(torch.from_numpy(context), torch.from_numpy(chosen[:, None]), grid)


def scaled_min_keep(min_keep: int, grid: tuple[int, int]) -> int:
    """`min_keep` for an unbiased context on `grid`. Reduced in proportion on grids smaller than 14x14."""
    return int(min_keep * min(1.0, grid[0] * grid[1] / REFERENCE_PATCHES))


def check_targets_fit(settings: MultiblockSettings | SingleBlockSettings, grid: tuple[int, int], largest_target: int) -> None:
    """Raises Refusal if one target block may cover the whole grid, so that no redraw could leave a context."""
    if largest_target >= grid[0] * grid[1]:
        raise Refusal(
            f"masks.target_scale={settings.target_scale} lets one target cover all of {grid[0]}x{grid[1]} patches: "
            "lower its second value, or use a larger grid"
        )


def check_context_fits(
    settings: MultiblockSettings, grid: tuple[int, int], num_available: Int[np.ndarray, " S"], needed: int
) -> None:
    """Raises Refusal if more than half of the draws leave the context fewer than `needed` patches.

    `num_available` is the number of patches left to the context in each of many draws.
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
    if settings.context_cut in ("none", "smallest"):
        fits = next(value for value in range(resolved(settings.min_keep), -1, -1) if scaled_min_keep(value, grid) < median)
        raise Refusal(f"masks.min_keep={settings.min_keep} is too many {where}: the largest value that fits is {fits}")
    raise Refusal(
        f"masks.context_ratio={settings.context_ratio} asks for {needed} patches {where}: "
        f"the largest value that fits is {int(10000 * median / num_patches) / 10000}"
    )


def check_official_sizes(
    settings: MultiblockSettings, grid: tuple[int, int], smallest_target: int, smallest_context: int
) -> None:
    """Raises Refusal if blocks may have at most `min_keep` patches. The released code would draw such blocks again forever."""
    for block, smallest in (("target", smallest_target), ("context", smallest_context)):
        if smallest <= resolved(settings.min_keep):
            advice = f"the largest value that fits is {smallest - 1}"
            if smallest < 1:
                advice = f"no value fits: use a larger grid or masks.{block}_scale"
            raise Refusal(
                f"masks.min_keep={settings.min_keep} with masks.mode='official' on {grid[0]}x{grid[1]} patches: a {block} "
                f"block (masks.{block}_scale) may have only {smallest} patches and would be drawn again for ever; {advice}"
            )
