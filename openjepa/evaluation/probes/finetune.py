"""End-to-end fine-tuning with layer-wise decay: trains a copy of the encoder and a new head with labels, and tests them.

The recipes are in `openjepa.settings.evaluation`. They follow I-JEPA (low-shot experiments and appendix D), and MAE's published
recipe for what I-JEPA leaves open. Several peak rates may be tried; `evaluate_finetune` says which one is reported.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from openjepa.data.augmentations import Augment, InTurn, RandAugment, RandomErasing, draw_mix, mix_images, soft_targets
from openjepa.data.passes import AugmentedBatch, LabeledViews, augmented_batches, choose_workers
from openjepa.engine import distributed
from openjepa.engine.clock import LoopClock
from openjepa.engine.device import autocast, encode, keep_random_state, seed_generator, to_device
from openjepa.engine.failures import FiniteGuard, NotFinite, advise_on_memory
from openjepa.engine.optimizer import build_optimizer, gradient_norm, layer_decay_rules, set_rates
from openjepa.evaluation.probes.trained import Scores, count_right, images_of_all, numbered_steps, own_images
from openjepa.evaluation.protocol import (
    HeadResult,
    ImageProbe,
    LabeledImages,
    ProtocolResult,
    chosen_first,
    held_out_rows,
    selections,
)
from openjepa.measures.features import TOP, Accuracy
from openjepa.models.transformer import ImageSlots
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.refusals import Refusal
from openjepa.schedules import Progress, learning_rate
from openjepa.seeds import derive
from openjepa.settings.evaluation import EvaluationSettings, FinetuneRecipe, HeadNorm, resolve_finetune
from openjepa.settings.run import OptimizationSettings
from openjepa.system.console import Display
from openjepa.types import Skipped, ViewSpec, normalize

CROP_SCALE = (0.08, 1.0)
"""Smallest and largest area of the training crops as a fraction of the image (Szegedy et al., 2014)."""
LOOK_EVERY = 10
"""Steps between two checks of the loss and of finiteness. On a GPU each check waits for the device."""
CPU = torch.device("cpu")
DRAWS_OF_MIX, DRAWS_OF_NETWORK = 0, 1
"""Last part of a step's two seeds: one for mixup and cutmix, one for the network."""


