"""Runs the rows of TASKS on an encoder and its baselines, and writes what comes out."""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openjepa.checks import check_evaluation, nearest_multiple
from openjepa.config import load_run_config
from openjepa.data import open_splits
from openjepa.data.evaluation import evaluation_batches
from openjepa.data.source import ListSource, Splits
from openjepa.data.subset import Subset
from openjepa.data.workers import choose_workers
from openjepa.engine.device import resolve_device
from openjepa.evaluation import PROTOCOLS
from openjepa.evaluation.features import EncoderFeatures, Extractor, Features, Images, PixelFeatures, View, extract_features
from openjepa.evaluation.protocol import LabeledFeatures, ProtocolResult
from openjepa.evaluation.results import METRIC_NAMES, Metric, Result, SubjectResult, print_results
from openjepa.evaluation.solver import Components
from openjepa.evaluation.tasks import TASKS, Labels, Task, chosen_tasks
from openjepa.evaluation.variants import data_name, variant_name
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.seeds import derive
from openjepa.settings.data import DataSettings
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.weights.native import load_encoder

__all__ = ["TASKS", "Result", "evaluate_run", "print_results"]

AxesOfHeads = dict[tuple[str, str], Components]
"""By kind of features and kind of head."""
KnownComponents = dict[tuple[str, bytes, bytes], dict[str, AxesOfHeads]]
"""By what makes the training features the same (fit, rows, readable rows) and by subject; shared by the tasks of one call."""
NUM_NAMES = 20
"""Unreadable images that a result names."""


@dataclass(frozen=True)
class Subject:
    """What is evaluated."""

    output: Path
    """Folder that holds eval/: the run's, or the encoder's own where it lies in no run."""
    kind: str
    """run or encoder."""
    encoder_folder: Path
    initial_folder: Path | None
    """The untrained encoder, where the run has kept it."""
    data: DataSettings
    seed: int
    """Of the run: the data's split and subset depend on it."""
    names: tuple[str, ...]
    """Of encoder and data, where they are not the run's own: parts of the results' file names."""
    masks_mode: str | None = None
    step: int | None = None
    """Step of the run after which the encoder was exported."""


def evaluate_run(subject: Path, settings: EvaluationSettings, data: DataSettings | None = None) -> list[Result]:
    """Evaluates a run folder, or an encoder folder on `data`, and writes a file of `<subject>/eval` for every task.

    The run's own evaluation is `<task>.json`; other data, another selection, encoder or size, fewer images, probes or
    baselines give `<task>-<variant>.json`. An encoder folder inside a run is written beside the run's own evaluations, because
    the next export replaces it. `data` replaces the run's own data (its training split trains the probes). Tasks that the data
    has no labels for give a Result that says so. Raises ValueError where there is no encoder, no data for it, no label for
    any of the tasks that were asked for, or no protocol.
    """
    check_evaluation(settings)
    if not settings.protocols:
        raise ValueError(f"evaluation.protocols={settings.protocols} is empty: name at least one of {', '.join(PROTOCOLS)}")
    found = find_subject(Path(subject).expanduser(), settings, data)
    splits = open_splits(found.data, found.seed)
    tasks = chosen_tasks(settings.tasks, splits)
    if settings.tasks:
        _check_labels(tasks, splits)
    encoder, config = load_encoder(found.encoder_folder)
    device = resolve_device(settings.device)
    extractors: dict[str, Extractor] = {"encoder": EncoderFeatures(encoder, config, device, settings.precision)}
    if "untrained" in settings.baselines:
        untrained = _untrained(found, config)
        extractors["untrained"] = EncoderFeatures(untrained, config, device, settings.precision)
    if "pixels" in settings.baselines:
        extractors["pixels"] = PixelFeatures()
    size = _image_size(settings, config)
    results = []
    variant = variant_name(settings, config.image_size, size, *found.names)
    known: KnownComponents = {}
    for name in tasks:
        result = replace(_evaluate_task(name, splits, found, settings, extractors, size, known), variant=variant)
        result.write(found.output / "eval")
        results.append(result)
    return results


