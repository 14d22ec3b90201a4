"""The paper's linear probe: heads on a frozen encoder, trained on augmented images (I-JEPA, Tables 1, 3 and 4).

Details follow the authors' VISSL configurations. Features are the pooled output of the last layer, and those of the last four
layers side by side, each after the final norm. Heads are linear, and BatchNorm + linear. All heads, at every learning rate and
weight decay, are trained in one pass, and the best one is reported. Two things differ from the authors: by default the best
head is chosen on held-out images (`paper` chooses as they do), and every test view is resized bicubically.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int, UInt8
from rich.filesize import decimal
from torch import Tensor

from openjepa.data.passes import rebatched
from openjepa.engine.device import memory_limit, of_memory
from openjepa.evaluation.feature_store import EncoderFeatures
from openjepa.evaluation.probes.stacked_heads import StackedHeads, Sweep, all_pairs, needed_bytes
from openjepa.evaluation.probes.trained import (
    ProbeTraining,
    Rows,
    check_finite_outputs,
    numbered_steps,
    test_view_fit,
    train_and_choose,
    training_on,
    usual_augmentation,
)
from openjepa.evaluation.protocol import ImageProbe, ProtocolResult
from openjepa.refusals import Refusal
from openjepa.schedules import cosine
from openjepa.seeds import derive
from openjepa.settings.evaluation import (
    LINEAR_RECIPES,
    OWN_DATA_RECIPE,
    Augmentation,
    EvaluationSettings,
    FullLinearSettings,
    LinearRecipe,
)
from openjepa.system.console import progress, say

FINAL_RATE = 0.01
"""Final rate of the cosine as a share of the peak (authors: 0.01 to 1e-4)."""
LARGEST_SHARE = 0.9
"""Largest share of the device's memory that the heads alone may take."""


def find_recipe(benchmark: str, task: str) -> LinearRecipe:
    """The recipe of `benchmark`, or of its `task` if the benchmark has several; OWN_DATA_RECIPE for other data."""
    for name in (benchmark, f"{benchmark}_{task.rpartition('/')[2].lower()}"):
        if name in LINEAR_RECIPES:
            return LINEAR_RECIPES[name]
    return OWN_DATA_RECIPE


@dataclass(frozen=True)
class TrainingPlan:
    """Settings and recipe, resolved for a given number of training images."""

    epochs: int
    batch_size: int
    sweep: Sweep
    augmentation: Augmentation
    recipe: LinearRecipe

    def factor(self, epoch: int) -> float:
        """The factor of the learning rates in an epoch. The recipe's schedule is stretched to `epochs`."""
        if not self.recipe.milestones:
            return cosine(1.0, FINAL_RATE, epoch / self.epochs)
        passed = [at for at in self.recipe.milestones if epoch * self.recipe.epochs >= at * self.epochs]
        return float(0.1 ** len(passed))


def make_training_plan(
    settings: FullLinearSettings, recipe: LinearRecipe, num_images: int, usual: Augmentation
) -> TrainingPlan:
    """Combines settings and recipe: settings that are None or empty are taken from the recipe.

    The recipe's rates are scaled linearly to the actual batch size (Goyal et al., 2017). Rates in the settings are used
    unscaled. `usual` is the augmentation if neither names one.
    """
    batch_size = min(settings.batch_size or recipe.batch_size, num_images)
    scaled = tuple(rate * batch_size / recipe.batch_size for rate in recipe.learning_rates)
    rates, decays = all_pairs(settings.learning_rates or scaled, settings.weight_decays or recipe.weight_decays)
    return TrainingPlan(
        epochs=settings.epochs or recipe.epochs,
        batch_size=batch_size,
        sweep=Sweep(rates, decays, settings.optimizer or recipe.optimizer),
        augmentation=settings.augmentation or recipe.augmentation or usual,
        recipe=recipe,
    )


@dataclass(frozen=True)
class TrainedHeads:
    """All trained heads and the encoder they work on."""

    features: EncoderFeatures
    heads: StackedHeads
    unreadable: Sequence[str]
    """Names of the training images that could not be read."""

    def names(self) -> list[tuple[str, str, str]]:
        """Features, head and setting of each head."""
        return self.heads.names()

    def answer(self, images: UInt8[Tensor, "B 3 h w"]) -> Float[Tensor, "B heads C"]:
        """Scores of each head."""
        return self.heads.logits(self.features.extract(images))


