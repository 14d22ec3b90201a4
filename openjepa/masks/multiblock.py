"""I-JEPA's multi-block masks without the biases of the released code (paper: arXiv 2301.08243, section 3 and appendix A).

Contexts of different sizes are cut to one size. Every cut here keeps each available patch with the same probability. The
released code keeps the first patches in raster order, so that the lower part of the image is rarely context.
"""

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import product
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from openjepa.masks.blocks import (
    block_sizes,
    check_context_fits,
    check_targets_fit,
    covered,
    place_blocks,
    raster_indices,
    scaled_min_keep,
)
from openjepa.masks.official_draws import OfficialMultiblock
from openjepa.masks.sampler import MaskSampler, TokenShape, summed_shapes
from openjepa.refusals import Refusal
from openjepa.seeds import derive, derive_samples, uniforms
from openjepa.settings.derived import resolved
from openjepa.settings.fields import check_ranges
from openjepa.settings.masks import MultiblockSettings
from openjepa.types import BlockMasks

_START = 1 << 32
"""Index of a cut's first number in a sample's sequence of random numbers. Earlier ones belong to the positions."""
TOKEN_MULTIPLE = 8
"""Contexts that are not cut are padded to a multiple of this many patches, so that few shapes occur."""
_ESTIMATE_PATCHES = 1 << 22
"""Limit on samples x targets x patches of the grid that are drawn to estimate quantities without a closed form."""

Cut = Callable[[Bool[np.ndarray, "B N"], int, NDArray[np.int64], tuple[int, int]], Bool[np.ndarray, "B N"]]
"""(available patches, `keep`, sample seeds, grid) -> the patches to keep: `keep` of them, or all if there are fewer."""


def random_subset(
    available: Bool[np.ndarray, "B N"], keep: int, seeds: NDArray[np.int64], grid: tuple[int, int]
) -> Bool[np.ndarray, "B N"]:
    """A uniformly random subset of the available patches, of size `keep`, or all of them if there are fewer."""
    keys = uniforms(seeds, available.shape[1], start=_START)
    keys[~available] = 2.0
    chosen = np.zeros_like(available)
    np.put_along_axis(chosen, np.argpartition(keys, keep - 1, axis=1)[:, :keep], True, axis=1)
    chosen &= available
    return chosen


def random_window(
    available: Bool[np.ndarray, "B N"], keep: int, seeds: NDArray[np.int64], grid: tuple[int, int]
) -> Bool[np.ndarray, "B N"]:
    """A contiguous sector: `keep` successive patches of the available ones, ordered by their angle around the grid's center.

    The first is drawn uniformly and the order is cyclic. Each of n available patches is therefore kept with probability
    keep / n exactly. The patches nearest to a random side or corner would not do, because they favor the border.
    """
    order = angular_order(grid)
    turned = available[:, order]
    num = np.maximum(turned.sum(axis=1), 1)
    first = (uniforms(seeds, 1, start=_START)[:, 0] * num).astype(np.int64)
    rank = (np.cumsum(turned, axis=1) - 1 - first[:, None]) % num[:, None]
    chosen = np.empty_like(available)
    chosen[:, order] = turned & (rank < keep)
    return chosen


def none(
    available: Bool[np.ndarray, "B N"], keep: int, seeds: NDArray[np.int64], grid: tuple[int, int]
) -> Bool[np.ndarray, "B N"]:
    """All available patches. Contexts thus differ in size and are padded."""
    return available


CUTS: dict[str, Cut] = {
    "random_subset": random_subset,
    "random_window": random_window,
    "smallest": random_subset,
    "none": none,
}
"""Cuts by their name in `masks.context_cut`."""


IGNORED: dict[str, tuple[str, ...]] = {
    "random_subset": ("min_keep", "cut_images"),
    "random_window": ("min_keep", "cut_images"),
    "smallest": ("context_ratio",),
    "none": ("context_ratio", "cut_images"),
}
"""Settings without effect for each cut."""


def angular_order(grid: tuple[int, int]) -> Int[np.ndarray, " N"]:
    """Raster indices of the patches, sorted by their angle around the grid's center. At equal angles, outer ones come first."""
    rows, columns = np.indices(grid)
    down, right = (rows - (grid[0] - 1) / 2).ravel(), (columns - (grid[1] - 1) / 2).ravel()
    order: Int[np.ndarray, " N"] = np.lexsort((-np.hypot(down, right), np.arctan2(down, right)))
    return order


