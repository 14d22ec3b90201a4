"""Code shared by the probes that train on images: data loading, accuracy of many classifiers in one pass, the choice.

`linear-full` and `attentive` train many classifiers side by side on augmented images. The encoder is frozen and runs once per
batch for all classifiers. `finetune` uses the numbered steps and the accuracy.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from openjepa.data.passes import AugmentedBatch, LabeledViews, SharedPass, augmented_batches, choose_workers, evaluation_batches
from openjepa.data.selection import Subset
from openjepa.engine.device import synchronize, to_device
from openjepa.engine.distributed import add_over_ranks, gathered, own_range, rows_of_all, world_size
from openjepa.engine.failures import advise_on_memory
from openjepa.evaluation.protocol import (
    HeadResult,
    ImageProbe,
    LabeledImages,
    ProtocolResult,
    chosen_first,
    held_out_rows,
    selections,
    with_choice,
)
from openjepa.measures.features import TOP, Accuracy
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import Augmentation, EvaluationSettings
from openjepa.types import Skipped, ViewSpec

Rows = NDArray[np.int64]
SMALLEST_CROP = 0.08
"""Smallest area of a RandomResizedCrop as a share of the image (Szegedy et al., 2014)."""


class Candidates(Protocol):
    """Trained classifiers that are to be compared."""

    @property
    def unreadable(self) -> Sequence[str]:
        """Names of the training images that could not be read."""

    def names(self) -> list[tuple[str, str, str]]:
        """Features, head and setting of each classifier."""

    def answer(self, images: UInt8[Tensor, "B 3 h w"]) -> Float[Tensor, "B heads C"]:
        """Scores of each classifier on test views, on the device."""


@dataclass(frozen=True)
class Scores:
    """Accuracies of every classifier on some images."""

    top1: list[float]
    top5: list[float]
    is_finite: list[bool]
    """True for each classifier whose scores were all finite."""
    num: int
    unreadable: tuple[str, ...] = ()
    """Names of the images that could not be read."""


@dataclass(frozen=True)
class ProbeTraining:
    """The training images of a protocol, and how they are batched."""

    rows: Rows
    """Records of the training split."""
    views: LabeledViews
    epochs: int
    batch_size: int
    """Images per step."""
    piece: int
    """Images per forward pass of the encoder."""
    seed: int
    workers: int
    device: torch.device
    unreadable: list[str] = field(default_factory=list)
    """Names of the records that could not be read. Complete after the first pass."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass if every image can be read."""
        return max(1, len(self.rows) // self.batch_size)

    def pieces(
        self, epoch: int, extract: Callable[[UInt8[Tensor, "b 3 h w"]], Float[Tensor, "b F"]]
    ) -> Iterator[tuple[Float[Tensor, "b F"], Int[Tensor, " b"]]]:
        """One pass in pieces of features with labels, on the device. The last piece may be smaller.

        `extract`: makes them of images on the device. Each process calls it for its share of the images.
        """
        together = SharedPass(lambda images: rows_of_all(extract(to_device(images, self.device))), self.piece)
        for batch in self._pass(epoch, self.piece, together):
            yield batch.images, to_device(batch.labels, self.device)

    def batches(self, epoch: int) -> Iterator[tuple[UInt8[Tensor, "B 3 h w"], Int[Tensor, " B"]]]:
        """One pass in whole batches, on the device. An incomplete last batch is left out, unless it is the only one."""
        for place, batch in enumerate(self._pass(epoch, self.batch_size, images_of_all(self.batch_size, self.device))):
            if place == 0 or len(batch.labels) == self.batch_size:
                yield batch.images, to_device(batch.labels, self.device)

    def _pass(self, epoch: int, size: int, together: SharedPass) -> Iterator[AugmentedBatch]:
        """Yields all readable records, `size` at a time. The first pass also notes the unreadable ones."""
        is_lost = np.isin(np.arange(len(self.views.source)), self.rows)
        for batch in augmented_batches(
            self.views, size, epoch, self.seed, self.workers, self.rows, drop_last=False, together=together
        ):
            is_lost[batch.indices.numpy()] = False
            yield batch
        if epoch == 0:
            self.unreadable.extend(self.views.source.name(index) for index in np.flatnonzero(is_lost).tolist())


def images_of_all(batch_size: int, device: torch.device) -> SharedPass:
    """Every process decodes its share of each batch, and gets the whole batch on `device`."""
    return SharedPass(lambda images: rows_of_all(to_device(images, device)), -(-batch_size // world_size()))


def own_images(batch_size: int) -> slice:
    """The images of a batch that this process trains on. Raises Refusal if there are fewer images than processes."""
    if batch_size < world_size():
        raise Refusal(
            f"a batch of {batch_size} images is too small for {world_size()} processes: start at most {batch_size} of them "
            "(torchrun --nproc-per-node), or train on more images at a time"
        )
    own = own_range(batch_size)
    return slice(own.start, own.stop)


def training_on(
    probe: ImageProbe,
    rows: Rows,
    settings: EvaluationSettings,
    *,
    epochs: int,
    batch_size: int,
    augmentation: Augmentation,
    interpolation: str,
) -> ProbeTraining:
    """The records `rows` of the training split in augmented views. A batch is at most as large as `rows`.

    `interpolation` is the filter for random crops and for whole images. Views of the augmentations `none` and `center_flip` are
    resized like the test view: bicubically.
    """
    view = ViewSpec(
        probe.image_size,
        scale=(SMALLEST_CROP, 1.0),
        interpolation="bicubic" if augmentation == "none" else interpolation,
        horizontal_flip=augmentation != "none",
    )
    fits = {"crop_flip": "random_crop", "center_flip": "crop", "squash_flip": "squash", "none": probe.fit}
    views = LabeledViews(probe.train.source, probe.train.labels, view, fits[augmentation])
    return ProbeTraining(
        rows=rows,
        views=views,
        epochs=epochs,
        batch_size=min(batch_size, len(rows)),
        piece=settings.feature_batch_size,
        seed=settings.seed,
        workers=choose_workers(settings.workers),
        device=probe.device,
    )


def usual_augmentation(probe: ImageProbe) -> Augmentation:
    """The augmentation that fits the test view: mirrored whole images if it shows whole images, else mirrored random crops."""
    return "squash_flip" if probe.fit == "squash" else "crop_flip"


def test_view_fit(probe: ImageProbe, augmentation: Augmentation) -> str:
    """The fit of the test view that belongs to an augmentation: `crop` or `squash`."""
    return {"center_flip": "crop", "squash_flip": "squash"}.get(augmentation, probe.fit)


def train_and_choose(
    probe: ImageProbe,
    settings: EvaluationSettings,
    train: Callable[[Rows], Candidates],
    fit: str,
    rates_name: str,
) -> tuple[ProtocolResult, ...]:
    """Trains classifiers and chooses the best, for every selection rule.

    `held_out` trains on 90 % of each class, chooses on the other 10 %, and tests the chosen classifier as it is. It is not
    trained again on the whole split, which costs up to 10 % of the training images and saves half of the time. `paper` trains
    on the whole split and chooses on the test split. `both` trains twice. `fit` is that of the test view. Raises Refusal if no
    classifier is finite, if memory runs out (both messages name the setting `rates_name`), or if no image of a split can be
    read.
    """
    advice = (
        f"out of memory on {probe.device} with evaluation.feature_batch_size={settings.feature_batch_size}: set a smaller "
        f"--feature-batch-size (only the images per forward), or fewer evaluation.{rates_name}, which are trained side by side"
    )
    with advise_on_memory(lambda: advice):
        return tuple(_compared(probe, settings, train, fit, rates_name, rule) for rule in selections(settings))


def _compared(
    probe: ImageProbe, settings: EvaluationSettings, train: Callable[[Rows], Candidates], fit: str, rates_name: str, rule: str
) -> ProtocolResult:
    """Trains, tests and chooses by one selection rule."""
    labels = torch.from_numpy(probe.train.labels)
    rows, held = held_out_rows(labels, settings.seed) if rule == "held_out" else (torch.arange(len(labels)), None)
    start = time.monotonic()
    candidates = train(rows.numpy())
    synchronize(probe.device)
    seconds = time.monotonic() - start
    on_test = count_right(candidates, probe, probe.test, settings, fit, "test split")
    on_held, lost = None, list(candidates.unreadable)
    if held is not None:
        on_held = count_right(
            candidates, probe, probe.train, settings, fit, "held-out part of the training split", held.numpy()
        )
        lost += on_held.unreadable
    result = choose(candidates.names(), on_held, on_test, probe.num_classes, seconds, rates_name)
    return replace(result, unreadable={"train": tuple(lost), "test": on_test.unreadable})


def check_finite_outputs(outputs: Float[Tensor, "..."], probe: ImageProbe) -> None:
    """Raises Refusal if the encoder's outputs for a first batch are not finite. It says which part of the encoder is to blame.

    Without this check, NaN in the outputs would look as if every learning rate were too high. Waits for the device, so it is
    not meant for every step.
    """
    if bool(torch.isfinite(outputs).all()):
        return
    bad = [name for name, value in probe.encoder.named_parameters() if not bool(torch.isfinite(value).all())]
    if bad:
        raise Refusal(
            f"{len(bad)} of the encoder's parameters hold numbers that are not finite, the first is {bad[0]}: the run they are "
            "from has diverged, or the file is damaged; evaluate other weights"
        )
    advice = "use --precision fp32" if probe.precision != "fp32" else "they are too large for fp32; evaluate other weights"
    raise Refusal(
        f"the encoder's outputs are not finite with evaluation.precision={probe.precision}, though its parameters are: {advice}"
    )


@torch.no_grad()
def count_right(
    candidates: Candidates,
    probe: ImageProbe,
    images: LabeledImages,
    settings: EvaluationSettings,
    fit: str,
    part: str,
    rows: Rows | None = None,
) -> Scores:
    """Accuracy of every classifier on the test views of a split, or of its records `rows`. Unreadable images are left out.

    `part` names the images in messages. Every process tests its share. Raises Refusal if none of them can be read.
    """
    size = settings.feature_batch_size
    if world_size() > 1:
        rows = np.arange(len(images.source)) if rows is None else rows
        batches = own_range(-(-len(rows) // size))
        rows = rows[batches.start * size : batches.stop * size]
    source = images.source if rows is None else Subset(images.source, rows)
    labels = torch.from_numpy(images.labels if rows is None else images.labels[rows])
    shape = (3, len(candidates.names()))
    right = torch.zeros(shape, dtype=torch.int64, device=probe.device)  # top-1, top-5, images with a score that is not finite
    num = 0
    lost: list[Skipped] = []
    workers = choose_workers(settings.workers)
    for batch in evaluation_batches(source, probe.image_size, size, workers, fit=fit, unreadable=lost):
        logits = candidates.answer(to_device(batch.images, probe.device))
        answers = to_device(labels[batch.indices], probe.device)
        hits = logits.topk(min(TOP, logits.shape[2]), dim=2).indices == answers[:, None, None]  # [B, heads, 5]
        bad = ~torch.isfinite(logits).all(dim=2)
        right += torch.stack([hits[:, :, 0].sum(dim=0), hits.any(dim=2).sum(dim=0), bad.sum(dim=0)])
        num += len(answers)
    add_over_ranks([right])
    num = sum(gathered(num))
    lost = [skipped for some in gathered(lost) for skipped in some]
    if num == 0:
        raise Refusal(
            f"no image of the {part} can be read; the first of {len(lost)} is {lost[0].name}: {lost[0].reason}. "
            "`openjepa data check` reads every image of a folder and says what is wrong"
        )
    top1, top5, bad = right.tolist()
    names = tuple(skipped.name for skipped in lost)
    return Scores([n / num for n in top1], [n / num for n in top5], [n == 0 for n in bad], num, names)


def choose(
    names: list[tuple[str, str, str]],
    on_held: Scores | None,
    on_test: Scores,
    num_classes: int,
    seconds: float,
    rates_name: str,
) -> ProtocolResult:
    """The best of the finite classifiers, on the held-out images or, if `on_held` is None, on the test images.

    Raises Refusal, naming the setting `rates_name`, if no classifier is finite.
    """
    is_finite = [a and b for a, b in zip(on_test.is_finite, (on_held or on_test).is_finite, strict=True)]
    if not any(is_finite):
        raise Refusal(
            f"evaluation.{rates_name}: with none of these rates the weights stayed finite; "
            f"use smaller ones than {', '.join(dict.fromkeys(name[2] for name in names))}"
        )
    heads = [
        HeadResult(*name, None if on_held is None else on_held.top1[i], on_test.top1[i])
        if is_finite[i]
        else HeadResult(name[0], name[1], f"{name[2]} (failed: not finite)", None if on_held is None else 0.0, 0.0)
        for i, name in enumerate(names)
    ]
    # finite classifiers first, so that a failed one never wins a tie
    order = sorted(range(len(heads)), key=lambda i: not is_finite[i])
    heads = [heads[i] for i in order]
    rule = "paper" if on_held is None else "held_out"
    best = chosen_first(heads, rule)
    extra = {"training_seconds": round(seconds, 1)}
    if num_classes > TOP:
        extra["top5"] = on_test.top5[order[best]]
    accuracy = heads[best].test_accuracy
    return ProtocolResult(accuracy, Accuracy(accuracy, on_test.num).standard_error, with_choice(heads, best), rule, extra)


Batch = TypeVar("Batch")


def numbered_steps(epochs: int, steps_per_epoch: int, batches: Callable[[int], Iterable[Batch]]) -> Iterator[tuple[int, Batch]]:
    """Yields every batch of every epoch with its step number: epoch x steps_per_epoch + place in the epoch.

    `batches(epoch)` starts one pass of at most `steps_per_epoch` batches. Unreadable images make a pass shorter but do not
    shift the step numbers of the next pass. Raises Refusal if a pass has no batch, because nothing would be trained.
    """
    for epoch in range(epochs):
        place = -1
        for place, batch in enumerate(batches(epoch)):
            yield epoch * steps_per_epoch + place, batch
        if place < 0:
            raise Refusal(
                "no image of the training split can be read, so that nothing can be trained; `openjepa data check` reads "
                "every image of a folder and says what is wrong"
            )
