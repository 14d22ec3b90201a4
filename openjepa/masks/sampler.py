"""MaskSampler: the contract of every mask strategy."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openjepa.types import Masks


@dataclass(frozen=True)
class TokenShape:
    """Token counts of a batch of masks; compiled code is specialized on them, so a strategy has only a few."""

    context: int
    target: int
    probability: float
    """How often this shape occurs (estimated where it has no closed form)."""
    num_targets: int
    """Target blocks per image."""
    most_targets: int | None = None
    """Most target tokens of one image, where images differ in their number and `target` is the mean."""

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
