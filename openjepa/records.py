"""The files of a run folder as types. Training and evaluation write them; the report, conversion and ablations read them.

Files are read leniently, because folders are copied, edited and written by other versions: an entry that is of another type
than its field is dropped, as is a number that is not finite. What older versions wrote otherwise is brought to today's form
here and nowhere else (`read_summary`, `read_evaluation`, `read_energy`). Free of torch.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

from openjepa.measures.verdicts import EnergyStatistics, tells_apart
from openjepa.settings.methods import About
from openjepa.settings.protocol_names import PAPER_SUFFIX, VERSION, current_result
from openjepa.system.json_files import lenient, readable_object
from openjepa.system.shared_files import whole_file

FORMAT = "openjepa-evaluation"
SUBJECT_NAMES = {"encoder": "trained", "start": "start", "untrained": "untrained", "pixels": "pixels"}
"""What is evaluated side by side, in the order of tables, and what tables call it. `start`: the weights a run began from."""
ANY_PROTOCOL = ("linear-full", "fine-tuned")
"""Probes that a published number of protocol `any` is the better of (I-JEPA, Table 2)."""
OUR_METHOD = "I-JEPA"
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
MEASURES = {"accuracy": "Accuracy", "miou": "Mean intersection over union"}
"""What a number of a probe is, and its name in tables."""

Record = TypeVar("Record")
Measure = Literal["accuracy", "miou"]


# ----------------------------------------------------------------------------------------------------------------------
# Written by training


@dataclass(frozen=True)
class DataFacts:
    """What a data set is called and holds."""

    name: str
    pixels: str = ""
    """Size of the stored pictures in words, if all have the same."""
    holds: str = ""
    """Numbers of images in words. Only in older files, which lack the numbers below."""
    train_images: int | None = None
    """None for a stream, whose length is not known."""
    test_images: int | None = None
    classes: int | None = None
    """Number of classes; None without labels."""

    def words(self) -> str:
        """Name and numbers, without the size of the pictures."""
        held = "" if self.test_images is None else f", {self.test_images:,} to test"
        labeled = f" in {self.classes:,} classes" if self.classes else ", unlabeled"
        counted = "" if self.train_images is None else f": {self.train_images:,} images to train{labeled}{held}"
        return f"{self.name}: {self.holds}" if self.holds else self.name + counted


@dataclass(frozen=True, kw_only=True)
class Summary:
    """summary.json: how far a run has come and what it has used. What is None or empty was not written, or not known."""

    status: str = ""
    """running, finished, interrupted or failed."""
    step: int | None = None
    images_seen: int | None = None
    """Repeats counted."""
    seconds: float | None = None
    """Seconds of training with looks and saving."""
    step_seconds: float | None = None
    """Seconds of the steps with their data path alone."""
    processes: int | None = None
    train_images: int | None = None
    samples_skipped: int = 0
    peak_memory_bytes: int = 0
    total_steps: int | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Parameters of each exported network, and `trained`."""
    flops_per_image: float | None = None
    """FLOPs of one image in a training step."""
    flops: Mapping[str, float] = field(default_factory=dict)
    """FLOPs of one image by part, forward passes alone."""
    mask_mode: str = ""
    data: str = ""
    """One line about the data set."""
    data_facts: DataFacts | None = None
    labeled: bool | None = None
    """Whether probes can be tested on the data."""
    about: About | None = None
    views: Mapping[str, Any] = field(default_factory=dict)
    """Settings of each view by its name."""
    init: Mapping[str, Any] = field(default_factory=dict)
    """What the run has started from beside random weights."""
    collapsed: bool | None = None
    verdict: str | None = None
    """Whether and how the features have collapsed, in a sentence."""
    monitor: Mapping[str, float | None] | None = None
    """The latest look; None for a number that was not finite."""
    error: str = ""
    """What ended a failed run."""

    def content(self) -> dict[str, Any]:
        """The entries of the file. What belongs only to some runs is left out of the others."""
        content = asdict(self)
        absent = [name for name in ("init", "error", "data_facts", "about") if not content[name]]
        absent += ["collapsed", "verdict", "monitor"] if self.monitor is None else []
        return {name: value for name, value in content.items() if name not in absent}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """environment.json: what the numbers of a run depend on beside its settings."""

    openjepa: str = ""
    torch: str = ""
    python: str = ""
    platform: str = ""
    cpu: str = ""
    threads: int | None = None
    device: str = ""
    device_name: str = ""
    precision: str = ""
    commit: str | None = None
    command: str = ""
    started: str = ""


