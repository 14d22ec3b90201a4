"""One task: features where protocols want them, every protocol on every subject, and the Result."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openjepa.data.evaluation import evaluation_batches
from openjepa.data.source import LabelMaps, ListSource, Splits
from openjepa.data.subset import Subset, balanced_rows
from openjepa.data.workers import choose_workers
from openjepa.engine.device import memory_limit, resolve_device, resolve_precision
from openjepa.evaluation import PROTOCOLS
from openjepa.evaluation.features import EncoderFeatures, Extractor, Features, Images, PixelFeatures, View, extract_features
from openjepa.evaluation.label_free import feature_measures
from openjepa.evaluation.lidar import lidar_measures
from openjepa.evaluation.protocol import ImageProbe, LabeledFeatures, LabeledImages, ProtocolResult, selections
from openjepa.evaluation.results import Metric, Result, SubjectResult
from openjepa.evaluation.solver import Components
from openjepa.evaluation.tasks import TASKS, Labels, Task
from openjepa.models.vit import VisionTransformer
from openjepa.settings.evaluation import EvaluationSettings, ProtocolName
from openjepa.settings.models import EncoderConfig

AxesOfHeads = dict[tuple[str, str], Components]
"""By kind of features and kind of head."""
KnownComponents = dict[tuple[str, bytes, bytes], dict[str, AxesOfHeads]]
"""By what makes the training features the same (fit, rows, readable rows) and by subject; shared by the tasks of one call."""
NUM_NAMES = 20
"""Unreadable images that a result names."""


@dataclass(frozen=True)
class Subjects:
    """The networks of one evaluation: the encoder first, then the untrained one; and whether pixels stand beside them."""

    encoders: Mapping[str, VisionTransformer]
    config: EncoderConfig
    pixels: bool
    size: tuple[int, int]
    """Height and width of the views in pixels."""
    cache: Path
    """Folder of the kept features."""
    predictor: Path | None = None
    """Folder of the predictor of the run that `encoder` is from, where there is one."""


@dataclass(frozen=True)
class Split:
    """What a task uses of one split."""

    source: ListSource
    labels: NDArray[np.int64]
    maps: LabelMaps | None


class Findings:
    """What the protocols of one task have found so far."""

    def __init__(self, side_by_side: bool) -> None:
        """`side_by_side`: both selection rules are asked for, so that the second is named after the number."""
        self._side_by_side = side_by_side
        self.metrics: dict[str, dict[str, Metric]] = {}
        """By subject and name of the number."""
        self.heads: list[dict[str, Any]] = []
        """Every classifier that was tried."""
        self.unreadable: dict[str, dict[str, None]] = {"train": {}, "test": {}}
        """Names of the images that could not be read, in the order they were found, by split."""

    def add(self, name: ProtocolName, subject: str, outcomes: Sequence[ProtocolResult]) -> None:
        """The results of a protocol on a subject."""
        for outcome in outcomes:
            title = PROTOCOLS[name].metric
            if outcome.selection == "paper" and self._side_by_side:
                title += " (paper)"
            self.metrics.setdefault(subject, {})[title] = _metric(outcome)
            self.heads.extend({"subject": subject, "metric": title, **asdict(head)} for head in outcome.heads)
            for split, names in outcome.unreadable.items():
                self.unreadable[split].update(dict.fromkeys(names))


def evaluate_task(
    blank: Result, splits: Splits, subjects: Subjects, settings: EvaluationSettings, known: KnownComponents, benchmark: str = ""
) -> Result:
    """`blank` with the numbers of every protocol of `settings` that the task can have, or with the reason why it has none."""
    start = time.monotonic()
    task = TASKS[blank.task]
    labels = task.labels(splits)
    if isinstance(labels, str):
        return replace(blank, skipped=labels)
    assert isinstance(splits.train, ListSource) and splits.test is not None
    rows = _training_rows(splits.train, labels[0], settings)
    train, test = _sides(task, splits, labels, rows)
    names = _fitting(task, settings)
    if not names:
        what = "images" if task.maps is None else "pixels"
        return replace(blank, skipped=f"none of the protocols {', '.join(settings.protocols)} works on labels of {what}")
    findings = Findings(settings.selection == "both")
    measures: dict[str, dict[str, float]] = {}
    if any(PROTOCOLS[name].kind == "features" for name in names):
        found = _features(train, test, task, subjects, settings)
        same = (task.fit, rows.tobytes(), found[0]["encoder"].indices.numpy().tobytes())
        _probe_features(found, train, test, names, subjects, settings, known.setdefault(same, {}), findings)
        for split, side, features in zip(findings.unreadable, (train, test), found, strict=True):
            findings.unreadable[split].update(dict.fromkeys(_dropped(side.source, features["encoder"])))
        measures = _measures(found[1], test, task, subjects, settings)
    for name in names:
        if PROTOCOLS[name].kind != "features":
            _probe_images(name, train, test, task, subjects, settings, benchmark, findings)
    dropped = {split: list(lost) for split, lost in findings.unreadable.items()}
    return replace(
        blank,
        subjects={name: SubjectResult(numbers) for name, numbers in findings.metrics.items()},
        heads=findings.heads,
        image_size=subjects.size,
        fit=task.fit,
        num_train=len(train.source) - len(dropped["train"]),
        num_test=len(test.source) - len(dropped["test"]),
        num_classes=len(np.unique(labels[0])) if train.maps is None else len(train.maps.class_names),
        chance=_chance(train, labels[1], findings.metrics),
        dropped={split: len(lost) for split, lost in dropped.items()},
        dropped_names=[name for lost in dropped.values() for name in lost][:NUM_NAMES],
        measures=measures,
        seconds=round(time.monotonic() - start, 1),
    )


def _chance(train: Split, test_labels: NDArray[np.int64], metrics: Mapping[str, Mapping[str, Metric]]) -> float:
    """The number of always answering the most frequent class of the training images, or patches where pixels are labeled."""
    if train.maps is not None:
        return next(iter(metrics["encoder"].values())).extra["majority"]
    return float((test_labels == np.bincount(train.labels).argmax()).mean())


def _training_rows(source: ListSource, labels: NDArray[np.int64], settings: EvaluationSettings) -> NDArray[np.int64]:
    """The labeled training images: those of the low-shot settings, of them at most `max_train_images`."""
    if not settings.low_shot.is_set():
        return balanced_rows(labels, settings.max_train_images, settings.seed)
    from openjepa.data.low_shot import low_shot_rows

    rows = low_shot_rows(source, labels, settings.low_shot)
    return rows[balanced_rows(labels[rows], settings.max_train_images, settings.seed)]


def _sides(task: Task, splits: Splits, labels: Labels, rows: NDArray[np.int64]) -> tuple[Split, Split]:
    assert isinstance(splits.train, ListSource) and splits.test is not None
    whole = len(rows) == len(labels[0])
    maps = splits.label_maps[task.maps] if task.maps is not None else (None, None)
    train = splits.train if whole else Subset(splits.train, rows)
    train_maps = maps[0] if maps[0] is None or whole else maps[0].select(rows)
    return Split(train, labels[0][rows], train_maps), Split(splits.test, labels[1], maps[1])


def _fitting(task: Task, settings: EvaluationSettings) -> tuple[ProtocolName, ...]:
    """The protocols asked for that work on the task's kind of labels; where none is asked for, the usual ones."""
    usual: tuple[ProtocolName, ...] = ("linear", "knn") if task.maps is None else ("dense_linear", "dense_knn")
    return tuple(name for name in settings.protocols or usual if (PROTOCOLS[name].kind == "maps") == (task.maps is not None))