def _check_labels(tasks: tuple[str, ...], splits: Splits) -> None:
    """Raises ValueError where the data has labels for none of the tasks."""
    reasons = {name: labels for name in tasks if isinstance(labels := TASKS[name].labels(splits), str)}
    if len(reasons) == len(set(tasks)):
        able = [name for name, task in TASKS.items() if not isinstance(task.labels(splits), str)]
        hint = f"leave out --tasks, or use {', '.join(able)}" if able else "give other data (--data.path)"
        raise ValueError(f"tasks={' '.join(tasks)}: {'; '.join(dict.fromkeys(reasons.values()))}; {hint}")


def find_subject(path: Path, settings: EvaluationSettings, data: DataSettings | None) -> Subject:
    """Whether `path` is a run or an encoder folder, and which data goes with it."""
    if (path / "config.yaml").is_file():
        run = load_run_config(path)
        folder = path / ("encoder" if settings.encoder == "target" else "context_encoder")
        if not folder.is_dir():
            hint = (
                "finish or stop the training first"
                if settings.encoder == "target"
                else "train with method.export_context_encoder"
            )
            raise ValueError(f"encoder={settings.encoder!r}: the run {path} has no folder {folder.name}; {hint}")
        initial = path / "encoder_initial"
        kept = initial if initial.is_dir() else None
        mode, step = _note(path / "predictor", "mask_mode"), _note(folder, "step")
        used = data or run.data
        names = ("" if settings.encoder == "target" else settings.encoder, data_name(run.data, used))
        return Subject(path, "run", folder, kept, used, run.run.seed, names, mode, step)
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} is neither a run folder (config.yaml) nor an encoder folder (config.json, model.safetensors)")
    if data is None:
        raise ValueError(f"{path} is an encoder without a run, so the images must be named: give --data.source and --data.path")
    inside = (path.resolve().parent / "config.yaml").is_file()
    output, name = (path.resolve().parent, path.resolve().name) if inside else (path, "")
    parts = (name, data_name(None, data))
    return Subject(output, "encoder", path, None, data, settings.seed, parts, step=_note(path, "step"))


def _note(network: Path, name: str) -> Any:
    """What the config.json of an exported network says beside its settings; None where it does not."""
    try:
        return json.loads((network / "config.json").read_text()).get(name)
    except (OSError, ValueError):
        return None


def _untrained(subject: Subject, config: EncoderConfig) -> VisionTransformer:
    """The encoder as it was before training, or an equal one with other random weights."""
    if subject.initial_folder is not None:
        return load_encoder(subject.initial_folder)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("weights", subject.seed))
        return build_encoder(config)


def _image_size(settings: EvaluationSettings, config: EncoderConfig) -> tuple[int, int]:
    size = settings.image_size or config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    patch = config.patch_size
    if height % patch or width % patch:
        near = " ".join(str(nearest_multiple(side, patch)) for side in dict.fromkeys((height, width)))
        raise ValueError(f"image_size={size} is not divisible by the encoder's patch size {patch}; image_size={near} is")
    return height, width


def _evaluate_task(
    name: str,
    splits: Splits,
    subject: Subject,
    settings: EvaluationSettings,
    extractors: Mapping[str, Extractor],
    size: tuple[int, int],
    known: KnownComponents,
) -> Result:
    start = time.monotonic()
    task = TASKS[name]
    which = settings.encoder if subject.kind == "run" else "external"
    result = Result(name, task.title, subject.kind, which, settings.selection, data=splits.description)
    labels = task.labels(splits)
    if isinstance(labels, str):
        return replace(result, skipped=labels)
    assert isinstance(splits.train, ListSource) and splits.test is not None
    rows = balanced_rows(labels[0], settings.max_train_images, settings.seed)
    chosen = (labels[0][rows], labels[1])
    sources = (splits.train if len(rows) == len(labels[0]) else Subset(splits.train, rows), splits.test)
    cache = subject.output / "eval" / "features"
    train, test = (
        extract_features(_view(source, split, task, settings, size), extractors, cache)
        for source, split in zip(sources, ("train", "test"), strict=True)
    )
    same = (task.fit, rows.tobytes(), train["encoder"].indices.numpy().tobytes())
    subjects, heads = _probe(train, test, chosen, extractors, settings, known.setdefault(same, {}))
    dropped = [_dropped(source, side["encoder"]) for source, side in zip(sources, (train, test), strict=True)]
    return replace(
        result,
        subjects=subjects,
        heads=heads,
        image_size=size,
        fit=task.fit,
        masks_mode=subject.masks_mode,
        step=subject.step,
        num_train=len(train["encoder"].indices),
        num_test=len(test["encoder"].indices),
        num_classes=len(np.unique(labels[0])),
        chance=float((labels[1] == np.bincount(chosen[0]).argmax()).mean()),
        dropped={"train": len(dropped[0]), "test": len(dropped[1])},
        dropped_names=[name for names in dropped for name in names][:NUM_NAMES],
        seconds=round(time.monotonic() - start, 1),
    )


