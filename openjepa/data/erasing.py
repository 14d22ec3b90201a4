"""Random erasing (Zhong et al., 2017) of uint8 views, and augmentations one after the other. Written from the paper."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from openjepa.data.augmented import Augment

TRIES = 10
"""Rectangles that are drawn until one fits; if none does, nothing is erased."""


@dataclass(frozen=True)
class RandomErasing:
    """With a probability, replaces one rectangle of a view by noise.

    Its area is uniform in `area`, its height / width uniform in the logarithm, its place uniform. The noise is Gaussian with
    the mean and standard deviation of the data per channel, independent for every pixel and channel: standard normal once
    pixels are normalized. It is rounded and clipped to 0 .. 255, because views are uint8; MAE erases after normalization and
    does not clip. Zhong et al. fill with uniform noise and erase up to 0.4 of the area.
    """

    probability: float = 0.25
    """MAE's."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of the channels in [0, 1] (ImageNet's)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Of the channels (ImageNet's)."""
    area: tuple[float, float] = (0.02, 1 / 3)
    """As a fraction of the view."""
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Height / width."""

    def __call__(self, view: UInt8[Tensor, "3 h w"], seed: int) -> UInt8[Tensor, "3 h w"]:
        """The view with a rectangle erased, or the view itself: a pure function of both."""
        generator = np.random.default_rng([seed, 1])  # not the numbers of another augmentation with the same seed
        if generator.random() >= self.probability:
            return view
        height, width = int(view.shape[1]), int(view.shape[2])
        for _ in range(TRIES):
            area = generator.uniform(*self.area) * height * width
            aspect = math.exp(generator.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < rows < height and 0 < columns < width:
                return self._erased(view, (rows, columns), generator)
        return view

    def _erased(
        self, view: UInt8[Tensor, "3 h w"], size: tuple[int, int], generator: np.random.Generator
    ) -> UInt8[Tensor, "3 h w"]:
        top = int(generator.integers(0, view.shape[1] - size[0] + 1))
        left = int(generator.integers(0, view.shape[2] - size[1] + 1))
        mean, std = (np.array(values, dtype=np.float32)[:, None, None] * 255 for values in (self.mean, self.std))
        noise = mean + std * generator.standard_normal((3, *size), dtype=np.float32)
        erased = view.clone()
        erased[:, top : top + size[0], left : left + size[1]] = torch.from_numpy(noise.round().clip(0, 255).astype(np.uint8))
        return erased


@dataclass(frozen=True)
class InTurn:
    """Augmentations one after the other, each with the same seed (they draw different numbers from it)."""

    augmentations: tuple[Augment, ...]

    def __call__(self, view: UInt8[Tensor, "3 h w"], seed: int) -> UInt8[Tensor, "3 h w"]:
        """The view after the last of them."""
        for augment in self.augmentations:
            view = augment(view, seed)
        return view
