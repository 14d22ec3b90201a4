"""MaskSampler, the contract of every mask strategy, and NoMasks, for methods that compare whole views."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from openjepa.refusals import Refusal
from openjepa.settings.masks import NoMaskSettings
from openjepa.types import Masks


@dataclass(frozen=True)
class TokenShape:
    """Token counts of a batch of masks; compiled code is specialized on them, so a strategy has only a few."""

    context: int
    target: int
    probability: float
    """How often this shape occurs. Estimated if it has no closed form."""
    num_targets: int
    """Target blocks per image."""
    most_targets: int | None = None
    """Largest number of target tokens of an image. None: all images have `target`; else `target` is their mean."""

    @property
    def places(self) -> int:
        """Places that hold the target tokens of any image."""
        return self.target if self.most_targets is None else self.most_targets


class MaskSampler(ABC):
    """Draws the masks of one microbatch on a fixed grid; knows no images. Concrete samplers are final.

    What a mask group shares is a function of (`group_seed`, `step`) alone and what belongs to one sample of its own seed, so
    the masks of a sample do not depend on workers, processes or microbatches. The one exception is a sampler that imitates a
    sequential program, which says so by `sequential`.
    """

    name: str
    """Strategy and mode as they appear beside every result, e.g. `multiblock/unbiased/random_subset`."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    sequential: bool = False
    """Whether the masks of a sample depend on the others of its microbatch."""

    @abstractmethod
    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> Masks:
        """Masks of the samples [B]; raster indices in int64."""

    @abstractmethod
    def shapes(self) -> tuple[TokenShape, ...]:
        """Every (context, target) token count that can occur, most frequent first; probabilities sum to 1.

        A strategy whose counts depend on chance within the microbatch estimates them, says so, and may miss rare ones.
        """


@final
class NoMasks(MaskSampler):
    """The sampler of a method that asks for masks on no view."""

    name = "none"

    def __init__(self, settings: NoMaskSettings, grid: tuple[int, int]) -> None:
        """`grid` is that of the large views."""
        self.grid = grid

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> Masks:
        """Raises Refusal: a method that asks for masks needs a strategy that draws them."""
        raise Refusal("masks.strategy=none draws no masks, but the method asks for them: choose another masks.strategy")

    def shapes(self) -> tuple[TokenShape, ...]:
        """One: all patches are context, none is a target."""
        return (TokenShape(context=self.grid[0] * self.grid[1], target=0, probability=1.0, num_targets=0),)
