"""Settings of the linear probe that is trained on augmented images, as in the paper."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class FullLinearSettings:
    """Heads trained on augmented views of a frozen encoder. What is None is the benchmark's own value (docs/evaluation.md)."""

    epochs: int | None = None
    """Passes over the training split (authors: ImageNet 50, Places205 14, iNat18 84, CIFAR100 28, Clevr/Count 50, Dist 100)."""
    batch_size: int | None = None
    """Images per step (authors: ImageNet 16,384, the others 256)."""
    optimizer: Literal["lars", "sgd"] | None = None
    """Authors: LARS on ImageNet, SGD with Nesterov momentum elsewhere."""
    learning_rates: tuple[float, ...] = ()
    """Peak rates, absolute; every head is trained with each of them. Empty: the benchmark's own."""
    weight_decays: tuple[float, ...] = ()
    """Every head is trained with each of them. Empty: the benchmark's own."""
    augmentation: Literal["crop_flip", "squash_flip", "none"] | None = None
    """`crop_flip`: RandomResizedCrop and mirroring; `squash_flip`: whole image resized, mirrored; `none`: the test view."""
