"""The results of eval/*.json as rows of one table, and the one that heads the page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openjepa.report.reading import RunFolder, lookup, number, text

SUBJECTS = ("encoder", "untrained", "pixels")
SUBJECT_WORDS = {"encoder": "trained", "untrained": "untrained", "pixels": "pixels"}
PROBE_WORDS = {"linear-cached": "linear probe"}
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
    num_test: int | None

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
    """All rows, those of one task and probe side by side."""
    rows = [row for index, run in enumerate(runs) for result in run.evaluations for row in _rows(index, result)]
    order = {key: place for place, key in enumerate(dict.fromkeys((row.task, row.probe) for row in rows))}
    return sorted(rows, key=lambda row: (order[row.task, row.probe], row.run))


def _rows(run: int, result: Mapping[str, Any]) -> Iterator[Row]:
    subjects = _mapping(result.get("subjects"))
    numbers = {name: _mapping(lookup(subjects, name, "metrics")) for name in SUBJECTS}
    for probe in list(dict.fromkeys(probe for metrics in numbers.values() for probe in metrics))[:12]:
        scores = {name: score for name, metrics in numbers.items() if (score := _score(metrics.get(probe))) is not None}
        if not scores:
            continue
        tested = number(result.get("num_test"))
        yield Row(
            run=run,
            task=_title(result),
            probe=_probe(probe),
            scores=scores,
            selection=text(result.get("selection") or "", 40),
            chance=number(result.get("chance")) or None,
            num_test=int(tested) if tested else None,
        )


def _title(result: Mapping[str, Any]) -> str:
    return text(result.get("title") or result.get("task") or result["_file"], 80)


def _probe(name: Any) -> str:
    return PROBE_WORDS.get(str(name), text(name, 40))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _score(metric: Any) -> Score | None:
    value = number(lookup(metric, "value"))
    if value is None:
        return None
    return Score(value, number(lookup(metric, "standard_error")), text(lookup(metric, "chosen", default=""), 120))


def headline(rows: Sequence[Row], run: int = 0) -> Headline | None:
    """A run's linear probe, or whatever it has."""
    own = [row for row in rows if row.run == run and "encoder" in row.scores]
    if not own:
        return None
    row = min(own, key=lambda row: (row.probe != PROBE_WORDS["linear-cached"], row.gain is None))
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
    gain = "" if row.gain is None else f"{percent(row.gain, sign=True)} points against the better baseline"
    chance = None if row.chance is None else 100 * row.chance
    return Headline(f"{row.task}, {row.probe}", sentence[:1].upper() + sentence[1:], gain, bars, chance)


def skipped_tasks(runs: Sequence[RunFolder]) -> list[tuple[int, str, str]]:
    """(run, task, reason) of the tasks that the data has no labels for."""
    return [
        (index, _title(result), text(result["skipped"], 200))
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
                [_head(index, _title(result), head) for head in listed if isinstance(head, Mapping)]
                if isinstance(listed, list)
                else []
            )
    return found[:MAX_HEADS]


def _head(run: int, task: str, head: Mapping[str, Any]) -> Head:
    subject = SUBJECT_WORDS.get(str(head.get("subject")), text(head.get("subject", ""), 40))
    return Head(
        run=run,
        probe=f"{task}, {_probe(head.get('metric', ''))}, {subject}",
        classifier=", ".join(text(head[name], 60) for name in ("features", "head", "setting") if head.get(name)),
        held_out=percent(number(head.get("held_out_accuracy"))),
        test=percent(number(head.get("test_accuracy"))),
        chosen=head.get("chosen") is True,
    )
