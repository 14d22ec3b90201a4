"""The masks of the released I-JEPA program, draw for draw, with the biases that its published results include.

Written from the description of its draws in the parity data (tests/parity). It differs from the paper in four ways. One random
number sets both scale and aspect. A block is never as high or wide as the grid. The last position of a block is never drawn, so
that the last row and column are neither context nor target. Contexts are cut to the smallest of the batch by dropping their
last patches in raster order.
"""

import math
from collections import Counter
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from openjepa.masks.blocks import check_official_sizes, covered, raster_indices
from openjepa.masks.sampler import MaskSampler, TokenShape
from openjepa.seeds import derive_samples, uniforms
from openjepa.settings.derived import resolved
from openjepa.settings.masks import MaskSettings, MultiblockSettings
from openjepa.types import BlockMasks

TRIES_PER_TARGET = 20
"""Number of failures after which one target fewer is removed from the context."""
_ESTIMATE_STEPS = 256
"""Number of steps drawn to estimate how often each token shape occurs."""


@final
class OfficialMultiblock(MaskSampler):
    """A sequential sampler: one generator draws a microbatch image after image. Masks thus depend on how a batch is divided.

    Block sizes depend only on the step. If a context remains too small after many tries, targets may overlap it (as released).
    """

    def __init__(self, settings: MultiblockSettings, grid: tuple[int, int]) -> None:
        """Raises Refusal if blocks of at most `min_keep` patches can occur, which would be drawn again forever."""
        self.name = "multiblock/official"
        self.grid = grid
        self._settings = settings
        sizes = np.array([self._sizes(u, u) for u in np.linspace(0, 1, 2049)])  # [S, 2, 2]
        smallest_target, smallest_context = sizes.prod(axis=2).min(axis=0)
        check_official_sizes(settings, grid, int(smallest_target), int(smallest_context))

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> BlockMasks:
        """Masks of a microbatch. Its first sample's seed seeds the generator, which stands in for that of a released worker."""
        return self.draw(torch.Generator().manual_seed(int(sample_seeds[0])), step, len(sample_seeds))

    def draw(self, generator: torch.Generator, step: int, num_samples: int) -> BlockMasks:
        """The masks that the released program draws in its batch number `step` if `generator` is torch's global one."""
        targets, contexts, redrawn = self.draw_uncut(generator, step, num_samples)
        shortest = min(len(indices) for indices in contexts)
        return BlockMasks(
            context=torch.from_numpy(np.stack([indices[:shortest] for indices in contexts])),
            targets=torch.from_numpy(targets),
            grid=self.grid,
            redrawn=redrawn,
        )

    def draw_uncut(
        self, generator: torch.Generator, step: int, num_samples: int
    ) -> tuple[Int[np.ndarray, "B M T"], list[Int[np.ndarray, " K"]], int]:
        """Targets, contexts before the cut, and the number of contexts that were drawn more than once."""
        target, context = self.block_sizes(step)
        corners, contexts, redrawn = [], [], 0
        for _ in range(num_samples):
            corners.append([self._corner(target, generator) for _ in range(self._settings.num_targets)])
            indices, tries = self._draw_context(context, np.array(corners[-1]), target, generator)
            contexts.append(indices)
            redrawn += tries > 1
        return raster_indices(np.array(corners), target, self.grid[1]), contexts, redrawn

    def block_sizes(self, step: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rows, columns) of the target blocks and of the context block in this step."""
        generator = torch.Generator().manual_seed(step)
        target, context = torch.rand(1, generator=generator).item(), torch.rand(1, generator=generator).item()
        return self._sizes(target, context)

    def shapes(self) -> tuple[TokenShape, ...]:
        """An estimate for microbatches of `group_size` (or 128), from 256 steps. Rarer shapes may be missing.

        Positions are drawn as the program draws them. A context that it would draw again is counted as the fewest patches
        allowed.
        """
        microbatch = min(self._settings.group_size or 128, 256)
        counts: Counter[tuple[int, int]] = Counter()
        for step in range(_ESTIMATE_STEPS):
            target, context = self.block_sizes(step)
            seeds = derive_samples("mask", 0, np.array([step]), np.arange(microbatch))
            shortest = int(self._available(seeds, target, context).sum(axis=1).min())
            counts[max(shortest, resolved(self._settings.min_keep) + 1), target[0] * target[1]] += 1
        return tuple(
            TokenShape(*shape, count / _ESTIMATE_STEPS, self._settings.num_targets) for shape, count in counts.most_common()
        )

    def _sizes(self, target: float, context: float) -> tuple[tuple[int, int], tuple[int, int]]:
        """Block sizes from two numbers in [0, 1). Each number sets both the scale and the aspect of its block."""
        settings = self._settings
        return (
            self._size(target, settings.target_scale, settings.target_aspect),
            self._size(context, settings.context_scale, settings.context_aspect),
        )

    def _size(self, number: float, scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
        height, width = self.grid
        area = int(height * width * (scale[0] + number * (scale[1] - scale[0])))
        ratio = aspect[0] + number * (aspect[1] - aspect[0])
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        return min(rows, height - 1), min(columns, width - 1)

    def _corner(self, size: tuple[int, int], generator: torch.Generator) -> tuple[int, int]:
        """Top and left of a block. The upper ends are exclusive, so the last position is never drawn."""
        top = torch.randint(0, self.grid[0] - size[0], (1,), generator=generator)
        left = torch.randint(0, self.grid[1] - size[1], (1,), generator=generator)
        return int(top), int(left)

    def _draw_context(
        self,
        context: tuple[int, int],
        targets: Int[np.ndarray, "M 2"],
        target: tuple[int, int],
        generator: torch.Generator,
    ) -> tuple[Int[np.ndarray, " K"], int]:
        """Raster indices of one image's context, and the number of draws it took.

        Ends after at most 20 (M + 1) draws. By then no target is removed, and the block alone has more than `min_keep` patches.
        """
        tries = 0
        while True:
            corner = np.array(self._corner(context, generator))
            num_excluded = max(len(targets) - tries // TRIES_PER_TARGET, 0)
            allowed = covered(corner, np.array(context), self.grid)
            for other in targets[:num_excluded]:
                allowed[other[0] : other[0] + target[0], other[1] : other[1] + target[1]] = False
            indices = np.flatnonzero(allowed)
            tries += 1
            if len(indices) > resolved(self._settings.min_keep):
                return indices, tries

    def _available(
        self, seeds: NDArray[np.int64], target: tuple[int, int], context: tuple[int, int]
    ) -> Bool[np.ndarray, "B N"]:
        """Patches left to the context in the first draws of samples [B]. Same distribution, but drawn for all at once."""
        num_blocks = self._settings.num_targets + 1
        numbers = uniforms(seeds, 2 * num_blocks).reshape(len(seeds), num_blocks, 2)
        sizes = np.array([context] + [target] * self._settings.num_targets)  # [M + 1, 2]
        corners = (numbers * (np.array(self.grid) - sizes)).astype(np.int64)
        blocks = covered(corners, np.broadcast_to(sizes, corners.shape), self.grid)  # [B, M + 1, H, W]
        return (blocks[:, 0] & ~blocks[:, 1:].any(axis=1)).reshape(len(seeds), -1)


def microbatch_note(settings: MaskSettings, before: int, now: int) -> str | None:
    """What to say of a run that goes on with `now` instead of `before` images in a microbatch. None if it changes no masks."""
    if before == now or not (isinstance(settings, MultiblockSettings) and settings.mode == "official"):
        return None
    return (
        f"a microbatch had {before} images and now has {now}: masks.mode=official draws the images of a microbatch one after "
        f"another, so that the continued run gets other masks (optim.microbatch_size={before} keeps them)"
    )