# ----------------------------------------------------------------------------------------------------------------------
# Written by evaluation


@dataclass(frozen=True)
class Metric:
    """One number, with what is needed to trust it."""

    value: float
    """Share between 0 and 1."""
    standard_error: float | None = None
    """Binomial, from the number of test images; None only in files that lack it."""
    direction: str = "higher"
    """higher: larger is better."""
    selection: str = ""
    """held_out or paper: what its settings were chosen on."""
    chosen: str = ""
    """The classifier it is: features, head and setting."""
    spread: float | None = None
    """Standard deviation over seeds, if there are several."""
    seeds: int = 1
    """Seeds that `value` is the mean of."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """More numbers of the protocol: top-5, the gradient's norm at the solution, ..."""
    probe: str = ""
    """Name of the probe, whatever the selection."""
    measure: Measure = "accuracy"
    """What the number is."""


@dataclass(frozen=True)
class SubjectResult:
    """The numbers of one subject by the name of the metric."""

    metrics: Mapping[str, Metric]


@dataclass(frozen=True, kw_only=True)
class Published:
    """One number of a published table."""

    method: str = ""
    architecture: str = ""
    epochs: str = ""
    """Epochs of pretraining, on ImageNet-1K if nothing else is said; empty if the table does not say."""
    value: float
    """Top-1 accuracy in percent."""
    source: str = ""
    """Table it stands in."""
    protocol: str = "linear-full"
    """Probe of ours that it compares with; `any`: the better of linear-full and fine-tuned."""


