"""The results of eval/*.json as rows of one table, and the one that heads the page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openjepa.report.facts import command
from openjepa.report.reading import RunFolder, lookup, number, text

SUBJECTS = ("encoder", "untrained", "pixels")
SUBJECT_WORDS = {"encoder": "trained", "untrained": "untrained", "pixels": "pixels"}
MAIN_PROBE = "linear-cached"
PROBE_WORDS = {
    MAIN_PROBE: "a linear probe on features of one center view, computed once: published linear numbers, trained on augmented "
    "images, do not compare to the point",
}
SELECTION_WORDS = {
    "held_out": "settings chosen on 10 % of the training images",
    "paper": "best on the test images, as published",
}
MAX_HEADS = 240


@dataclass(frozen=True)
class Score:
    """An accuracy between 0 and 1 with its standard error."""

    value: float
    error: float | None
    chosen: str
    """The classifier it is, in words."""


@dataclass(frozen=True)
class Row:
    """One probe on one task of one run."""

    run: int
    task: str
    probe: str
    scores: Mapping[str, Score]
    """By subject: encoder, untrained, pixels."""
    selection: str
    chance: float | None
    """Accuracy of always giving the most frequent class."""
    variant: str
    """What sets it apart from the run's own evaluation; empty for that one."""
    what: str
    """Which data, encoder and size, where they are not the run's own; how many images; after which step."""

    @property
    def gain(self) -> float | None:
        """Accuracy above the better baseline."""
        baselines = [self.scores[name].value for name in SUBJECTS[1:] if name in self.scores]
        return self.scores["encoder"].value - max(baselines) if baselines and "encoder" in self.scores else None

    @property
    def is_clear(self) -> bool:
        """Whether the gain, up or down, is more than twice its standard error."""
        errors = [score.error or 0.0 for score in self.scores.values()]
        return abs(self.gain or 0.0) > 2 * math.sqrt(2) * max(errors)

    @property
    def clearness(self) -> float:
        """The gain in units of its error."""
        return (self.gain or 0.0) / max(1e-6, *(score.error or 0.0 for score in self.scores.values()))


@dataclass(frozen=True)
class Bar:
    """One subject of the headline."""

    word: str
    shown: str
    error: str
    percent: float


@dataclass(frozen=True)
class Headline:
    """The result that heads the page."""

    title: str
    sentence: str
    gain: str
    bars: list[Bar]
    chance: float | None
    """In percent."""
    selection: str
    what: str
    """As in its row."""


@dataclass(frozen=True)
class Stale:
    """Evaluations of an encoder that the run has trained further since."""

    run: int
    tasks: str
    step: int
    now: int
    again: str
    """What evaluates anew: a command line."""
    other_options: bool
    """Whether some of them were made with options that the command must repeat."""


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


MINUS = "\N{MINUS SIGN}"


def percent(share: float | None, sign: bool = False) -> str:
    """61.4, or +12.3 with `sign`; nothing for None."""
    if share is None:
        return ""
    shown = f"{abs(100 * share):.1f}"
    if sign:
        return ("+" if share >= 0 else MINUS) + shown
    return (MINUS if share < 0 and float(shown) else "") + shown


def table(runs: Sequence[RunFolder]) -> list[Row]:
    """All rows, those of one task and probe side by side, a run's own evaluation before its variants."""
    rows = [row for index, run in enumerate(runs) for result in run.evaluations for row in _rows(index, run, result)]
    rows.sort(key=lambda row: bool(row.variant))
    order = {key: place for place, key in enumerate(dict.fromkeys((row.task, row.probe) for row in rows))}
    tasks = {task: place for place, task in enumerate(dict.fromkeys(row.task for row in rows))}
    return sorted(rows, key=lambda row: (tasks[row.task], order[row.task, row.probe], row.run, row.variant))


def _rows(index: int, run: RunFolder, result: Mapping[str, Any]) -> Iterator[Row]:
    subjects = _mapping(result.get("subjects"))
    numbers = {name: _mapping(lookup(subjects, name, "metrics")) for name in SUBJECTS}
    for probe in list(dict.fromkeys(probe for metrics in numbers.values() for probe in metrics))[:12]:
        scores = {name: score for name, metrics in numbers.items() if (score := _score(metrics.get(probe))) is not None}
        if not scores:
            continue
        yield Row(
            run=index,
            task=_title(result),
            probe=text(probe, 40),
            scores=scores,
            selection=text(result.get("selection") or "", 40),
            chance=number(result.get("chance")) or None,
            variant=_variant(result),
            what=_what(run, result),
        )


