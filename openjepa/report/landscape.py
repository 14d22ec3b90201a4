"""Energies of compatible and incompatible pairs (energy.json) as histograms: before training beside after."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup, escape

from openjepa.measures.verdicts import tells_apart
from openjepa.report.curves import WIDTH, format_number, nice_ticks
from openjepa.report.probes import percent
from openjepa.report.reading import RunFolder, lookup, text
from openjepa.system.json_files import number

HEIGHT, TOP, BOTTOM, SIDE = 150, 14, 24, 8
MAX_BARS = 200
LEAST_SPAN = 0.2
SUBJECTS = ("untrained", "trained")
KINDS = {"compatible": 0, "incompatible": 7}
"""Both kinds of pairs and their colors."""


@dataclass(frozen=True)
class Histogram:
    """Shares of the compatible and of the incompatible pairs by their energy."""

    edges: Sequence[float]
    """Of the bars, ascending; one more than there are bars."""
    shares: Mapping[str, Sequence[float]]
    means: Mapping[str, float]


@dataclass(frozen=True)
class Panel:
    """One picture: the energies of one run before or after training."""

    title: str
    note: str
    svg: Markup


@dataclass(frozen=True)
class Landscape:
    """What the page says of one run's energies."""

    run: int
    tone: str
    """good, bad or unknown"""
    verdict: str
    of: str
    """Which images, at which step."""
    panels: list[Panel]


def landscapes(runs: Sequence[RunFolder]) -> list[Landscape]:
    """The runs whose energies were measured."""
    return [_landscape(run, index) for index, run in enumerate(runs) if run.energy]


def _landscape(run: RunFolder, index: int) -> Landscape:
    found = run.energy
    step, now = number(found.get("step")), number(run.summary.get("step"))
    older = f"; the run is now at step {now:,.0f}" if step is not None and now is not None and step != now else ""
    images, group, split = number(found.get("images")), number(found.get("group")), text(found.get("split") or "", 20)
    words = [f"{images:,.0f} {split} images in groups of {group:,.0f}" if images is not None and group is not None else ""]
    words.append(f"after step {step:,.0f}{older}" if step is not None else "")
    panels = [panel for subject in SUBJECTS if (panel := _panel(run, subject)) is not None]
    said = text(found.get("verdict") or "", 300)
    return Landscape(index, _tone(found), said, ", ".join(filter(None, words)), panels)


def _tone(found: Mapping[str, Any]) -> str:
    """By the flags of the file. Those of before have no `tells_apart`, but the numbers that it is made of."""
    if found.get("flat") is True:
        return "bad"
    auc, error = (number(lookup(found, "trained", name)) for name in ("auc", "auc_error"))
    apart = found.get("tells_apart", None if auc is None or error is None else tells_apart(auc, error))
    return "good" if found.get("flat") is False and apart is True else "unknown"


def _panel(run: RunFolder, subject: str) -> Panel | None:
    drawn, scale = _histogram(run, subject), _scale(run)
    if drawn is None:
        return None
    numbers = {name: number(lookup(run.energy, subject, name)) for name in ("auc", "gap", "relative_std")}
    sentences = []
    if numbers["auc"] is not None:
        sentences.append(f"The compatible pair is lower in {percent(numbers['auc'])} % of the comparisons")
    if numbers["gap"] is not None:
        sentences.append(f"gap {percent(numbers['gap'])} % of the incompatible mean")
    if numbers["relative_std"] is not None:
        sentences.append(f"standard deviation of all {format_number(100 * numbers['relative_std'])} % of their mean")
    return Panel(subject.capitalize(), "; ".join(sentences) + "." if sentences else "", draw_histogram(drawn, subject, scale))


def _histogram(run: RunFolder, subject: str) -> Histogram | None:
    """None where the file does not hold one that can be drawn."""
    edges = _numbers(lookup(run.energy, "histograms", subject, "edges"))
    shares = {kind: _numbers(lookup(run.energy, "histograms", subject, kind)) for kind in KINDS}
    fits = all(len(values) == len(edges) - 1 and min(values) >= 0 for values in shares.values() if values)
    if not 2 <= len(edges) <= MAX_BARS or not all(shares.values()) or not fits:
        return None
    if any(first >= second for first, second in pairwise(edges)) or not any(map(max, shares.values())):
        return None
    means = {kind: number(lookup(run.energy, subject, kind)) for kind in KINDS}
    return Histogram(edges, shares, {kind: value for kind, value in means.items() if value is not None})


def _numbers(values: object) -> list[float]:
    found = [number(value) for value in values] if isinstance(values, list) else []
    return [value for value in found if value is not None] if all(value is not None for value in found) else []


def _scale(run: RunFolder) -> float:
    """The largest mean energy before or after training."""
    means = [number(lookup(run.energy, subject, kind)) for subject in SUBJECTS for kind in KINDS]
    return max((abs(mean) for mean in means if mean is not None), default=0.0)


def draw_histogram(drawn: Histogram, subject: str, scale: float) -> Markup:
    """The picture as an <svg> element: two areas over one axis of energy, and dashed lines at their means.

    The axis spans at least LEAST_SPAN of `scale`, so that a flat landscape is seen as one spike.
    """
    low, high = _limits(drawn, LEAST_SPAN * scale)
    most = max(max(values) for values in drawn.shares.values())

    def x(energy: float) -> float:
        return SIDE + min(1.0, max(0.0, (energy - low) / (high - low))) * (WIDTH - 2 * SIDE)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - share / most * (HEIGHT - BOTTOM - TOP)

    parts = [_axis(low, high, x)]
    for kind in reversed(KINDS):
        outline = "".join(
            f"V{y(share):.1f}H{x(edge):.1f}" for share, edge in zip(drawn.shares[kind], drawn.edges[1:], strict=True)
        )
        path = f"M{x(drawn.edges[0]):.1f} {y(0):.1f}{outline}V{y(0):.1f}Z"
        parts.append(Markup('<path class="area c{}" d="{}"/>').format(KINDS[kind], path))
    for kind, mean in drawn.means.items():
        parts.append(
            Markup('<path class="mean c{}" d="M{:.1f} {}V{}"/>').format(KINDS[kind], x(mean), TOP - 8, HEIGHT - BOTTOM)
        )
    means = ", ".join(f"{kind} pairs {format_number(mean)}" for kind, mean in drawn.means.items())
    return Markup('<svg class="chart energies" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, escape(f"Energies, {subject}: mean of {means}"), Markup("").join(parts)
    )


def _limits(drawn: Histogram, least: float) -> tuple[float, float]:
    low, high = drawn.edges[0], drawn.edges[-1]
    half = max(high - low, least) / 2
    middle = (low + high) / 2
    return middle - half, middle + half


def _axis(low: float, high: float, x: Callable[[float], float]) -> Markup:
    ticks = nice_ticks(low, high)
    spacing = ticks[1] - ticks[0] if len(ticks) > 1 else None
    parts = [Markup('<path class="grid" d="M{} {}H{}"/>').format(SIDE, HEIGHT - BOTTOM, WIDTH - SIDE)]
    for tick in ticks:
        label = format_number(tick, spacing if spacing is not None and spacing > 1e-9 else None)
        place = min(WIDTH - SIDE - 3.2 * len(label), max(SIDE + 3.2 * len(label), x(tick)))
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(place, HEIGHT - 7, label)
        )
    return Markup("").join(parts)
