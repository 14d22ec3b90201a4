"""TASKS: the labels that probes predict. SUITES: named lists of evaluations, beside PUBLISHED numbers. Names of result files.

The name of a result file holds the words that tell an evaluation from the run's own. Free of torch.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from openjepa.config import nearest_names
from openjepa.data.source import ListSource, Splits, data_set_name
from openjepa.records import Published
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings, LowShotSettings
from openjepa.settings.protocols import ALIASES, PROTOCOLS, usual_protocols, with_all_groups
from openjepa.settings.sources import DataSettings

Labels = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Labels of the training split and of the test split, one per record."""


@dataclass(frozen=True)
class Task:
    """One kind of labels of images, independent of how they are predicted."""

    title: str
    """Name in tables."""
    labels: Callable[[Splits], Labels | str]
    """Returns the labels of both splits, or the reason in words why the data has none."""
    fit: Literal["crop", "squash"]
    """The way an image becomes its test view. crop: center crop; squash: the whole image, resized to the size."""
    maps: str | None = None
    """Name of the task's label maps in Splits.label_maps; None if the task has one label per image."""


def _own_labels(splits: Splits) -> Labels | str:
    if not isinstance(splits.train, ListSource):
        return "probes need a list of images with labels, not a stream: set data.streaming=false"
    if splits.train.labels is None:
        return "the images have no labels (class folders, a label column, or scenes are needed)"
    if splits.test is None or splits.test.labels is None:
        return (
            "there is no labeled test split: give one, or hold out a part of each class that has two images or more with "
            "--data.test-fraction 0.2 (an encoder that was trained on all images has seen that part, too)"
        )
    return splits.train.labels, splits.test.labels


def _scene_labels(name: str) -> Callable[[Splits], Labels | str]:
    def labels(splits: Splits) -> Labels | str:
        if name not in splits.extra_labels:
            return f"the data has no `{name}` labels: only scenes in CLEVR's format do"
        if splits.test is None:
            return "there is no test split"
        return splits.extra_labels[name]

    return labels


def _map_labels(name: str) -> Callable[[Splits], Labels | str]:
    """The labels per image of a task on label maps, which are all 0."""

    def labels(splits: Splits) -> Labels | str:
        if name not in splits.label_maps:
            return (
                f"the data has no maps of `{name}`: only scenes with instance masks do (packaged or rendered; not CLEVR v1.0)"
            )
        train, test = splits.train, splits.test
        assert isinstance(train, ListSource) and test is not None
        return np.zeros(len(train), np.int64), np.zeros(len(test), np.int64)

    return labels


TASKS: dict[str, Task] = {
    "classification": Task("Classification", _own_labels, "crop"),
    "clevr_count": Task("Clevr/Count", _scene_labels("count"), "squash"),
    "clevr_dist": Task("Clevr/Dist", _scene_labels("distance"), "squash"),
    "scene_shapes": Task("Scenes/shape of patches", _map_labels("shape"), "squash", maps="shape"),
    "scene_colors": Task("Scenes/color of patches", _map_labels("color"), "squash", maps="color"),
}


def fitting_protocols(task: Task, protocols: Sequence[str]) -> tuple[str, ...]:
    """Those of `protocols` that work on the task's kind of labels, each once; the usual ones if `protocols` is empty."""
    on_maps = task.maps is not None
    fits = [name for name in protocols or usual_protocols(on_maps) if (PROTOCOLS[name].works_on == "maps") == on_maps]
    return tuple(dict.fromkeys(fits))


def chosen_tasks(names: tuple[str, ...], splits: Splits) -> tuple[str, ...]:
    """The tasks `names`; if empty, all tasks that the data has labels for (`classification` if it has none).

    The own labels of scenes are one of their two tasks, so `classification` is left out there. Tasks on label maps take minutes
    and run only if they are named. Raises Refusal if a name is unknown.
    """
    for name in names:
        if name not in TASKS:
            raise Refusal(f"tasks={name!r} is unknown; use {', '.join(TASKS)}")
    if names:
        return names
    able = tuple(name for name, task in TASKS.items() if task.maps is None and not isinstance(task.labels(splits), str))
    scenes = tuple(name for name in able if name != "classification")
    return scenes or ("classification",)


# ----------------------------------------------------------------------------------------------------------------------- suites