def pack_indices(
    chosen: Bool[np.ndarray, "B N"], num_tokens: int
) -> tuple[Int[np.ndarray, "B K"], Bool[np.ndarray, "B K"] | None]:
    """Raster indices of the chosen patches, ascending, and a mask of those that are not padding (None if there is no padding).

    Rows with fewer than `num_tokens` patches are padded with index 0.
    """
    num = chosen.sum(axis=1)
    if (num == num_tokens).all():
        return np.nonzero(chosen)[1].reshape(len(chosen), num_tokens), None
    indices = np.argsort(~chosen, axis=1, kind="stable")[:, :num_tokens]
    valid = np.arange(num_tokens) < num[:, None]
    return np.where(valid, indices, 0), valid


def mean_of_smallest(values: Int[np.ndarray, " S"], number: int) -> float:
    """Mean of the smallest of `number` values that are drawn from S values without replacement, over all such draws."""
    largest_first = np.sort(values)[::-1]
    rank = np.arange(len(values))  # number of values that are at least as large
    chances = np.ones(len(values))  # of all others being among the larger ones, up to a constant
    for other in range(1, number):
        chances *= np.maximum(rank - other + 1, 0) / (len(values) - other)
    return float((largest_first * chances).sum() * number / len(values))


def build_multiblock(settings: MultiblockSettings, grid: tuple[int, int]) -> MaskSampler:
    """The sampler for `settings.mode` on a grid of H x W patches. Raises Refusal if the settings are impossible there."""
    check_ranges(settings, "masks.")
    if min(grid) < 1:
        raise Refusal(f"a grid of {grid[0]}x{grid[1]} patches has no room for masks: use larger images or smaller patches")
    if settings.mode == "official":
        _warn_ignored(settings, "mode='official'", ("context_cut", "context_ratio", "cut_images", "max_redraws"))
        return OfficialMultiblock(settings, grid)
    _warn_ignored(settings, f"context_cut={settings.context_cut!r}", IGNORED[settings.context_cut])
    return UnbiasedMultiblock(settings, grid)


def _warn_ignored(settings: MultiblockSettings, because: str, names: tuple[str, ...]) -> None:
    defaults = {item.name: item.default for item in fields(settings)}
    for name in names:
        if getattr(settings, name) != defaults[name]:
            warnings.warn(f"masks.{name}={getattr(settings, name)!r} has no effect with masks.{because}", stacklevel=3)


@dataclass(frozen=True)
class BlockLayout:
    """Positions of the blocks of each sample, and the patches that they leave to the context."""

    targets: Int[np.ndarray, "B M 2"]
    """Top and left of the target blocks."""
    available: Bool[np.ndarray, "B N"]
    """Patches of the context block that lie in no target."""
    redrawn: int
    """Number of samples that were drawn more than once."""
    short: int
    """Number of samples that still have too few available patches."""


