"""Settings of the evaluations of an encoder: one group for each protocol that has its own, and those that all share.

Beside them stand the published values of the linear probe and of fine-tuning, which are used for settings that are None.
"""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from openjepa.refusals import Refusal
from openjepa.settings.ranges import (
    ABOVE_0,
    AT_LEAST_1,
    AT_LEAST_2,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SHARE_ABOVE_0,
    SHARE_BELOW_1,
    SWEPT,
    Range,
    between,
)
from openjepa.settings.registry import NamesOf

PERCENT = Range(ABOVE_0, 100, "above 0 and at most 100")


@dataclass(frozen=True, kw_only=True)
class LowShotSettings:
    """Which images are labeled: those of a list, or some of each class drawn with a seed. At most one of the three is given."""

    list: str | None = None
    """Text file with one image per line, as the published 1 % list of ImageNet (12,811 names like n01440764_10043.JPEG)."""
    percent: Annotated[float | None, PERCENT] = None
    """Percent of the images of each class, at least one."""
    images_per_class: Annotated[int | None, AT_LEAST_1] = None
    """Images of each class that are labeled (k-shot)."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of the draw."""

    def is_set(self) -> bool:
        """Whether fewer than all images are labeled."""
        return not (self.list is None and self.percent is None and self.images_per_class is None)


@dataclass(frozen=True, kw_only=True)
class AttentiveSettings:
    """One learned query that attends to the frozen encoder's patches, an MLP and a linear layer (V-JEPA's probe)."""

    epochs: Annotated[int, AT_LEAST_1] = 20
    """Passes over the training split (V-JEPA: 20)."""
    batch_size: Annotated[int, AT_LEAST_1] = 256
    """Images per step (V-JEPA: 1,024). At most one epoch's images."""
    learning_rates: Annotated[tuple[float, ...], POSITIVE, SWEPT] = (1e-3, 3e-4, 1e-4)
    """Peak rates, falling to 0 along a cosine; a probe is trained with each, all in one pass (V-JEPA: 1e-3)."""
    weight_decay: Annotated[float, NOT_NEGATIVE] = 1e-3
    """AdamW's, of matrices and the query (V-JEPA: 1e-3)."""


@dataclass(frozen=True, kw_only=True)
class DenseSettings:
    """k-NN and linear probe on patch features, without a decoder; labels are those of the pixels that a patch covers."""

    max_patches: Annotated[int, AT_LEAST_1] = 50_000
    """Most training patches, drawn uniformly with the seed over all images. k-NN takes time in proportion: with 50,000
    28 s of one core on the packaged scenes with ViT-nano."""


@dataclass(frozen=True, kw_only=True)
class LogisticSettings:
    """Multinomial logistic regression on standardized features (after MSN's low-shot evaluation)."""

    penalties: Annotated[tuple[float, ...], POSITIVE, SWEPT] = (1e-1, 1e-2, 2.5e-3, 1e-3, 2.5e-4, 1e-4, 1e-5)
    """lambda of mean cross-entropy + lambda / 2 |W|^2, swept from the strongest, each started from the one before."""
    gradient_norm: Annotated[float, POSITIVE] = 1e-4
    """Solved when the norm of the objective's gradient is at most this, and `relative_gradient` of lambda |W| as well."""
    relative_gradient: Annotated[float, POSITIVE] = 0.01
    """The same as a share of lambda |W|, which bounds how far the weights are from the optimum's, as a share of |W|: for
    weak penalties a small gradient says little. (Not below what float32 rounds.)"""
    iterations: Annotated[int, AT_LEAST_1] = 500
    """Most passes over the images for one lambda: gradients and products with the Hessian."""


Augmentation = Literal["crop_flip", "center_flip", "squash_flip", "none"]
HeadOptimizer = Literal["lars", "sgd"]