@dataclass(frozen=True)
class SuiteRow:
    """One evaluation of a suite."""

    name: str
    """Name of its file."""
    title: str
    """Name in tables."""
    benchmark: str
    """Key of BENCHMARKS: the data set that holds the images."""
    protocols: tuple[str, ...]
    """Protocols that run unless --protocols names others."""
    task: str = "classification"
    """Key of TASKS."""
    is_low_shot: bool = False
    """If True, only some training images have labels: 1 % of each class unless --low-shot says otherwise."""


PROBES: tuple[str, ...] = ("linear-full", "linear", "knn")
CACHED: tuple[str, ...] = ("linear", "knn")
DENSE: tuple[str, ...] = ("dense-linear", "dense-knn")


def _rows(probes: tuple[str, ...]) -> tuple[SuiteRow, ...]:
    return (
        SuiteRow("imagenet1k", "ImageNet-1K", "imagenet1k", probes),
        SuiteRow("cifar100", "CIFAR100", "cifar100", probes),
        SuiteRow("cifar10", "CIFAR10", "cifar10", probes),
        SuiteRow("places205", "Places205", "places205", probes),
        SuiteRow("inat18", "iNat18", "inat18", probes),
        SuiteRow("clevr_count", "Clevr/Count", "clevr", probes, "clevr_count"),
        SuiteRow("clevr_dist", "Clevr/Dist", "clevr", probes, "clevr_dist"),
    )


def _low_shot(protocols: tuple[str, ...]) -> SuiteRow:
    return SuiteRow("imagenet1k-1pct", "ImageNet-1%", "imagenet1k", protocols, is_low_shot=True)


SUITES: dict[str, tuple[SuiteRow, ...]] = {
    "paper": (
        *_rows(PROBES),
        _low_shot(("linear", "logistic", "finetune")),
        SuiteRow("imagenet1k-finetune", "ImageNet-1K fine-tuned", "imagenet1k", ("finetune",)),
    ),
    "cached": (*_rows(CACHED), _low_shot(("linear", "logistic"))),
    "dense": (
        SuiteRow("scene_shapes", "Scenes/shape of patches", "scenes", DENSE, "scene_shapes"),
        SuiteRow("scene_colors", "Scenes/color of patches", "scenes", DENSE, "scene_colors"),
    ),
}
"""`paper`: every evaluation of the paper. `cached`: the same benchmarks with probes on features that are computed once.
`dense`: single patches of scenes with instance masks, as `openjepa data scenes` renders them."""


def suite_rows(suite: str, names: Sequence[str]) -> list[SuiteRow]:
    """The rows `names` of a suite, or all rows if `names` is empty. Raises Refusal if the suite or a row is unknown."""
    if suite not in SUITES:
        raise Refusal(f"suite={suite!r} does not exist: {nearest_names(suite, SUITES)}")
    rows = {row.name: row for row in SUITES[suite]}
    if unknown := [name for name in names if name not in rows]:
        raise Refusal(f"tasks={unknown[0]!r} is no row of the suite {suite!r}: {nearest_names(unknown[0], rows)}")
    return [row for row in rows.values() if not names or row.name in names]


def _published_rows(source: str, protocol: str, *rows: tuple[str, str, str, float]) -> tuple[Published, ...]:
    return tuple(
        Published(method=method, architecture=architecture, epochs=epochs, value=value, source=source, protocol=protocol)
        for method, architecture, epochs, value in rows
    )


