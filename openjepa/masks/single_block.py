"""One large target block, and all other patches as the context (I-JEPA, Table 6: "block")."""

from typing import final

import numpy as np
from numpy.typing import NDArray

from openjepa.masks.blocks import block_sizes, check_targets_fit, covered, place_blocks, target_and_rest
from openjepa.masks.sampler import MaskSampler, TokenShape, summed_shapes
from openjepa.seeds import derive, uniforms
from openjepa.settings.fields import check_ranges
from openjepa.settings.masks import SingleBlockSettings
from openjepa.types import BlockMasks


@final
class SingleBlock(MaskSampler):
    """The size of the block is shared by a mask group, and its position is each sample's own.

    A block that covers more than half of the rows and of the columns covers the middle of the grid at every position. With the
    paper's 0.6 some patches in the middle are therefore never context. If `rolled`, every position is context equally often.
    """

    def __init__(self, settings: SingleBlockSettings, grid: tuple[int, int]) -> None:
        """Raises Refusal if the block may cover the whole grid."""
        check_ranges(settings, "masks.")
        self.name = "block/rolled" if settings.rolled else "block"
        self.grid = grid
        self.sizes = block_sizes(grid, settings.target_scale, settings.target_aspect)
        check_targets_fit(settings, grid, int(self.sizes.areas.max()))
        self._rolled = settings.rolled

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> BlockMasks:
        """Context and target of the samples [B]."""
        size = self.sizes.pick(uniforms(np.array([derive("group", group_seed, step)]), 1)[0])  # [1, 2]
        numbers = uniforms(sample_seeds, 2)
        corners = (numbers * self.grid).astype(np.int64) if self._rolled else place_blocks(numbers, size, self.grid)
        inside = covered(corners, size, self.grid, self._rolled)
        return target_and_rest(inside.reshape(len(sample_seeds), -1), self.grid)

    def shapes(self) -> tuple[TokenShape, ...]:
        """Exact: one shape for each area of the block."""
        num_patches = self.grid[0] * self.grid[1]
        parts = zip(num_patches - self.sizes.areas, self.sizes.areas, self.sizes.probabilities, strict=True)
        return summed_shapes(parts, num_targets=1)