class Classifier(nn.Module):
    """An encoder followed by a linear layer on the mean of its patches, or on its class token."""

    def __init__(
        self,
        encoder: VisionTransformer,
        num_classes: int,
        head_norm: HeadNorm,
        head_std: float,
        generator: torch.Generator | None = None,
    ) -> None:
        """Takes over the encoder. If `head_norm` is `after_pooling`, a new norm after the pooling replaces the encoder's last.

        The head's weights are drawn from `generator`, or from torch's global one if it is None.
        """
        super().__init__()
        config = encoder.config
        self.encoder = encoder
        self.pooling = config.pooling
        self.norm: nn.Module = nn.Identity()
        if head_norm == "after_pooling":
            self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
            self.encoder.norm = nn.Identity()  # type: ignore[assignment]
        self.head = nn.Linear(config.width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=head_std, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B classes"]:
        """Logits of normalized images, in float32."""
        return self.head(self.norm(self.encoder(images).pooled(self.pooling))).float()  # type: ignore[no-any-return]


def build_classifier(probe: ImageProbe, settings: EvaluationSettings, recipe: FinetuneRecipe) -> Classifier:
    """A trainable classifier that starts from a copy of the probe's encoder; its head is drawn from the seed.

    Positions are those of the views' grid; learned ones are resampled to it. torch's global generators are left unchanged.
    """
    own = settings.finetune
    # so that the positions of the views' grid are made once instead of in every step, and learned ones are trained at it
    config = replace(probe.encoder.config, drop_path=recipe.drop_path, image_size=probe.image_size)
    generator = torch.Generator().manual_seed(derive("weights", settings.seed))
    with keep_random_state(CPU):  # building draws weights that are replaced at once
        encoder = build_encoder(config)
        encoder.load_state_dict(probe.encoder.weights_for(config.grid()))
        return Classifier(encoder, probe.num_classes, own.head_norm, own.head_std, generator).to(probe.device)


@dataclass(frozen=True)
class Length:
    """The length of a fine-tuning run."""

    batch_size: int
    """Images per step: the recipe's number, but at most all training images."""
    steps_per_epoch: int
    """The number of full batches in an epoch. The remaining images of an epoch are not used."""
    epochs: int

    @property
    def total_steps(self) -> int:
        """The number of steps of the whole run."""
        return self.epochs * self.steps_per_epoch


def length(recipe: FinetuneRecipe, num_images: int) -> Length:
    """The length of a run on `num_images` images."""
    batch_size = min(recipe.batch_size, num_images)
    return Length(batch_size, num_images // batch_size, recipe.epochs)


def schedule(recipe: FinetuneRecipe, rate: float, final_lr: float, batch_size: int) -> OptimizationSettings:
    """AdamW and its schedule: linear warm-up from 0 to the peak, a half cosine to `final_lr`, constant weight decay.

    Raises Refusal if the peak is below `final_lr`.
    """
    peak = recipe.peak_rate(rate, batch_size)
    if peak < final_lr:
        raise Refusal(
            f"evaluation.finetune.final_lr={final_lr:g} is above the peak rate {peak:g} (finetune.learning_rates={rate:g}, "
            f"rate_unit={recipe.rate_unit}, {batch_size} images per step): lower final_lr"
        )
    return OptimizationSettings(
        batch_size=batch_size,
        epochs=recipe.epochs,
        lr=peak,
        start_lr=0.0,
        final_lr=final_lr,
        warmup_epochs=recipe.warmup_epochs,
        weight_decay=recipe.weight_decay,
        final_weight_decay=recipe.weight_decay,
        weight_decay_schedule="constant",
    )


def training_views(probe: ImageProbe, settings: EvaluationSettings, recipe: FinetuneRecipe) -> LabeledViews:
    """Crops of 8 to 100 % of the area, bicubic, randomly mirrored, then augmented.

    If the test view shows the whole image (`squash`), training views do, too.
    """
    config = probe.encoder.config
    own = settings.finetune
    fill = tuple(round(255 * value) for value in config.pixel_mean)
    augment: list[Augment] = []
    if recipe.randaugment:
        augment.append(RandAugment(own.magnitude, own.magnitude_std, fill=(fill[0], fill[1], fill[2])))
    if recipe.random_erasing > 0:
        augment.append(RandomErasing(recipe.random_erasing, config.pixel_mean, config.pixel_std))
    view = ViewSpec(probe.image_size, scale=CROP_SCALE, interpolation="bicubic", horizontal_flip=True)
    fit = "random_crop" if probe.fit == "crop" else "squash"
    return LabeledViews(probe.train.source, probe.train.labels, view, fit, InTurn(tuple(augment)) if augment else None)


@dataclass(frozen=True)
class Trained:
    """A fine-tuned classifier."""

    probe: ImageProbe
    classifier: Classifier
    rate: float
    """Peak learning rate of the training."""
    loss: float
    """Loss of the last step."""
    seconds: float
    unreadable: Sequence[str]
    """Names of the training images that could not be read."""

    def names(self) -> list[tuple[str, str, str]]:
        """Features, head and setting."""
        return [("last", "fine-tuned", f"learning rate {self.rate:g}")]

    def answer(self, images: UInt8[Tensor, "B 3 h w"]) -> Float[Tensor, "B 1 classes"]:
        """Logits of test views, on the device."""
        probe = self.probe
        logits: Tensor = encode(self.classifier, images, probe.config, probe.device, probe.precision)
        return logits[:, None]


def train_classifier(
    probe: ImageProbe, settings: EvaluationSettings, recipe: FinetuneRecipe, rate: float, rows: NDArray[np.int64] | None
) -> Trained:
    """Fine-tunes a copy of the encoder with the peak rate `rate` on the training images `rows` (all if None).

    On a CPU, two runs with the same seed give the same weights. torch's global generators are left unchanged. Raises Refusal if
    a loss or gradient is not finite, if memory runs out, or if no image can be read.
    """
    size = length(recipe, len(probe.train.source) if rows is None else len(rows))
    optim = schedule(recipe, rate, settings.finetune.final_lr, size.batch_size)
    classifier = build_classifier(probe, settings, recipe).train()
    slots = ImageSlots(classifier)
    rules = layer_decay_rules(probe.encoder.config.depth, recipe.layer_decay)
    optimizer = build_optimizer(classifier.named_parameters(), rules, optim)
    guard = FiniteGuard(optimizer, probe.device, LOOK_EVERY)
    loss, lost = torch.zeros(()), list[Skipped]()
    display = Display(size.total_steps, 0, "auto" if distributed.is_main() else "none")
    clock = LoopClock(probe.device, size.total_steps)
    with closing(display), _explained(rate, size.batch_size), keep_random_state(probe.device):
        for step, batch in _steps(probe, settings, recipe, size, rows, lost):
            lr = learning_rate(optim, Progress(step, size.total_steps, size.steps_per_epoch))
            set_rates(optimizer, lr, recipe.weight_decay)
            optimizer.zero_grad(set_to_none=True)
            loss = _backward(classifier, slots, batch, probe, settings, recipe, step)
            guard.watch(step, loss, gradient_norm(optimizer), [batch.indices])
            optimizer.step()
            clock.step_done(step + 1)
            if (step + 1) % LOOK_EVERY == 0 or step + 1 == size.total_steps:
                guard.raise_if_bad()
                speed = (step + 1) * size.batch_size / clock.seconds()
                epoch = f"{step // size.steps_per_epoch + 1}/{recipe.epochs}"
                values = {"epoch": epoch, "loss": f"{loss.item():.4f}", "lr": f"{lr:.2e}", "img/s": f"{speed:.0f}"}
                display.update(step + 1, values, clock.seconds_left(step + 1))
        guard.raise_if_bad()
    unreadable = sorted(skipped.name for skipped in lost)
    return Trained(probe, classifier.eval(), rate, loss.item(), clock.seconds(), unreadable)


def _steps(
    probe: ImageProbe,
    settings: EvaluationSettings,
    recipe: FinetuneRecipe,
    size: Length,
    rows: NDArray[np.int64] | None,
    lost: list[Skipped],
) -> Iterator[tuple[int, AugmentedBatch]]:
    """Yields every batch with its step number. Unreadable images do not shift step numbers; they make an epoch end earlier.

    Images that could not be read in the first epoch are added to `lost`.
    """
    views = training_views(probe, settings, recipe)
    workers = choose_workers(settings.workers)

    def one_pass(epoch: int) -> Iterator[AugmentedBatch]:
        found = lost if epoch == 0 else []  # every epoch loses the same images
        together = images_of_all(size.batch_size, probe.device)
        return augmented_batches(
            views, size.batch_size, epoch, settings.seed, workers, rows, unreadable=found, together=together
        )

    return numbered_steps(size.epochs, size.steps_per_epoch, one_pass)


def _backward(
    classifier: Classifier,
    slots: ImageSlots,
    batch: AugmentedBatch,
    probe: ImageProbe,
    settings: EvaluationSettings,
    recipe: FinetuneRecipe,
    step: int,
) -> Float[Tensor, ""]:
    """Accumulates the gradient of the batch's mean loss, microbatch by microbatch. Returns the loss, on the device.

    Every process gets the whole batch, because images are mixed with those of other processes, and computes the gradient of its
    share. Drop path draws as in a single process without microbatches.
    """
    images = normalize(batch.images, probe.config.pixel_mean, probe.config.pixel_std)
    mix = draw_mix(recipe.mixup, recipe.cutmix, probe.image_size, derive("step", settings.seed, step, DRAWS_OF_MIX))
    images = mix_images(images, mix)
    labels = to_device(batch.labels, probe.device)
    targets = soft_targets(labels, probe.num_classes, recipe.label_smoothing, mix)
    seed, own = derive("step", settings.seed, step, DRAWS_OF_NETWORK), own_images(len(images))
    seed_generator(probe.device, seed)
    part_size = settings.finetune.microbatch_size or len(images)
    total = torch.zeros((), device=probe.device)
    starts = range(own.start, own.stop, part_size)
    for part in (slice(first, min(first + part_size, own.stop)) for first in starts):
        if distributed.world_size() > 1:
            slots.set(part.start, part.stop - part.start, len(images))
            seed_generator(probe.device, seed)
        with autocast(probe.device, probe.precision):
            logits = classifier(images[part])
        loss = functional.cross_entropy(logits, targets[part], reduction="sum") / len(images)
        torch.autograd.backward(loss)
        total += loss.detach()
    gradients = [value.grad for value in classifier.parameters() if value.grad is not None]
    distributed.add_over_ranks([*gradients, total])
    return total


@contextmanager
def _explained(rate: float, batch_size: int) -> Iterator[None]:
    """Turns a loss or gradient that is not finite, and running out of memory, into a Refusal that says what to change."""
    advice = (
        f"evaluation.finetune.batch_size={batch_size} does not fit into memory: set a smaller finetune.microbatch_size, "
        "which sums the same gradient in parts"
    )
    try:
        with advise_on_memory(lambda: advice):
            yield
    except NotFinite as error:
        raise Refusal(
            f"evaluation.finetune.learning_rates={rate:g}: the loss or a gradient of step {error.step} is not finite; lower "
            "the rate or lengthen finetune.warmup_epochs; precision=fp32 tells whether it is the precision"
        ) from error


@dataclass(frozen=True)
class _Outcome:
    """The outcome of one fine-tuning run."""

    head: HeadResult
    """Its accuracies, not yet marked as chosen or not."""
    test: Scores
    loss: float
    seconds: float
    unreadable: tuple[str, ...]
    """Names of the training images that could not be read."""


@dataclass
class _Runs:
    """The fine-tuning runs of one probe. A run that two selection rules share is trained only once."""

    probe: ImageProbe
    settings: EvaluationSettings
    recipe: FinetuneRecipe
    known: dict[tuple[float, bool], _Outcome] = field(default_factory=dict)
    """Finished runs by (peak rate, whether a part was held out)."""

    def outcome(self, rate: float, hold_out: bool) -> _Outcome:
        """Trains on the whole training split, or on 90 % of it if `hold_out`, and tests. A finished run is reused."""
        if (rate, hold_out) not in self.known:
            self.known[rate, hold_out] = self._train(rate, hold_out)
        return self.known[rate, hold_out]

    def _train(self, rate: float, hold_out: bool) -> _Outcome:
        kept, held = self._rows() if hold_out else (None, None)
        trained = train_classifier(self.probe, self.settings, self.recipe, rate, kept)
        test = self._score(trained, self.probe.test, "test split", None)
        lost, held_out = list(trained.unreadable), None
        if held is not None:
            on_held = self._score(trained, self.probe.train, "held-out part of the training split", held)
            lost += on_held.unreadable
            held_out = on_held.top1[0]
        head = HeadResult(*trained.names()[0], held_out, test.top1[0])
        return _Outcome(head, test, trained.loss, trained.seconds, tuple(lost))

    def _score(self, trained: Trained, images: LabeledImages, part: str, rows: NDArray[np.int64] | None) -> Scores:
        """Accuracy on the test views of the records `rows` of `images` (all if None). Unreadable images do not count."""
        settings = self.settings
        advice = (
            f"out of memory on {self.probe.device} with evaluation.feature_batch_size={settings.feature_batch_size}: "
            "set a smaller --feature-batch-size (only the test images per forward)"
        )
        with advise_on_memory(lambda: advice):
            scores = count_right(trained, self.probe, images, settings, self.probe.fit, part, rows)
        if not scores.is_finite[0]:
            raise Refusal(
                f"evaluation.finetune.learning_rates={trained.rate:g}: what the fine-tuned encoder answers is not finite; "
                "lower the rate or lengthen finetune.warmup_epochs; precision=fp32 tells whether it is the precision"
            )
        return scores

    def _rows(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        kept, held = held_out_rows(torch.from_numpy(self.probe.train.labels), self.settings.seed)
        return kept.numpy(), held.numpy()


def evaluate_finetune(probe: ImageProbe, settings: EvaluationSettings) -> tuple[ProtocolResult, ...]:
    """Accuracy on the test split after the last epoch, for each selection rule. The probe's encoder is not changed.

    With one learning rate, as in every recipe, there is nothing to choose, so both rules train on all training images. With
    several, `held_out` trains each on 90 % of the training split and chooses on the other 10 %. It then trains the chosen rate
    again on the whole split; the test accuracies of the other rates come from the 90 %. `paper` trains each rate on the whole
    split and reports the best on the test split. `extra` holds the loss of the last step and the seconds of training of the
    reported run, and top-5 accuracy if there are more than five classes. Raises Refusal if settings contradict each other, if a
    loss or an output is not finite, if no image of a split can be read, or if memory runs out.
    """
    recipe = resolve_finetune(settings.finetune, settings.low_shot.is_set(), probe.encoder.config.depth)
    runs = _Runs(probe, settings, recipe)
    return tuple(_result(runs, selection) for selection in selections(settings))


def _result(runs: _Runs, selection: str) -> ProtocolResult:
    rates = runs.recipe.learning_rates
    hold_out = selection == "held_out" and len(rates) > 1
    heads = [runs.outcome(rate, hold_out).head for rate in rates]
    best = chosen_first(heads, selection) if len(rates) > 1 else 0
    final = runs.outcome(rates[best], hold_out=False)
    accuracy = Accuracy(final.test.top1[0], final.test.num)
    heads[best] = replace(heads[best], test_accuracy=accuracy.value, chosen=True)
    extra = {"train_loss": final.loss, "train_seconds": round(final.seconds, 1)}
    if runs.probe.num_classes > TOP:
        extra["top5"] = final.test.top5[0]
    # the final run saw the whole split, so no other run can have met more unreadable images
    unreadable = {"train": final.unreadable, "test": final.test.unreadable}
    return ProtocolResult(accuracy.value, accuracy.standard_error, tuple(heads), selection, extra, unreadable)
