"""Results of an evaluation as JSON in the run folder.

What sets an evaluation apart from the run's own one, as a suffix of its file's name. Free of torch.
"""

import hashlib
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from openjepa.evaluation import PROTOCOLS, usual_protocols
from openjepa.settings.evaluation import EvaluationSettings, LowShotSettings
from openjepa.settings.protocol_names import VERSION, current_result
from openjepa.settings.sources import DataSettings
from openjepa.system.json_files import readable_object
from openjepa.system.whole_files import whole_file

FORMAT = "openjepa-evaluation"
ADDED: Mapping[str, Any] = {"images": "", "data_name": "", "failed": False}
"""Entries that older results lack."""


@dataclass(frozen=True)
class Metric:
    """One number, with what is needed to trust it."""

    value: float
    """Share between 0 and 1."""
    standard_error: float
    """Binomial, from the number of test images."""
    direction: str
    """higher: larger is better."""
    selection: str
    """held_out or paper: what its settings were chosen on."""
    chosen: str
    """The classifier it is: features, head and setting."""
    spread: float | None = None
    """Standard deviation over seeds, where there are several."""
    seeds: int = 1
    """Seeds that `value` is the mean of."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """More numbers of the protocol: top-5, the gradient's norm at the solution, ..."""
    protocol: str = ""
    """Name of the protocol."""
    measure: str = "accuracy"
    """accuracy or miou."""


@dataclass(frozen=True)
class SubjectResult:
    """The numbers of one subject by the name of the metric."""

    metrics: Mapping[str, Metric]


