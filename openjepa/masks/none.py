"""No masks: for methods that compare whole views."""

from typing import final

import numpy as np
from numpy.typing import NDArray

from openjepa.masks.sampler import MaskSampler, TokenShape
from openjepa.refusals import Refusal
from openjepa.settings.masks import NoMaskSettings
from openjepa.types import Masks


@final
class NoMasks(MaskSampler):
    """Stands where a sampler is expected, for a method that asks for masks on no view."""

    name = "none"

    def __init__(self, settings: NoMaskSettings, grid: tuple[int, int]) -> None:
        """`grid` is that of the large views."""
        self.grid = grid

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> Masks:
        """Raises Refusal: a method that asks for masks needs a strategy that draws them."""
        raise Refusal("masks.strategy=none draws no masks, but the method asks for them: choose another masks.strategy")

    def shapes(self) -> tuple[TokenShape, ...]:
        """All patches are seen and none is a target."""
        return (TokenShape(context=self.grid[0] * self.grid[1], target=0, probability=1.0, num_targets=0),)
