"""Evaluates one task: extracts features if protocols need them, runs every protocol on every subject, makes the Result."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openjepa.data.datasets.benchmarks import BENCHMARKS
from openjepa.data.passes import choose_workers, evaluation_batches, shared_evaluation_batches
from openjepa.data.selection import Subset, balanced_rows, low_shot_rows
from openjepa.data.source import LabelMaps, ListSource, Splits
from openjepa.engine import distributed
from openjepa.engine.device import memory_limit, resolve_device, resolve_precision
from openjepa.evaluation.feature_store import (
    EncoderFeatures,
    Extractor,
    FeatureRows,
    ImageBatch,
    PixelFeatures,
    SplitView,
    extract_features,
)
from openjepa.evaluation.lidar import lidar_measures
from openjepa.evaluation.protocol import FeatureProbe, ImageProbe, LabeledFeatures, LabeledImages, ProtocolResult
from openjepa.evaluation.tasks import TASKS, Labels, Task, fitting_protocols
from openjepa.measures.features import feature_measures
from openjepa.models.vit import VisionTransformer
from openjepa.records import Metric, Result, SubjectResult
from openjepa.refusals import Refusal, examples
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.settings.protocols import PAPER_SUFFIX, PROTOCOLS
from openjepa.system.console import Say, silent

NUM_NAMES = 20
"""Largest number of unreadable images that a result names."""


@dataclass(frozen=True)
class TaskSplit:
    """The images and labels of one split that a task uses."""

    source: ListSource
    labels: NDArray[np.int64]
    maps: LabelMaps | None


class Findings:
    """The results of one task's protocols so far."""

    def __init__(self, side_by_side: bool) -> None:
        """`side_by_side` is True if both selection rules are asked for. The second rule is then part of the metric's name."""
        self._side_by_side = side_by_side
        self.metrics: dict[str, dict[str, Metric]] = {}
        """The numbers, by subject and name."""
        self.chance: float | None = None
        """The chance level of the encoder's protocol, if that says one."""
        self.heads: list[dict[str, Any]] = []
        """All classifiers that were tried."""
        self.unreadable: dict[str, dict[str, None]] = {"train": {}, "test": {}}
        """Names of the images that could not be read, by split, in the order they were found."""

    def add(self, names: Sequence[str], subject: str, outcomes: Sequence[ProtocolResult]) -> None:
        """Adds the results of one call of the protocols `names` on `subject`."""
        for outcome in outcomes:
            name = outcome.protocol or names[0]
            title = PROTOCOLS[name].metric
            if outcome.selection == "paper" and self._side_by_side:
                title += PAPER_SUFFIX
            self.metrics.setdefault(subject, {})[title] = _metric(name, outcome)
            if self.chance is None and subject == "encoder":
                self.chance = outcome.chance
            self.heads.extend({"subject": subject, "metric": title, **asdict(head)} for head in outcome.heads)
            for split, lost in outcome.unreadable.items():
                self.unreadable[split].update(dict.fromkeys(lost))


def check_readable(
    unreadable: Mapping[str, Mapping[str, None]], train: ListSource, test: ListSource, settings: EvaluationSettings
) -> None:
    """Raises Refusal if the share of unreadable images of a split is more than `max_skipped`."""
    for split, source in (("train", train), ("test", test)):
        lost = list(unreadable[split])
        if len(lost) > settings.max_skipped * len(source):
            raise Refusal(
                f"{len(lost):,} of the {len(source):,} images of the {split} split cannot be read, more than "
                f"max_skipped={settings.max_skipped:g} allows: {examples(lost)}; mend the files "
                "(`openjepa data check` lists them) or raise --max-skipped. Files that stay as they are, are tried again only "
                "once eval/features is deleted"
            )


