"""Dense evaluation without a decoder: a linear head or k-NN classifies single patches of a frozen encoder.

This is not a protocol of the I-JEPA paper, whose evaluations pool the patches. Features are the patch tokens of the last layer
after the final norm, in fp32. The class of a patch is the one that covers most of its pixels in the evaluated view. At most
`dense.max_patches` training patches are drawn uniformly over all images with the seed, so that classes keep their natural
shares. Drawn patches without a labeled pixel are left out. The result is the mean IoU over the classes that occur in the test
patches. Both probes share the passes over the images. `held_out` chooses on 10 % of the training images, not of the patches:
patches of one image are so similar that held-out patches of a training image would choose too weak a regularization.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from openjepa.data.passes import choose_workers, evaluation_batches
from openjepa.data.selection import Subset
from openjepa.data.source import LabelMaps
from openjepa.data.views import central_crop
from openjepa.engine.device import to_device
from openjepa.evaluation.probes.closed_sweep import LinearHeads
from openjepa.evaluation.probes.linear import HEAD_KINDS, Prepared, prepare
from openjepa.evaluation.protocol import (
    HeadResult,
    ImageProbe,
    LabeledImages,
    ProtocolResult,
    chosen_first,
    held_out_rows,
    selections,
    strongest_first,
    with_choice,
)
from openjepa.measures.features import (
    INTERSECTION,
    PREDICTED,
    PRESENT,
    hit_rate,
    knn_predictions,
    mean_iou,
    mean_iou_error,
    overlap_counts,
)
from openjepa.refusals import Refusal
from openjepa.seeds import derive
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.system.console import progress
from openjepa.types import Skipped


def label_view(labels: UInt8[np.ndarray, "h w"], size: tuple[int, int], fit: str) -> UInt8[np.ndarray, "oh ow"]:
    """The labels in the view that `evaluation_view` makes with the same `size` (height, width) and `fit` (`crop` or `squash`).

    Each pixel of the view takes the label of the label map at the pixel's center (nearest neighbor).
    """
    height, width = labels.shape
    resized, offset = (size, (0, 0)) if fit == "squash" else central_crop(height, width, size)
    rows, columns = (
        # the center (i + 1/2) / full of the map's side, in integer arithmetic
        (2 * np.arange(start, start + length) + 1) * whole // (2 * full)
        for start, length, whole, full in zip(offset, size, (height, width), resized, strict=True)
    )
    return np.asarray(labels[rows[:, None], columns[None, :]])


def patch_histograms(view: UInt8[np.ndarray, "h w"], patch_size: int, num_classes: int) -> Int[np.ndarray, "N classes"]:
    """The number of pixels of each class in every patch, patches in raster order. IGNORED pixels are not counted.

    Raises Refusal if a label is neither a class nor IGNORED.
    """
    height, width = view.shape
    rows, columns = height // patch_size, width // patch_size
    cut = view.reshape(rows, patch_size, columns, patch_size).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    counted = cut != LabelMaps.IGNORED
    if counted.any() and cut[counted].max() >= num_classes:
        raise Refusal(f"a label map holds class {cut[counted].max()}; its {num_classes} classes are 0 to {num_classes - 1}")
    # one bin for each pair of patch and class
    bins = (np.arange(len(cut))[:, None] * num_classes + cut)[counted]
    return np.bincount(bins, minlength=len(cut) * num_classes).reshape(len(cut), num_classes)


def patch_labels(histograms: Int[np.ndarray, "*lead classes"]) -> NDArray[np.int64]:
    """The class with the most pixels in each patch [*lead], the first in a tie; IGNORED if no pixel is labeled.

    IGNORED pixels have no vote: a patch with a single labeled pixel has that pixel's class.
    """
    return np.where(histograms.any(axis=-1), histograms.argmax(axis=-1), LabelMaps.IGNORED)


UNLABELED = f"see that their label maps hold classes and not only {LabelMaps.IGNORED}, or evaluate other --tasks"


@dataclass(frozen=True)
class Patches:
    """Labeled training patches from several images."""

    features: Float[Tensor, "n D"]
    labels: Int[Tensor, " n"]
    images: Int[Tensor, " n"]
    """Index of each patch's image."""
    num_classes: int
    """Number of classes of the label maps. Some of them may not occur in these patches."""
    unreadable: tuple[str, ...] = ()
    """Names of the images that could not be read."""


