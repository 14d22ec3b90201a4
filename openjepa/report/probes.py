"""The results of eval/*.json as rows of one table, and the meanings of their names."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from openjepa.config import number
from openjepa.records import SIGMA, SUBJECT_NAMES, Measure, Metric, Result
from openjepa.report.numbers import percent
from openjepa.report.reading import Run, text
from openjepa.settings.protocols import PROTOCOLS, usual_protocols

SELECTION_WORDS = {
    "held_out": "settings chosen on 10 % of the training images",
    "paper": "best on the test images, as published",
}
SUITE_ORDER = (
    *("imagenet1k", "imagenet1k-1pct", "imagenet1k-finetune", "cifar100", "cifar10", "places205", "inat18"),
    *("clevr_count", "clevr_dist", "scene_shapes", "scene_colors"),
)
"""Rows of suites in the order of tables, the paper's Tables 1, 2 and 15 first."""
HEAD_ORDER = ("classification", "clevr_dist", "clevr_count")
"""The first of these that a run has heads its page. The order is fixed, so that no number is picked because it is high."""
MAX_PROBES = 24
MAX_HEADS = 240


def main_probe() -> str:
    """The probe that heads a page: the first of those that are usual on labels of images."""
    return PROTOCOLS[usual_protocols(on_maps=False)[0]].metric


def probe_words(names: Iterable[str]) -> dict[str, str]:
    """What the probes `names` are, without those that nothing is said of."""
    words = {entry.metric: entry.words for entry in PROTOCOLS.values() if entry.words}
    return {name: words[name] for name in names if name in words}


def has_finetuned(names: Iterable[str]) -> bool:
    """True if one of the probes `names` trains the encoder."""
    return not {entry.metric for entry in PROTOCOLS.values() if not entry.freezes}.isdisjoint(names)


def quantity(measures: Collection[Measure]) -> str:
    """The name of the numbers that have these measures."""
    if "miou" not in measures:
        return "Accuracy on test images"
    whole = "Mean intersection over union (mIoU) of the patches of test images"
    return f"Accuracy on test images, or {whole[0].lower()}{whole[1:]}," if "accuracy" in measures else whole


@dataclass(frozen=True)
class Score:
    """A share between 0 and 1 with its standard error. A mean over several seeds also has their spread."""

    value: float
    error: float | None
    chosen: str
    """The chosen classifier, in words."""
    spread: float | None = None
    """Standard deviation over seeds; None for one seed."""
    seeds: int = 1

    @property
    def shown_error(self) -> str:
        """The standard error in percent, to follow ±."""
        return percent(self.error)

    @property
    def shown_spread(self) -> str:
        """Standard deviation over seeds in percent, and the number of seeds; empty for one seed."""
        return f"{SIGMA} {percent(self.spread)}, {self.seeds} seeds" if self.spread is not None else ""

    @property
    def uncertainty(self) -> float:
        """The larger of standard error and spread."""
        return max(self.error or 0.0, self.spread or 0.0)


@dataclass(frozen=True)
class Measured:
    """The scores of a result's subjects by one probe under one selection rule."""

    probe: str
    """Name of the probe, without the suffix for the selection rule."""
    selection: str
    measure: Measure
    scores: Mapping[str, Score]
    """Scores by subject: encoder, start, untrained, pixels. A subject may be missing."""


@dataclass(frozen=True)
class ProbeRow:
    """One probe on one task of one run."""

    run: int
    task: str
    probe: str
    scores: Mapping[str, Score]
    """Scores by subject: encoder, start, untrained, pixels."""
    selection: str
    chance: float | None
    """Accuracy of always predicting the most frequent class."""
    variant: str
    """Words that tell it from the run's own evaluation; empty for the run's own evaluation."""
    what: str
    """Data, encoder and image size if they are not the run's own; then the numbers of images and the step."""
    kind: str = ""
    """Name of the task."""
    suite_row: str = ""
    """Name of the row of a suite; empty for an evaluation on the run's own data."""
    measure: Measure = "accuracy"

    @property
    def is_own(self) -> bool:
        """True if it belongs to the run's own evaluation: it is neither a row of a suite nor a variant."""
        return not self.suite_row and not self.variant

    @property
    def gain(self) -> float | None:
        """Accuracy minus that of the best baseline."""
        baselines = [self.scores[name].value for name in SUBJECT_NAMES if name != "encoder" and name in self.scores]
        return self.scores["encoder"].value - max(baselines) if baselines and "encoder" in self.scores else None

    @property
    def is_clear(self) -> bool:
        """True if the absolute gain is more than twice its error."""
        return abs(self.gain or 0.0) > 2 * math.sqrt(2) * max(score.uncertainty for score in self.scores.values())


@dataclass(frozen=True)
class Head:
    """One classifier that was tried."""

    run: int
    probe: str
    """Task, probe, and the subject whose features were used."""
    classifier: str
    held_out: str
    test: str
    chosen: bool


def probe_table(runs: Sequence[Run]) -> list[ProbeRow]:
    """All rows. Those of one task and probe stand together, and a run's own evaluation stands before its variants."""
    rows = [row for index, run in enumerate(runs) for result in run.evaluations for row in _rows(index, run, result)]
    rows.sort(key=lambda row: (bool(row.variant), bool(row.suite_row), place_of(row.suite_row, SUITE_ORDER)))
    order = {key: place for place, key in enumerate(dict.fromkeys((row.task, row.probe) for row in rows))}
    tasks = {task: place for place, task in enumerate(dict.fromkeys(row.task for row in rows))}
    return sorted(rows, key=lambda row: (tasks[row.task], order[row.task, row.probe], row.run, row.variant))


