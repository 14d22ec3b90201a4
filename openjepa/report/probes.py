"""The results of eval/*.json as rows of one table.

What the names in eval/*.json mean, and how a share is written.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openjepa.report.reading import RunFolder, lookup, text
from openjepa.system.json_files import number

SUBJECTS = ("encoder", "start", "untrained", "pixels")
SUBJECT_WORDS = {"encoder": "trained", "start": "start", "untrained": "untrained", "pixels": "pixels"}
MAIN_PROBE = "linear-cached"
PROBE_WORDS = {
    MAIN_PROBE: "a linear probe on features of one center view, computed once: published linear numbers, trained on augmented "
    "images, do not compare to the point",
    "linear": "the paper's linear probe: heads trained on augmented images above the frozen encoder",
    "logistic": "L2 logistic regression on features of one center view, as MSN's low-shot evaluation",
    "attentive": "a learned query attends to the frozen encoder's patches",
    "fine-tuned": "the encoder itself is trained further on the labels",
    "dense linear mIoU": "a linear layer on single patches, no decoder; mean intersection over union",
    "dense k-NN mIoU": "votes of the nearest single patches, no decoder; mean intersection over union",
}
SELECTION_WORDS = {
    "held_out": "settings chosen on 10 % of the training images",
    "paper": "best on the test images, as published",
}
SUITE_ORDER = (
    *("imagenet1k", "imagenet1k-1pct", "imagenet1k-finetune", "cifar100", "cifar10", "places205", "inat18"),
    *("clevr_count", "clevr_dist", "scene_shapes", "scene_colors"),
)
"""Rows of suites as tables list them, the paper's Tables 1, 2 and 15 first."""
HEAD_ORDER = ("classification", "clevr_dist", "clevr_count")
"""Which of a run's own tasks heads its page: a fixed order, so that no number is picked for its height."""
PAPER_SUFFIX = " (paper)"
"""Ends the name of a number whose settings were chosen on the test images, where a file holds both kinds."""
MINUS = "\N{MINUS SIGN}"
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"


def quantity(probes: Iterable[str]) -> str:
    """What the numbers of these probes are."""
    shares = ["mIoU" in name for name in probes]
    if not any(shares):
        return "Accuracy on test images"
    whole = "Mean intersection over union (mIoU) of the patches of test images"
    return whole if all(shares) else f"Accuracy on test images, or {whole[0].lower()}{whole[1:]},"


def percent(share: float | None, sign: bool = False) -> str:
    """61.4, or +12.3 with `sign`; nothing for None."""
    if share is None:
        return ""
    shown = f"{abs(100 * share):.1f}"
    if sign:
        return ("+" if share >= 0 else MINUS) + shown
    return (MINUS if share < 0 and float(shown) else "") + shown


MAX_PROBES = 24
MAX_HEADS = 240
MAX_DEPARTURES = 12


@dataclass(frozen=True)
class Score:
    """An accuracy between 0 and 1 with its standard error; of several seeds their mean and spread too."""

    value: float
    error: float | None
    chosen: str
    """The classifier it is, in words."""
    spread: float | None = None
    """Standard deviation over seeds; None for one seed."""
    seeds: int = 1

    @property
    def shown_error(self) -> str:
        """What stands behind ± in percent: the standard error, also of the mean of several seeds."""
        return percent(self.error)

    @property
    def shown_spread(self) -> str:
        """Standard deviation over seeds in percent, and how many they are; empty for one seed."""
        return f"{SIGMA} {percent(self.spread)}, {self.seeds} seeds" if self.spread is not None else ""

    @property
    def uncertainty(self) -> float:
        """The larger of standard error and spread."""
        return max(self.error or 0.0, self.spread or 0.0)


@dataclass(frozen=True)
class Measured:
    """One number of a result: the subjects' scores by one probe under one selection rule."""

    probe: str
    """Without the suffix that says how its settings were chosen."""
    selection: str
    scores: Mapping[str, Score]
    """By subject: encoder, start, untrained, pixels; a subject may lack it."""


