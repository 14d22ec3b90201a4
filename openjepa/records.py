"""The files of a run folder as types. Training and evaluation write them; report, conversion and ablations read them.

Files are read leniently, because folders are copied, edited and written by other versions. An entry is dropped if its type is
not that of its field, or if it is a number that is not finite. Only this module converts files of older versions to today's
form (`read_summary`, `read_evaluation`, `read_energy`). Does not import torch.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeVar

from openjepa.config import lenient, readable_object
from openjepa.measures.verdicts import EnergyStatistics, tells_apart
from openjepa.settings.methods import About
from openjepa.settings.protocols import PAPER_SUFFIX, RESULT_VERSION, current_result, published_protocols
from openjepa.system.shared_files import whole_file

FORMAT = "openjepa-evaluation"
SUBJECT_NAMES = {"encoder": "trained", "start": "start", "untrained": "untrained", "pixels": "pixels"}
"""The subjects of an evaluation in the order of tables, and their names in tables."""
OUR_METHOD = "I-JEPA"
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"
MEASURES = {"accuracy": "Accuracy", "miou": "Mean intersection over union"}
"""The measures that a probe's number can have, and their names in tables."""

Record = TypeVar("Record")
Measure = Literal["accuracy", "miou"]


# --------------------------------------------------------------------------------------------------- Written by training


@dataclass(frozen=True)
class DataFacts:
    """Name and contents of a data set."""

    name: str
    pixels: str = ""
    """Size of the stored pictures in words, if all have the same."""
    holds: str = ""
    """The numbers of images in words. Set only by older files, which lack the numbers below."""
    train_images: int | None = None
    """Number of training images; None for a stream, whose length is unknown."""
    test_images: int | None = None
    classes: int | None = None
    """Number of classes; None if there are no labels."""

    def words(self) -> str:
        """Name and numbers in words, without the size of the pictures."""
        held = "" if self.test_images is None else f", {self.test_images:,} to test"
        labeled = f" in {self.classes:,} classes" if self.classes else ", unlabeled"
        counted = "" if self.train_images is None else f": {self.train_images:,} images to train{labeled}{held}"
        return f"{self.name}: {self.holds}" if self.holds else self.name + counted


