"""Results of an evaluation: as JSON in the run folder and as tables in the terminal."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from openjepa.whole_files import whole_file

FORMAT = "openjepa-evaluation"
VERSION = 1
SUBJECT_NAMES = {"encoder": "trained", "untrained": "untrained", "pixels": "pixels"}
METRIC_NAMES = {"linear": "linear-cached", "knn": "k-NN"}
"""What the numbers of a protocol are called: `linear-cached`, so that nobody takes it for the paper's linear evaluation."""


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
    """Numbers of `encoder`, `untrained` and `pixels`."""
    heads: Sequence[Mapping[str, Any]] = ()
    """Every classifier tried, with its subject and metric."""
    skipped: str | None = None
    """Why there are no numbers."""
    data: str = ""
    """What the images are."""
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
    variant: str = ""
    """What sets it apart from the run's own evaluation (`paper-128px`); empty for that one."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Unreadable images left out, by split."""
    dropped_names: Sequence[str] = ()
    """The first of them."""
    seconds: float = 0.0

    @property
    def file_name(self) -> str:
        """`<task>.json` for the run's own evaluation, else `<task>-<variant>.json`."""
        return "-".join(part for part in (self.task, self.variant) if part) + ".json"

    def write(self, folder: Path) -> Path:
        """Writes the file so that a reader never sees half of it. Numbers that are there are not replaced by a `skipped`."""
        path = folder / self.file_name
        if self.skipped is not None and _has_numbers(path):
            return path
        with whole_file(path) as file:
            file.write_text(json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n")
        return path


def _has_numbers(path: Path) -> bool:
    try:
        return bool(json.loads(path.read_text()).get("subjects"))
    except (OSError, ValueError, AttributeError):
        return False


def percent(metric: Metric) -> str:
    """`61.4 ± 0.5`, in percent."""
    return f"{100 * metric.value:.1f} ± {100 * metric.standard_error:.1f}"


def print_results(results: Sequence[Result], console: Console | None = None) -> None:
    """One table over all tasks, accuracy in percent with its standard error, baselines beside."""
    console = console or Console()
    done = [result for result in results if result.skipped is None]
    for selection in dict.fromkeys(result.selection for result in done):
        console.print(_table([result for result in done if result.selection == selection], selection))
    for result in done:
        for name, metric in result.subjects["encoder"].metrics.items():
            console.print(f"{result.title}, {name}: best head {metric.chosen}", style="dim", highlight=False)
        if any(result.dropped.values()):
            lost = ", ".join(f"{number} of {split}" for split, number in result.dropped.items() if number)
            console.print(f"{result.title}: unreadable images left out: {lost}", style="yellow", highlight=False)
        if result.variant:
            console.print(f"{result.title}: not the run's own, kept as eval/{result.file_name}", highlight=False)
    if done:
        console.print("majority: always answering the most frequent class of the training images", style="dim", highlight=False)
    for result in results:
        if result.skipped is not None:
            console.print(f"{result.title}: skipped, {result.skipped}", style="yellow", highlight=False)


def _table(results: Sequence[Result], selection: str) -> Table:
    subjects = [name for name in SUBJECT_NAMES if any(name in result.subjects for result in results)]
    table = Table(
        title=f"Accuracy in % ± standard error, selection: {selection}",
        title_justify="left",
        box=SIMPLE_HEAD,  # no lines between the columns: 80 characters must hold the longest title beside five numbers
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    table.add_column("task")  # folds between words
    table.add_column("probe", no_wrap=True)
    for heading in (*(SUBJECT_NAMES[name] for name in subjects), "majority"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        for metric in result.subjects["encoder"].metrics:
            cells = [percent(result.subjects[name].metrics[metric]) for name in subjects]
            table.add_row(f"{result.title} ({result.num_test:,} images)", metric, *cells, f"{100 * result.chance:.1f}")
    return table
