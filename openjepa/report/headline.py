"""The result that heads the page."""

from collections.abc import Sequence
from dataclasses import dataclass

from openjepa.report.probes import Row
from openjepa.report.wording import MAIN_PROBE, SUBJECT_WORDS, percent


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
            f"± {score.shown_error}" if score.shown_error else "",
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
            row.selection == "paper",
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