def place_of(name: str, order: Sequence[str]) -> int:
    """Index of `name` in `order`. Unknown names come last."""
    return order.index(name) if name in order else len(order)


def unfolded(rows: Sequence[ProbeRow]) -> tuple[list[ProbeRow], list[ProbeRow]]:
    """Splits the rows into those of a page's main table, with one variant of each task of a run, and all others.

    The main table takes the variant without words, else the first in the order of the words. Variants without the trained
    encoder come last. The numbers do not matter.
    """
    main: dict[tuple[int, str], str] = {}
    for row in sorted(rows, key=lambda row: ("encoder" not in row.scores, row.variant)):
        main.setdefault((row.run, row.task), row.variant)
    is_main = [row.variant == main[row.run, row.task] for row in rows]
    return [row for row, first in zip(rows, is_main, strict=True) if first], [
        row for row, first in zip(rows, is_main, strict=True) if not first
    ]


def _rows(index: int, run: Run, result: Result) -> Iterator[ProbeRow]:
    for found in measured(result):
        yield ProbeRow(
            run=index,
            task=text(result.title, 80),
            probe=found.probe,
            scores=found.scores,
            selection=found.selection,
            measure=found.measure,
            chance=result.chance or None,
            variant=shown_variant(result),
            what=_what(run, result),
            kind=result.task,
            suite_row=result.row,
        )


def measured(result: Result) -> list[Measured]:
    """The numbers of the known subjects of a result."""
    numbers = {name: result.subjects[name].metrics for name in SUBJECT_NAMES if name in result.subjects}
    found = []
    for key in list(dict.fromkeys(key for metrics in numbers.values() for key in metrics))[:MAX_PROBES]:
        metrics = {subject: known[key] for subject, known in numbers.items() if key in known}
        first = next(iter(metrics.values()))
        scores = {subject: _score(metric) for subject, metric in metrics.items()}
        found.append(Measured(text(first.probe, 48), text(first.selection, 40), first.measure, scores))
    return found


def shown_variant(result: Result) -> str:
    """The variant in words: `linear_full-only` is `linear-full only`.

    The word for both selection rules is left out, since every number stands with its own.
    """
    names = {name.replace("-", "_"): name for name in PROTOCOLS}
    shown = ""
    for before, part in pairwise(["", *(part for part in text(result.variant, 80).split("-") if part != "both")]):
        shown += (" " if part == "only" and before in names else "-") + names.get(part, part)
    return shown.removeprefix("-")


def full_title(result: Result) -> str:
    """The task with its variant."""
    title = text(result.title, 80)
    return f"{title} ({shown_variant(result)})" if shown_variant(result) else title


def _what(run: Run, result: Result) -> str:
    encoder = text(result.encoder or "target", 40)
    counts = [f"{count:,} {name}" for name, count in (("train", result.num_train), ("test", result.num_test)) if count]
    parts = (
        f"data: {text(result.data, 120)}" if _is_on_other_data(run, result) else "",
        f"{encoder} encoder" if encoder != "target" else "",
        _pixels(run, result),
        f"{' and '.join(counts)} images" if counts else "",
        "" if result.step is None else f"step {result.step:,}",
    )
    return "; ".join(part for part in parts if part)


def _is_on_other_data(run: Run, result: Result) -> bool:
    """Whether a result is on other data than the run's. Numbers of images decide nothing: a probe sees only labeled ones.

    What only one of the two records has, because the other is older, decides nothing either.
    """
    own, seen = run.summary.data_facts, result.data_facts
    if own is None or seen is None:
        return False
    if result.data_key and not result.row:
        return True
    known = [pair for pair in ((own.holds, seen.holds), (own.classes, seen.classes)) if all(pair)]
    return any(mine != theirs for mine, theirs in ((own.name, seen.name), (own.pixels, seen.pixels), *known))


def _pixels(run: Run, result: Result) -> str:
    """The image size in words; empty if it is the encoder's training size."""
    size, usual = result.image_size, run.model.get("image_size")
    if size is None or not (isinstance(usual, list) and len(usual) == 2 and all(map(number, usual))):
        return ""
    return f"{size[0]} x {size[1]} px" if list(size) != usual else ""


def _score(metric: Metric) -> Score:
    spread = metric.spread if metric.seeds > 1 else None
    return Score(metric.value, metric.standard_error, text(metric.chosen, 120), spread, metric.seeds)


def heads(runs: Sequence[Run]) -> list[Head]:
    """The classifiers that were tried."""
    found = []
    for index, run in enumerate(runs):
        for result in run.evaluations:
            found += [_head(index, full_title(result), head) for head in result.heads]
    return found[:MAX_HEADS]


def _head(run: int, task: str, head: Mapping[str, Any]) -> Head:
    subject = SUBJECT_NAMES.get(str(head.get("subject")), text(head.get("subject", ""), 40))
    return Head(
        run=run,
        probe=f"{task}, {text(head.get('metric', ''), 40)}, {subject}",
        classifier=", ".join(text(head[name], 60) for name in ("features", "head", "setting") if head.get(name)),
        held_out=percent(number(head.get("held_out_accuracy"))),
        test=percent(number(head.get("test_accuracy"))),
        chosen=head.get("chosen") is True,
    )