@dataclass(frozen=True)
class PatchBatch:
    """All patches of a batch of images."""

    features: Float[Tensor, "B N D"]
    histograms: Int[Tensor, "B N classes"]
    """Number of labeled pixels of each class."""
    labels: Int[Tensor, "B N"]
    """Class of each patch; IGNORED if no pixel is labeled."""
    indices: Int[Tensor, " B"]


@dataclass(frozen=True)
class Classifiers:
    """Classifiers of patches that predict together."""

    heads: tuple[HeadResult, ...]
    """Their results so far, without test accuracy."""
    rules: tuple[str, ...]
    """Selection rules that these classifiers take part in."""
    predict: Callable[[Float[Tensor, "n D"]], Int[Tensor, "L n"]]


def evaluate_dense(probe: ImageProbe, settings: EvaluationSettings) -> tuple[ProtocolResult, ...]:
    """Mean IoU of `dense-linear` and `dense-knn`, as far as `settings.protocols` names them, for each selection rule.

    `dense-linear`: the heads of `linear` on one kind of features: {linear, BatchNorm + linear}, each solved for every value of
    `settings.weight_decays`. `dense-knn`: DINO's weighted vote of the nearest training patches, for every k of
    `settings.neighbors`. Weight decay and k are chosen by mean IoU. Both protocols share the passes over the images. Raises
    Refusal if no training or test patch is labeled, or if no image of a split can be read.
    """
    train = training_patches(probe, settings)
    names = [name for name in _MAKERS if name in settings.protocols]
    made = [(name, one) for name in names for one in _MAKERS[name](train, "pixels" if probe.raw_pixels else "last", settings)]
    lost: list[Skipped] = []
    tested = _test(probe, [one for _, one in made], settings, lost)
    majority = int(train.labels.bincount().argmax())
    unreadable = {"train": train.unreadable, "test": tuple(skipped.name for skipped in lost)}
    results = []
    for name in names:
        own = [(one, result) for (maker, one), result in zip(made, tested, strict=True) if maker == name]
        results += [
            replace(_result(rule, own, majority, len(train.labels), settings.seed), protocol=name, unreadable=unreadable)
            for rule in selections(settings)
        ]
    return tuple(results)


def patch_features(probe: ImageProbe, images: UInt8[Tensor, "B 3 h w"]) -> Float[Tensor, "B N D"]:
    """The encoder's output for every patch or, if `probe.raw_pixels`, its pixels (channel, row, column) in [0, 1]."""
    if probe.raw_pixels:
        images = to_device(images, probe.device)
        side = probe.config.patch_size
        cut = images.unfold(2, side, side).unfold(3, side, side)  # [B, 3, H, W, side, side]
        return cut.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2).float() / 255
    with torch.no_grad():
        return probe.outputs(images).patches.float()


def patch_batches(
    probe: ImageProbe, side: LabeledImages, settings: EvaluationSettings, split: str, unreadable: list[Skipped]
) -> Iterator[PatchBatch]:
    """Yields features and labels of all patches, image by image in the order of the source, with a progress bar.

    Images that cannot be read are left out and added to `unreadable`. Raises Refusal if no image can be read.
    """
    assert side.maps is not None
    size, patch_size, num_classes = probe.image_size, probe.config.patch_size, _num_classes(side.maps)
    workers, batch_size = choose_workers(settings.workers), settings.feature_batch_size
    with progress(f"patches of the {split} split", len(side.source)) as advance:
        for batch in evaluation_batches(side.source, size, batch_size, workers, fit=probe.fit, unreadable=unreadable):
            views = (label_view(side.maps.read(index), size, probe.fit) for index in batch.indices.tolist())
            histograms = np.stack([patch_histograms(view, patch_size, num_classes) for view in views])
            yield PatchBatch(
                patch_features(probe, batch.images),
                to_device(torch.from_numpy(histograms), probe.device),
                to_device(torch.from_numpy(patch_labels(histograms)), probe.device),
                batch.indices,
            )
            advance(len(batch.indices))
    if len(unreadable) == len(side.source):
        raise Refusal(
            f"no image of the {split} split can be read; the first of {len(unreadable)} is {unreadable[0].name}: "
            f"{unreadable[0].reason}. `openjepa data check` reads every image of a folder and says what is wrong"
        )


