"""Settings of end-to-end fine-tuning, and the published recipes whose values stand where a setting is None."""

from dataclasses import dataclass, replace
from typing import Literal

from openjepa.refusals import Refusal

RecipeName = Literal["low_shot", "paper", "mae"]
RateUnit = Literal["absolute", "per_256"]
HeadNorm = Literal["after_pooling", "encoder"]

WARMUP_EPOCHS = 5.0
"""Of every recipe: MAE's. Neither part of the I-JEPA paper says how long it warms up."""


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """The whole encoder and a linear head are trained with labels (I-JEPA, low-shot and appendix D; MAE's recipe)."""

    recipe: RecipeName | None = None
    """Whose values stand where a setting is None. `low_shot`: I-JEPA with 1 % of the labels; `paper`: I-JEPA with all of them
    (appendix D); `mae`: MAE's own. None: low_shot where only some images are labeled, else paper."""
    epochs: int | None = None
    """Passes over the training split (I-JEPA 50; MAE 100 for ViT-B, 50 for L and H)."""
    batch_size: int | None = None
    """Images per step, at most one epoch's (low-shot 512, appendix D 528 as printed, MAE 1,024)."""
    microbatch_size: int | None = None
    """Images per forward and backward, to save memory; the sum of the gradients is the batch's. None: the whole batch."""
    learning_rates: tuple[float, ...] = ()
    """Peak rates of the head; a model is trained with each of them. Empty: the recipe's one (low-shot 3e-5, appendix D 1e-4,
    MAE 5e-4 for ViT-B and 1e-3 for L and H)."""
    rate_unit: RateUnit | None = None
    """`absolute`, or `per_256`: multiplied by batch size / 256, as MAE's code does with its base rates. The paper does not say
    which its rates are; read as printed, they are absolute, which is the default of both I-JEPA recipes (MAE: per_256)."""
    final_lr: float = 1e-6
    """Rate at the end of the cosine, before layer-wise decay (MAE's; the paper does not say)."""
    warmup_epochs: float | None = None
    """Epochs in which the rate rises from 0 (MAE: 5; the paper does not say)."""
    weight_decay: float | None = None
    """AdamW's, not on biases, norms and the class token (low-shot 0.05, for ViT-H 0.4; appendix D 0.04; MAE 0.05)."""
    layer_decay: float | None = None
    """Block l of L learns at the head's rate times this to the power of L + 1 - l, the patch embedding as l = 0 (I-JEPA 0.75;
    MAE 0.65 for ViT-B, 0.75 for L and H)."""
    drop_path: float | None = None
    """Largest stochastic-depth rate, linear over the blocks (low-shot 0, appendix D 0.25, MAE B / L / H 0.1 / 0.2 / 0.3)."""
    label_smoothing: float | None = None
    """Share of the target that is spread over all classes (low-shot and MAE 0.1; appendix D does not say: 0.1)."""
    mixup: float | None = None
    """alpha of Beta(alpha, alpha) for mixup; 0: none (low-shot 0, appendix D and MAE 0.8)."""
    cutmix: float | None = None
    """The same for cutmix; where both are on, each batch gets one of them by the toss of a coin (low-shot 0, else 1.0)."""
    random_erasing: float | None = None
    """Probability of erasing a rectangle of a view (low-shot 0, MAE 0.25; appendix D does not list it: 0)."""
    randaugment: bool | None = None
    """Whether views pass through RandAugment (all recipes do: `rand-m9-mstd0.5-inc1`)."""
    magnitude: float = 9.0
    """Of RandAugment's operations, of 10."""
    magnitude_std: float = 0.5
    """Standard deviation of the magnitude from one operation to the next."""
    head_norm: HeadNorm = "after_pooling"
    """`after_pooling`: a new LayerNorm of the pooled patches instead of the encoder's last norm (MAE with average pooling; the
    paper does not say); `encoder`: the encoder's own last norm before pooling, none after."""
    head_std: float = 2e-5
    """Standard deviation of the head's first weights (MAE's; the paper does not say)."""


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

    Raises Refusal where the warm-up is no shorter than the run.
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
