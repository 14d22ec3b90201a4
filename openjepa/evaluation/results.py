"""Results of an evaluation as JSON in the run folder."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from openjepa.system.json_files import readable_object
from openjepa.system.whole_files import whole_file

FORMAT = "openjepa-evaluation"
VERSION = 1
ADDED: Mapping[str, Any] = {"images": "", "data_name": "", "failed": False}
"""Entries that older results of this version lack."""


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
    """A result that was written by this version; None where there is none that can be read."""
    content = _content(path)
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        return None
    content = {**ADDED, **content}
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