def with_findings(
    blank: Result,
    findings: Findings,
    sides: tuple[TaskSplit, TaskSplit],
    labels: Labels,
    task: Task,
    size: tuple[int, int],
) -> Result:
    """`blank` with the numbers, classifiers and counts found so far."""
    train, test = sides
    dropped = {split: list(lost) for split, lost in findings.unreadable.items()}
    return replace(
        blank,
        subjects={name: SubjectResult(dict(numbers)) for name, numbers in findings.metrics.items()},
        heads=list(findings.heads),
        image_size=size,
        fit=task.fit,
        num_train=len(train.source) - len(dropped["train"]),
        num_test=len(test.source) - len(dropped["test"]),
        num_classes=len(np.unique(labels[0])) if train.maps is None else len(train.maps.class_names),
        chance=_chance(train, labels[1], findings.chance),
        dropped={split: len(lost) for split, lost in dropped.items()},
        dropped_names=[name for lost in dropped.values() for name in lost][:NUM_NAMES],
    )


def departures(benchmark: str, labels: Labels, result: Result) -> tuple[str, ...]:
    """The differences between the images used and the whole benchmark, in words."""
    whole = BENCHMARKS.get(benchmark)
    if whole is None:
        return ()
    lost = sum(result.dropped.values())
    few = whole.num_classes is not None and result.num_classes != whole.num_classes
    sides = (("training", whole.num_train, len(labels[0])), ("test", whole.num_test, len(labels[1])))
    return (
        *((f"{result.num_classes:,} of its {whole.num_classes:,} classes",) if few else ()),
        *(f"{there:,} of its {num:,} {side} images" for side, num, there in sides if num is not None and there != num),
        *((f"{lost:,} unreadable images",) if lost else ()),
    )


def _chance(train: TaskSplit, test_labels: NDArray[np.int64], found: float | None) -> float:
    """The number reached by always predicting the most frequent class of the training images (label maps: of patches)."""
    if train.maps is not None:
        return found or 0.0
    return float((test_labels == np.bincount(train.labels).argmax()).mean())


def _metric(name: str, outcome: ProtocolResult) -> Metric:
    head = next(head for head in outcome.heads if head.chosen)
    return Metric(
        value=outcome.accuracy,
        standard_error=outcome.standard_error,
        direction="higher",
        selection=outcome.selection,
        chosen=f"{head.features}, {head.head}, {head.setting}",
        extra=outcome.extra,
        probe=PROTOCOLS[name].metric,
        measure=PROTOCOLS[name].measure,
    )


@dataclass(frozen=True)
class Subjects:
    """The subjects of one evaluation: the encoder, its baselines and, if `pixels`, raw pixels."""

    encoders: Mapping[str, VisionTransformer]
    config: EncoderConfig
    pixels: bool
    size: tuple[int, int]
    """Height and width of the views in pixels."""
    cache: Path
    """Folder of the cached features."""
    predictor: Path | None = None
    """Folder of the predictor from the encoder's run, if there is one."""


def evaluate_task(
    blank: Result,
    splits: Splits,
    subjects: Subjects,
    settings: EvaluationSettings,
    benchmark: str = "",
    say: Say = silent,
    keep: Callable[[Result], None] | None = None,
) -> Result:
    """`blank` with the numbers of every protocol of `settings` that fits the task, or with the reason why none does.

    Every step that may take long is reported to `say`. `keep` gets the result so far after every call of protocols. Raises
    Refusal if the share of unreadable images of a split is more than `max_skipped`.
    """
    start = time.monotonic()
    task = TASKS[blank.task]
    labels = task.labels(splits)
    if isinstance(labels, str):
        return replace(blank, skipped=labels)
    assert isinstance(splits.train, ListSource) and splits.test is not None
    names = fitting_protocols(task, settings.protocols)
    if not names:
        what = "images" if task.maps is None else "pixels"
        return replace(blank, skipped=f"none of the protocols {', '.join(settings.protocols)} works on labels of {what}")
    rows = _training_rows(splits.train, labels[0], settings, task)
    train, test = _sides(task, splits, labels, rows)
    findings = Findings(settings.selection == "both")

    def result(**more: object) -> Result:
        found = with_findings(blank, findings, (train, test), labels, task, subjects.size)
        found = replace(found, departures=(*found.departures, *departures(benchmark, labels, found)))
        return replace(found, seconds=round(time.monotonic() - start, 1), **more)  # type: ignore[arg-type]

    measures: dict[str, dict[str, float]] = {}
    calls = _calls(names, works_on_features=True)
    if calls:
        say("features")
        features = _features(train, test, task, subjects, settings)
        for split, side, found in zip(findings.unreadable, (train, test), features, strict=True):
            findings.unreadable[split].update(dict.fromkeys(_dropped(side.source, found["encoder"])))
        check_readable(findings.unreadable, train.source, test.source, settings)
        say(", ".join(map(_titles, calls)))
        for subject, several in _on_features(calls, features, (train, test), subjects, settings).items():
            for call, outcomes in zip(calls, several, strict=True):
                findings.add(call, subject, outcomes)
        measures = distributed.from_main(lambda: _measures(features[1], test, task, subjects, settings))
        if keep is not None:
            keep(result(measures=measures))
    probes = _image_probes(train, test, task, subjects, settings, benchmark)
    for call in _calls(names, works_on_features=False):
        for subject, outcomes in _on_images(call, probes, settings, say):
            findings.add(call, subject, outcomes)
        check_readable(findings.unreadable, train.source, test.source, settings)
        if keep is not None:
            keep(result(measures=measures))
    return result(measures=measures)


