"""Settings of evaluations of an encoder: a group for each protocol that has its own settings, and those that all share.

This file also holds the published values of the linear probe and of fine-tuning, which replace settings that are None.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from openjepa.refusals import Refusal
from openjepa.settings.fields import (
    ABOVE_0,
    AT_LEAST_1,
    AT_LEAST_2,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SHARE_ABOVE_0,
    SHARE_BELOW_1,
    SWEPT,
    NamesOf,
    Range,
    between,
)

PERCENT = Range(ABOVE_0, 100, "above 0 and at most 100")


@dataclass(frozen=True, kw_only=True)
class LowShotSettings:
    """Which images are labeled: those of a list, or a draw from each class. Give at most one of the first three settings."""

    list: str | None = None
    """Text file with one image per line, like the published 1 % list of ImageNet (12,811 names like n01440764_10043.JPEG)."""
    percent: Annotated[float | None, PERCENT] = None
    """Percent of the images of each class that are labeled, at least one image."""
    images_per_class: Annotated[int | None, AT_LEAST_1] = None
    """Images of each class that are labeled (k-shot)."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of the draw."""

    def is_set(self) -> bool:
        """True if only some of the images are labeled."""
        return not (self.list is None and self.percent is None and self.images_per_class is None)


@dataclass(frozen=True, kw_only=True)
class AttentiveSettings:
    """One learned query that attends to the frozen encoder's patches, an MLP and a linear layer (V-JEPA's probe)."""

    epochs: Annotated[int, AT_LEAST_1] = 20
    """Passes over the training split (V-JEPA: 20)."""
    batch_size: Annotated[int, AT_LEAST_1] = 256
    """Images per step, at most those of one epoch (V-JEPA: 1,024)."""
    learning_rates: Annotated[tuple[float, ...], POSITIVE, SWEPT] = (1e-3, 3e-4, 1e-4)
    """Peak learning rates, falling to 0 along a cosine. One probe is trained with each, all in one pass (V-JEPA: 1e-3)."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-3
    """AdamW's weight decay of matrices and the query (V-JEPA: 1e-3)."""


@dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """k-NN and linear probe on patch features, without a decoder. The label of a patch comes from the pixels that it covers."""

    max_patches: Annotated[int, AT_LEAST_1] = 50_000
    """Most training patches, drawn uniformly over all images with the seed. The time of k-NN is proportional to it: 50,000 take
    28 s on one core, on the packaged scenes with ViT-nano."""


@dataclass(frozen=True, kw_only=True)
class LogisticSettings:
    """Multinomial logistic regression on standardized features (after MSN's low-shot evaluation)."""

    penalties: Annotated[tuple[float, ...], POSITIVE, SWEPT] = (1e-1, 1e-2, 2.5e-3, 1e-3, 2.5e-4, 1e-4, 1e-5)
    """lambda in mean cross-entropy + lambda / 2 |W|^2. Swept from the strongest, each starting at the previous solution."""
    gradient_norm: Annotated[float, POSITIVE] = 1e-4
    """Solved if the gradient's norm is at most this, and also at most `relative_gradient` times lambda |W|."""
    relative_gradient: Annotated[float, POSITIVE] = 0.01
    """Largest gradient norm as a share of lambda |W|. It bounds the distance to the optimal weights as a share of |W|, whereas
    for weak penalties a small gradient says little. (The bound never goes below the rounding of float32.)"""
    iterations: Annotated[int, AT_LEAST_1] = 500
    """Most passes over the images for one lambda. Gradients and products with the Hessian count."""


Augmentation = Literal["crop_flip", "center_flip", "squash_flip", "none"]
HeadOptimizer = Literal["lars", "sgd"]


