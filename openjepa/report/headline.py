"""Results on the page outside of their table: the number that heads the page, and notes on what the numbers leave out.

Notes say that the encoder was trained further after the evaluation, or that a task could not be probed. Measures without labels
(RankMe, LiDAR, alpha-ReQ) of the test images' features stand beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openjepa.records import SUBJECT_NAMES, Result
from openjepa.report.facts import openjepa_command
from openjepa.report.numbers import format_number, percent
from openjepa.report.probes import (
    HEAD_ORDER,
    SUITE_ORDER,
    ProbeRow,
    full_title,
    main_probe,
    measured,
    place_of,
)
from openjepa.report.reading import Run, text


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
    """Accuracy in percent of always predicting the most frequent class."""
    selection: str
    what: str
    """Data of the result and number of seeds, in words."""
    others: str
    """The same probe's numbers on the run's other tasks, in words."""


def headline(rows: Sequence[ProbeRow], run: int = 0) -> Headline | None:
    """The linear probe of the run's own evaluation on its first task. The order of tasks is fixed and ignores the numbers.

    Rows of suites and variants are used only if a run has no evaluation of its own. If the page has several runs, all show the
    task of the first, so that their headlines compare.
    """
    row = _heading(rows, run, None if run == 0 else _heading(rows, 0, None))
    if row is None:
        return None
    bars = [
        Bar(
            SUBJECT_NAMES[name],
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


def _others(rows: Sequence[ProbeRow], heading: ProbeRow) -> str:
    """Other numbers of the run's own evaluation by the same probe and selection, e.g. `Clevr/Count 53.2 ± 0.8`."""
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


def _heading(rows: Sequence[ProbeRow], run: int, like: ProbeRow | None) -> ProbeRow | None:
    own = [row for row in rows if row.run == run and "encoder" in row.scores]
    alike = None if like is None else (like.task, like.probe)
    return min(
        own,
        key=lambda row: (
            not row.is_own,
            bool(row.variant),
            row.selection == "paper",
            alike not in (None, (row.task, row.probe)),
            row.probe != main_probe(),
            place_of(row.suite_row, SUITE_ORDER) if row.suite_row else place_of(row.kind, HEAD_ORDER),
        ),
        default=None,
    )


def _gain(row: ProbeRow) -> str:
    if row.gain is None:
        return ""
    points = f"{percent(row.gain, sign=True)} points"
    baseline = "best baseline" if len(row.scores) > 3 else "better baseline"
    return f"{points} against the {baseline}" if row.is_clear else f"within the error of the {baseline} ({points})"


@dataclass(frozen=True)
class Stale:
    """Evaluations that are out of date, because the run has trained its encoder further."""

    run: int
    tasks: str
    step: int
    now: int
    again: str
    """The command line that evaluates the encoder again."""
    other_options: bool
    """True if some of them were made with options that the command must repeat."""


def stale(runs: Sequence[Run]) -> list[Stale]:
    """Results from an earlier step than the run's latest, grouped by run and step."""
    found = []
    for index, run in enumerate(runs):
        now = run.summary.step
        done = [result for result in run.evaluations if not result.skipped and "encoder" in result.subjects]
        steps = {result.step for result in done if result.step is not None and now is not None and result.step != now}
        for step in sorted(steps):
            old = [result for result in done if result.step == step]
            tasks = ", ".join(dict.fromkeys(full_title(result) for result in old))
            found.append(
                Stale(index, tasks, step, now or 0, openjepa_command(run, "evaluate"), any(result.variant for result in old))
            )
    return found


def skipped_tasks(runs: Sequence[Run]) -> list[tuple[int, str, str]]:
    """Tasks that could not be probed, as (run, task, reason), each once. Left out if the task's title or row has numbers."""
    found: dict[tuple[int, str], tuple[int, str, str]] = {}
    for index, run in enumerate(runs):
        done = {name for result in run.evaluations if measured(result) for name in _names(result)}
        for result in run.evaluations:
            if result.skipped and not done.intersection(_names(result)):
                title = text(result.title, 80)
                found.setdefault((index, title), (index, title, text(result.skipped, 200)))
    return list(found.values())


def _names(result: Result) -> set[tuple[str, str]]:
    """The names under which a page shows a result."""
    return {("title", result.title), *((("row", result.row),) if result.row else ())}


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
    """Text of each measure by its name; empty if unknown."""


def qualities(runs: Sequence[Run]) -> list[Quality]:
    """The measures, one entry per task, run and subject that has any."""
    rows = [
        (index, full_title(result), SUBJECT_NAMES.get(subject, text(subject, 40)), numbers)
        for index, run in enumerate(runs)
        for result in run.evaluations
        for subject, numbers in result.measures.items()
        if numbers
    ]
    names = list(dict.fromkeys(name for *_, numbers in rows for name in numbers))[:MAX_MEASURES]
    return [
        Quality(
            index, task, subject, {text(name, 40): format_number(numbers[name]) if name in numbers else "" for name in names}
        )
        for index, task, subject, numbers in rows
    ]