def _features(
    train: Split, test: Split, task: Task, subjects: Subjects, settings: EvaluationSettings
) -> tuple[dict[str, Features], dict[str, Features]]:
    extractors = _extractors(subjects, settings)
    sides = (("train", train), ("test", test))
    found = [
        extract_features(_view(side, name, task, settings, subjects), extractors, subjects.cache, settings.feature_dtype)
        for name, side in sides
    ]
    return found[0], found[1]


def _extractors(subjects: Subjects, settings: EvaluationSettings) -> dict[str, Extractor]:
    device = resolve_device(settings.device)
    extractors: dict[str, Extractor] = {
        name: EncoderFeatures(encoder, subjects.config, device, settings.precision)
        for name, encoder in subjects.encoders.items()
    }
    return extractors | {"pixels": PixelFeatures()} if subjects.pixels else extractors


def _view(side: Split, name: str, task: Task, settings: EvaluationSettings, subjects: Subjects) -> View:
    workers = choose_workers(settings.workers)

    def batches(first: int) -> Iterator[Images]:
        # what cannot be read is found again in `_dropped`, also when the features come from the cache
        batch_size = settings.feature_batch_size
        return evaluation_batches(side.source, subjects.size, batch_size, workers, fit=task.fit, first=first, unreadable=[])

    return View(side.source, name, {"image_size": subjects.size, "fit": task.fit}, batches)


