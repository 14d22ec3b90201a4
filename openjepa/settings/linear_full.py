"""Settings of the linear probe that is trained on augmented images, and each benchmark's own values for them."""

from dataclasses import dataclass
from typing import Literal

Augmentation = Literal["crop_flip", "center_flip", "squash_flip", "none"]
HeadOptimizer = Literal["lars", "sgd"]


@dataclass(frozen=True, kw_only=True)
class FullLinearSettings:
    """Heads trained on augmented views of a frozen encoder. What is None is the benchmark's own value (docs/evaluation.md)."""

    epochs: int | None = None
    """Passes over the training split (authors: ImageNet 50, Places205 14, iNat18 84, CIFAR100 28, Clevr/Count 50, Dist 100).
    The schedule is stretched to another number."""
    batch_size: int | None = None
    """Images per step (authors: ImageNet 16,384, the others 256). At most one epoch's images."""
    optimizer: HeadOptimizer | None = None
    """Authors: LARS on ImageNet, SGD with Nesterov momentum elsewhere."""
    learning_rates: tuple[float, ...] = ()
    """Peak rates, absolute; every head is trained with each of them. Empty: the benchmark's own, times batch size / its own."""
    weight_decays: tuple[float, ...] = ()
    """Every head is trained with each of them. Empty: the benchmark's own."""
    augmentation: Augmentation | None = None
    """`crop_flip`: RandomResizedCrop and mirroring; `center_flip`: test view of the center, mirrored (paper's words for Clevr);
    `squash_flip`: whole image resized, mirrored, and tested so, too (authors' base file of CIFAR100); `none`: the test view."""


@dataclass(frozen=True, kw_only=True)
class LinearRecipe:
    """How the heads of one benchmark are trained where FullLinearSettings says nothing else."""

    epochs: int
    """Passes over the training split."""
    milestones: tuple[int, ...] = ()
    """Epochs from which on the rate is a tenth of the one before. Empty: cosine to a hundredth of the peak, epoch by epoch."""
    batch_size: int = 256
    """Images per step that the rates are meant for."""
    optimizer: HeadOptimizer = "sgd"
    """LARS, or SGD with Nesterov momentum; momentum is 0.9 in both."""
    learning_rates: tuple[float, ...] = (0.01,)
    """Peak rates at `batch_size`, absolute."""
    weight_decays: tuple[float, ...] = (5e-4,)
    """Every head is trained with each of them."""
    augmentation: Augmentation | None = None
    """None: `squash_flip` where the test view is the whole image, else `crop_flip`."""
    interpolation: str = "bilinear"
    """Filter of random crops and whole images in training; test views, `none` and `center_flip` are bicubic."""


_CIFAR = LinearRecipe(epochs=28, milestones=(8, 16, 24), augmentation="crop_flip", interpolation="bicubic")

LINEAR_RECIPES: dict[str, LinearRecipe] = {
    "imagenet1k": LinearRecipe(
        epochs=50,
        milestones=(15, 30, 45),
        batch_size=16384,
        optimizer="lars",
        learning_rates=(6.4, 3.2, 0.64, 0.064),
        weight_decays=(5e-4, 0.0),
        augmentation="crop_flip",
        interpolation="bicubic",
    ),
    "places205": LinearRecipe(epochs=14, milestones=(4, 8, 12), augmentation="crop_flip"),
    "inat18": LinearRecipe(epochs=84, milestones=(24, 48, 72), augmentation="crop_flip"),
    "cifar100": _CIFAR,
    "cifar10": _CIFAR,
    "clevr_count": LinearRecipe(epochs=50, augmentation="squash_flip"),
    "clevr_dist": LinearRecipe(epochs=100, augmentation="squash_flip"),
}
"""By benchmark, or by task where its tasks differ (authors' VISSL configurations of the I-JEPA evaluations).

ImageNet: the authors' files train with 0.1 and 0.01 per 256 images, which is 6.4 and 0.64 at 16,384; the paper sweeps {0.05,
0.01, 0.001} and does not say whether per 256 images, which would be 3.2, 0.64 and 0.064. The four rates cover both. (Taken as
absolute, the paper's rates would hardly move a head, because LARS multiplies them by a thousandth of |w| / |g|.) CIFAR100:
the files for encoders without a class token crop at random; the base file, and the paper's words, resize the whole image: that
is `squash_flip`. CIFAR10 is not in the paper and is trained like CIFAR100. Clevr: the files resize the whole image; the paper's
words are `center_flip`.
"""

OWN_DATA_RECIPE = LinearRecipe(
    epochs=28, milestones=(8, 16, 24), learning_rates=(1.0, 0.1, 0.01), weight_decays=(5e-4, 0.0), interpolation="bicubic"
)
"""Other data: the schedule of CIFAR100 and, as nobody has tuned them, a wide sweep (ours)."""
