"""One task: features where protocols want them, every protocol on every subject, and the Result."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from openjepa.data.loading.workers import choose_workers
from openjepa.data.low_shot import low_shot_rows
from openjepa.data.selection import Subset, balanced_rows
from openjepa.data.source import ListSource, Splits
from openjepa.data.splits import evaluation_batches
from openjepa.engine.device import memory_limit, resolve_device, resolve_precision
from openjepa.evaluation import PROTOCOLS
from openjepa.evaluation.feature_matrix import EncoderFeatures, Extractor, Images, PixelFeatures, View, extract_features
from openjepa.evaluation.feature_store import FeatureRows
from openjepa.evaluation.findings import Findings, Split, check_readable, departures, with_findings
from openjepa.evaluation.label_free import feature_measures
from openjepa.evaluation.lidar import lidar_measures
from openjepa.evaluation.probes.closed_sweep import Components
from openjepa.evaluation.protocol import ImageProbe, LabeledFeatures, LabeledImages, selections
from openjepa.evaluation.results import Result
from openjepa.evaluation.tasks import TASKS, Labels, Task, fitting_protocols
from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings, ProtocolName
from openjepa.settings.models import EncoderConfig
from openjepa.system.progress import Say, silent

AxesOfHeads = dict[tuple[str, str], Components]
"""By kind of features and kind of head."""
KnownComponents = dict[tuple[str, bytes, bytes], dict[str, AxesOfHeads]]
"""By what makes the training features the same (fit, rows, readable rows) and by subject; shared by the tasks of one call."""


@dataclass(frozen=True)
class Subjects:
    """The networks of one evaluation: the encoder first, then its baselines; and whether pixels stand beside them."""

    encoders: Mapping[str, VisionTransformer]
    config: EncoderConfig
    pixels: bool
    size: tuple[int, int]
    """Height and width of the views in pixels."""
    cache: Path
    """Folder of the kept features."""
    predictor: Path | None = None
    """Folder of the predictor of the run that `encoder` is from, where there is one."""


def evaluate_task(
    blank: Result,
    splits: Splits,
    subjects: Subjects,
    settings: EvaluationSettings,
    known: KnownComponents,
    benchmark: str = "",
    say: Say = silent,
    keep: Callable[[Result], None] | None = None,
) -> Result:
    """`blank` with the numbers of every protocol of `settings` that the task can have, or with the reason why it has none.

    `say` is told of every step that may take long; `keep` gets the result as it is after every protocol. Raises Refusal
    where more than `max_skipped` of a split cannot be read.
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
    if any(PROTOCOLS[name].kind == "features" for name in names):
        say("features")
        features = _features(train, test, task, subjects, settings)
        for split, side, found in zip(findings.unreadable, (train, test), features, strict=True):
            findings.unreadable[split].update(dict.fromkeys(_dropped(side.source, found["encoder"])))
        check_readable(findings.unreadable, train.source, test.source, settings)
        same = (task.fit, rows.tobytes(), features[0]["encoder"].indices.numpy().tobytes())
        say(", ".join(PROTOCOLS[name].metric for name in names if PROTOCOLS[name].kind == "features"))
        _probe_features(features, train, test, names, subjects, settings, known.setdefault(same, {}), findings)
        measures = _measures(features[1], test, task, subjects, settings)
        if keep is not None:
            keep(result(measures=measures))
    probes = _image_probes(train, test, task, subjects, settings, benchmark)
    for name in names:
        if PROTOCOLS[name].kind == "features":
            continue
        for subject, probe in probes.items():
            say(f"{PROTOCOLS[name].metric}, {'trained' if subject == 'encoder' else subject}")
            findings.add(name, subject, PROTOCOLS[name].load()(probe, replace(settings, protocols=names)))
        check_readable(findings.unreadable, train.source, test.source, settings)
        if keep is not None:
            keep(result(measures=measures))
    return result(measures=measures)


def _training_rows(
    source: ListSource, labels: NDArray[np.int64], settings: EvaluationSettings, task: Task
) -> NDArray[np.int64]:
    """The labeled training images: those of the low-shot settings, of them at most `max_train_images`."""
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


def _sides(task: Task, splits: Splits, labels: Labels, rows: NDArray[np.int64]) -> tuple[Split, Split]:
    assert isinstance(splits.train, ListSource) and splits.test is not None
    whole = len(rows) == len(labels[0])
    maps = splits.label_maps[task.maps] if task.maps is not None else (None, None)
    train = splits.train if whole else Subset(splits.train, rows)
    train_maps = maps[0] if maps[0] is None or whole else maps[0].select(rows)
    return Split(train, labels[0][rows], train_maps), Split(splits.test, labels[1], maps[1])


def _features(
    train: Split, test: Split, task: Task, subjects: Subjects, settings: EvaluationSettings
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


def _view(side: Split, name: str, task: Task, settings: EvaluationSettings, subjects: Subjects) -> View:
    workers = choose_workers(settings.workers)

    def batches(first: int) -> Iterator[Images]:
        # what cannot be read is found again in `_dropped`, also when the features come from the cache
        batch_size = settings.feature_batch_size
        return evaluation_batches(side.source, subjects.size, batch_size, workers, fit=task.fit, first=first, unreadable=[])

    return View(side.source, name, {"image_size": subjects.size, "fit": task.fit}, batches)


def _probe_features(
    found: tuple[Mapping[str, FeatureRows], Mapping[str, FeatureRows]],
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


def _image_probes(
    train: Split, test: Split, task: Task, subjects: Subjects, settings: EvaluationSettings, benchmark: str
) -> dict[str, ImageProbe]:
    """What protocols on images get of the encoder and of its baselines; on label maps also of the patches' pixels."""
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
    # what would fill the device stays where it is: protocols take it there chunk by chunk, to where the labels are
    fits = features.rows.nbytes < memory_limit(device) / 2
    return LabeledFeatures(extractor.kinds(features.rows.to(device) if fits else features.rows), answers)


def _measures(
    found: Mapping[str, FeatureRows], test: Split, task: Task, subjects: Subjects, settings: EvaluationSettings
) -> dict[str, dict[str, float]]:
    """What the encoders' features of the test images say without labels."""
    extractors = {name: extractor for name, extractor in _extractors(subjects, settings).items() if name in subjects.encoders}
    encoders, size = subjects.encoders, subjects.size
    more = lidar_measures(test.source, task.fit, encoders, subjects.config, size, subjects.predictor, settings)
    return {
        name: feature_measures(extractor.kinds(found[name].rows)) | more.get(name, {}) for name, extractor in extractors.items()
    }


def _dropped(source: ListSource, features: FeatureRows) -> list[str]:
    there = np.zeros(len(source), dtype=bool)
    there[features.indices.numpy()] = True
    return [source.name(int(index)) for index in np.flatnonzero(~there)]