@dataclass(frozen=True)
class Row:
    """One probe on one task of one run."""

    run: int
    task: str
    probe: str
    scores: Mapping[str, Score]
    """By subject: encoder, start, untrained, pixels."""
    selection: str
    chance: float | None
    """Accuracy of always giving the most frequent class."""
    variant: str
    """What sets it apart from the run's own evaluation; empty for that one."""
    what: str
    """Which data, encoder and size, where they are not the run's own; how many images; after which step."""
    kind: str = ""
    """Name of the task."""
    suite_row: str = ""
    """Row of a suite that it is; empty for an evaluation on the run's own data."""
    departures: Sequence[str] = ()
    """Why the number is not that of the published protocol."""

    @property
    def is_own(self) -> bool:
        """Whether it is of the run's own evaluation: no row of a suite, and nothing that sets it apart."""
        return not self.suite_row and not self.variant

    @property
    def gain(self) -> float | None:
        """Accuracy above the best baseline."""
        baselines = [self.scores[name].value for name in SUBJECTS[1:] if name in self.scores]
        return self.scores["encoder"].value - max(baselines) if baselines and "encoder" in self.scores else None

    @property
    def is_clear(self) -> bool:
        """Whether the gain, up or down, is more than twice its error."""
        return abs(self.gain or 0.0) > 2 * math.sqrt(2) * max(score.uncertainty for score in self.scores.values())


@dataclass(frozen=True)
class Head:
    """One classifier that was tried."""

    run: int
    probe: str
    """Task, probe and whose features."""
    classifier: str
    held_out: str
    test: str
    chosen: bool


def table(runs: Sequence[RunFolder]) -> list[Row]:
    """All rows, those of one task and probe side by side, a run's own evaluation before its variants."""
    rows = [row for index, run in enumerate(runs) for result in run.evaluations for row in _rows(index, run, result)]
    rows.sort(key=lambda row: (bool(row.variant), bool(row.suite_row), place_of(row.suite_row, SUITE_ORDER)))
    order = {key: place for place, key in enumerate(dict.fromkeys((row.task, row.probe) for row in rows))}
    tasks = {task: place for place, task in enumerate(dict.fromkeys(row.task for row in rows))}
    return sorted(rows, key=lambda row: (tasks[row.task], order[row.task, row.probe], row.run, row.variant))


def place_of(name: str, order: Sequence[str]) -> int:
    """Place of a name in a fixed order; unknown ones stand last."""
    return order.index(name) if name in order else len(order)