def _calls(names: Sequence[str], works_on_features: bool) -> list[tuple[str, ...]]:
    """The protocols that work on features, or all others, grouped by their function."""
    fits = [name for name in names if (PROTOCOLS[name].works_on == "features") == works_on_features]
    homes = dict.fromkeys(PROTOCOLS[name].home for name in fits)
    return [tuple(name for name in fits if PROTOCOLS[name].home == home) for home in homes]


def _called(call: tuple[str, ...], probe: FeatureProbe | ImageProbe, settings: EvaluationSettings) -> Sequence[ProtocolResult]:
    found: Sequence[ProtocolResult] = PROTOCOLS[call[0]].load()(probe, replace(settings, protocols=call))
    return found


def _titles(call: Sequence[str]) -> str:
    return ", ".join(PROTOCOLS[name].metric for name in call)


def _training_rows(
    source: ListSource, labels: NDArray[np.int64], settings: EvaluationSettings, task: Task
) -> NDArray[np.int64]:
    """Rows of the labeled training images: those of the low-shot settings, but at most `max_train_images`."""
    shot = settings.low_shot
    if not shot.is_set():
        return balanced_rows(labels, settings.max_train_images, settings.seed)
    if task.maps is not None and shot.images_per_class is not None:
        raise Refusal(
            f"low_shot.images_per_class={shot.images_per_class} needs one class per image, but {task.title} labels pixels: "
            "use low_shot.percent or low_shot.list"
        )
    rows = low_shot_rows(source, labels, shot, settings.max_skipped)
    return rows[balanced_rows(labels[rows], settings.max_train_images, settings.seed)]


def _sides(task: Task, splits: Splits, labels: Labels, rows: NDArray[np.int64]) -> tuple[TaskSplit, TaskSplit]:
    assert isinstance(splits.train, ListSource) and splits.test is not None
    whole = len(rows) == len(labels[0])
    maps = splits.label_maps[task.maps] if task.maps is not None else (None, None)
    train = splits.train if whole else Subset(splits.train, rows)
    train_maps = maps[0] if maps[0] is None or whole else maps[0].select(rows)
    return TaskSplit(train, labels[0][rows], train_maps), TaskSplit(splits.test, labels[1], maps[1])


def _features(
    train: TaskSplit, test: TaskSplit, task: Task, subjects: Subjects, settings: EvaluationSettings
) -> tuple[dict[str, FeatureRows], dict[str, FeatureRows]]:
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


def _view(side: TaskSplit, name: str, task: Task, settings: EvaluationSettings, subjects: Subjects) -> SplitView:
    workers = choose_workers(settings.workers)

    def batches(first: int) -> Iterator[ImageBatch]:
        # `_dropped` finds unreadable images, because it also works if the features come from the cache
        batch_size = settings.feature_batch_size
        if distributed.world_size() > 1:
            return shared_evaluation_batches(side.source, subjects.size, batch_size, workers, fit=task.fit, first=first)
        return evaluation_batches(side.source, subjects.size, batch_size, workers, fit=task.fit, first=first, unreadable=[])

    return SplitView(side.source, name, {"image_size": subjects.size, "fit": task.fit}, batches)