@dataclass(frozen=True)
class Result:
    """eval/<task>.json: the numbers of one task."""

    task: str
    title: str
    given: str
    """run or encoder: what was evaluated."""
    encoder: str
    """target or context: which encoder of a run; external for an encoder folder."""
    selection: str
    """held_out, paper or both."""
    subjects: Mapping[str, SubjectResult] = field(default_factory=dict)
    """Numbers by subject: `encoder`, `untrained`, `pixels`, and `start` if the run has started from weights."""
    heads: Sequence[Mapping[str, Any]] = ()
    """Every classifier tried, with its subject and metric."""
    skipped: str | None = None
    """Why there are no numbers."""
    failed: bool = False
    """Whether an error is the reason that there are no numbers."""
    data: str = ""
    """What the images are, in words."""
    data_name: str = ""
    """What the data is called."""
    image_size: tuple[int, int] | None = None
    fit: str = ""
    masks_mode: str | None = None
    """Mask mode that the encoder was pretrained with, if it is known."""
    step: int | None = None
    """Optimizer steps that the encoder had been trained for, if they are known."""
    num_train: int = 0
    num_test: int = 0
    num_classes: int = 0
    chance: float = 0.0
    """Accuracy on the test split of always answering the most frequent class of the training split."""
    data_key: str = ""
    """Short hash of the data's settings, if they are not the run's own."""
    images: str = ""
    """Row of a suite: short hash of the images' names, and of sizes and times of their files and of the low-shot list.
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
    """Names of the first unreadable images."""
    row: str = ""
    """Row of a suite; empty outside of one."""
    published: Sequence[Published] = ()
    """Numbers of the paper for the same row."""
    departures: Sequence[str] = ()
    """Why the numbers are not those of the published protocol, in words; empty if they are, or if none is published."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every setting of the evaluation."""
    measures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By subject: what the features of the test images say without labels (RankMe, ...)."""
    seconds: float = 0.0
    data_facts: DataFacts | None = None

    @property
    def file_name(self) -> str:
        """`<task>.json` for the run's own evaluation, else `<task>-<variant>.json`; of a suite `suite-<row>.json`."""
        name = f"suite-{self.row}" if self.row else self.task
        return "-".join(part for part in (name, self.variant) if part) + ".json"

    def placed(self, folder: Path) -> "Result":
        """Adds a number to the variant if the file of that name in `folder` is about other data or labels."""
        placed, count = self, 1
        while (there := _content(folder / placed.file_name)) and _is_about(there) != _is_about(vars(self)):
            count += 1
            placed = replace(self, variant=f"{self.variant}-{count}")
        return placed

    def write(self, folder: Path) -> Path:
        """Writes the file so that a reader never sees half of it. A `skipped` result replaces no numbers."""
        path = folder / self.file_name
        if self.skipped is not None and _content(path).get("subjects"):
            return path
        with whole_file(path) as file:
            file.write_text(json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n")
        return path

    def write_partial(self, folder: Path) -> None:
        """Writes what is there so far, unless that would replace numbers of an earlier evaluation."""
        there = _content(folder / self.file_name)
        if not there.get("subjects") or there.get("partial"):
            replace(self, partial=True).write(folder)


def _content(path: Path) -> dict[str, Any]:
    """A result that was written earlier; empty if none can be read."""
    return readable_object(path) or {}


def _is_about(result: Mapping[str, Any]) -> tuple[str, str]:
    """The data of a result, and the file that says which of its images are labeled. Their names alone tell neither apart."""
    settings = result.get("settings")
    shot = settings.get("low_shot") if isinstance(settings, Mapping) else None
    listed = shot.get("list") if isinstance(shot, Mapping) else None
    return str(result.get("data_key", "")), str(Path(listed).expanduser().resolve()) if listed else ""


def compares(probe: str, protocols: Collection[str]) -> bool:
    """Whether a number of our `probe` is measured as one of the published ones, which have these `protocols`."""
    return probe in protocols or ("any" in protocols and probe in ANY_PROTOCOL)


# ----------------------------------------------------------------------------------------------------------------------
# Written by `openjepa bench energy`


@dataclass(frozen=True)
class Histogram:
    """Shares of the compatible and of the incompatible pairs by their energy."""

    edges: Sequence[float]
    """Edges of the bars, ascending; one more than there are bars."""
    compatible: Sequence[float]
    incompatible: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Energy:
    """energy.json: energies of compatible and of other pairs, before training and after."""

    step: int | None = None
    images_seen: int | None = None
    method: str = ""
    images: int | None = None
    group: int | None = None
    """Images whose pairs are compared with one another."""
    split: str = ""
    data: str = ""
    masks: str = ""
    device: str = ""
    precision: str = ""
    commit: str | None = None
    date: str = ""
    flat: bool | None = None
    """Whether the method has collapsed: all pairs have the same energy."""
    tells_apart: bool | None = None
    """Whether compatible pairs have a lower energy than others."""
    verdict: str = ""
    """What the energies say, in a sentence."""
    untrained: EnergyStatistics | None = None
    trained: EnergyStatistics | None = None
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    """Histograms of `untrained` and `trained`."""


# ----------------------------------------------------------------------------------------------------------------------
# Read


def read_summary(content: Mapping[str, Any]) -> Summary:
    """summary.json. Older ones lack `data_facts`, which their line about the data says."""
    found = _known(Summary, content)
    return replace(found, data_facts=found.data_facts or _facts_in(found.data))


def read_environment(content: Mapping[str, Any]) -> Environment:
    """environment.json."""
    return _known(Environment, content)


def read_energy(content: Mapping[str, Any]) -> Energy:
    """energy.json. Older ones lack `tells_apart`, but have the numbers that it is made of."""
    found = _known(Energy, content)
    if "tells_apart" not in content and found.trained is not None:
        found = replace(found, tells_apart=tells_apart(found.trained.auc, found.trained.auc_error))
    return found


def read_evaluation(content: Mapping[str, Any], stem: str) -> Result:
    """A file of eval/ whose name without its ending is `stem`; of any version, and without what cannot be read.

    Older results lack some facts that their names and words say: the variant (in the name of the file), the name of the data
    (first in the line about it), the departures from the published protocol, and the probe, selection and measure of a number.
    """
    found = lenient(Result, _older(content), Result("", "", "", "", ""))
    assert found is not None, "a blank result stands in for what is missing"
    title = found.title or found.task or stem
    name = found.row or found.task
    named = stem.removeprefix(f"{name}-") if stem.startswith(f"{name}-") else ""
    result = replace(
        found,
        title=title,
        variant=found.variant or named,
        data_name=found.data_name or re.split(r"[:,]", found.data or title)[0],
        data_facts=found.data_facts or _facts_in(found.data),
    )
    return result if isinstance(content.get("departures"), list) else replace(result, departures=_departures(result))


def _facts_in(line: str) -> DataFacts | None:
    """What an older line about the data says: `name, 64 x 64 pixels: what it holds`."""
    named, _, holds = line.partition(":")
    found = re.search(r",? (\d+ x \d+ pixels)", named)
    name = named if found is None else named.replace(found[0], "")
    return DataFacts(name, found[1] if found else "", holds.strip()) if line else None


def _departures(result: Result) -> tuple[str, ...]:
    """Reasons why an older result is not of the published protocol: missing classes, or what its variant says."""
    if " of its " in result.data:
        return (result.data,)
    changed = re.search(r"(linear_full|finetune)\.|(^|-)max\d|(^|-)\d+shot|pct", result.variant)
    return (f"other settings: {result.variant}",) if changed else ()


def _older(content: Mapping[str, Any]) -> dict[str, Any]:
    """A result with today's names whose numbers say their probe, selection and measure; in older ones their names do."""
    content = current_result(content)
    subjects = content.get("subjects")
    filled = {}
    for subject, found in subjects.items() if isinstance(subjects, Mapping) else ():
        metrics = found.get("metrics") if isinstance(found, Mapping) else None
        if isinstance(metrics, Mapping):
            numbers = {name: metric for name, metric in metrics.items() if isinstance(metric, Mapping)}
            filled[subject] = {"metrics": {name: _older_metric(name, numbers[name], content) for name in numbers}}
    return {**content, "subjects": filled}


def _older_metric(name: str, metric: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    probe = name.removesuffix(PAPER_SUFFIX)
    selection = "paper" if name != probe else result.get("selection")
    return {"selection": selection, "probe": probe, "measure": "miou" if probe.endswith("mIoU") else "accuracy", **metric}


def read_result(path: Path) -> Result | None:
    """A result with today's names, of which nothing has to be dropped; else None."""
    content = _older(_content(path))
    if content.pop("format", None) != FORMAT or content.pop("version") != VERSION:
        return None
    found = lenient(Result, content)
    own = {name: value for name, value in content.items() if name in Result.__dataclass_fields__}
    return found if found is not None and _holds(json.loads(json.dumps(asdict(found))), own) else None


def _holds(read: object, written: object) -> bool:
    """Whether all of `written` is in `read`, which may have more entries."""
    if isinstance(read, dict) and isinstance(written, dict):
        return all(name in read and _holds(read[name], value) for name, value in written.items())
    if isinstance(read, list) and isinstance(written, list):
        return len(read) == len(written) and all(map(_holds, read, written))
    return read == written


def seconds_of_steps(lines: Iterable[tuple[float, float]]) -> float:
    """Seconds that the steps took together; `lines` of the log: images seen, and images per second since the line before.

    For older runs, which did not write `step_seconds`. Looks and saving do not count in images per second, so not here.
    """
    known = [(images, rate) for images, rate in lines if rate > 0]
    return sum((images - before) / rate for (before, _), (images, rate) in pairwise([(0.0, 1.0), *known]))


def _known(kind: type[Record], content: Mapping[str, Any]) -> Record:
    found = lenient(kind, content)
    assert found is not None, f"every entry of {kind.__name__} has a default"
    return found