def evaluate_linear_full(probe: ImageProbe, settings: EvaluationSettings) -> tuple[ProtocolResult, ...]:
    """Accuracy of the best head, for each selection rule (see `trained.train_and_choose`).

    Raises Refusal if the heads do not fit into memory, if every rate of the sweep was too high, if the encoder's outputs are
    not finite, or if no image of a split can be read.
    """
    recipe = find_recipe(probe.benchmark, probe.task)
    usual = usual_augmentation(probe)
    augmentation = make_training_plan(settings.linear_full, recipe, len(probe.train.labels), usual).augmentation

    def train(rows: Rows) -> TrainedHeads:
        plan = make_training_plan(settings.linear_full, recipe, len(rows), usual)
        return train_heads(probe, settings, plan, rows)

    return train_and_choose(probe, settings, train, test_view_fit(probe, augmentation), "linear_full.learning_rates")


def train_heads(probe: ImageProbe, settings: EvaluationSettings, plan: TrainingPlan, rows: Rows) -> TrainedHeads:
    """Trains all heads on the records `rows` of the training split."""
    features = EncoderFeatures(probe.encoder, probe.config, probe.device, probe.precision)
    check_memory(probe, plan, features.num_layers)
    wanted = settings.linear_full.batch_size or plan.recipe.batch_size
    if plan.batch_size < wanted:
        words = f"all {plan.batch_size:,} images at once, because there are fewer than a batch of {wanted:,}"
        say(f"note: linear-full trains on {words}")
    heads = StackedHeads(
        probe.config.width,
        features.num_layers,
        probe.num_classes,
        plan.sweep,
        derive("weights", settings.seed, 1),
        probe.device,
    )
    training = training_on(
        probe,
        rows,
        settings,
        epochs=plan.epochs,
        batch_size=plan.batch_size,
        augmentation=plan.augmentation,
        interpolation=plan.recipe.interpolation,
    )
    with progress("linear probe", plan.epochs * len(rows)) as advance:

        def one_pass(epoch: int) -> Iterator[tuple[Float[Tensor, "B F"], Int[Tensor, " B"]]]:
            return feature_batches(training, features, epoch)

        for step, (inputs, labels) in numbered_steps(plan.epochs, training.steps_per_epoch, one_pass):
            if step == 0:
                check_finite_outputs(inputs, probe)
            heads.step(inputs, labels, plan.factor(step // training.steps_per_epoch))
            advance(len(labels))
    return TrainedHeads(features, heads, training.unreadable)


def feature_batches(
    training: ProbeTraining, features: EncoderFeatures, epoch: int
) -> Iterator[tuple[Float[Tensor, "B F"], Int[Tensor, " B"]]]:
    """One pass over the images in batches of `batch_size` features. A batch may take several forward passes of the encoder.

    An incomplete last batch is left out, unless it is the only one. Every process gets the whole batches, of which it computes
    a share: a step of the heads costs little beside the encoder, and so takes no communication.
    """
    pieces = training.pieces(epoch, features.extract)
    return rebatched(pieces, training.batch_size, drop_last=True)  # type: ignore[return-value]


def check_memory(probe: ImageProbe, plan: TrainingPlan, num_layers: int) -> None:
    """Raises Refusal if the heads alone would not fit into memory.

    With iNat18's 8,142 classes and a ViT-H, each setting of the sweep takes 1.5 GB.
    """
    num = len(plan.sweep.rates)
    needed = needed_bytes(probe.config.width, num_layers, probe.num_classes, num, plan.batch_size)
    limit = memory_limit(probe.device)
    if needed > LARGEST_SHARE * limit:
        raise Refusal(
            f"evaluation.linear_full.learning_rates and weight_decays: {4 * num} heads of {probe.num_classes:,} classes need "
            f"about {decimal(needed)} while they are trained, and {probe.device} has {decimal(limit)}"
            f"{of_memory(probe.device)}: give fewer of both, and run the evaluation once for each part"
        )
