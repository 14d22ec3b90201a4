"""Accuracy against one quantity on a logarithmic axis, as inline SVG: a dot per run, lines along each series.

Dots carry the run's number of the table below; its name and value show where a dot is hovered or tapped. No script is needed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from openjepa.report.curves import BOTTOM, HEIGHT, RIGHT, TOP, WIDTH, format_number, nice_ticks
from openjepa.report.reading import text

NUM_SERIES_COLORS = 7
"""The eighth color, gray, is that of the untrained encoders."""
MIN_SPAN = 2.5
"""Largest by smallest value of an axis, at least."""
MANTISSAS = ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0))
MAX_TICKS = 5
LEFT = 34


@dataclass(frozen=True)
class Dot:
    """One run's accuracy."""

    number: int
    """Written beside the dot."""
    label: str
    x: float
    """Positive."""
    y: float
    """In percent."""
    error: float
    """Half of the bar through the dot, in percent."""
    untrained: float | None
    """What the untrained encoder has, in percent."""
    color: int


@dataclass(frozen=True)
class Trend:
    """A line through points of one series."""

    points: Sequence[tuple[float, float]]
    color: int | None
    """None: a line across series, in gray."""


@dataclass(frozen=True)
class Scatter:
    """One chart."""

    title: str
    note: str
    unit: str
    dots: Sequence[Dot]
    trends: Sequence[Trend]
    scientific: bool = False
    """Whether the horizontal axis is labeled with powers of ten."""


@dataclass(frozen=True)
class Frame:
    """Limits of both axes and the way to the drawing's units."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        """Logarithmic."""
        share = math.log(value / self.x_low) / math.log(self.x_high / self.x_low)
        return LEFT + share * (WIDTH - RIGHT - LEFT)

    def y(self, value: float) -> float:
        """Linear."""
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - BOTTOM - TOP)


def log_ticks(low: float, high: float, most: int = MAX_TICKS) -> list[float]:
    """Round numbers in [low, high], both positive: powers of ten, with 2 and 5 or closer where fewer than three lie there."""
    for mantissas in MANTISSAS:
        exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        # written out and read, so that 5e-3 is the number a reader means and not a product of roundings
        ticks = [float(f"{factor}e{exponent}") for exponent in exponents for factor in mantissas]
        ticks = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / most)]
    return nice_ticks(low, high, 4)


def frame_of(dots: Sequence[Dot]) -> Frame:
    """Limits that hold every dot with its bar and every untrained encoder, with some room."""
    xs = [dot.x for dot in dots]
    low, high = min(xs), max(xs)
    room = max((high / low) ** 0.09, math.sqrt(MIN_SPAN * low / high), 1.05)
    ys = [value for dot in dots for value in (dot.y - dot.error, dot.y + dot.error, dot.untrained) if value is not None]
    margin = max(0.09 * (max(ys) - min(ys)), 0.5)
    return Frame(low / room, high * room, min(ys) - margin, max(ys) + margin)


def draw_scatter(chart: Scatter) -> Markup:
    """The chart as an <svg> element. Needs at least one dot."""
    frame = frame_of(chart.dots)
    summary = "; ".join(f"{dot.number} {dot.label}: {dot.y:.1f} % at {format_number(dot.x)}" for dot in chart.dots)
    parts = [
        *_grid(frame, chart.scientific),
        *(_untrained(dot, frame) for dot in chart.dots if dot.untrained is not None),
        *(_trend(trend, frame) for trend in chart.trends),
        *(_mark(dot, frame) for dot in chart.dots),
        *_numbers(chart.dots, frame),
        Markup('<text class="readout" x="{}" y="15">accuracy, %</text>').format(4),
        Markup('<text class="readout" x="{}" y="15" text-anchor="end">{}</text>').format(WIDTH - RIGHT, chart.unit),
        *(_hit(dot, chart, frame) for dot in chart.dots),
    ]
    return Markup('<svg class="chart scatter" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, escape(f"Accuracy by {chart.title.lower()} ({chart.unit}): {summary}"), Markup("").join(parts)
    )


def power(value: float) -> str:
    """2e14."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def _grid(frame: Frame, scientific: bool) -> list[Markup]:
    parts = []
    ticks = nice_ticks(frame.y_low, frame.y_high, 5)
    for tick in ticks:
        y = frame.y(tick)
        label = format_number(tick, ticks[1] - ticks[0] if len(ticks) > 1 else None)
        parts.append(Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(LEFT, y, WIDTH - RIGHT))
        parts.append(Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(LEFT - 6, y + 4, label))
    write: Callable[[float], str] = power if scientific else format_number
    for tick in log_ticks(frame.x_low, frame.x_high):
        x, label = frame.x(tick), write(tick)
        half = 3.2 * len(label)
        place = min(max(x, LEFT + half - 8), WIDTH - RIGHT - half + 6)
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(x, TOP, HEIGHT - BOTTOM))
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(place, HEIGHT - 6, label)
        )
    return parts