def unfolded(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of a page's main table, one variant of each task of a run, and all others.

    The one without a word for what sets it apart comes first, then the first in the order of the words, whatever the numbers.
    """
    main: dict[tuple[int, str], str] = {}
    for row in rows:
        main[row.run, row.task] = min(row.variant, main.get((row.run, row.task), row.variant))
    is_main = [row.variant == main[row.run, row.task] for row in rows]
    return [row for row, first in zip(rows, is_main, strict=True) if first], [
        row for row, first in zip(rows, is_main, strict=True) if not first
    ]


def _rows(index: int, run: RunFolder, result: Mapping[str, Any]) -> Iterator[Row]:
    for found in measured(result):
        yield Row(
            run=index,
            task=title_of(result),
            probe=found.probe,
            scores=found.scores,
            selection=found.selection,
            chance=number(result.get("chance")) or None,
            variant=shown_variant(result),
            what=_what(run, result),
            kind=text(result.get("task") or "", 80),
            suite_row=text(result.get("row") or "", 80),
            departures=departures_of(result) or (),
        )


def measured(result: Mapping[str, Any]) -> list[Measured]:
    """The numbers of a result; those of no subject, or of none that is known, are left out."""
    subjects = _mapping(result.get("subjects"))
    numbers = {name: _mapping(lookup(subjects, name, "metrics")) for name in SUBJECTS}
    found = []
    for name in list(dict.fromkeys(name for metrics in numbers.values() for name in metrics))[:MAX_PROBES]:
        scores = {subject: score for subject, metrics in numbers.items() if (score := _score(metrics.get(name))) is not None}
        if scores:
            found.append(Measured(text(name, 48).removesuffix(PAPER_SUFFIX), _selection(result, name, numbers), scores))
    return found


def _selection(result: Mapping[str, Any], name: str, numbers: Mapping[str, Mapping[str, Any]]) -> str:
    """The number's own rule where it says one (a result may hold both), else the result's."""
    said = [lookup(metrics.get(name), "selection") for metrics in numbers.values()]
    own = next((word for word in said if word), "")
    return text("paper" if name.endswith(PAPER_SUFFIX) else own or result.get("selection") or "", 40)


def title_of(result: Mapping[str, Any]) -> str:
    """The task in words."""
    return text(result.get("title") or result.get("task") or result["_file"], 80)


def variant_of(result: Mapping[str, Any]) -> str:
    """What sets a result apart from the run's own: as it says; older ones only by their file's name."""
    name, file = str(result.get("row") or result.get("task")), str(result["_file"])
    named = file.removeprefix(f"{name}-") if file.startswith(f"{name}-") else ""
    return text(result.get("variant") or named, 80)


def shown_variant(result: Mapping[str, Any]) -> str:
    """The variant without the word for both selection rules, since every number stands with its own."""
    return "-".join(part for part in variant_of(result).split("-") if part != "both")


def departures_of(result: Mapping[str, Any]) -> tuple[str, ...] | None:
    """In words, why the numbers are not those of the published protocol; None where a result of before does not say."""
    listed = result.get("departures")
    return tuple(text(words, 120) for words in listed[:MAX_DEPARTURES]) if isinstance(listed, list) else None


def full_title(result: Mapping[str, Any]) -> str:
    """The task with its variant."""
    return f"{title_of(result)} ({shown_variant(result)})" if shown_variant(result) else title_of(result)


def _what(run: RunFolder, result: Mapping[str, Any]) -> str:
    data, encoder = text(result.get("data") or "", 120), text(result.get("encoder") or "target", 40)
    counts = [
        f"{count:,.0f} {name}"
        for name in ("train", "test")
        if (count := number(result.get(f"num_{name}"))) is not None and count
    ]
    step = number(result.get("step"))
    parts = (
        f"data: {data}" if data and data != text(run.summary.get("data") or data, 120) else "",
        f"{encoder} encoder" if encoder != "target" else "",
        _pixels(run, result),
        f"{' and '.join(counts)} images" if counts else "",
        "" if step is None else f"step {step:,.0f}",
    )
    return "; ".join(part for part in parts if part)


def _pixels(run: RunFolder, result: Mapping[str, Any]) -> str:
    """The size of the images where it is not the one the encoder was trained at."""
    size, usual = result.get("image_size"), run.model.get("image_size")
    known = all(isinstance(sides, list) and len(sides) == 2 and all(map(number, sides)) for sides in (size, usual))
    return f"{size[0]} x {size[1]} px" if known and size is not None and size != usual else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _score(metric: Any) -> Score | None:
    value = number(lookup(metric, "value"))
    if value is None:
        return None
    chosen = text(lookup(metric, "chosen", default=""), 120)
    seeds = int(number(lookup(metric, "seeds")) or 1)
    spread = number(lookup(metric, "spread")) if seeds > 1 else None
    return Score(value, number(lookup(metric, "standard_error")), chosen, spread, seeds)


def heads(runs: Sequence[RunFolder]) -> list[Head]:
    """The classifiers that were tried."""
    found = []
    for index, run in enumerate(runs):
        for result in run.evaluations:
            listed = result.get("heads")
            found += (
                [_head(index, full_title(result), head) for head in listed if isinstance(head, Mapping)]
                if isinstance(listed, list)
                else []
            )
    return found[:MAX_HEADS]


def _head(run: int, task: str, head: Mapping[str, Any]) -> Head:
    subject = SUBJECT_WORDS.get(str(head.get("subject")), text(head.get("subject", ""), 40))
    return Head(
        run=run,
        probe=f"{task}, {text(head.get('metric', ''), 40)}, {subject}",
        classifier=", ".join(text(head[name], 60) for name in ("features", "head", "setting") if head.get(name)),
        held_out=percent(number(head.get("held_out_accuracy"))),
        test=percent(number(head.get("test_accuracy"))),
        chosen=head.get("chosen") is True,
    )