@dataclass(frozen=True, kw_only=True)
class FullLinearSettings:
    """Heads trained on augmented views of a frozen encoder. None means the benchmark's own value (docs/evaluation.md)."""

    epochs: Annotated[int | None, AT_LEAST_1] = None
    """Passes over the training split (authors: ImageNet 50, Places205 14, iNat18 84, CIFAR100 28, Clevr/Count 50, Dist 100).
    The schedule is stretched to this number."""
    batch_size: Annotated[int | None, AT_LEAST_1] = None
    """Images per step, at most those of one epoch (authors: ImageNet 16,384, the others 256)."""
    optimizer: HeadOptimizer | None = None
    """Optimizer (authors: LARS on ImageNet, SGD with Nesterov momentum elsewhere)."""
    learning_rates: Annotated[tuple[float, ...], POSITIVE, SWEPT] = ()
    """Peak learning rates, absolute. Every head is trained with each. Empty: the benchmark's, scaled with the batch size."""
    weight_decays: Annotated[tuple[float, ...], NOT_NEGATIVE, SWEPT] = ()
    """Weight decays. Every head is trained with each. Empty: the benchmark's."""
    augmentation: Augmentation | None = None
    """`crop_flip`: RandomResizedCrop and mirroring; `center_flip`: the test view, which is the center, mirrored (paper's words
    for Clevr); `squash_flip`: the whole image resized and mirrored, and resized in the test too (authors' base file of
    CIFAR100); `none`: the test view."""


@dataclass(frozen=True, kw_only=True)
class LinearRecipe:
    """How the heads of one benchmark are trained, unless FullLinearSettings says otherwise."""

    epochs: int
    """Passes over the training split."""
    milestones: tuple[int, ...] = ()
    """Epochs at which the rate is divided by ten. Empty: it falls along a cosine to a hundredth of the peak, epoch by epoch."""
    batch_size: int = 256
    """Images per step for which the rates are meant."""
    optimizer: HeadOptimizer = "sgd"
    """LARS, or SGD with Nesterov momentum; momentum is 0.9 in both."""
    learning_rates: tuple[float, ...] = (0.01,)
    """Peak learning rates at `batch_size`, absolute. Every head is trained with each."""
    weight_decays: tuple[float, ...] = (5e-4,)
    """Weight decays. Every head is trained with each."""
    augmentation: Augmentation | None = None
    """As in FullLinearSettings. None: `squash_flip` if the test view is the whole image, else `crop_flip`."""
    interpolation: str = "bilinear"
    """Filter for random crops and whole images in training. Test views, `none` and `center_flip` use bicubic."""


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
"""Recipes by benchmark, or by task if its tasks differ (authors' VISSL configurations of the I-JEPA evaluations).

ImageNet: the authors' files train with 0.1 and 0.01 per 256 images, which is 6.4 and 0.64 at 16,384. The paper sweeps {0.05,
0.01, 0.001} and does not say if these are per 256 images; they would then be 3.2, 0.64 and 0.064. The four rates cover both.
(If the paper's rates were absolute, they would hardly move a head, because LARS multiplies them by a thousandth of |w| / |g|.)
CIFAR100: the files for encoders without a class token crop at random. The base file and the paper's words resize the whole
image, which is `squash_flip`. CIFAR10 is not in the paper and is trained like CIFAR100. Clevr: the files resize the whole
image; the paper's words mean `center_flip`.
"""

OWN_DATA_RECIPE = LinearRecipe(
    epochs=28, milestones=(8, 16, 24), learning_rates=(1.0, 0.1, 0.01), weight_decays=(5e-4, 0.0), interpolation="bicubic"
)
"""Recipe for other data (ours): the schedule of CIFAR100, with a wide sweep because nobody has tuned the rates."""


RecipeName = Literal["low_shot", "paper", "mae"]
RateUnit = Literal["absolute", "per_256"]
HeadNorm = Literal["after_pooling", "encoder"]

WARMUP_EPOCHS = 5.0
"""Warm-up of every fine-tuning recipe (MAE's). Neither part of the I-JEPA paper gives the length of its warm-up."""


