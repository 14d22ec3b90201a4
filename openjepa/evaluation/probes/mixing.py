"""Mixup (Zhang et al., 2018) and cutmix (Yun et al., 2019) of a batch on its device, and the soft targets that go with them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

Box = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


@dataclass(frozen=True)
class Mix:
    """How the images of a batch are mixed, each with the one before it (the first with the last): one draw for all."""

    own: float = 1.0
    """Share of an image that is its own, lambda. With a box exactly the area that stays."""
    box: Box | None = None
    """Where the other image stands (cutmix). None: a weighted mean of both everywhere (mixup)."""


def draw_mix(mixup: float, cutmix: float, size: tuple[int, int], seed: int) -> Mix:
    """lambda from Beta(alpha, alpha). The alphas are `mixup` and `cutmix`, 0 for never; with both, a coin says which it is.

    The box of cutmix has the shape of the image (`size`: height, width), the area 1 - lambda and a uniform center; what is
    outside of the image is cut off, and lambda is then what is left.
    """
    generator = np.random.default_rng(seed)
    is_cutmix = cutmix > 0 and (mixup == 0 or generator.random() < 0.5)
    alpha = cutmix if is_cutmix else mixup
    if alpha == 0:
        return Mix()
    own = float(generator.beta(alpha, alpha))
    if not is_cutmix:
        return Mix(own)
    top, height = _cut(size[0], own, int(generator.integers(0, size[0])))
    left, width = _cut(size[1], own, int(generator.integers(0, size[1])))
    return Mix(1.0 - height * width / (size[0] * size[1]), (top, left, height, width))


def _cut(side: int, own: float, center: int) -> tuple[int, int]:
    """Start and length of a box along one side."""
    half = int(side * math.sqrt(1.0 - own)) // 2
    start, end = max(0, center - half), min(side, center + half)
    return start, end - start


def mix_images(images: Float[Tensor, "B 3 h w"], mix: Mix) -> Float[Tensor, "B 3 h w"]:
    """Every image mixed with the one before it. `images` is not changed."""
    if mix.own == 1.0:
        return images
    others = images.roll(1, dims=0)
    if mix.box is None:
        return torch.lerp(others, images, mix.own)
    top, left, height, width = mix.box
    mixed = images.clone()
    mixed[:, :, top : top + height, left : left + width] = others[:, :, top : top + height, left : left + width]
    return mixed


def soft_targets(labels: Int[Tensor, " B"], num_classes: int, smoothing: float, mix: Mix) -> Float[Tensor, "B classes"]:
    """Probabilities [B, classes] that sum to 1: lambda t(own label) + (1 - lambda) t(the other's label).

    t(y) = (1 - smoothing) onehot(y) + smoothing / classes (Szegedy et al., 2016).
    """
    one_hot = functional.one_hot(labels, num_classes).to(torch.float32)
    mixed = torch.lerp(one_hot.roll(1, dims=0), one_hot, mix.own)
    return mixed * (1.0 - smoothing) + smoothing / num_classes