def training_patches(probe: ImageProbe, settings: EvaluationSettings) -> Patches:
    """The drawn patches that have a labeled pixel. Images without a drawn patch are not read.

    Raises Refusal if no drawn patch has a labeled pixel.
    """
    side = probe.train
    assert side.maps is not None
    num_patches = probe.image_size[0] * probe.image_size[1] // probe.config.patch_size**2
    wanted = _drawn(len(side.source), num_patches, settings.dense.max_patches, settings.seed)
    images = np.flatnonzero(wanted.any(dim=1).numpy())
    seen = LabeledImages(Subset(side.source, images), side.labels[images], side.maps.select(images))
    parts, lost = [], list[Skipped]()
    for batch in patch_batches(probe, seen, settings, "training", lost):
        numbers = torch.from_numpy(images)[batch.indices]
        taken = wanted[numbers].to(probe.device) & (batch.labels != LabelMaps.IGNORED)
        owners = numbers.to(probe.device)[:, None].expand_as(taken)
        parts.append((batch.features[taken], batch.labels[taken], owners[taken]))
    if not any(len(labels) for _, labels, _ in parts):
        raise Refusal(
            f"evaluation.dense.max_patches={settings.dense.max_patches}: none of the {int(wanted.sum())} training patches that "
            f"were drawn has a labeled pixel; {UNLABELED}, or draw more patches with --dense.max-patches"
        )
    features, labels, owners = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return Patches(features, labels, owners, _num_classes(side.maps), tuple(skipped.name for skipped in lost))


def held_out_patches(patches: Patches, seed: int) -> tuple[Int[Tensor, " kept"], Int[Tensor, " held"]]:
    """Patches to train on, and the held-out patches of 10 % of the images. Raises Refusal if there is only one image."""
    images, owners = torch.unique(patches.images, return_inverse=True)
    if len(images) == 1:
        raise Refusal(
            "evaluation.selection='held_out': all training patches are of one image, and patches are held out by whole images; "
            "use more training images (--max-train-images, --low-shot.percent, --dense.max-patches) or --selection paper"
        )
    _, held = held_out_rows(torch.zeros_like(images), seed)
    is_held = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    is_held[held] = True
    return (~is_held[owners]).nonzero()[:, 0], is_held[owners].nonzero()[:, 0]


def _num_classes(maps: LabelMaps) -> int:
    return len(maps.class_names) or LabelMaps.IGNORED


def _drawn(num_images: int, num_patches: int, most: int, seed: int) -> Tensor:
    """Mask of the drawn patches [images, patches]: `most` of them, or all if there are not more."""
    total = num_images * num_patches
    wanted = torch.ones(total, dtype=torch.bool)
    if total > most:
        chosen = np.random.default_rng(derive("subset", seed, 6)).choice(total, most, replace=False, shuffle=False)
        wanted = torch.zeros(total, dtype=torch.bool).index_fill(0, torch.from_numpy(chosen), True)
    return wanted.view(num_images, num_patches)


# ---------------------------------------------------------------------------------------------------------- classifiers


def _linear_classifiers(train: Patches, kind: str, settings: EvaluationSettings) -> list[Classifiers]:
    strongest = strongest_first(settings.weight_decays)
    found = []
    for head in HEAD_KINDS:
        prepared = prepare(train.features, train.labels, head)
        for rule in selections(settings):
            decays: list[tuple[float, float | None]] = [(decay, None) for decay in strongest]
            if rule == "held_out":
                decays = [_best_decay(prepared, train, strongest, settings)]
            solved = prepared.solve(None, [decay for decay, _ in decays], settings.iterations)
            heads = tuple(HeadResult(kind, head, f"weight decay {decay:g}", score, 0.0) for decay, score in decays)
            found.append(Classifiers(heads, (rule,), partial(_predict_linear, prepared, solved)))
    return found


def _best_decay(
    prepared: Prepared, train: Patches, decays: list[float], settings: EvaluationSettings
) -> tuple[float, float | None]:
    """The best weight decay on the held-out images, and its mean IoU there."""
    kept, held = held_out_patches(train, settings.seed)
    predictions = _predict_linear(prepared, prepared.solve(kept, decays, settings.iterations), train.features[held])
    scores = _scores(predictions, train.labels[held], train.num_classes)
    best = scores.index(max(scores))
    return decays[best], scores[best]


def _predict_linear(prepared: Prepared, heads: LinearHeads, features: Float[Tensor, "n D"]) -> Int[Tensor, "L n"]:
    return heads.predict(prepared.project(features))


def _knn_classifiers(train: Patches, kind: str, settings: EvaluationSettings) -> list[Classifiers]:
    rules = selections(settings)
    scores: Sequence[float | None] = [None] * len(settings.neighbors)
    if "held_out" in rules:
        kept, held = held_out_patches(train, settings.seed)
        predictions = _predict_knn(train.features[kept], train.labels[kept], settings, train.features[held])
        scores = _scores(predictions, train.labels[held], train.num_classes)
    heads = tuple(HeadResult(kind, "knn", f"k {k}", score, 0.0) for k, score in zip(settings.neighbors, scores, strict=True))
    return [Classifiers(heads, rules, partial(_predict_knn, train.features, train.labels, settings))]