@dataclass(frozen=True, kw_only=True)
class FullLinearSettings:
    """Heads trained on augmented views of a frozen encoder. What is None is the benchmark's own value (docs/evaluation.md)."""

    epochs: Annotated[int | None, AT_LEAST_1] = None
    """Passes over the training split (authors: ImageNet 50, Places205 14, iNat18 84, CIFAR100 28, Clevr/Count 50, Dist 100).
    The schedule is stretched to another number."""
    batch_size: Annotated[int | None, AT_LEAST_1] = None
    """Images per step (authors: ImageNet 16,384, the others 256). At most one epoch's images."""
    optimizer: HeadOptimizer | None = None
    """Authors: LARS on ImageNet, SGD with Nesterov momentum elsewhere."""
    learning_rates: Annotated[tuple[float, ...], POSITIVE, SWEPT] = ()
    """Peak rates, absolute; every head is trained with each of them. Empty: the benchmark's own, times batch size / its own."""
    weight_decays: Annotated[tuple[float, ...], NOT_NEGATIVE, SWEPT] = ()
    """Every head is trained with each of them. Empty: the benchmark's own."""
    augmentation: Augmentation | None = None
    """`crop_flip`: RandomResizedCrop and mirroring; `center_flip`: test view of the center, mirrored (paper's words for Clevr);
    `squash_flip`: whole image resized, mirrored, and tested so, too (authors' base file of CIFAR100); `none`: the test view."""


@dataclass(frozen=True, kw_only=True)
class LinearRecipe:
    """How the heads of one benchmark are trained if FullLinearSettings says nothing else."""

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
    """None: `squash_flip` if the test view is the whole image, else `crop_flip`."""
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


RecipeName = Literal["low_shot", "paper", "mae"]
RateUnit = Literal["absolute", "per_256"]
HeadNorm = Literal["after_pooling", "encoder"]

WARMUP_EPOCHS = 5.0
"""Warm-up of every recipe (MAE's). Neither part of the I-JEPA paper says how long it warms up."""


