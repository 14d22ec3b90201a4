"""The result that heads the page.

What the results do not say by their numbers: the encoder has been trained further, or a task could not be probed.

What the features of the test images say without labels (RankMe, LiDAR, alpha-ReQ), by task, run and subject.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openjepa.report.curves import format_number
from openjepa.report.facts import command
from openjepa.report.probes import (
    HEAD_ORDER,
    MAIN_PROBE,
    SUBJECT_WORDS,
    SUITE_ORDER,
    Row,
    full_title,
    measured,
    percent,
    place_of,
    title_of,
    variant_of,
)
from openjepa.report.reading import RunFolder, text
from openjepa.system.json_files import number


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
    """As in its row, and over how many seeds."""
    others: str
    """The run's own numbers on other tasks by the same probe, in words."""


def headline(rows: Sequence[Row], run: int = 0) -> Headline | None:
    """The linear probe of the run's own evaluation on its first task, in a fixed order whatever the numbers are.

    Rows of suites and variants head only where a run has no evaluation of its own. Of several runs all show the first one's
    task, so that the heads compare.
    """
    row = _heading(rows, run, None if run == 0 else _heading(rows, 0, None))
    if row is None:
        return None
    bars = [
        Bar(
            SUBJECT_WORDS[name],
            percent(score.value),
            f"± {score.shown_error}" if score.shown_error else "",
            max(0.0, min(100.0, 100 * score.value)),
        )
        for name, score in row.scores.items()
    ]
    others = [f"{bar.word} {bar.shown}" for bar in bars[1:]]
    sentence = f"{row.probe} {bars[0].shown} %" + (f" vs {' vs '.join(others)}" if others else "")
    chance = None if row.chance is None else 100 * row.chance
    what = "; ".join(part for part in (row.what, row.scores["encoder"].shown_spread) if part)
    return Headline(f"{row.task}, {row.probe}", sentence, _gain(row), bars, chance, row.selection, what, _others(rows, row))


def _others(rows: Sequence[Row], heading: Row) -> str:
    """`Clevr/Count 53.2 ± 0.8`: what else the run's own evaluation has by the same probe and selection."""
    alike = [
        row
        for row in rows
        if heading.is_own
        and row.is_own
        and (row.run, row.probe, row.selection) == (heading.run, heading.probe, heading.selection)
        and row.task != heading.task
        and "encoder" in row.scores
    ]
    return ", ".join(f"{row.task} {percent((score := row.scores['encoder']).value)} ± {score.shown_error}" for row in alike)


def _heading(rows: Sequence[Row], run: int, like: Row | None) -> Row | None:
    own = [row for row in rows if row.run == run and "encoder" in row.scores]
    alike = None if like is None else (like.task, like.probe)
    return min(
        own,
        key=lambda row: (
            not row.is_own,
            bool(row.variant),
            row.selection == "paper",
            alike not in (None, (row.task, row.probe)),
            row.probe != MAIN_PROBE,
            place_of(row.suite_row, SUITE_ORDER) if row.suite_row else place_of(row.kind, HEAD_ORDER),
        ),
        default=None,
    )


def _gain(row: Row) -> str:
    if row.gain is None:
        return ""
    points = f"{percent(row.gain, sign=True)} points"
    baseline = "best baseline" if len(row.scores) > 3 else "better baseline"
    return f"{points} against the {baseline}" if row.is_clear else f"within the error of the {baseline} ({points})"


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


def stale(runs: Sequence[RunFolder]) -> list[Stale]:
    """Results whose step is not the run's, those of one run and step together."""
    found = []
    for index, run in enumerate(runs):
        now = number(run.summary.get("step"))
        done = [(result, number(result.get("step"))) for result in run.evaluations if not result.get("skipped")]
        for step in sorted({step for _, step in done if step is not None and now is not None and step != now}):
            old = [result for result, known in done if known == step]
            tasks = ", ".join(dict.fromkeys(full_title(result) for result in old))
            found.append(
                Stale(
                    index, tasks, int(step), int(now or 0), command(run, "evaluate"), any(variant_of(result) for result in old)
                )
            )
    return found


def skipped_tasks(runs: Sequence[RunFolder]) -> list[tuple[int, str, str]]:
    """(run, task, reason) of what could not be probed: each task once, and none whose title or row of a suite has numbers."""
    found: dict[tuple[int, str], tuple[int, str, str]] = {}
    for index, run in enumerate(runs):
        done = {name for result in run.evaluations if measured(result) for name in _names(result)}
        for result in run.evaluations:
            if result.get("skipped") and not done.intersection(_names(result)):
                title = title_of(result)
                found.setdefault((index, title), (index, title, text(result["skipped"], 200)))
    return list(found.values())


def _names(result: Mapping[str, Any]) -> set[tuple[str, str]]:
    """What a reader knows a result by."""
    row = text(result.get("row") or "", 80)
    return {("title", title_of(result)), *((("row", row),) if row else ())}


MEANING = (
    "RankMe and LiDAR count the dimensions that features use: more is better, but only among runs of one method. "
    "alpha-ReQ is the slope of their spectrum: near 1 is best."
)
MAX_MEASURES = 8


@dataclass(frozen=True)
class Quality:
    """The measures of one subject."""

    run: int
    task: str
    subject: str
    shown: Mapping[str, str]
    """By the measure's name; empty where it is not known."""


def qualities(runs: Sequence[RunFolder]) -> list[Quality]:
    """One row per task, run and subject that has measures."""
    rows = [
        (index, full_title(result), SUBJECT_WORDS.get(str(subject), text(subject, 40)), numbers)
        for index, run in enumerate(runs)
        for result in run.evaluations
        if isinstance(measures := result.get("measures"), Mapping)
        for subject, numbers in measures.items()
        if isinstance(numbers, Mapping) and numbers
    ]
    names = list(dict.fromkeys(name for *_, numbers in rows for name in numbers))[:MAX_MEASURES]
    return [
        Quality(index, task, subject, {text(name, 40): _shown(numbers.get(name)) for name in names})
        for index, task, subject, numbers in rows
    ]


def _shown(value: object) -> str:
    finite = number(value)
    return "" if finite is None else format_number(finite)
