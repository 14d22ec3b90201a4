"""Energies of compatible and incompatible pairs (energy.json) as histograms, before and after training side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from openjepa.measures.verdicts import EnergyStatistics
from openjepa.records import Energy, Histogram
from openjepa.report.numbers import format_number, nice_ticks, percent
from openjepa.report.reading import Run, text
from openjepa.report.svg import WIDTH, Scale, at, chart, path, tick_below

HEIGHT, TOP, BOTTOM, SIDE = 150, 14, 24, 8
MAX_BARS = 200
LEAST_SPAN = 0.2
SUBJECTS = ("untrained", "trained")
KINDS = {"compatible": 0, "incompatible": 7}
"""Both kinds of pairs and their colors."""


@dataclass(frozen=True)
class Panel:
    """One picture: a run's energies before or after training."""

    title: str
    note: str
    svg: Markup


@dataclass(frozen=True)
class Landscape:
    """The part of the page on one run's energies."""

    run: int
    tone: str
    """good, bad or unknown."""
    verdict: str
    of: str
    """The images and the training step, in words."""
    panels: list[Panel]


def landscapes(runs: Sequence[Run]) -> list[Landscape]:
    """One landscape for each run whose energies were measured."""
    return [_landscape(run, run.energy, index) for index, run in enumerate(runs) if run.energy is not None]


def _landscape(run: Run, found: Energy, index: int) -> Landscape:
    step, now = found.step, run.summary.step
    older = f"; the run is now at step {now:,}" if step is not None and now is not None and step != now else ""
    words = (
        [f"{found.images:,} {text(found.split, 20)} images in groups of {found.group:,}"]
        if found.images and found.group
        else []
    )
    words += [f"after step {step:,}{older}"] if step is not None else []
    tone = "bad" if found.flat else "good" if found.flat is False and found.tells_apart else "unknown"
    panels = [panel for subject in SUBJECTS if (panel := _panel(found, subject)) is not None]
    return Landscape(index, tone, text(found.verdict, 300), ", ".join(words), panels)


def _panel(found: Energy, subject: str) -> Panel | None:
    """The picture of a subject; None if the file has no histogram of it that can be drawn."""
    drawn, statistics = found.histograms.get(subject), _statistics(found)
    if drawn is None or not _can_be_drawn(drawn):
        return None
    sentences, means = [], {}
    if (numbers := statistics.get(subject)) is not None:
        sentences = [
            f"The compatible pair is lower in {percent(numbers.auc)} % of the comparisons",
            f"gap {percent(numbers.gap)} % of the incompatible mean",
            f"standard deviation of all {format_number(100 * numbers.relative_std)} % of their mean",
        ]
        means = {"compatible": numbers.compatible, "incompatible": numbers.incompatible}
    scale = max((max(abs(item.compatible), abs(item.incompatible)) for item in statistics.values()), default=0.0)
    svg = draw_histogram(drawn, means, subject, scale)
    return Panel(subject.capitalize(), "; ".join(sentences) + "." if sentences else "", svg)


def _statistics(found: Energy) -> dict[str, EnergyStatistics]:
    return {name: item for name in SUBJECTS if (item := getattr(found, name)) is not None}


def _shares(drawn: Histogram) -> dict[str, Sequence[float]]:
    return {"compatible": drawn.compatible, "incompatible": drawn.incompatible}


def _can_be_drawn(drawn: Histogram) -> bool:
    bars = len(drawn.edges) - 1
    shares = (drawn.compatible, drawn.incompatible)
    fits = all(len(values) == bars and min(values) >= 0 for values in shares)
    ascends = all(first < second for first, second in pairwise(drawn.edges))
    return 1 <= bars < MAX_BARS and fits and ascends and any(max(values) > 0 for values in shares)


def draw_histogram(drawn: Histogram, means: Mapping[str, float], subject: str, scale: float) -> Markup:
    """The picture as an <svg> element: two areas over one axis of energy, and dashed lines at their means.

    The axis spans at least LEAST_SPAN of `scale`, so that a flat landscape looks like one spike.
    """
    shares = _shares(drawn)
    half = max(drawn.edges[-1] - drawn.edges[0], LEAST_SPAN * scale) / 2
    middle = (drawn.edges[0] + drawn.edges[-1]) / 2
    x = Scale(middle - half, middle + half, SIDE, WIDTH - SIDE, stops=True)
    y = Scale(0.0, max(max(values) for values in shares.values()), HEIGHT - BOTTOM, TOP)
    parts = _axis(x)
    for kind in reversed(KINDS):
        outline = "".join(f"V{at(y(share))}H{at(x(edge))}" for share, edge in zip(shares[kind], drawn.edges[1:], strict=True))
        parts.append(path(f"area c{KINDS[kind]}", f"M{at(x(drawn.edges[0]))} {at(y(0))}{outline}V{at(y(0))}Z"))
    for kind, mean in means.items():
        parts.append(path(f"mean c{KINDS[kind]}", f"M{at(x(mean))} {TOP - 8}V{HEIGHT - BOTTOM}"))
    said = ", ".join(f"{kind} pairs {format_number(mean)}" for kind, mean in means.items())
    return chart("energies", HEIGHT, f"Energies, {subject}: mean of {said}", parts)


def _axis(x: Scale) -> list[Markup]:
    ticks = nice_ticks(x.low, x.high)
    spacing = ticks[1] - ticks[0] if len(ticks) > 1 else None
    labels = [format_number(tick, spacing if spacing is not None and spacing > 1e-9 else None) for tick in ticks]
    below = zip(ticks, labels, strict=True)
    line = path("grid", f"M{SIDE} {HEIGHT - BOTTOM}H{WIDTH - SIDE}")
    return [line, *(tick_below(x(tick), HEIGHT - 7, label, SIDE, WIDTH - SIDE) for tick, label in below)]