@dataclass(frozen=True, kw_only=True)
class Summary:
    """summary.json: the progress of a run and the resources it has used. None or empty means unknown or not written."""

    status: str = ""
    """running, finished, interrupted or failed."""
    step: int | None = None
    images_seen: int | None = None
    """Number of images seen, counting repeats."""
    seconds: float | None = None
    """Seconds of training including monitoring and saving."""
    step_seconds: float | None = None
    """Seconds of the training steps including the data path, without monitoring and saving."""
    processes: int | None = None
    train_images: int | None = None
    samples_skipped: int = 0
    peak_memory_bytes: int = 0
    total_steps: int | None = None
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Number of parameters of each exported network, and of all trained weights (`trained`)."""
    flops_per_image: float | None = None
    """FLOPs per image in a training step."""
    flops: Mapping[str, float] = field(default_factory=dict)
    """FLOPs per image by part of the method, forward passes only."""
    mask_mode: str = ""
    data: str = ""
    """One line that describes the data set."""
    data_facts: DataFacts | None = None
    labeled: bool | None = None
    """True if probes can be tested on the data."""
    about: About | None = None
    views: Mapping[str, Any] = field(default_factory=dict)
    """Settings of each view, by its name."""
    init: Mapping[str, Any] = field(default_factory=dict)
    """The weights that the run started from; empty if they were random."""
    collapsed: bool | None = None
    verdict: str | None = None
    """A sentence that says whether and how the features have collapsed."""
    predicts_positions: bool | None = None
    """True if the predictions say no more than the position of their targets. None if unknown, or if there are no positions."""
    monitor: Mapping[str, float | None] | None = None
    """The latest statistics of the features; None for a number that was not finite."""
    error: str = ""
    """The error that ended a failed run."""
    lost_in: str = ""
    """What an interrupted run was doing as one of its processes was killed or hung; empty if none was."""

    def content(self) -> dict[str, Any]:
        """The entries of the file. Entries that only some runs have are left out if they are empty."""
        content = asdict(self)
        absent = [name for name in ("init", "error", "lost_in", "data_facts", "about") if not content[name]]
        absent += ["collapsed", "verdict", "predicts_positions", "monitor"] if self.monitor is None else []
        return {name: value for name, value in content.items() if name not in absent}


@dataclass(frozen=True, kw_only=True)
class Environment:
    """environment.json: the software and hardware that the numbers of a run depend on."""

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


# ------------------------------------------------------------------------------------------------- Written by evaluation


@dataclass(frozen=True)
class Metric:
    """One number, with its uncertainty and the way it was obtained."""

    value: float
    """Share between 0 and 1."""
    standard_error: float | None = None
    """Standard error of `value`, binomial for accuracies; None if a file lacks it."""
    direction: str = "higher"
    """`higher` if larger is better."""
    selection: str = ""
    """held_out or paper: the images on which its settings were chosen."""
    chosen: str = ""
    """The chosen classifier: features, head and setting."""
    spread: float | None = None
    """Standard deviation over seeds; None for one seed."""
    seeds: int = 1
    """Number of seeds that `value` is the mean over."""
    extra: Mapping[str, float] = field(default_factory=dict)
    """More numbers of the protocol: top-5 accuracy, the gradient's norm at the solution, ..."""
    probe: str = ""
    """Name of the probe, without its selection rule."""
    measure: Measure = "accuracy"
    """The kind of number; a key of MEASURES."""


@dataclass(frozen=True)
class SubjectResult:
    """The numbers of one subject, by the name of the metric."""

    metrics: Mapping[str, Metric]


@dataclass(frozen=True, kw_only=True)
class Published:
    """One number of a published table."""

    method: str = ""
    architecture: str = ""
    epochs: str = ""
    """Epochs of pretraining, on ImageNet-1K unless another data set is named; empty if the table does not say."""
    value: float
    """Top-1 accuracy in percent."""
    source: str = ""
    """The table that it comes from."""
    protocol: str = "linear-full"
    """Our probe that it compares with; `any` for the better of linear-full and fine-tuned."""