class ProtocolSettings:
    """Base of groups whose settings must fit one another. Ranges of single settings stand on the fields."""

    def check(self, is_low_shot: bool) -> None:
        """Raises Refusal for settings that cannot work together. `is_low_shot`: only some images are labeled."""

    def remarks(self) -> list[str]:
        """The settings that were changed and have no effect beside the others of the group, in words."""
        return []


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(ProtocolSettings):
    """Fine-tuning: trains the whole encoder and a linear head with labels (I-JEPA, low-shot and appendix D; MAE's recipe)."""

    recipe: RecipeName | None = None
    """Recipe whose values replace settings that are None. `low_shot`: I-JEPA with 1 % of the labels; `paper`: I-JEPA with all
    labels (appendix D); `mae`: MAE. None: `low_shot` if only some images are labeled, else `paper`."""
    epochs: Annotated[int | None, AT_LEAST_1] = None
    """Passes over the training split (I-JEPA 50; MAE 100 for ViT-B, 50 for L and H)."""
    batch_size: Annotated[int | None, AT_LEAST_1] = None
    """Images per step, at most those of one epoch (low-shot 512, appendix D 528 as printed, MAE 1,024)."""
    microbatch_size: Annotated[int | None, AT_LEAST_1] = None
    """Images per forward and backward, to save memory. Gradients are summed over the batch. None: the whole batch."""
    learning_rates: Annotated[tuple[float, ...], POSITIVE, SWEPT] = ()
    """Peak learning rates of the head. A model is trained with each. Empty: the recipe's one (low-shot 3e-5, appendix D 1e-4,
    MAE 5e-4 for ViT-B and 1e-3 for L and H)."""
    rate_unit: RateUnit | None = None
    """`absolute`, or `per_256`: multiplied by batch size / 256, as MAE's code does with its base rates. The I-JEPA paper does
    not say which it means. As printed its rates are absolute, the default of both I-JEPA recipes (MAE: per_256)."""
    final_lr: Annotated[float, NOT_NEGATIVE] = 1e-6
    """Learning rate at the end of the cosine, before layer-wise decay (MAE's; the I-JEPA paper does not say)."""
    warmup_epochs: Annotated[float | None, NOT_NEGATIVE] = None
    """Epochs in which the learning rate rises from 0 (MAE: 5; the I-JEPA paper does not say)."""
    weight_decay: Annotated[float | None, NOT_NEGATIVE] = None
    """AdamW's weight decay, without biases, norms and class token (low-shot 0.05, for ViT-H 0.4; appendix D 0.04; MAE 0.05)."""
    layer_decay: Annotated[float | None, SHARE_ABOVE_0] = None
    """Block l of L learns at the head's rate times this to the power of L + 1 - l. The patch embedding has l = 0 (I-JEPA 0.75;
    MAE 0.65 for ViT-B, 0.75 for L and H)."""
    drop_path: Annotated[float | None, SHARE_BELOW_1] = None
    """Largest stochastic-depth rate; it grows linearly over the blocks (low-shot 0, appendix D 0.25, MAE B / L / H 0.1 / 0.2 /
    0.3)."""
    label_smoothing: Annotated[float | None, SHARE_BELOW_1] = None
    """Share of the target that is spread over all classes (low-shot and MAE 0.1; appendix D does not say: 0.1)."""
    mixup: Annotated[float | None, NOT_NEGATIVE] = None
    """alpha of Beta(alpha, alpha) for mixup; 0: none (low-shot 0, appendix D and MAE 0.8)."""
    cutmix: Annotated[float | None, NOT_NEGATIVE] = None
    """alpha for cutmix; 0: none. If both are on, each batch gets one of them at random (low-shot 0, else 1.0)."""
    random_erasing: Annotated[float | None, SHARE] = None
    """Probability of erasing a rectangle of a view (low-shot 0, MAE 0.25; appendix D does not list it: 0)."""
    randaugment: bool | None = None
    """Apply RandAugment to the views (all recipes do: `rand-m9-mstd0.5-inc1`)."""
    magnitude: Annotated[float, between(0, 10)] = 9.0
    """Strength of RandAugment's operations, at most 10."""
    magnitude_std: Annotated[float, NOT_NEGATIVE] = 0.5
    """Standard deviation of the magnitude from one operation to the next."""
    head_norm: HeadNorm = "after_pooling"
    """`after_pooling`: a new LayerNorm on the pooled patches replaces the encoder's last norm (MAE with average pooling; the
    I-JEPA paper does not say); `encoder`: the encoder's last norm before pooling, and no norm after it."""
    head_std: Annotated[float, NOT_NEGATIVE] = 2e-5
    """Standard deviation of the head's first weights (MAE's; the I-JEPA paper does not say)."""

    def check(self, is_low_shot: bool) -> None:
        """Raises Refusal if the warm-up is not shorter than the run."""
        # the depth is not known yet; shallow encoders have the longest runs, so that nothing possible is refused
        resolve_finetune(self, is_low_shot, BASE_DEPTH)

    def remarks(self) -> list[str]:
        """Says that the magnitudes of RandAugment have no effect without it."""
        usual = type(self)()
        changed = (self.magnitude, self.magnitude_std) != (usual.magnitude, usual.magnitude_std)
        words = "finetune.magnitude and magnitude_std have no effect without finetune.randaugment"
        return [words] if changed and self.randaugment is False else []


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """The values of a fine-tuning that depend on the recipe. The defaults are I-JEPA's for L/16 with 1 % of the labels."""

    epochs: int = 50
    """Passes over the training split."""
    batch_size: int = 512
    """Images per step."""
    learning_rates: tuple[float, ...] = (3e-5,)
    """Peak learning rates of the head."""
    rate_unit: RateUnit = "absolute"
    """`per_256`: the rates are multiplied by batch size / 256."""
    warmup_epochs: float = WARMUP_EPOCHS
    """Epochs in which the learning rate rises from 0."""
    weight_decay: float = 0.05
    """AdamW's weight decay."""
    layer_decay: float = 0.75
    """Ratio of the learning rates of two neighboring layers."""
    drop_path: float = 0.0
    """Largest stochastic-depth rate."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes."""
    mixup: float = 0.0
    """alpha of Beta(alpha, alpha) for mixup; 0: none."""
    cutmix: float = 0.0
    """alpha of Beta(alpha, alpha) for cutmix; 0: none."""
    random_erasing: float = 0.0
    """Probability of erasing a rectangle of a view."""
    randaugment: bool = True
    """True if RandAugment is applied to the views."""

    def peak_rate(self, rate: float, batch_size: int) -> float:
        """The head's peak learning rate with batches of `batch_size` images. `rate`: one of `learning_rates`."""
        return rate * batch_size / 256 if self.rate_unit == "per_256" else rate


