"""The result that heads the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from openjepa.report.probes import Row, place_of
from openjepa.report.wording import HEAD_ORDER, MAIN_PROBE, SUBJECT_WORDS, SUITE_ORDER, percent


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
