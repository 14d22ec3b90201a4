"""One rolled block is the context, and whole blocks of the rest are the targets.

The context is what data2vec 2.0 (arXiv 2212.07525, section 3.3) calls inverse block masking: the block says what is kept. CAPI
(arXiv 2502.08769) rolls it, so that the border is context as often as the middle. Targets in whole blocks are I-JEPA's.
"""

from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from openjepa.masks.blocks import BlockSizes, block_sizes, covered, raster_indices, within
from openjepa.masks.sampler import MaskSampler, TokenShape, summed_shapes
from openjepa.refusals import Refusal
from openjepa.seeds import derive, uniforms
from openjepa.settings.fields import check_ranges
from openjepa.settings.masks import InverseBlockSettings
from openjepa.types import BlockMasks


@final
class InverseBlock(MaskSampler):
    """A context block that goes on at the opposite border if it reaches beyond one, and target blocks that never touch it.

    The sizes of both are shared by a mask group. Targets do not go on at the opposite border: each is a rectangle in the image.

    Two rules make whole targets fit, so that nothing is ever drawn again, cut or padded. The size of the targets is drawn from
    those that fit beside a context of the group's size: beside 9x9 of 14x14 patches, targets of 5x7 fit, but none of 6x6. And a
    context in the middle may leave no room on any side, so a context is uniform over the positions that leave room for at least
    one target. Each target is then uniform over all positions that do not touch its context.
    """

    name = "inverse_block"

    def __init__(self, settings: InverseBlockSettings, grid: tuple[int, int]) -> None:
        """Raises Refusal if no target fits beside some context, or if some patch would never be context or never target."""
        check_ranges(settings, "masks.")
        self.grid = grid
        self.context_sizes = block_sizes(grid, settings.context_scale, settings.context_aspect, relative=True)
        self.target_sizes = block_sizes(grid, settings.target_scale, settings.target_aspect)
        self._num_targets = settings.num_targets
        self._beside = [_fitting(grid, context, self.target_sizes) for context in self.context_sizes.sizes]
        _check_room(settings, grid, self.context_sizes, self._beside)

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> BlockMasks:
        """Context and targets of the samples [B]."""
        drawn = uniforms(np.array([derive("group", group_seed, step)]), 2)[0]
        number = int(self.context_sizes.picked(drawn[0]))
        context, target = self.context_sizes.sizes[number], self._beside[number].pick(drawn[1])
        room = Room(self.grid, context, target)
        numbers = uniforms(sample_seeds, 1 + self._num_targets)
        contexts = room.contexts(numbers[:, 0])
        inside = covered(contexts, context, self.grid, rolled=True).reshape(len(contexts), -1)
        indices = np.nonzero(inside)[1].reshape(len(contexts), -1)
        corners = room.targets(contexts, numbers[:, 1:])
        targets = raster_indices(corners, (int(target[0]), int(target[1])), self.grid[1])
        return BlockMasks(torch.from_numpy(indices), torch.from_numpy(targets), self.grid)

    def shapes(self) -> tuple[TokenShape, ...]:
        """Exact: one shape for each pair of areas of the two blocks."""
        parts = [
            (context, target, share * given)
            for context, share, beside in zip(
                self.context_sizes.areas, self.context_sizes.probabilities, self._beside, strict=True
            )
            for target, given in zip(beside.areas, beside.probabilities, strict=True)
        ]
        return summed_shapes(parts, self._num_targets)


