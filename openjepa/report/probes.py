"""The results of eval/*.json as rows of one table, and the one that heads the page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openjepa.report.reading import RunFolder, lookup, number, text

SUBJECTS = ("encoder", "untrained", "pixels")
SUBJECT_WORDS = {"encoder": "trained", "untrained": "untrained", "pixels": "pixels"}
PROTOCOL_WORDS = {"linear": "linear probe", "knn": "k-NN"}
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
    """One protocol on one task of one run."""

    run: int
    task: str
    protocol: str
    scores: Mapping[str, Score]
    """By subject: encoder, untrained, pixels."""
    selection: str
    majority: float | None
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
    majority: float | None
    """In percent."""


@dataclass(frozen=True)
class Head:
    """One classifier that was tried."""

    run: int
    probe: str
    """Task, protocol and whose features."""
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
    """All rows, those of one task and protocol beside each other."""
    rows = [row for index, run in enumerate(runs) for result in run.evaluations for row in _rows(index, result)]
    order = {key: place for place, key in enumerate(dict.fromkeys((row.task, row.protocol) for row in rows))}
    return sorted(rows, key=lambda row: (order[row.task, row.protocol], row.run))


def _rows(run: int, result: Mapping[str, Any]) -> Iterator[Row]:
    metrics = _mapping(result.get("metrics"))
    protocols = dict.fromkeys(name for numbers in metrics.values() for name in _mapping(numbers))
    for protocol in list(protocols)[:12]:
        scores = {name: score for name in SUBJECTS if (score := _score(lookup(metrics, name, protocol))) is not None}
        if not scores:
            continue
        tested = number(result.get("num_test"))
        yield Row(
            run=run,
            task=_title(result),
            protocol=_protocol(protocol),
            scores=scores,
            selection=text(result.get("selection") or "", 40),
            majority=number(result.get("majority")) or None,
            num_test=int(tested) if tested else None,
        )


def _title(result: Mapping[str, Any]) -> str:
    return text(result.get("title") or result.get("task") or result["_file"], 80)


def _protocol(name: Any) -> str:
    return PROTOCOL_WORDS.get(str(name), text(name, 40))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _score(metric: Any) -> Score | None:
    value = number(lookup(metric, "value", default=metric))
    if value is None:
        return None
    return Score(value, number(lookup(metric, "standard_error")), text(lookup(metric, "chosen", default=""), 120))


def headline(rows: Sequence[Row], run: int = 0) -> Headline | None:
    """A run's linear probe, or whatever it has."""
    own = [row for row in rows if row.run == run and "encoder" in row.scores]
    if not own:
        return None
    row = min(own, key=lambda row: (row.protocol != PROTOCOL_WORDS["linear"], row.gain is None))
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
    sentence = f"{row.protocol} {bars[0].shown} %" + (f" vs {' vs '.join(others)}" if others else "")
    gain = "" if row.gain is None else f"{percent(row.gain, sign=True)} points against the better baseline"
    majority = None if row.majority is None else 100 * row.majority
    return Headline(f"{row.task}, {row.protocol}", sentence[:1].upper() + sentence[1:], gain, bars, majority)


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
        probe=f"{task}, {_protocol(head.get('protocol', ''))}, {subject}",
        classifier=", ".join(text(head[name], 60) for name in ("features", "head", "setting") if head.get(name)),
        held_out=percent(number(head.get("held_out_accuracy"))),
        test=percent(number(head.get("test_accuracy"))),
        chosen=head.get("chosen") is True,
    )