def _predict_knn(
    keys: Float[Tensor, "m D"], labels: Int[Tensor, " m"], settings: EvaluationSettings, features: Float[Tensor, "n D"]
) -> Int[Tensor, "K n"]:
    found = knn_predictions(keys, labels, features, settings.neighbors, settings.neighbor_temperature)
    return torch.stack([found[k] for k in settings.neighbors])


_MAKERS = {"dense-linear": _linear_classifiers, "dense-knn": _knn_classifiers}


def _scores(predictions: Int[Tensor, "L n"], labels: Int[Tensor, " n"], num_classes: int) -> list[float]:
    """Mean IoU of each classifier."""
    ones = functional.one_hot(labels, num_classes)[None]
    return [float(mean_iou(overlap_counts(predicted[None], ones).cpu()[0])) for predicted in predictions]


# ------------------------------------------------------------------------------------------------------------- the test


@dataclass(frozen=True)
class Tested:
    """Pixel and patch counts of several classifiers on the test images, on the CPU."""

    patches: Int[Tensor, "n L 3 classes"]
    """Counts of patches, per test image."""
    pixels: Int[Tensor, "L 3 classes"]
    """Counts of pixels, if each pixel gets the class predicted for its patch (nearest upsampling)."""


def _test(probe: ImageProbe, several: list[Classifiers], settings: EvaluationSettings, lost: list[Skipped]) -> list[Tested]:
    """Tests all classifiers in one pass over the test images. Unreadable images are added to `lost`."""
    assert probe.test.maps is not None
    num_classes = _num_classes(probe.test.maps)
    patches: list[list[Tensor]] = [[] for _ in several]
    pixels: list[list[Tensor]] = [[] for _ in several]
    for batch in patch_batches(probe, probe.test, settings, "test", lost):
        labeled = batch.labels != LabelMaps.IGNORED
        ones = functional.one_hot(batch.labels.masked_fill(~labeled, 0), num_classes) * labeled[:, :, None]
        for number, one in enumerate(several):
            for_heads = one.predict(batch.features.flatten(0, 1)).view(-1, *labeled.shape)  # [L, B, N]
            found = [overlap_counts(predicted, ones).cpu() for predicted in for_heads]
            patches[number].append(torch.stack(found, dim=1))
            pixels[number].append(torch.stack([overlap_counts(one, batch.histograms).sum(dim=0).cpu() for one in for_heads]))
    tested = [Tested(torch.cat(parts), torch.stack(sums).sum(dim=0)) for parts, sums in zip(patches, pixels, strict=True)]
    if not int(tested[0].patches.sum()):
        raise Refusal(f"no patch of the {len(tested[0].patches)} test images has a labeled pixel; {UNLABELED}")
    return tested


def _result(rule: str, several: list[tuple[Classifiers, Tested]], majority: int, num_train: int, seed: int) -> ProtocolResult:
    """The best classifier that takes part in `rule`. `majority` is the most frequent class of the training patches."""
    heads, patches, pixels = [], [], []
    for one, found in ((one, found) for one, found in several if rule in one.rules):
        values = mean_iou(found.patches.sum(dim=0)).tolist()
        for number, (head, value) in enumerate(zip(one.heads, values, strict=True)):
            held_out = head.held_out_accuracy if rule == "held_out" else None
            heads.append(replace(head, held_out_accuracy=held_out, test_accuracy=value))
            patches.append(found.patches[:, number])
            pixels.append(found.pixels[number])
    best = chosen_first(heads, rule)
    counts = patches[best].sum(dim=0)
    chance = _always(majority, counts)
    extra = {
        "patch_accuracy": hit_rate(counts),
        "pixel_miou": float(mean_iou(pixels[best])),
        "majority": chance,
        "train_patches": float(num_train),
    }
    error = mean_iou_error(patches[best], seed)
    return ProtocolResult(heads[best].test_accuracy, error, with_choice(heads, best), rule, extra, chance=chance)


def _always(answer: int, counts: Int[Tensor, "3 classes"]) -> float:
    """Mean IoU of a classifier that always predicts the class `answer`."""
    always = torch.zeros_like(counts)
    always[PRESENT] = counts[PRESENT]
    always[INTERSECTION, answer], always[PREDICTED, answer] = counts[PRESENT, answer], counts[PRESENT].sum()
    return float(mean_iou(always))