def _title(result: Mapping[str, Any]) -> str:
    return text(result.get("title") or result.get("task") or result["_file"], 80)


def _variant(result: Mapping[str, Any]) -> str:
    """As the result says; older ones only by their file's name."""
    task, file = str(result.get("task")), str(result["_file"])
    named = file.removeprefix(f"{task}-") if file.startswith(f"{task}-") else ""
    return text(result.get("variant") or named, 80)


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


def stale(runs: Sequence[RunFolder]) -> list[Stale]:
    """Results whose step is not the run's, those of one run and step together."""
    found = []
    for index, run in enumerate(runs):
        now = number(run.summary.get("step"))
        done = [(result, number(result.get("step"))) for result in run.evaluations if not result.get("skipped")]
        for step in sorted({step for _, step in done if step is not None and now is not None and step != now}):
            old = [result for result, known in done if known == step]
            tasks = ", ".join(dict.fromkeys(_full_title(result) for result in old))
            found.append(
                Stale(index, tasks, int(step), int(now or 0), command(run, "evaluate"), any(_variant(result) for result in old))
            )
    return found


def _full_title(result: Mapping[str, Any]) -> str:
    return f"{_title(result)} ({_variant(result)})" if _variant(result) else _title(result)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _score(metric: Any) -> Score | None:
    value = number(lookup(metric, "value"))
    if value is None:
        return None
    return Score(value, number(lookup(metric, "standard_error")), text(lookup(metric, "chosen", default=""), 120))


def headline(rows: Sequence[Row], run: int = 0) -> Headline | None:
    """The linear probe of the run's own evaluations whose gain is clearest, or whatever it has.

    Of several runs all show the task that is clearest in the first, so that the heads compare.
    """
    row = _heading(rows, run, None if run == 0 else _heading(rows, 0, None))
    if row is None:
        return None
    bars = [
        Bar(
            SUBJECT_WORDS[name],
            percent(score.value),
            "" if score.error is None else f"± {percent(score.error)}",
            max(0.0, min(100.0, 100 * score.value)),
        )
        for name, score in row.scores.items()
    ]
    others = [f"{bar.word} {bar.shown}" for bar in bars[1:]]
    sentence = f"{row.probe} {bars[0].shown} %" + (f" vs {' vs '.join(others)}" if others else "")
    chance = None if row.chance is None else 100 * row.chance
    return Headline(f"{row.task}, {row.probe}", sentence, _gain(row), bars, chance, row.selection, row.what)


def _heading(rows: Sequence[Row], run: int, like: Row | None) -> Row | None:
    own = [row for row in rows if row.run == run and "encoder" in row.scores]
    alike = None if like is None else (like.task, like.probe)
    return min(
        own,
        key=lambda row: (
            bool(row.variant),
            alike not in (None, (row.task, row.probe)),
            row.probe != MAIN_PROBE,
            row.gain is None,
            -row.clearness,
        ),
        default=None,
    )


def _gain(row: Row) -> str:
    if row.gain is None:
        return ""
    points = f"{percent(row.gain, sign=True)} points"
    return f"{points} against the better baseline" if row.is_clear else f"within the error of the better baseline ({points})"


def skipped_tasks(runs: Sequence[RunFolder]) -> list[tuple[int, str, str]]:
    """(run, task, reason) of the tasks that the data has no labels for."""
    return [
        (index, _full_title(result), text(result["skipped"], 200))
        for index, run in enumerate(runs)
        for result in run.evaluations
        if result.get("skipped")
    ]


def heads(runs: Sequence[RunFolder]) -> list[Head]:
    """The classifiers that were tried."""
    found = []
    for index, run in enumerate(runs):
        for result in run.evaluations:
            listed = result.get("heads")
            found += (
                [_head(index, _full_title(result), head) for head in listed if isinstance(head, Mapping)]
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
