"""Mixup (Zhang et al., 2018) and cutmix (Yun et al., 2019) of a batch on its device, and the soft targets of mixed images."""

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
    """One draw that says how a batch is mixed. Each image is mixed with the one before it (the first with the last)."""

    own: float = 1.0
    """lambda, an image's own share. With a box it is exactly the share of the area outside the box."""
    box: Box | None = None
    """The region taken from the other image (cutmix). None for a weighted mean of both images everywhere (mixup)."""


def draw_mix(mixup: float, cutmix: float, size: tuple[int, int], seed: int) -> Mix:
    """Draws lambda from Beta(alpha, alpha). alpha is `mixup` or `cutmix`; 0 turns it off. If both are set, a coin toss decides.

    The box of cutmix has the aspect ratio of the image (`size`: height, width), the area 1 - lambda and a uniform center. It is
    clipped to the image, and lambda is then set to the share that the clipped box leaves.
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
    """Start and length of the clipped box along one side."""
    half = int(side * math.sqrt(1.0 - own)) // 2
    start, end = max(0, center - half), min(side, center + half)
    return start, end - start


def mix_images(images: Float[Tensor, "B 3 h w"], mix: Mix) -> Float[Tensor, "B 3 h w"]:
    """Mixes every image with the one before it. `images` is not changed."""
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
    """Target probabilities, which sum to 1: lambda t(own label) + (1 - lambda) t(the other image's label).

    t(y) = (1 - smoothing) onehot(y) + smoothing / classes (Szegedy et al., 2016).
    """
    one_hot = functional.one_hot(labels, num_classes).to(torch.float32)
    mixed = torch.lerp(one_hot.roll(1, dims=0), one_hot, mix.own)
    return mixed * (1.0 - smoothing) + smoothing / num_classes