_LOW_SHOT = FinetuneRecipe()
_PAPER = FinetuneRecipe(batch_size=528, learning_rates=(1e-4,), weight_decay=0.04, drop_path=0.25, mixup=0.8, cutmix=1.0)
_MAE = FinetuneRecipe(
    batch_size=1024,
    learning_rates=(1e-3,),
    rate_unit="per_256",
    drop_path=0.2,
    mixup=0.8,
    cutmix=1.0,
    random_erasing=0.25,
)
BASE_DEPTH, LARGE_DEPTH = 12, 24
"""Blocks of ViT-B and ViT-L. Encoders up to the first depth take B's values, up to the second L's, deeper ones H's."""

FINETUNE_RECIPES: dict[RecipeName, tuple[FinetuneRecipe, FinetuneRecipe, FinetuneRecipe]] = {
    "low_shot": (_LOW_SHOT, _LOW_SHOT, replace(_LOW_SHOT, weight_decay=0.4)),
    "paper": (_PAPER, _PAPER, _PAPER),
    "mae": (
        replace(_MAE, epochs=100, learning_rates=(5e-4,), layer_decay=0.65, drop_path=0.1),
        _MAE,
        replace(_MAE, drop_path=0.3),
    ),
}
"""Recipes for encoders like ViT-B, L and H. I-JEPA gives low-shot values for L/16 (weight decay 0.05), H/14 and H/16-448 (0.4).
Appendix D gives values for H/16-448. Other sizes take those of the nearest size."""


def resolve_finetune(settings: FinetuneSettings, is_low_shot: bool, depth: int) -> FinetuneRecipe:
    """The recipe for an encoder with `depth` blocks. Values in `settings` that are not None replace those of the recipe.

    Raises Refusal if the warm-up is not shorter than the run.
    """
    name: RecipeName = settings.recipe or ("low_shot" if is_low_shot else "paper")
    own = FINETUNE_RECIPES[name][(depth > BASE_DEPTH) + (depth > LARGE_DEPTH)]
    given = {item: getattr(settings, item) for item in vars(own)}
    recipe = replace(own, **{item: value for item, value in given.items() if value is not None and value != ()})
    if recipe.warmup_epochs >= recipe.epochs:
        raise Refusal(
            f"evaluation.finetune.warmup_epochs={recipe.warmup_epochs:g} must be below finetune.epochs={recipe.epochs}: "
            f"use --finetune.warmup-epochs {recipe.epochs / 10:g}"
        )
    return recipe