def _untrained(dot: Dot, frame: Frame) -> Markup:
    x, y = frame.x(dot.x), frame.y(dot.untrained or 0.0)
    return Markup('<path class="base" d="M{:.1f} {:.1f}h10"/>').format(x - 5, y)


def _trend(trend: Trend, frame: Frame) -> Markup:
    path = "L".join(f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in trend.points)
    style = "line across" if trend.color is None else f"line c{trend.color % NUM_SERIES_COLORS}"
    return Markup('<path class="{}" d="M{}"/>').format(style, path)


def _mark(dot: Dot, frame: Frame) -> Markup:
    x, color = frame.x(dot.x), dot.color % NUM_SERIES_COLORS
    bar = Markup('<path class="whisker c{}" d="M{:.1f} {:.1f}V{:.1f}"/>').format(
        color, x, frame.y(dot.y - dot.error), frame.y(dot.y + dot.error)
    )
    circle = Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="4.5"/>').format(color, x, frame.y(dot.y))
    return (bar if dot.error > 0 else Markup("")) + circle


def _numbers(dots: Sequence[Dot], frame: Frame) -> list[Markup]:
    """The number of each dot beside it, where it covers the least of other dots and numbers."""
    taken = [(frame.x(dot.x), frame.y(dot.y)) for dot in dots]
    parts = []
    for dot in dots:
        x, y = frame.x(dot.x), frame.y(dot.y)
        around = [
            (x + dx, y + dy) for dx, dy in ((12, 0), (-12, 0), (10, -10), (-10, -10), (10, 10), (-10, 10), (0, -14), (0, 14))
        ]
        place = max(around, key=lambda spot: (_is_inside(spot), min(11.0, _distance(spot, taken))))
        taken.append(place)
        parts.append(
            Markup('<text class="number c{}" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
                dot.color % NUM_SERIES_COLORS, place[0], place[1] + 4, dot.number
            )
        )
    return parts


def _is_inside(spot: tuple[float, float]) -> bool:
    return LEFT + 2 < spot[0] < WIDTH - RIGHT and TOP + 4 < spot[1] < HEIGHT - BOTTOM - 4


def _distance(spot: tuple[float, float], taken: Sequence[tuple[float, float]]) -> float:
    # the dot itself is 12 to 14 away from each spot
    return min(math.dist(spot, other) for other in taken)


def _hit(dot: Dot, chart: Scatter, frame: Frame) -> Markup:
    """A place that shows the run's name and value above the chart while the pointer is on it."""
    x, y = frame.x(dot.x), frame.y(dot.y)
    at = power(dot.x) if chart.scientific else format_number(dot.x)
    words = f"{dot.number} {text(dot.label, 34)}, {at}"
    return Markup(
        '<g class="hit"><circle cx="{:.1f}" cy="{:.1f}" r="9"/><g class="mark"><rect class="cover" x="0" y="0" width="{}" '
        'height="{}"/><circle class="ring c{}" cx="{:.1f}" cy="{:.1f}" r="6"/><text class="readout" x="{}" y="15" '
        'text-anchor="end">{}<tspan class="value c{}" dx="9">{:.1f}</tspan></text></g></g>'
    ).format(
        *(x, y, WIDTH, TOP - 5, dot.color % NUM_SERIES_COLORS, x, y, WIDTH - RIGHT),
        *(words, dot.color % NUM_SERIES_COLORS, dot.y),
    )