class Room:
    """Positions of a context block of one size, and of the target blocks of one size beside it.

    A target misses the context if its rows miss the context's rows, or its columns miss the context's columns.
    """

    def __init__(self, grid: tuple[int, int], context: Int[np.ndarray, " 2"], target: Int[np.ndarray, " 2"]) -> None:
        """Compares every position of the context with every position of a target, for rows and for columns."""
        self.grid, self.context, self.target = grid, context, target
        self.rows, self.columns = (_apart(*sides) for sides in zip(grid, context.tolist(), target.tolist(), strict=True))
        self.allowed: Bool[np.ndarray, "H W"] = np.logical_or.outer(self.rows.any(axis=1), self.columns.any(axis=1))
        """True for every position of the context that leaves room for at least one target [H, W]."""

    def contexts(self, uniform: Float[np.ndarray, " B"]) -> Int[np.ndarray, "B 2"]:
        """Top and left of contexts, uniform over the allowed positions."""
        places = np.flatnonzero(self.allowed)
        return np.stack(np.divmod(places[(uniform * len(places)).astype(np.int64)], self.grid[1]), axis=-1)

    def targets(self, contexts: Int[np.ndarray, "B 2"], uniform: Float[np.ndarray, "B M"]) -> Int[np.ndarray, "B M 2"]:
        """Top and left of the targets of each context, uniform over the positions beside it."""
        free = self.rows[contexts[:, 0]][:, :, None] | self.columns[contexts[:, 1]][:, None, :]
        num_before = free.reshape(len(free), -1).cumsum(axis=1)  # [B, positions]
        chosen = (uniform * num_before[:, -1:]).astype(np.int64)  # [B, M]
        place = (num_before[:, None] <= chosen[:, :, None]).sum(axis=2)
        return np.stack(np.divmod(place, self.columns.shape[1]), axis=-1)

    def reached(self) -> tuple[Bool[np.ndarray, "H W"], Bool[np.ndarray, "H W"]]:
        """True for the patches that are context at some allowed position, and for those that are target beside one."""
        context, target = [], []
        for axis, apart in enumerate((self.rows, self.columns)):
            starts = np.flatnonzero(apart.any(axis=1))
            context.append(within(starts, self.context[axis], self.grid[axis], rolled=True).any(axis=0))
            starts = np.flatnonzero(apart.any(axis=0))
            target.append(within(starts, self.target[axis], self.grid[axis]).any(axis=0))
        return np.logical_or.outer(*context), np.logical_or.outer(*target)


def _apart(num: int, context: int, target: int) -> Bool[np.ndarray, "n P"]:
    """True if `target` successive lines from the second index miss `context` lines from the first, which may be rolled."""
    lines = within(np.arange(num), np.array(context), num, rolled=True)  # [n, n]
    blocks = within(np.arange(num - target + 1), np.array(target), num)  # [P, n]
    apart: Bool[np.ndarray, "n P"] = ~(lines[:, None] & blocks[None]).any(axis=2)
    return apart


def _fitting(grid: tuple[int, int], context: Int[np.ndarray, " 2"], targets: BlockSizes) -> BlockSizes:
    """The sizes of targets that fit beside a context of one size at some position. Their probabilities sum to 1 again."""
    fits = (targets.sizes <= np.array(grid) - context).any(axis=1)
    shares = targets.probabilities[fits]
    return BlockSizes(targets.sizes[fits], shares / shares.sum() if len(shares) else shares)


def _check_room(settings: InverseBlockSettings, grid: tuple[int, int], contexts: BlockSizes, beside: list[BlockSizes]) -> None:
    """Raises Refusal if no target fits beside a size of the context, or if all sizes together leave out a patch."""
    where = (
        f"masks.context_scale={settings.context_scale} with masks.target_scale={settings.target_scale} on "
        f"{grid[0]}x{grid[1]} patches"
    )
    fix = "lower the second value of masks.context_scale or both of masks.target_scale, or use a larger grid"
    reached = []
    for context, targets in zip(contexts.sizes, beside, strict=True):
        if not len(targets.sizes):
            raise Refusal(f"{where}: no target has room beside a context of {context[0]}x{context[1]} patches: {fix}")
        reached += [Room(grid, context, target).reached() for target in targets.sizes]
    for number, word in enumerate(("context", "a target")):
        missed = np.argwhere(~np.any([pair[number] for pair in reached], axis=0))
        if len(missed):
            row, column = missed[0]
            raise Refusal(f"{where}: the patch in row {row}, column {column} would never be {word}: {fix}")