class ProtocolSettings:
    """Base of groups whose settings must fit one another. Ranges of single settings stand on the fields."""

    def check(self, is_low_shot: bool) -> None:
        """Raises Refusal for settings that cannot work together. `is_low_shot`: only some images are labeled."""

    def remarks(self) -> list[str]:
        """The settings that were changed and have no effect beside the others of the group, in words."""
        return []


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings(ProtocolSettings):
    """The whole encoder and a linear head are trained with labels (I-JEPA, low-shot and appendix D; MAE's recipe)."""

    recipe: RecipeName | None = None
    """Whose values are used for settings that are None. `low_shot`: I-JEPA with 1 % of the labels; `paper`: I-JEPA with all
    of them (appendix D); `mae`: MAE's own. None: low_shot if only some images are labeled, else paper."""
    epochs: Annotated[int | None, AT_LEAST_1] = None
    """Passes over the training split (I-JEPA 50; MAE 100 for ViT-B, 50 for L and H)."""
    batch_size: Annotated[int | None, AT_LEAST_1] = None
    """Images per step, at most one epoch's (low-shot 512, appendix D 528 as printed, MAE 1,024)."""
    microbatch_size: Annotated[int | None, AT_LEAST_1] = None
    """Images per forward and backward, to save memory; the sum of the gradients is the batch's. None: the whole batch."""
    learning_rates: Annotated[tuple[float, ...], POSITIVE, SWEPT] = ()
    """Peak rates of the head; a model is trained with each of them. Empty: the recipe's one (low-shot 3e-5, appendix D 1e-4,
    MAE 5e-4 for ViT-B and 1e-3 for L and H)."""
    rate_unit: RateUnit | None = None
    """`absolute`, or `per_256`: multiplied by batch size / 256, as MAE's code does with its base rates. The paper does not say
    which its rates are; read as printed, they are absolute, which is the default of both I-JEPA recipes (MAE: per_256)."""
    final_lr: Annotated[float, NOT_NEGATIVE] = 1e-6
    """Rate at the end of the cosine, before layer-wise decay (MAE's; the paper does not say)."""
    warmup_epochs: Annotated[float | None, NOT_NEGATIVE] = None
    """Epochs in which the rate rises from 0 (MAE: 5; the paper does not say)."""
    weight_decay: Annotated[float | None, NOT_NEGATIVE] = None
    """AdamW's, not on biases, norms and the class token (low-shot 0.05, for ViT-H 0.4; appendix D 0.04; MAE 0.05)."""
    layer_decay: Annotated[float | None, SHARE_ABOVE_0] = None
    """Block l of L learns at the head's rate times this to the power of L + 1 - l, the patch embedding as l = 0 (I-JEPA 0.75;
    MAE 0.65 for ViT-B, 0.75 for L and H)."""
    drop_path: Annotated[float | None, SHARE_BELOW_1] = None
    """Largest stochastic-depth rate, linear over the blocks (low-shot 0, appendix D 0.25, MAE B / L / H 0.1 / 0.2 / 0.3)."""
    label_smoothing: Annotated[float | None, SHARE_BELOW_1] = None
    """Share of the target that is spread over all classes (low-shot and MAE 0.1; appendix D does not say: 0.1)."""
    mixup: Annotated[float | None, NOT_NEGATIVE] = None
    """alpha of Beta(alpha, alpha) for mixup; 0: none (low-shot 0, appendix D and MAE 0.8)."""
    cutmix: Annotated[float | None, NOT_NEGATIVE] = None
    """The same for cutmix; if both are on, each batch gets one of them by the toss of a coin (low-shot 0, else 1.0)."""
    random_erasing: Annotated[float | None, SHARE] = None
    """Probability of erasing a rectangle of a view (low-shot 0, MAE 0.25; appendix D does not list it: 0)."""
    randaugment: bool | None = None
    """Whether views pass through RandAugment (all recipes do: `rand-m9-mstd0.5-inc1`)."""
    magnitude: Annotated[float, between(0, 10)] = 9.0
    """Strength of RandAugment's operations, at most 10."""
    magnitude_std: Annotated[float, NOT_NEGATIVE] = 0.5
    """Standard deviation of the magnitude from one operation to the next."""
    head_norm: HeadNorm = "after_pooling"
    """`after_pooling`: a new LayerNorm of the pooled patches instead of the encoder's last norm (MAE with average pooling; the
    paper does not say); `encoder`: the encoder's own last norm before pooling, none after."""
    head_std: Annotated[float, NOT_NEGATIVE] = 2e-5
    """Standard deviation of the head's first weights (MAE's; the paper does not say)."""

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
    """Every value of a fine-tuning that depends on the recipe. Defaults: I-JEPA's for L/16 with 1 % of the labels."""

    epochs: int = 50
    """Passes over the training split."""
    batch_size: int = 512
    """Images per step."""
    learning_rates: tuple[float, ...] = (3e-5,)
    """Peak rates of the head."""
    rate_unit: RateUnit = "absolute"
    """Whether they are multiplied by batch size / 256."""
    warmup_epochs: float = WARMUP_EPOCHS
    """Epochs in which the rate rises from 0."""
    weight_decay: float = 0.05
    """AdamW's."""
    layer_decay: float = 0.75
    """Ratio of the rates of two neighboring layers."""
    drop_path: float = 0.0
    """Largest stochastic-depth rate."""
    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes."""
    mixup: float = 0.0
    """alpha of Beta(alpha, alpha); 0: none."""
    cutmix: float = 0.0
    """The same for cutmix."""
    random_erasing: float = 0.0
    """Probability of erasing a rectangle."""
    randaugment: bool = True
    """Whether views pass through RandAugment."""

    def peak_rate(self, rate: float, batch_size: int) -> float:
        """The head's highest learning rate with batches of `batch_size` images."""
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
"""Blocks of ViT-B and ViT-L: encoders up to the first take the values of B, up to the second those of L, deeper ones H's."""

FINETUNE_RECIPES: dict[RecipeName, tuple[FinetuneRecipe, FinetuneRecipe, FinetuneRecipe]] = {
    "low_shot": (_LOW_SHOT, _LOW_SHOT, replace(_LOW_SHOT, weight_decay=0.4)),
    "paper": (_PAPER, _PAPER, _PAPER),
    "mae": (
        replace(_MAE, epochs=100, learning_rates=(5e-4,), layer_decay=0.65, drop_path=0.1),
        _MAE,
        replace(_MAE, drop_path=0.3),
    ),
}
"""For encoders like ViT-B, L and H. I-JEPA gives low-shot values for L/16 (weight decay 0.05), H/14 and H/16-448 (0.4), and
appendix D those for H/16-448; other sizes take those of the nearest."""