def _transfer(
    source: str, data2vec: float, mae: float, ijepa: float, dino: float, ibot: float, wide: tuple[float, float]
) -> tuple[Published, ...]:
    """One column of Table 3 or 4, followed by the same benchmark's numbers of Table 5 (pretraining on ImageNet-22K)."""
    return _published_rows(
        source,
        "linear-full",
        ("data2vec", "L/16", "", data2vec),
        ("MAE", "H/14", "", mae),
        ("I-JEPA", "H/14", "300", ijepa),
        ("DINO", "B/8", "", dino),
        ("iBOT", "L/16", "", ibot),
    ) + _published_rows(
        "Table 5", "linear-full", ("I-JEPA", "H/14", "IN22K, 900", wide[0]), ("I-JEPA", "G/16", "IN22K, 600", wide[1])
    )


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "imagenet1k": _published_rows(
        "Table 1",
        "linear-full",
        ("data2vec", "L/16", "1600", 77.3),
        ("MAE", "B/16", "1600", 68.0),
        ("MAE", "L/16", "1600", 76.0),
        ("MAE", "H/14", "1600", 77.2),
        ("CAE", "B/16", "1600", 70.4),
        ("CAE", "L/16", "1600", 78.1),
        ("I-JEPA", "B/16", "600", 72.9),
        ("I-JEPA", "L/16", "600", 77.5),
        ("I-JEPA", "H/14", "300", 79.3),
        ("I-JEPA", "H/16-448", "300", 81.1),
        ("SimCLR v2", "RN152 (2x)", "800", 79.1),
        ("DINO", "B/8", "300", 80.1),
        ("iBOT", "L/16", "250", 81.0),
    ),
    "imagenet1k-1pct": _published_rows(
        "Table 2",
        "any",
        ("data2vec", "L/16", "", 73.3),
        ("MAE", "L/16", "", 67.1),
        ("MAE", "H/14", "", 71.5),
        ("I-JEPA", "L/16", "", 69.4),
        ("I-JEPA", "H/14", "", 73.3),
        ("I-JEPA", "H/16-448", "", 77.3),
        ("iBOT", "B/16", "400", 69.7),
        ("DINO", "B/8", "", 70.0),
        ("SimCLR v2", "RN151 (2x)", "", 70.2),
        ("BYOL", "RN200 (2x)", "", 71.2),
        ("MSN", "B/4", "300", 75.7),
    ),
    "imagenet1k-finetune": _published_rows(
        "Table 15", "fine-tuned", ("MAE", "H/14-448", "1600", 87.8), ("I-JEPA", "H/16-448", "300", 87.1)
    ),
    "cifar100": _transfer("Table 3", 81.6, 77.3, 87.5, 84.9, 88.3, (89.5, 89.5)),
    "places205": _transfer("Table 3", 54.6, 55.0, 58.4, 57.9, 60.4, (57.8, 59.1)),
    "inat18": _transfer("Table 3", 28.1, 32.9, 47.6, 55.9, 57.3, (50.5, 55.3)),
    "clevr_count": _transfer("Table 4", 85.3, 90.5, 86.7, 86.6, 85.7, (88.6, 86.7)),
    "clevr_dist": _transfer("Table 4", 71.3, 72.4, 72.4, 53.4, 62.8, (75.0, 73.0)),
}
"""Published numbers by the name of a suite's row."""


def with_current_names(settings: EvaluationSettings, say: Callable[[str], object]) -> EvaluationSettings:
    """The settings with older protocol names replaced by today's and duplicates removed. Each old name is reported to `say`.

    Groups of settings that protocols bring and the settings lack are added with their defaults.

    Raises Refusal if a protocol does not exist.
    """
    for name in settings.protocols:
        if name in ALIASES:
            say(f"note: the protocol {name} is called {ALIASES[name]} now")
    names = tuple(dict.fromkeys(ALIASES.get(name, name) for name in settings.protocols))
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise Refusal(f"evaluation.protocols={unknown[0]!r} does not exist: {nearest_names(unknown[0], PROTOCOLS)}")
    return replace(with_all_groups(settings), protocols=names)


# -------------------------------------------------------------------------------------------------------- names of result files


_TRAINING_ONLY = (
    *("image_size", "crop_scale", "crop_aspect", "interpolation", "horizontal_flip", "pixel_mean", "pixel_std"),
    *("cache", "cache_size", "max_skipped"),
)
"""Settings of the data that only concern training's views. An evaluation has views of its own."""
BASELINES = ("untrained", "pixels")
OF_ALL = ("seed", "heads", "precision")
"""Settings that change the results of every protocol and for which `variant_name` has no special words. PROTOCOLS lists the
settings that only some protocols read."""
LONGEST_GROUP, LONGEST_NAME = 60, 160
"""Largest length of one group of words and of a name; the rest becomes a hash. The JSON file holds all settings."""


