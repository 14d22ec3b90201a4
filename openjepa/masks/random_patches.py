"""Single patches masked at random, with the same number in every image (MAE, MSN)."""

from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from openjepa.checks.grids import check_random_patches, num_visible_of
from openjepa.masks.sampler import MaskSampler, TokenShape
from openjepa.seeds import derive, uniforms
from openjepa.settings.derived import resolved
from openjepa.settings.masks import RandomPatchesSettings
from openjepa.types import TokenMask


@final
class RandomPatches(MaskSampler):
    """Keeps the int(N (1 - ratio)) patches with the smallest of N uniform numbers visible (MAE, section 3).

    Every set of that many patches is therefore equally likely. The numbers depend on the sample's own seed. If `shared` is set,
    they depend on the seed of the mask group and the step, so that all images of a group lose the same patches (MSN).
    """

    def __init__(self, settings: RandomPatchesSettings, grid: tuple[int, int]) -> None:
        """Raises Refusal if nothing would be masked on this grid, or nothing visible."""
        check_random_patches(settings, grid)
        self.name = f"random_patches/{resolved(settings.ratio):g}" + ("/shared" if settings.shared else "")
        self.grid = grid
        self._shared = settings.shared
        self._num_visible = num_visible_of(settings, grid)

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> TokenMask:
        """The masks of the samples [B]."""
        num_patches = self.grid[0] * self.grid[1]
        seeds = np.array([derive("group", group_seed, step)]) if self._shared else sample_seeds
        lowest_first = uniforms(seeds, num_patches).argpartition(self._num_visible - 1, axis=1)  # [B or 1, N]
        masked = np.ones((len(seeds), num_patches), dtype=bool)
        np.put_along_axis(masked, lowest_first[:, : self._num_visible], False, axis=1)
        masked = np.repeat(masked, len(sample_seeds) // len(seeds), axis=0)
        return TokenMask(torch.from_numpy(masked), self.grid, num_masked=num_patches - self._num_visible)

    def shapes(self) -> tuple[TokenShape, ...]:
        """One shape, because every image has the same number of visible patches."""
        num_masked = self.grid[0] * self.grid[1] - self._num_visible
        return (TokenShape(context=self._num_visible, target=num_masked, probability=1.0, num_targets=1),)