@dataclass(frozen=True)
class Result:
    """eval/<task>.json: the numbers of one task."""

    task: str
    title: str
    given: str
    """The kind of subject: run or encoder."""
    encoder: str
    """The run's encoder that was evaluated: target or context; external for an encoder folder."""
    selection: str
    """held_out, paper or both."""
    subjects: Mapping[str, SubjectResult] = field(default_factory=dict)
    """Numbers by subject: `encoder`, `untrained`, `pixels`, and `start` if the run started from weights."""
    heads: Sequence[Mapping[str, Any]] = ()
    """Every classifier tried, with its subject and metric."""
    skipped: str | None = None
    """The reason why there are no numbers; None if there are numbers."""
    failed: bool = False
    """True if there are no numbers because of an error."""
    data: str = ""
    """One line that describes the images."""
    data_name: str = ""
    """Name of the data set."""
    image_size: tuple[int, int] | None = None
    fit: str = ""
    masks_mode: str | None = None
    """Mask mode of the encoder's pretraining; None if unknown."""
    step: int | None = None
    """Number of optimizer steps that the encoder was trained for; None if unknown."""
    num_train: int = 0
    num_test: int = 0
    num_classes: int = 0
    chance: float = 0.0
    """Test accuracy of always predicting the most frequent class of the training split."""
    data_key: str = ""
    """Short hash of the data's settings; empty if they are the run's own."""
    images: str = ""
    """For a row of a suite: short hash of the images' names, and of the sizes and times of their files and the low-shot list.
    Empty in older results."""
    weights: str = ""
    """Hash of the encoder's weights."""
    partial: bool = False
    """True if the evaluation has not finished all of its protocols."""
    variant: str = ""
    """Words that tell it from the run's own evaluation, such as `paper-128px`; empty for the run's own evaluation."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Number of unreadable images left out, by split."""
    dropped_names: Sequence[str] = ()
    """Names of the first unreadable images."""
    row: str = ""
    """Name of a suite's row; empty outside of a suite."""
    published: Sequence[Published] = ()
    """Published numbers of the same row."""
    departures: Sequence[str] = ()
    """Departures from the published protocol, in words; empty if there are none or if nothing is published."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Every setting of the evaluation."""
    measures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Measures of the test images' features that need no labels (RankMe, ...), by subject and name."""
    seconds: float = 0.0
    data_facts: DataFacts | None = None

    @property
    def file_name(self) -> str:
        """`<task>.json`, or `suite-<row>.json` for a row of a suite; with a variant, `-<variant>` follows the name."""
        name = f"suite-{self.row}" if self.row else self.task
        return "-".join(part for part in (name, self.variant) if part) + ".json"

    def placed(self, folder: Path) -> "Result":
        """The result with a number added to its variant if the file of its name in `folder` is about other data or labels."""
        placed, count = self, 1
        while (there := _content(folder / placed.file_name)) and _is_about(there) != _is_about(vars(self)):
            count += 1
            placed = replace(self, variant=f"{self.variant}-{count}")
        return placed

    def write(self, folder: Path) -> Path:
        """Writes the file atomically and returns its path. A `skipped` result never replaces a file with numbers."""
        path = folder / self.file_name
        if self.skipped is not None and _content(path).get("subjects"):
            return path
        with whole_file(path) as file:
            file.write_text(json.dumps({"format": FORMAT, "version": RESULT_VERSION, **asdict(self)}, indent=1) + "\n")
        return path

    def write_partial(self, folder: Path) -> None:
        """Writes the result so far, unless it would replace numbers of an earlier, complete evaluation."""
        there = _content(folder / self.file_name)
        if not there.get("subjects") or there.get("partial"):
            replace(self, partial=True).write(folder)


def _content(path: Path) -> dict[str, Any]:
    """The entries of an earlier result; empty if there is none that can be read."""
    return readable_object(path) or {}


def _is_about(result: Mapping[str, Any]) -> tuple[str, str]:
    """The key of a result's data, and the path of its list of labeled images. Names alone do not identify them."""
    settings = result.get("settings")
    shot = settings.get("low_shot") if isinstance(settings, Mapping) else None
    listed = shot.get("list") if isinstance(shot, Mapping) else None
    return str(result.get("data_key", "")), str(Path(listed).expanduser().resolve()) if listed else ""


def compares(probe: str, protocols: Collection[str]) -> bool:
    """True if numbers of our `probe` compare with published numbers that have these `protocols`."""
    return probe in protocols or ("any" in protocols and probe in {entry.metric for entry in published_protocols()})


# ------------------------------------------------------------------------------------ Written by `openjepa bench energy`


@dataclass(frozen=True)
class Histogram:
    """The shares of the compatible and of the incompatible pairs in each bar of energy."""

    edges: Sequence[float]
    """Edges of the bars, ascending: one more than the number of bars."""
    compatible: Sequence[float]
    incompatible: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Energy:
    """energy.json: energies of compatible and of incompatible pairs, before and after training."""

    step: int | None = None
    images_seen: int | None = None
    method: str = ""
    images: int | None = None
    group: int | None = None
    """Number of images in a group, within which pairs are formed."""
    split: str = ""
    data: str = ""
    masks: str = ""
    device: str = ""
    precision: str = ""
    commit: str | None = None
    date: str = ""
    flat: bool | None = None
    """True if the method has collapsed: all pairs have the same energy."""
    tells_apart: bool | None = None
    """True if compatible pairs have a lower energy than incompatible ones."""
    verdict: str = ""
    """A sentence that says what the energies mean."""
    untrained: EnergyStatistics | None = None
    trained: EnergyStatistics | None = None
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    """Histograms of `untrained` and `trained`."""