def _probe_features(
    found: tuple[Mapping[str, Features], Mapping[str, Features]],
    train: Split,
    test: Split,
    names: tuple[ProtocolName, ...],
    subjects: Subjects,
    settings: EvaluationSettings,
    known: dict[str, AxesOfHeads],
    findings: Findings,
) -> None:
    """Every protocol of features on every subject."""
    device = resolve_device(settings.device)
    for subject, extractor in _extractors(subjects, settings).items():
        sides = [
            _labeled(features[subject], side.labels, extractor, device)
            for features, side in zip(found, (train, test), strict=True)
        ]
        sides[0] = replace(sides[0], components=known.setdefault(subject, {}))
        for name in names:
            if PROTOCOLS[name].kind == "features":
                protocol = PROTOCOLS[name].load()
                outcomes = [protocol(*sides, replace(settings, selection=rule)) for rule in selections(settings)]
                findings.add(name, subject, outcomes)


def _probe_images(
    name: ProtocolName,
    train: Split,
    test: Split,
    task: Task,
    subjects: Subjects,
    settings: EvaluationSettings,
    benchmark: str,
    findings: Findings,
) -> None:
    """A protocol that works on images, on the encoder and on the untrained one; on label maps also on the patches' pixels."""
    device = resolve_device(settings.device)
    images = [LabeledImages(side.source, side.labels, side.maps) for side in (train, test)]
    for subject, encoder in subjects.encoders.items():
        frozen = encoder.eval().requires_grad_(False).to(device)
        precision = resolve_precision(settings.precision, device)
        sides = (images[0], images[1], task.fit, subjects.size)
        probe = ImageProbe(frozen, subjects.config, *sides, device, precision, benchmark, task.title)
        findings.add(name, subject, PROTOCOLS[name].load()(probe, settings))
    if subjects.pixels and PROTOCOLS[name].kind == "maps":
        findings.add(name, "pixels", PROTOCOLS[name].load()(replace(probe, raw_pixels=True), settings))


def _metric(outcome: ProtocolResult) -> Metric:
    head = next(head for head in outcome.heads if head.chosen)
    words = f"{head.features}, {head.head}, {head.setting}"
    return Metric(outcome.accuracy, outcome.standard_error, "higher", outcome.selection, words, extra=outcome.extra)


def _labeled(features: Features, labels: NDArray[np.int64], extractor: Extractor, device: torch.device) -> LabeledFeatures:
    answers = torch.from_numpy(labels)[features.indices].to(device)
    # what would fill the device stays where it is: protocols take it there chunk by chunk, to where the labels are
    fits = features.rows.nbytes < memory_limit(device) / 2
    return LabeledFeatures(extractor.kinds(features.rows.to(device) if fits else features.rows), answers)


def _measures(
    found: Mapping[str, Features], test: Split, task: Task, subjects: Subjects, settings: EvaluationSettings
) -> dict[str, dict[str, float]]:
    """What the encoders' features of the test images say without labels."""
    extractors = {name: extractor for name, extractor in _extractors(subjects, settings).items() if name in subjects.encoders}
    encoders, size = subjects.encoders, subjects.size
    more = lidar_measures(test.source, task.fit, encoders, subjects.config, size, subjects.predictor, settings)
    return {
        name: feature_measures(extractor.kinds(found[name].rows)) | more.get(name, {}) for name, extractor in extractors.items()
    }


def _dropped(source: ListSource, features: Features) -> list[str]:
    there = np.zeros(len(source), dtype=bool)
    there[features.indices.numpy()] = True
    return [source.name(int(index)) for index in np.flatnonzero(~there)]