Selection = Literal["held_out", "paper", "both"]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """Evaluation of an encoder by probes, beside the untrained encoder and raw pixels."""

    tasks: tuple[str, ...] = ()
    """Tasks: classification, clevr_count, clevr_dist; on patches: scene_shapes, scene_colors. Empty: all tasks for which the
    data set has labels, without those on patches."""
    protocols: Annotated[tuple[str, ...], NamesOf("openjepa.settings.protocols:PROTOCOLS")] = ()
    """Probes to run. Empty: those of the suite's row; without a suite the usual ones for the task's labels."""
    selection: Selection = "held_out"
    """`held_out`: the probe's settings are chosen on 10 % of the training split; `paper`: best on the test split; `both`."""
    seeds: Annotated[int, AT_LEAST_1] = 1
    """Number of seeds with which everything is repeated; mean and spread are reported."""
    image_size: Annotated[int | tuple[int, int] | None, AT_LEAST_1] = None
    """Size of the images for the encoder, in pixels. None: the encoder's training size."""
    pooling: Literal["own", "class_token", "average", "both"] = "own"
    """How one vector per image is made: as the encoder's method is evaluated (`own`), the class token, the average of the
    patches, or `both` of these, with a result for each."""
    weight_decays: Annotated[tuple[float, ...], POSITIVE, SWEPT] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    """Weight decays of the linear heads, which are all solved at once (features have unit variance, the loss is a mean)."""
    iterations: Annotated[int, AT_LEAST_1] = 100
    """Most iterations of the solver of the linear heads. It stops earlier if a step gains little."""
    neighbors: Annotated[tuple[int, ...], AT_LEAST_1, SWEPT] = (10, 20, 100)
    """k of the k-NN classifier."""
    neighbor_temperature: Annotated[float, POSITIVE] = 0.07
    """Neighbors vote with the weight exp(cosine / temperature) (DINO)."""
    feature_batch_size: Annotated[int, AT_LEAST_1] = 256
    """Images per forward while features are extracted."""
    feature_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Type of features on disk. `auto`: fp32, or bf16 if fp32 would take more than 1 GiB for a split."""
    max_train_images: Annotated[int | None, AT_LEAST_1] = None
    """Most training images, spread over the classes as evenly as possible. None: all."""
    lidar_images: Annotated[int | None, AT_LEAST_2] = None
    """Number of test images on which LiDAR is measured too. More than the encoder's width is best. Costs `lidar_images` x
    `lidar_views` more passes of every encoder and of a run's predictor. None: no LiDAR."""
    lidar_views: Annotated[int, AT_LEAST_2] = 10
    """Random crops, and draws of masks, of each image for LiDAR (paper: 50, cheap: 10)."""
    max_skipped: Annotated[float, SHARE] = 0.05
    """Share of unreadable images of a split above which the evaluation fails."""
    baselines: tuple[Literal["untrained", "pixels"], ...] = ("untrained", "pixels")
    """What the same probes evaluate beside the encoder: raw pixels, and the encoder with random weights (`untrained`). A run
    that began from weights (`run.init`) is also compared with the encoder of those weights."""
    encoder: Literal["target", "context"] = "target"
    """Which encoder to evaluate, if a run or a file holds both (paper: the target encoder)."""
    heads: Annotated[int | None, AT_LEAST_1] = None
    """Attention heads of published weights. Needed only if neither the file nor the width tells."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of the held-out part, of a subset, and of the untrained encoder if the run has not kept it."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`. Under torchrun `auto` and `cuda` are the GPU of the process's LOCAL_RANK."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the encoder's forward. The heads are fp32."""
    workers: Annotated[int | None, NOT_NEGATIVE] = None
    """Processes that decode images. None: chosen by the number of cores."""
    low_shot: LowShotSettings = field(default_factory=LowShotSettings)
    logistic: LogisticSettings = field(default_factory=LogisticSettings)
    linear_full: FullLinearSettings = field(default_factory=FullLinearSettings)
    attentive: AttentiveSettings = field(default_factory=AttentiveSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    dense: DenseSettings = field(default_factory=DenseSettings)
