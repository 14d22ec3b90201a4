"""MaskSampler, the contract of every mask strategy, and NoMasks, for methods that compare whole views."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from openjepa.refusals import Refusal
from openjepa.settings.masks import NoMaskSettings
from openjepa.types import Masks


@dataclass(frozen=True)
class TokenShape:
    """Token counts of a batch of masks. Compiled code is specialized on them, so a strategy has only a few."""

    context: int
    target: int
    probability: float
    """Probability of this shape. Estimated if it has no closed form."""
    num_targets: int
    """Number of target blocks per image."""
    most_targets: int | None = None
    """Largest number of target tokens of an image; `target` is then the mean. None if all images have `target` tokens."""

    @property
    def places(self) -> int:
        """Number of places that are enough for the target tokens of any image."""
        return self.target if self.most_targets is None else self.most_targets


def summed_shapes(parts: Iterable[tuple[int, int, float]], num_targets: int) -> tuple[TokenShape, ...]:
    """Shapes from context tokens, target tokens and probability, the most frequent first. Equal counts become one shape."""
    shares: dict[tuple[int, int], float] = defaultdict(float)
    for context, target, probability in parts:
        shares[int(context), int(target)] += float(probability)
    ordered = sorted(shares.items(), key=lambda item: (-item[1], item[0]))
    return tuple(TokenShape(*tokens, share, num_targets) for tokens, share in ordered)


class MaskSampler(ABC):
    """Draws the masks of one microbatch on a fixed grid, without seeing the images. Concrete samplers are final.

    Everything that a mask group shares is a function of (`group_seed`, `step`). Everything that belongs to one sample is a
    function of its own seed. The masks of a sample thus do not depend on workers, processes or microbatches. The one exception
    is a sampler that imitates a sequential program.
    """

    name: str
    """Strategy and mode, as shown beside every result, e.g. `multiblock/unbiased/random_subset`."""
    grid: tuple[int, int]
    """Rows and columns of patches."""

    @abstractmethod
    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> Masks:
        """Masks of the samples [B]. Raster indices are int64."""

    @abstractmethod
    def shapes(self) -> tuple[TokenShape, ...]:
        """Every (context, target) token count that can occur, most frequent first. Probabilities sum to 1.

        A strategy whose counts depend on chance within the microbatch estimates them. Its docstring says so, and rare counts
        may be missing.
        """


@final
class NoMasks(MaskSampler):
    """The sampler for methods that ask for no masks."""

    name = "none"

    def __init__(self, settings: NoMaskSettings, grid: tuple[int, int]) -> None:
        """`grid` is the grid of the large views."""
        self.grid = grid

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> Masks:
        """Raises Refusal, because a method that asks for masks needs a strategy that draws them."""
        raise Refusal("masks.strategy=none draws no masks, but the method asks for them: choose another masks.strategy")

    def shapes(self) -> tuple[TokenShape, ...]:
        """One shape: all patches are context, none is a target."""
        return (TokenShape(context=self.grid[0] * self.grid[1], target=0, probability=1.0, num_targets=0),)