def _dropped(source: ListSource, features: Features) -> list[str]:
    there = np.zeros(len(source), dtype=bool)
    there[features.indices.numpy()] = True
    return [source.name(int(index)) for index in np.flatnonzero(~there)]


def _view(source: ListSource, split: str, task: Task, settings: EvaluationSettings, size: tuple[int, int]) -> View:
    workers = choose_workers(settings.workers)

    def batches() -> Iterator[Images]:
        # what cannot be read is found again in `_dropped`, also when the features come from the cache
        return evaluation_batches(source, size, settings.feature_batch_size, workers, fit=task.fit, unreadable=[])

    return View(source, split, {"image_size": size, "fit": task.fit}, batches)


def _probe(
    train: Mapping[str, Features],
    test: Mapping[str, Features],
    labels: Labels,
    extractors: Mapping[str, Extractor],
    settings: EvaluationSettings,
    known: dict[str, AxesOfHeads],
) -> tuple[dict[str, SubjectResult], list[dict[str, Any]]]:
    """Every protocol on every subject: its number, and all classifiers that were tried."""
    subjects: dict[str, SubjectResult] = {}
    heads: list[dict[str, Any]] = []
    device = resolve_device(settings.device)
    for subject, extractor in extractors.items():
        sides = [
            _labeled(features[subject], answers, extractor, device)
            for features, answers in zip((train, test), labels, strict=True)
        ]
        sides[0] = replace(sides[0], components=known.setdefault(subject, {}))
        metrics = {}
        for protocol in settings.protocols:
            outcome: ProtocolResult = PROTOCOLS[protocol].load()(*sides, settings)
            name = METRIC_NAMES[protocol]
            metrics[name] = _metric(outcome)
            heads.extend({"subject": subject, "metric": name, **asdict(head)} for head in outcome.heads)
        subjects[subject] = SubjectResult(metrics)
    return subjects, heads


def _labeled(features: Features, labels: NDArray[np.int64], extractor: Extractor, device: torch.device) -> LabeledFeatures:
    answers = torch.from_numpy(labels)[features.indices].to(device)
    return LabeledFeatures(extractor.kinds(features.rows.to(device)), answers)


def _metric(outcome: ProtocolResult) -> Metric:
    head = next(head for head in outcome.heads if head.chosen)
    words = f"{head.features}, {head.head}, {head.setting}"
    return Metric(outcome.accuracy, outcome.standard_error, "higher", outcome.selection, words)


def balanced_rows(labels: NDArray[np.int64], max_images: int | None, seed: int) -> NDArray[np.int64]:
    """Rows of at most `max_images` images, as many of each class as possible, in their order. None: all rows.

    Images are taken in rounds, one of each class that has any left, in an order drawn with the seed.
    """
    if max_images is None or max_images >= len(labels):
        return np.arange(len(labels))
    if max_images < 1:
        raise ValueError(f"max_train_images={max_images} must be at least 1")
    order = np.random.default_rng(derive("subset", seed, 2)).permutation(len(labels))
    rounds = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rounds[members] = np.arange(len(members))
    by_round = order[np.argsort(rounds[order], kind="stable")]
    return np.sort(by_round[:max_images])