# ------------------------------------------------------------------------------------------------------------------ Read


def read_summary(content: Mapping[str, Any]) -> Summary:
    """Reads summary.json. Older files lack `data_facts`, which is then taken from their line `data`."""
    found = _known(Summary, content)
    return replace(found, data_facts=found.data_facts or _facts_in(found.data))


def read_environment(content: Mapping[str, Any]) -> Environment:
    """Reads environment.json."""
    return _known(Environment, content)


def read_energy(content: Mapping[str, Any]) -> Energy:
    """Reads energy.json. Older files lack `tells_apart`, which is then computed from their numbers."""
    found = _known(Energy, content)
    if "tells_apart" not in content and found.trained is not None:
        found = replace(found, tells_apart=tells_apart(found.trained.auc, found.trained.auc_error))
    return found


def read_evaluation(content: Mapping[str, Any], stem: str) -> Result:
    """Reads a file of eval/ of any version. `stem` is the file's name without its ending. Unreadable entries are dropped.

    Older results lack some facts, which are taken from names and words: the variant (from the file's name), the name of the
    data (from the line `data`), the departures from the published protocol, and a number's probe, selection and measure.
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
    """The facts in an older line about the data, such as `name, 64 x 64 pixels: what it holds`; None if it is empty."""
    named, _, holds = line.partition(":")
    found = re.search(r",? (\d+ x \d+ pixels)", named)
    name = named if found is None else named.replace(found[0], "")
    return DataFacts(name, found[1] if found else "", holds.strip()) if line else None


def _departures(result: Result) -> tuple[str, ...]:
    """Departures of an older result from the published protocol: missing classes, or settings in its variant."""
    if " of its " in result.data:
        return (result.data,)
    changed = re.search(r"(linear_full|finetune)\.|(^|-)max\d|(^|-)\d+shot|pct", result.variant)
    return (f"other settings: {result.variant}",) if changed else ()


def _older(content: Mapping[str, Any]) -> dict[str, Any]:
    """A result with today's names. In older results, each number's probe, selection and measure come from its name."""
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
    """A result with today's names; None if the file is missing, unreadable, or has an entry that would be dropped."""
    content = _older(_content(path))
    if content.pop("format", None) != FORMAT or content.pop("version") != RESULT_VERSION:
        return None
    found = lenient(Result, content)
    own = {name: value for name, value in content.items() if name in Result.__dataclass_fields__}
    return found if found is not None and _holds(json.loads(json.dumps(asdict(found))), own) else None


def _holds(read: object, written: object) -> bool:
    """True if `read` holds everything in `written`. It may hold more entries."""
    if isinstance(read, dict) and isinstance(written, dict):
        return all(name in read and _holds(read[name], value) for name, value in written.items())
    if isinstance(read, list) and isinstance(written, list):
        return len(read) == len(written) and all(map(_holds, read, written))
    return read == written


def seconds_of_steps(lines: Iterable[tuple[float, float]]) -> float:
    """Total seconds of the training steps, for older runs, which did not write `step_seconds`.

    `lines` of the log hold images seen, and images per second since the line before. That rate leaves out monitoring and
    saving, and so does the result.
    """
    known = [(images, rate) for images, rate in lines if rate > 0]
    return sum((images - before) / rate for (before, _), (images, rate) in pairwise([(0.0, 1.0), *known]))


def _known(kind: type[Record], content: Mapping[str, Any]) -> Record:
    found = lenient(kind, content)
    assert found is not None, f"every entry of {kind.__name__} has a default"
    return found