@final
class UnbiasedMultiblock(MaskSampler):
    """Multi-block masks with scale and aspect drawn separately (both uniform), uniform positions, and unbiased cuts.

    The sizes of the target and the context block are shared by a mask group and depend on (`group_seed`, `step`). Positions and
    cut depend on the sample's own seed. A sample has too few available patches if it has fewer than K, or if
    `context_cut="none"`, at most `min_keep` (scaled down on grids under 14x14). It then draws its positions again, at most
    `max_redraws` times. If that fails, its best draw is padded. A sample never has an empty context.

    The size K of a context that is cut is `context_ratio` of the grid. If `context_cut="smallest"`, it is what the smallest of
    `cut_images` contexts has on average, and more than `min_keep`. That K depends only on the block sizes of the mask group, so
    that it does not depend on which other images a process sees.
    """

    def __init__(self, settings: MultiblockSettings, grid: tuple[int, int]) -> None:
        """Raises Refusal if a target may cover the whole grid, or if most draws leave too small a context."""
        num_patches = grid[0] * grid[1]
        self.name = f"multiblock/unbiased/{settings.context_cut}"
        self.grid = grid
        self.target_sizes = block_sizes(grid, settings.target_scale, settings.target_aspect)
        self.context_sizes = block_sizes(grid, settings.context_scale, settings.context_aspect, relative=True)
        check_targets_fit(settings, grid, int(self.target_sizes.areas.max()))
        self._settings = settings
        least = max(1, round(settings.context_ratio * num_patches))
        if settings.context_cut in ("none", "smallest"):
            least = 1 + scaled_min_keep(resolved(settings.min_keep), grid)
        self._least = least
        num_available = self._estimate_available()
        check_context_fits(settings, grid, num_available, least)
        self._smallest = self._smallest_contexts() if settings.context_cut == "smallest" else {}
        self.available_ratio = float(num_available.mean()) / num_patches
        """Mean fraction of the patches that the context has before it is cut (estimated from first draws)."""

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> BlockMasks:
        """Context and targets of the samples [B]. `redrawn` and `padded` count samples."""
        target, context = self._group_sizes(np.array([derive("group", group_seed, step)]))
        keep = self._smallest.get((*target[0].tolist(), *context[0].tolist()), self._least)
        layout = self._lay_out(sample_seeds, target, context, keep)
        chosen = CUTS[self._settings.context_cut](layout.available, keep, sample_seeds, self.grid)
        num_tokens = self._padded_length(chosen) if self._settings.context_cut == "none" else keep
        indices, valid = pack_indices(chosen, num_tokens)
        targets = raster_indices(layout.targets, (int(target[0, 0]), int(target[0, 1])), self.grid[1])
        return BlockMasks(
            context=torch.from_numpy(indices),
            targets=torch.from_numpy(targets),
            grid=self.grid,
            context_valid=None if valid is None else torch.from_numpy(valid),
            redrawn=layout.redrawn,
            padded=layout.short,
        )

    def shapes(self) -> tuple[TokenShape, ...]:
        """Exact if contexts are cut. If `context_cut="none"`, an estimate for microbatches of `group_size` (or 128).

        The estimate depends on the fullest context of a microbatch. Multiples of 8 rarer than about 1 % may be missing.
        """
        if self._settings.context_cut == "none":
            return self._estimate_shapes()
        if self._settings.context_cut == "smallest":
            return self._smallest_shapes()
        areas, size_area = np.unique(self.target_sizes.areas, return_inverse=True)
        shares = np.bincount(size_area, weights=self.target_sizes.probabilities)
        order = np.argsort(-shares, kind="stable")
        return tuple(TokenShape(self._least, int(areas[i]), float(shares[i]), self._settings.num_targets) for i in order)

    def _group_sizes(self, seeds: NDArray[np.int64]) -> tuple[Int[np.ndarray, "G 2"], Int[np.ndarray, "G 2"]]:
        """Rows and columns of the target block and of the context block of each group."""
        numbers = uniforms(seeds, 2)
        return self.target_sizes.pick(numbers[:, 0]), self.context_sizes.pick(numbers[:, 1])

    def _lay_out(
        self, seeds: NDArray[np.int64], target: Int[np.ndarray, "#B 2"], context: Int[np.ndarray, "#B 2"], needed: int
    ) -> BlockLayout:
        """Positions for blocks of one size, or of one size per sample, drawn again if fewer than `needed` patches are left."""
        sizes = np.broadcast_to(target, (len(seeds), 2)), np.broadcast_to(context, (len(seeds), 2))
        corners, available = self._draw(seeds, *sizes, attempt=0)
        num_available = available.sum(axis=1)
        redrawn = int((num_available < needed).sum())
        for attempt in range(1, self._settings.max_redraws + 1):
            failed = np.nonzero(num_available < needed)[0]
            if len(failed) == 0:
                break
            again, left = self._draw(seeds[failed], sizes[0][failed], sizes[1][failed], attempt)
            better = left.sum(axis=1) > num_available[failed]
            corners[failed[better]], available[failed[better]] = again[better], left[better]
            num_available = available.sum(axis=1)
        for sample in np.nonzero(num_available == 0)[0]:
            self._stack_targets(corners, available, sizes[0], int(sample))
        return BlockLayout(corners, available, redrawn, int((num_available < needed).sum()))

    def _draw(
        self, seeds: NDArray[np.int64], target: Int[np.ndarray, "B 2"], context: Int[np.ndarray, "B 2"], attempt: int
    ) -> tuple[Int[np.ndarray, "B M 2"], Bool[np.ndarray, "B N"]]:
        """One draw of all positions: corners of the targets, and the patches left to the context."""
        num_targets = self._settings.num_targets
        num_numbers = 2 * (num_targets + 1)
        numbers = uniforms(seeds, num_numbers, start=attempt * num_numbers).reshape(len(seeds), num_targets + 1, 2)
        corners = place_blocks(numbers[:, 1:], target[:, None], self.grid)  # [B, M, 2]
        in_target = covered(corners, target[:, None], self.grid).any(axis=1)  # [B, H, W]
        in_context = covered(place_blocks(numbers[:, 0], context, self.grid), context, self.grid)
        return corners, (in_context & ~in_target).reshape(len(seeds), -1)

    def _stack_targets(
        self,
        corners: Int[np.ndarray, "B M 2"],
        available: Bool[np.ndarray, "B N"],
        target: Int[np.ndarray, "B 2"],
        sample: int,
    ) -> None:
        """Makes a context for a sample whose draws all left none. Its targets are put on one another; the rest is context."""
        corners[sample] = corners[sample, :1]
        available[sample] = ~covered(corners[sample, 0], target[sample], self.grid).reshape(-1)

    def _padded_length(self, chosen: Bool[np.ndarray, "B N"]) -> int:
        most = int(chosen.sum(axis=1).max(initial=1))
        return min(-(-most // TOKEN_MULTIPLE) * TOKEN_MULTIPLE, self.grid[0] * self.grid[1])

    def _estimate_available(self) -> Int[np.ndarray, " S"]:
        """Number of available patches of many samples in their first draw. Each sample has its own block sizes."""
        num_samples = max(256, min(4096, _ESTIMATE_PATCHES // (self.grid[0] * self.grid[1] * self._settings.num_targets)))
        seeds = derive_samples("mask", 0, np.zeros(1, np.int64), np.arange(num_samples))
        _, available = self._draw(seeds, *self._group_sizes(seeds + 1), attempt=0)
        num_available: Int[np.ndarray, " S"] = available.sum(axis=1)
        return num_available

    def _smallest_contexts(self) -> dict[tuple[int, int, int, int], int]:
        """Number of patches of the cut context, for each size of the target block and of the context block."""
        images = self._settings.cut_images
        seeds = derive_samples("mask", 0, np.zeros(1, np.int64), np.arange(max(512, 4 * images)))
        found = {}
        for target, context in product(self.target_sizes.sizes, self.context_sizes.sizes):
            sizes = np.broadcast_to(target, (len(seeds), 2)), np.broadcast_to(context, (len(seeds), 2))
            smallest = mean_of_smallest(self._draw(seeds, *sizes, attempt=0)[1].sum(axis=1), images)
            found[(*target.tolist(), *context.tolist())] = max(self._least, round(smallest))
        return found

    def _smallest_shapes(self) -> tuple[TokenShape, ...]:
        pairs = product(self.target_sizes.probabilities, self.context_sizes.probabilities)
        parts = [
            (keep, rows * columns, target * context)
            for ((rows, columns, _, _), keep), (target, context) in zip(self._smallest.items(), pairs, strict=True)
        ]
        return summed_shapes(parts, self._settings.num_targets)

    def _estimate_shapes(self) -> tuple[TokenShape, ...]:
        """Shapes of the same microbatches for each size of the target block, weighted by the known probability of that size."""
        num_samples = min(self._settings.group_size or 128, 256)
        patches = self.grid[0] * self.grid[1] * self._settings.num_targets * num_samples
        num_groups = max(8, min(64, _ESTIMATE_PATCHES // (2 * patches)))
        seeds = derive_samples("mask", 0, np.zeros(1, np.int64), np.arange(num_groups * num_samples))
        context = np.repeat(self._group_sizes(seeds[:num_groups] + 1)[1], num_samples, axis=0)
        probabilities: Counter[tuple[int, int]] = Counter()
        for size, probability in zip(self.target_sizes.sizes, self.target_sizes.probabilities, strict=True):
            available = self._lay_out(seeds, size[None], context, self._least).available.reshape(num_groups, num_samples, -1)
            for group in available:
                probabilities[self._padded_length(group), int(size.prod())] += probability / num_groups
        return tuple(
            TokenShape(*shape, float(share), self._settings.num_targets) for shape, share in probabilities.most_common()
        )
