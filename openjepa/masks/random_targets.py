"""Single patches at random as one target, and all other patches as the context (I-JEPA, Table 6: "random").

This is I-JEPA's task with scattered patches: a predictor fills in features. The masks of MAE and MSN are in
`random_patches.py`.
"""

from typing import final

import numpy as np
from numpy.typing import NDArray

from openjepa.checks.grids import check_random_targets, num_targeted_of
from openjepa.masks.blocks import target_and_rest
from openjepa.masks.sampler import MaskSampler, TokenShape
from openjepa.seeds import uniforms
from openjepa.settings.masks import RandomTargetsSettings
from openjepa.types import BlockMasks


@final
class RandomTargets(MaskSampler):
    """The T = round(N `target_ratio`) patches with the smallest of N uniform numbers are the target.

    Every set of T patches is therefore equally likely. The numbers depend on the sample's own seed. Nothing is shared by a mask
    group.
    """

    def __init__(self, settings: RandomTargetsSettings, grid: tuple[int, int]) -> None:
        """Raises Refusal if nothing would be target on this grid, or nothing context."""
        check_random_targets(settings, grid)
        self.name = f"random_targets/{settings.target_ratio:g}"
        self.grid = grid
        self._num_targeted = num_targeted_of(settings, grid)

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> BlockMasks:
        """Context and target of the samples [B]."""
        num_patches = self.grid[0] * self.grid[1]
        smallest = uniforms(sample_seeds, num_patches).argpartition(self._num_targeted - 1, axis=1)[:, : self._num_targeted]
        target = np.zeros((len(sample_seeds), num_patches), dtype=bool)
        np.put_along_axis(target, smallest, True, axis=1)
        return target_and_rest(target, self.grid)

    def shapes(self) -> tuple[TokenShape, ...]:
        """One shape, because every image has the same number of target patches."""
        num_context = self.grid[0] * self.grid[1] - self._num_targeted
        return (TokenShape(num_context, self._num_targeted, probability=1.0, num_targets=1),)