def resolve_finetune(settings: FinetuneSettings, is_low_shot: bool, depth: int) -> FinetuneRecipe:
    """The recipe for an encoder with `depth` blocks, with every value that `settings` gives in place of its own.

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
    """k-NN and linear probes on frozen features, always beside the untrained encoder and raw pixels."""

    tasks: tuple[str, ...] = ()
    """Rows of the task table (classification, clevr_count, clevr_dist; scene_shapes, scene_colors: of patches). Empty: all
    that the data set has labels for, without those of patches."""
    protocols: Annotated[tuple[str, ...], NamesOf("openjepa.settings.protocols:PROTOCOLS")] = ()
    """Which probes are run. Empty: those of the suite's row; without a suite the usual ones of the task's labels."""
    selection: Selection = "held_out"
    """`held_out`: the probe's settings are chosen on 10 % of the training split; `paper`: best on the test split; `both`."""
    seeds: Annotated[int, AT_LEAST_1] = 1
    """Number of seeds with which everything is repeated; mean and spread are reported."""
    image_size: Annotated[int | tuple[int, int] | None, AT_LEAST_1] = None
    """Size at which features are taken, in pixels. None: the encoder's training size."""
    pooling: Literal["own", "class_token", "average", "both"] = "own"
    """What one vector per image is: what the encoder's method evaluates (`own`), its class token, the average of its patches,
    or both, with a result for each."""
    weight_decays: Annotated[tuple[float, ...], POSITIVE, SWEPT] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
    """Swept for the linear heads, which are all solved at once (features have unit variance, the loss is a mean)."""
    iterations: Annotated[int, AT_LEAST_1] = 100
    """Most iterations of the solver of the linear heads; it ends earlier if a step gains little (early stopping)."""
    neighbors: Annotated[tuple[int, ...], AT_LEAST_1, SWEPT] = (10, 20, 100)
    """k of the k-nearest-neighbor classifier."""
    neighbor_temperature: Annotated[float, POSITIVE] = 0.07
    """Neighbors vote with weight exp(cosine / temperature) (DINO)."""
    feature_batch_size: Annotated[int, AT_LEAST_1] = 256
    """Images per forward while features are extracted."""
    feature_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """How features are kept on disk. `auto`: fp32, or bf16 if that would take more than 1 GiB for a split."""
    max_train_images: Annotated[int | None, AT_LEAST_1] = None
    """Use at most this many training images, as many of each class as possible. None: all."""
    lidar_images: Annotated[int | None, AT_LEAST_2] = None
    """Test images on which LiDAR is measured, too (more than the encoder's width is best), for `lidar_images` x
    `lidar_views` more passes of every encoder and of a run's predictor. None: not."""
    lidar_views: Annotated[int, AT_LEAST_2] = 10
    """Random crops, and draws of masks, of each image for LiDAR (paper: 50, cheap: 10)."""
    max_skipped: Annotated[float, SHARE] = 0.05
    """Share of unreadable images of a split above which there are no numbers."""
    baselines: tuple[Literal["untrained", "pixels"], ...] = ("untrained", "pixels")
    """What is evaluated beside the encoder with the same probes. `untrained`: with random weights; beside these, of a run that
    began from weights (`run.init`), the encoder with those."""
    encoder: Literal["target", "context"] = "target"
    """Which encoder of a run, or of a file that holds both, is evaluated (paper: the target encoder)."""
    heads: Annotated[int | None, AT_LEAST_1] = None
    """Attention heads of published weights, if neither the file nor the width tells them. None: they do."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of the held-out part, of a subset, and of the untrained encoder if the run has not kept it."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Precision of the encoder's forward; the heads are fp32."""
    workers: Annotated[int | None, NOT_NEGATIVE] = None
    """Processes that decode images. None: chosen from the cores."""
    low_shot: LowShotSettings = field(default_factory=LowShotSettings)
    logistic: LogisticSettings = field(default_factory=LogisticSettings)
    linear_full: FullLinearSettings = field(default_factory=FullLinearSettings)
    attentive: AttentiveSettings = field(default_factory=AttentiveSettings)
    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)
    dense: DenseSettings = field(default_factory=DenseSettings)