def _on_features(
    calls: Sequence[tuple[str, ...]],
    found: tuple[Mapping[str, FeatureRows], Mapping[str, FeatureRows]],
    sides: tuple[TaskSplit, TaskSplit],
    subjects: Subjects,
    settings: EvaluationSettings,
) -> dict[str, list[Sequence[ProtocolResult]]]:
    """What every call of protocols gives for each subject. Processes that have joined share the subjects.

    A subject's features are on the device only while they are probed.
    """
    device = resolve_device(settings.device)

    def probed(subject: str, extractor: Extractor) -> list[Sequence[ProtocolResult]]:
        both = zip(found, sides, strict=True)
        probe = FeatureProbe(*(_labeled(features[subject], side.labels, extractor, device) for features, side in both))
        return [_called(call, probe, settings) for call in calls]

    extractors = _extractors(subjects, settings)
    results = distributed.divided_work([partial(probed, subject, extractor) for subject, extractor in extractors.items()])
    return dict(zip(extractors, results, strict=True))


def _on_images(
    call: tuple[str, ...], probes: Mapping[str, ImageProbe], settings: EvaluationSettings, say: Say
) -> Iterator[tuple[str, Sequence[ProtocolResult]]]:
    """Yields what a call of protocols gives for each subject.

    Processes that have joined train a protocol on images together, one subject after the other. They share the subjects of a
    protocol on label maps, which trains nothing with batches.
    """
    works = {subject: partial(_called, call, probe, settings) for subject, probe in probes.items()}
    if distributed.world_size() > 1 and PROTOCOLS[call[0]].works_on == "maps":
        say(_titles(call))
        yield from zip(works, distributed.divided_work(list(works.values())), strict=True)
        return
    for subject, work in works.items():
        say(f"{_titles(call)}, {'trained' if subject == 'encoder' else subject}")
        yield subject, work()


def _image_probes(
    train: TaskSplit, test: TaskSplit, task: Task, subjects: Subjects, settings: EvaluationSettings, benchmark: str
) -> dict[str, ImageProbe]:
    """The encoder and its baselines as inputs for protocols on images; for label maps also the patches' pixels."""
    device = resolve_device(settings.device)
    precision = resolve_precision(settings.precision, device)
    images = [LabeledImages(side.source, side.labels, side.maps) for side in (train, test)]
    sides = (images[0], images[1], task.fit, subjects.size)
    probes = {
        subject: ImageProbe(
            encoder.eval().requires_grad_(False).to(device), subjects.config, *sides, device, precision, benchmark, task.title
        )
        for subject, encoder in subjects.encoders.items()
    }
    if subjects.pixels and task.maps is not None:
        probes["pixels"] = replace(probes["encoder"], raw_pixels=True)
    return probes


def _labeled(features: FeatureRows, labels: NDArray[np.int64], extractor: Extractor, device: torch.device) -> LabeledFeatures:
    answers = torch.from_numpy(labels)[features.indices].to(device)
    # features that would fill the device stay where they are: protocols move them chunk by chunk to the labels' device
    fits = features.rows.nbytes < memory_limit(device) / 2
    return LabeledFeatures(extractor.kinds(features.rows.to(device) if fits else features.rows), answers)


def _measures(
    found: Mapping[str, FeatureRows], test: TaskSplit, task: Task, subjects: Subjects, settings: EvaluationSettings
) -> dict[str, dict[str, float]]:
    """Measures of the encoders' features of the test images that need no labels."""
    extractors = {name: extractor for name, extractor in _extractors(subjects, settings).items() if name in subjects.encoders}
    encoders, size = subjects.encoders, subjects.size
    more: dict[str, dict[str, float]] = {}
    if settings.lidar_images is not None:
        more = lidar_measures(test.source, task.fit, encoders, subjects.config, size, subjects.predictor, settings)
    return {
        name: feature_measures(extractor.kinds(found[name].rows)) | more.get(name, {}) for name, extractor in extractors.items()
    }


def _dropped(source: ListSource, features: FeatureRows) -> list[str]:
    there = np.zeros(len(source), dtype=bool)
    there[features.indices.numpy()] = True
    return [source.name(int(index)) for index in np.flatnonzero(~there)]