def variant_name(
    settings: EvaluationSettings,
    own_size: tuple[int, int],
    size: tuple[int, int],
    *subject: str,
    usual: EvaluationSettings | None = None,
) -> str:
    """The differences from the run's own evaluation, in words joined by dashes; empty if there are none.

    `subject` holds words for encoder and data (`data_name`); empty ones are left out. `own_size` is the encoder's training
    size, `size` that of the views. `usual` holds the settings of a suite's row, which do not count as differences.
    `settings.pooling` is `own`, or the pooling that is not the encoder's own.
    """
    usual = usual or EvaluationSettings(protocols=usual_protocols(on_maps=False))
    protocols = tuple(dict.fromkeys(settings.protocols or usual.protocols))
    height, width = size
    pixels = f"{height}px" if height == width else f"{height}x{width}px"
    most = settings.max_train_images
    parts = (
        *subject,
        settings.pooling if settings.pooling != "own" else "",
        settings.selection if settings.selection != "held_out" else "",
        pixels if size != own_size else "",
        f"max{most}" if most is not None else "",
        *(_protocol_words(protocols) if set(protocols) != set(usual.protocols) else ()),
        *(_shot_words(settings.low_shot) if settings.low_shot != usual.low_shot else ()),
        f"{settings.seeds}seeds" if settings.seeds != 1 else "",
        *_changed_settings(settings, protocols),
        *(f"no-{name}" for name in BASELINES if name not in settings.baselines),
    )
    name = "-".join(re.sub(r"[^\w.+-]+", "-", part) for part in parts if part)
    return (
        name if len(name.encode()) <= LONGEST_NAME else f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{_hash(name)}"
    )


def _protocol_words(protocols: tuple[str, ...]) -> tuple[str, ...]:
    """The protocol names with underscores, because dashes separate words. Older files are named in the same way."""
    words = tuple(name.replace("-", "_") for name in protocols)
    return (f"{words[0]}-only",) if len(words) == 1 else words


def _changed_settings(settings: EvaluationSettings, protocols: tuple[str, ...]) -> list[str]:
    """Words such as `seed-7` or `finetune.epochs-10` for settings that the protocols read and that are not the default.

    If a group has too many changes, its words are a hash.
    """
    usual = type(settings)()
    entries = [PROTOCOLS[name] for name in protocols]
    groups = {name for name, value in vars(usual).items() if is_dataclass(value)}
    words, named = [_differences("", settings, usual, OF_ALL)], set(groups)
    for entry in entries:
        words.append(_differences("", settings, usual, tuple(name for name in entry.reads if name not in named)))
        named |= set(entry.reads)
    for group in dict.fromkeys(name for entry in entries for name in entry.reads if name in groups):
        own = getattr(settings, group)
        words.append(_differences(f"{group}.", own, getattr(usual, group), tuple(vars(own))))
    return words


def _differences(prefix: str, own: object, usual: object, names: tuple[str, ...]) -> str:
    changed = [name for name in names if getattr(own, name) != getattr(usual, name)]
    text = "-".join(f"{prefix}{name}-{_plain(getattr(own, name))}" for name in changed)
    return text if len(text) <= LONGEST_GROUP else f"{prefix}settings-{_hash(text)}"


def _plain(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _short(value: float) -> str:
    """The number with as few digits as possible."""
    return f"{value:g}" if float(f"{value:g}") == value else str(value)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _shot_words(shot: LowShotSettings) -> tuple[str, ...]:
    """Words such as `1pct` or `5shot`, or the name of the list; then the seed if it is not 0."""
    what = [f"{_short(shot.percent)}pct"] if shot.percent is not None else []
    what += [f"{shot.images_per_class}shot"] if shot.images_per_class is not None else []
    what += [Path(shot.list).stem] if shot.list is not None else []
    return (*what, f"seed{shot.seed}") if shot.seed else tuple(what)


def data_name(own: DataSettings | None, data: DataSettings) -> str:
    """The name of `data` in results; empty if the evaluation uses the run's own images and split."""
    if own is None:
        return data_set_name(data)
    seen, usual = _seen(data), _seen(own)
    if seen == usual:
        return ""
    if data_set_name(data) != data_set_name(own) or type(data) is not type(own):
        return data_set_name(data)
    # different images under the same name: add the settings that differ
    return "-".join((data_set_name(data), *(f"{name}-{value}" for name, value in seen.items() if value != usual[name])))


def data_key(data: DataSettings) -> str:
    """Short hash of the settings that decide which images and labels are used. It tells two folders of one name apart."""
    return hashlib.sha256(json.dumps(_seen(data), sort_keys=True, default=str).encode()).hexdigest()[:12]


def folder_key(folder: Path) -> str:
    """Short hash of the path of a benchmark's folder."""
    return _hash(str(folder.resolve()))


def _seen(data: DataSettings) -> dict[str, Any]:
    """The settings that decide which images and labels an evaluation uses, with paths resolved."""
    seen = {name: value for name, value in vars(data).items() if name not in _TRAINING_ONLY}
    return seen | {"path": str(Path(seen["path"]).expanduser().resolve())} if seen.get("path") else seen