@dataclass(frozen=True)
class Result:
    """One task."""

    task: str
    title: str
    given: str
    """run or encoder: what was evaluated."""
    encoder: str
    """target or context: which encoder of a run; external for an encoder folder."""
    selection: str
    """held_out or paper."""
    subjects: Mapping[str, SubjectResult] = field(default_factory=dict)
    """Numbers of `encoder`, `untrained` and `pixels`; of a run that has started from weights also of these: `start`."""
    heads: Sequence[Mapping[str, Any]] = ()
    """Every classifier tried, with its subject and metric."""
    skipped: str | None = None
    """Why there are no numbers."""
    failed: bool = False
    """Whether that is an error, but for which there could be numbers."""
    data: str = ""
    """What the images are, in words."""
    data_name: str = ""
    """What the data is called."""
    image_size: tuple[int, int] | None = None
    fit: str = ""
    masks_mode: str | None = None
    """Mask mode the encoder was pretrained with, where known."""
    step: int | None = None
    """Optimizer steps the encoder had been trained for, where known."""
    num_train: int = 0
    num_test: int = 0
    num_classes: int = 0
    chance: float = 0.0
    """Accuracy on the test split of always answering the most frequent class of the training split."""
    data_key: str = ""
    """Short hash of the data's settings, where they are not the run's own."""
    images: str = ""
    """Of a suite's row: short hash of the images' names, and of sizes and times of their files and of the low-shot list.
    Empty in older results."""
    weights: str = ""
    """Hash of the encoder's weights."""
    partial: bool = False
    """Whether the evaluation was interrupted before all of its protocols were done."""
    variant: str = ""
    """What sets it apart from the run's own evaluation (`paper-128px`); empty for that one."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Unreadable images left out, by split."""
    dropped_names: Sequence[str] = ()
    """The first of them."""
    row: str = ""
    """Row of a suite; empty outside of one."""
    published: Sequence[Mapping[str, Any]] = ()
    """Numbers of the paper for the same row: method, architecture, epochs, value in percent, source, protocol."""
    departures: Sequence[str] = ()
    """In words, why the numbers are not those of the published protocol; empty where they are, or where none is published."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every setting of the evaluation."""
    measures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By subject: what the features of the test images say without labels (RankMe, ...)."""
    seconds: float = 0.0

    @property
    def file_name(self) -> str:
        """`<task>.json` for the run's own evaluation, else `<task>-<variant>.json`; of a suite `suite-<row>.json`."""
        name = f"suite-{self.row}" if self.row else self.task
        return "-".join(part for part in (name, self.variant) if part) + ".json"

    def placed(self, folder: Path) -> "Result":
        """With a number added to the variant where the file of that name in `folder` is about other data or labels."""
        placed, number = self, 1
        while (there := _content(folder / placed.file_name)) and _is_about(there) != _is_about(vars(self)):
            number += 1
            placed = replace(self, variant=f"{self.variant}-{number}")
        return placed

    def write(self, folder: Path) -> Path:
        """Writes the file so that a reader never sees half of it. Numbers that are there are not replaced by a `skipped`."""
        path = folder / self.file_name
        if self.skipped is not None and _has_numbers(path):
            return path
        with whole_file(path) as file:
            file.write_text(json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n")
        return path

    def write_partial(self, folder: Path) -> None:
        """Writes what is there so far, unless that would replace numbers of before."""
        if not _has_numbers(folder / self.file_name) or _content(folder / self.file_name).get("partial"):
            replace(self, partial=True).write(folder)


def read_result(path: Path) -> Result | None:
    """A result with the names of today, whatever version wrote it; None if there is none that can be read."""
    content = _content(path)
    if content.get("format") != FORMAT or content.get("version") not in range(1, VERSION + 1):
        return None
    content = {**ADDED, **current_result(content)}
    try:
        values = {item.name: content[item.name] for item in fields(Result)}
        subjects = {
            subject: SubjectResult({name: Metric(**metric) for name, metric in numbers["metrics"].items()})
            for subject, numbers in values["subjects"].items()
        }
        return Result(**values | {"subjects": subjects})
    except (KeyError, TypeError, AttributeError):
        return None


def over_seeds(results: Sequence[Result]) -> Result:
    """Results of one task with several seeds as one: means, spreads, all heads with their seed's number, summed seconds."""
    if len(results) == 1 or results[0].skipped is not None:
        return results[0]
    first = results[0]
    subjects = {
        subject: SubjectResult(
            {name: _mean([result.subjects[subject].metrics[name] for result in results]) for name in numbers.metrics}
        )
        for subject, numbers in first.subjects.items()
    }
    heads = [{**head, "repeat": repeat} for repeat, result in enumerate(results) for head in result.heads]
    return replace(first, subjects=subjects, heads=heads, seconds=round(sum(result.seconds for result in results), 1))


def _mean(metrics: Sequence[Metric]) -> Metric:
    values = [metric.value for metric in metrics]
    extra = {name: statistics.fmean(metric.extra[name] for metric in metrics) for name in metrics[0].extra}
    spread = statistics.stdev(values)
    return replace(metrics[0], value=statistics.fmean(values), spread=spread, seeds=len(values), extra=extra)


def _has_numbers(path: Path) -> bool:
    return bool(_content(path).get("subjects"))


def _is_about(result: Mapping[str, Any]) -> tuple[str, str]:
    """The data of a result, and the file that says which of its images are labeled: names say only how that is called."""
    settings = result.get("settings")
    shot = settings.get("low_shot") if isinstance(settings, Mapping) else None
    listed = shot.get("list") if isinstance(shot, Mapping) else None
    return str(result.get("data_key", "")), str(Path(listed).expanduser().resolve()) if listed else ""


def _content(path: Path) -> dict[str, Any]:
    """A result that was written earlier; empty where there is none that can be read."""
    return readable_object(path) or {}


_TRAINING_ONLY = (
    *("image_size", "crop_scale", "crop_aspect", "interpolation", "horizontal_flip", "pixel_mean", "pixel_std"),
    *("cache", "cache_size", "max_skipped"),
)
"""Settings of the data that say how training sees the images; an evaluation shows them in its own view."""
BASELINES = ("untrained", "pixels")
OF_ALL = ("seed", "heads", "precision")
"""Settings that change the results of every protocol, beside those that `variant_name` has words for. What only some read
stands in PROTOCOLS."""
LONGEST_GROUP, LONGEST_NAME = 60, 160
"""Characters; longer words are replaced by a hash, because names of files must end somewhere. The JSON holds all settings."""


def variant_name(
    settings: EvaluationSettings,
    own_size: tuple[int, int],
    size: tuple[int, int],
    *subject: str,
    usual: EvaluationSettings | None = None,
) -> str:
    """What differs from the run's own evaluation, joined by dashes; empty where nothing does.

    `subject`: what is known of encoder and data (`data_name`), empty words left out. `own_size`: the encoder's training size.
    `usual`: settings of a suite's row, which are no variant. `settings.pooling`: `own`, or the one that is not the encoder's.
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
    """The names with underscores, because dashes stand between words; files of before are called so, too."""
    words = tuple(name.replace("-", "_") for name in protocols)
    return (f"{words[0]}-only",) if len(words) == 1 else words


def _changed_settings(settings: EvaluationSettings, protocols: tuple[str, ...]) -> list[str]:
    """`seed-7`, `finetune.epochs-10`: what is not the default of what the protocols read; many changes together as a hash."""
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
    """As few digits as tell the number."""
    return f"{value:g}" if float(f"{value:g}") == value else str(value)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _shot_words(shot: LowShotSettings) -> tuple[str, ...]:
    """`1pct`, `5shot`, or the name of the list; and the seed where it is another than 0."""
    what = [f"{_short(shot.percent)}pct"] if shot.percent is not None else []
    what += [f"{shot.images_per_class}shot"] if shot.images_per_class is not None else []
    what += [Path(shot.list).stem] if shot.list is not None else []
    return (*what, f"seed{shot.seed}") if shot.seed else tuple(what)


def data_name(own: DataSettings | None, data: DataSettings) -> str:
    """What the results call `data`: nothing where an evaluation sees the run's own images, in the run's own split."""
    if own is None:
        return data.name()
    seen, usual = _seen(data), _seen(own)
    if seen == usual:
        return ""
    if data.name() != own.name() or type(data) is not type(own):
        return data.name()
    # the same name for other images: say which settings make them so
    return "-".join((data.name(), *(f"{name}-{value}" for name, value in seen.items() if value != usual[name])))


def data_key(data: DataSettings) -> str:
    """Short hash of the settings that decide which images and labels are seen: tells two folders of one name apart."""
    return hashlib.sha256(json.dumps(_seen(data), sort_keys=True, default=str).encode()).hexdigest()[:12]


def folder_key(folder: Path) -> str:
    """The same of a benchmark's folder."""
    return _hash(str(folder.resolve()))


def _seen(data: DataSettings) -> dict[str, Any]:
    """The settings that decide which images and labels an evaluation sees, paths in one spelling."""
    seen = {name: value for name, value in vars(data).items() if name not in _TRAINING_ONLY}
    return seen | {"path": str(Path(seen["path"]).expanduser().resolve())} if seen.get("path") else seen
