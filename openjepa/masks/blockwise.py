"""Blocks of patches, masked until the desired share is reached (BEiT, arXiv 2106.08254, as data2vec and iBOT draw them)."""

from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from openjepa.checks.grids import check_blockwise, min_block_of, most_masked_of
from openjepa.masks.blocks import covered, place
from openjepa.masks.sampler import MaskSampler, TokenShape
from openjepa.seeds import derive_samples, uniforms
from openjepa.settings.masks import BlockwiseSettings
from openjepa.types import TokenMask

ATTEMPTS = 10
"""Number of blocks tried for each one that is needed. If none fits, the mask stays smaller (data2vec and iBOT: 10)."""
NUMBERS = 4
"""Random numbers per attempt: area, aspect, row, column."""
ESTIMATE_SAMPLES = 1024
"""Number of masks drawn to estimate how many patches are masked on average."""


@final
class Blockwise(MaskSampler):
    """Masks one rectangle after another, until the desired number of patches is masked or no further rectangle fits.

    The area of a block is uniform between `min_block` and the number of patches left to mask (even if that is less), or
    `max_block` if that is smaller. Its aspect is log-uniform. Both sides are rounded and must be smaller than the grid's. Its
    position is uniform. A block is accepted if it masks at least one more patch and at most as many as are left.

    The number of masked patches is therefore a little below the desired one, and differs between images. It is 0 if none of the
    first `ATTEMPTS` blocks is smaller than the grid, which happens on flat grids. data2vec and iBOT follow the same rule: their
    published programs differ only in how they choose the desired number. Everything depends only on the seed of the sample.
    """

    name = "blockwise"

    def __init__(self, settings: BlockwiseSettings, grid: tuple[int, int]) -> None:
        """Raises Refusal if the settings are impossible on this grid."""
        check_blockwise(settings, grid)
        self.grid = grid
        self._settings = settings
        self._min_block = min_block_of(settings, grid)
        self._ratios, self._spreads = np.array(settings.ratios), np.array(settings.spreads)

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> TokenMask:
        """The masks of the samples [B]. `group_seed` and `step` are not used."""
        masked = self._draw(sample_seeds).reshape(len(sample_seeds), -1)
        return TokenMask(masked=torch.from_numpy(masked), grid=self.grid)

    def shapes(self) -> tuple[TokenShape, ...]:
        """One shape: estimated mean numbers of visible and masked patches, and the largest possible number of masked ones."""
        seeds = derive_samples("mask", 0, np.zeros(1, np.int64), np.arange(ESTIMATE_SAMPLES))
        num_masked = round(float(self._draw(seeds).sum()) / ESTIMATE_SAMPLES)
        num_patches = self.grid[0] * self.grid[1]
        most = most_masked_of(self._settings, self.grid)
        return (TokenShape(num_patches - num_masked, num_masked, probability=1.0, num_targets=1, most_targets=most),)

    def _draw(self, seeds: NDArray[np.int64]) -> Bool[np.ndarray, "B H W"]:
        """Masks of all samples at once, one block per round. A sample is done if it finds no block or has nothing left."""
        masked = np.zeros((len(seeds), *self.grid), dtype=bool)
        left = self._wished(seeds)
        active = np.flatnonzero(left >= 1)
        start = 2
        while len(active):
            numbers = uniforms(seeds[active], ATTEMPTS * NUMBERS, start).reshape(len(active), ATTEMPTS, NUMBERS)
            sizes = self._sizes(numbers, left[active, None])
            corners = place(numbers[..., 2:], sizes, self.grid)  # [b, attempts, 2]
            added = sizes.prod(axis=-1) - _masked_within(masked[active], corners, sizes)
            fits = (sizes < self.grid).all(axis=-1) & (added >= 1) & (added <= left[active, None])
            found = np.flatnonzero(fits.any(axis=1))
            first = fits[found].argmax(axis=1)
            active = active[found]
            masked[active] |= covered(corners[found, first], sizes[found, first], self.grid)
            left[active] -= added[found, first]
            active = active[left[active] >= 1]
            start += ATTEMPTS * NUMBERS
        return masked

    def _wished(self, seeds: NDArray[np.int64]) -> Float[np.ndarray, " B"]:
        """Number of patches to mask in each image. If it is not whole (iBOT), it is in effect rounded down."""
        numbers = uniforms(seeds, 2)
        entry = (numbers[:, 0] * len(self._ratios)).astype(np.int64)
        ratio = self._ratios[entry] + self._spreads[entry] * (2 * numbers[:, 1] - 1)
        wished: Float[np.ndarray, " B"] = (ratio * self.grid[0] * self.grid[1]).round(6)  # 120/196 x 196 must give 120
        return wished

    def _sizes(self, numbers: Float[np.ndarray, "b A 4"], left: Float[np.ndarray, "b 1"]) -> Int[np.ndarray, "b A 2"]:
        """Rows sqrt(area x aspect) and columns sqrt(area / aspect) of every attempt."""
        largest = left if self._settings.max_block is None else np.minimum(left, self._settings.max_block)
        area = self._min_block + numbers[..., 0] * (largest - self._min_block)
        low, high = np.log(self._settings.aspect)
        aspect = np.exp(low + numbers[..., 1] * (high - low))
        sizes: Int[np.ndarray, "b A 2"] = np.rint(np.sqrt(np.stack([area * aspect, area / aspect], axis=-1))).astype(np.int64)
        return sizes


def _masked_within(
    masked: Bool[np.ndarray, "b H W"], corners: Int[np.ndarray, "b A 2"], sizes: Int[np.ndarray, "b A 2"]
) -> Int[np.ndarray, "b A"]:
    """Number of already masked patches in each rectangle, computed from sums over all rectangles that start at the first patch.

    For rectangles that reach beyond the grid the number has no meaning. They are rejected for their size.
    """
    sums = np.zeros((len(masked), masked.shape[1] + 1, masked.shape[2] + 1), dtype=np.int64)
    sums[:, 1:, 1:] = masked.cumsum(axis=1).cumsum(axis=2)
    limits = np.array(masked.shape[1:])
    top, left = np.moveaxis(corners.clip(0, limits), -1, 0)
    bottom, right = np.moveaxis((corners + sizes).clip(0, limits), -1, 0)
    sample = np.arange(len(masked))[:, None]
    within: Int[np.ndarray, "b A"] = (
        sums[sample, bottom, right] - sums[sample, top, right] - sums[sample, bottom, left] + sums[sample, top, left]
    )
    return within
