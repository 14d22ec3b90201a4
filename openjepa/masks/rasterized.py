"""Quadrants of the grid: one is the context, and the other three are the targets (I-JEPA, Table 6: "rasterized")."""

from itertools import product
from typing import final

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray

from openjepa.checks.grids import check_rasterized
from openjepa.masks.blocks import raster_indices
from openjepa.masks.sampler import MaskSampler, TokenShape, summed_shapes
from openjepa.seeds import derive, uniforms
from openjepa.settings.masks import RasterizedSettings
from openjepa.types import BlockMasks

NUM_TARGETS = 3
"""Number of quadrants that are targets."""


@final
class Rasterized(MaskSampler):
    """Each image draws which of the four quadrants is its context. The other three are its targets.

    The paper does not say how odd grids are divided. Here each mask group draws, for an odd number of rows, whether the context
    takes the middle row. All targets have the height that is left above or below the context, so that counts stay equal.

    - If the context does not take the middle row, the targets do: those above and those below overlap there, and no patch of
      the image is left out.
    - If the context takes it, the targets are one row lower than the context. The part of the middle row beside the context is
      then left out: it is neither context nor target of that image.

    The same holds for the middle column. A context thus has a quarter of the patches on average on every grid.
    """

    name = "rasterized"

    def __init__(self, settings: RasterizedSettings, grid: tuple[int, int]) -> None:
        """Raises Refusal if the grid has no four quadrants."""
        check_rasterized(grid)
        self.grid = grid
        height, width = grid
        self._heights, self._widths = (height // 2, height - height // 2), (width // 2, width - width // 2)

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> BlockMasks:
        """Context and targets of the samples [B]."""
        split = (uniforms(np.array([derive("group", group_seed, step)]), 2)[0] * 2).astype(np.int64)
        context = self._heights[split[0]], self._widths[split[1]]
        contexts = self._quadrants(context)  # [4, K]
        targets = self._quadrants(self._target_of(context))  # [4, T]
        corner = (uniforms(sample_seeds, 1)[:, 0] * 4).astype(np.int64)
        others = np.array([[other for other in range(4) if other != own] for own in range(4)])
        return BlockMasks(torch.from_numpy(contexts[corner]), torch.from_numpy(targets[others[corner]]), self.grid)

    def shapes(self) -> tuple[TokenShape, ...]:
        """Exact: one shape on even grids, at most four on odd ones."""
        parts = []
        for context in product(self._heights, self._widths):
            target = self._target_of(context)
            parts.append((context[0] * context[1], target[0] * target[1], 0.25))
        return summed_shapes(parts, NUM_TARGETS)

    def _target_of(self, context: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the targets beside a context."""
        return self.grid[0] - context[0], self.grid[1] - context[1]

    def _quadrants(self, size: tuple[int, int]) -> Int[np.ndarray, "4 T"]:
        """Raster indices of blocks of one size in the four corners, in raster order."""
        down, right = self.grid[0] - size[0], self.grid[1] - size[1]
        return raster_indices(np.array([[0, 0], [0, right], [down, 0], [down, right]]), size, self.grid[1])
