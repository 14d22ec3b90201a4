"""Curves as inline SVG: axes, ticks, a readout under the pointer, and colors that follow the page's light or dark theme.

No script is needed: every chart carries a few dozen invisible bands, and style.css shows the marks of the one that is hovered
or tapped. Colors are the CSS variables --c0 to --c7.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH, HEIGHT = 400, 236
TOP, RIGHT, BOTTOM = 26, 8, 24
NUM_COLORS = 8
MAX_POINTS = 240
MAX_BANDS = 60


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    label: str
    """For the legend; without one the line has no place in legend and readout."""
    points: Sequence[tuple[float, float]]
    """(x, y), finite; sorted by x where they are drawn."""
    color: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """One quantity over the training, of one run or several."""

    title: str
    note: str
    """One sentence on how to read it."""
    series: Sequence[Series]
    x_label: str = "step"
    from_zero: bool = False
    """Whether the vertical axis starts at 0."""
    x_end: float = 1.0
    """Where the horizontal axis ends at least, so that the charts of a page line up; it starts at 0."""


@dataclass(frozen=True)
class Bucket:
    """Neighboring points drawn as one: their mean, and the range they span."""

    x: float
    y: float
    low: float
    high: float


def downsample(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[Bucket]:
    """At most `limit` buckets of neighboring points. Sorts by x; where an x occurs twice the later point counts."""
    ordered = sorted(dict(points).items())
    size = max(1, math.ceil(len(ordered) / limit))
    buckets = []
    for start in range(0, len(ordered), size):
        xs, ys = zip(*ordered[start : start + size], strict=True)
        buckets.append(Bucket(sum(xs) / len(xs), sum(ys) / len(ys), min(ys), max(ys)))
    return buckets


def nice_ticks(low: float, high: float, target: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that lie in [low, high], about `target` of them."""
    rough = (high - low) / max(1, target)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def format_number(value: float, spacing: float | None = None) -> str:
    """`value` with the digits that tell neighbors `spacing` apart; without one, about three significant digits."""
    size = abs(value)
    if size < 1e-12:
        return "0"
    for factor, suffix in ((1e9, "B"), (1e6, "M"), (1e4, "k")):
        if size >= factor:
            unit = 1e3 if suffix == "k" else factor
            return _trim(value / unit, None if spacing is None else spacing / unit) + suffix
    return _scientific(value) if size < 1e-3 else _trim(value, spacing)


def _scientific(value: float) -> str:
    if abs(value) < 1e-12:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def _trim(value: float, spacing: float | None) -> str:
    if spacing is None:
        decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
        text = f"{value:,.{decimals}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text
    decimals = max(0, -math.floor(math.log10(spacing) + 1e-9))
    return f"{value:,.{decimals}f}"


@dataclass(frozen=True)
class _Axes:
    """Limits and ticks in data units, and the way to the drawing's units."""

    x_high: float
    y_low: float
    y_high: float
    left: float
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def x(self, value: float) -> float:
        return self.left + value / self.x_high * (WIDTH - RIGHT - self.left)

    def y(self, value: float) -> float:
        # Outliers beyond the limits stop just outside the frame, where the clip path hides them.
        place = HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - BOTTOM - TOP)
        return min(HEIGHT * 2.0, max(-HEIGHT * 1.0, place))


def _limits(values: Sequence[float], from_zero: bool) -> tuple[float, float]:
    ordered = sorted(values)
    # The first steps of a loss can be many times the rest: the highest half percent may leave the frame.
    low, high = ordered[0], ordered[max(0, math.ceil(0.995 * len(ordered)) - 1)]
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if high - low < 1e-9 * max(abs(high), abs(low), 1e-9):
        room = abs(high) * 0.1 or 1.0
        return low - room, high + room
    room = 0.06 * (high - low)
    return low if from_zero and low == 0 else low - room, high + room


def _labels(ticks: Sequence[float]) -> list[str]:
    spacing = ticks[1] - ticks[0] if len(ticks) > 1 else None
    if 0 < max(abs(tick) for tick in ticks) < 0.01:
        return [_scientific(tick) for tick in ticks]
    return [format_number(tick, spacing) for tick in ticks]


def _axes(lines: Sequence[Sequence[Bucket]], from_zero: bool, x_end: float) -> _Axes:
    x_high = max(x_end, *(line[-1].x for line in lines), 1e-9)
    y_low, y_high = _limits([bucket.y for line in lines for bucket in line], from_zero)
    y_ticks = nice_ticks(y_low, y_high, 5)
    left = 14 + 6.6 * max(len(label) for label in _labels(y_ticks))
    return _Axes(x_high, y_low, y_high, left, nice_ticks(0.0, x_high), y_ticks)


def _grid(axes: _Axes) -> list[Markup]:
    parts = []
    for tick, label in zip(axes.y_ticks, _labels(axes.y_ticks), strict=True):
        y = axes.y(tick)
        parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}H{}"/>').format(axes.left, y, WIDTH - RIGHT))
        parts.append(
            Markup('<text class="tick" x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>').format(axes.left - 6, y + 4, label)
        )
    for tick, label in zip(axes.x_ticks, _labels(axes.x_ticks), strict=True):
        x = min(axes.x(tick), WIDTH - RIGHT - 3.2 * len(label))
        parts.append(Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(x, HEIGHT - 6, label))
    return parts


def _line(series: Series, line: Sequence[Bucket], axes: _Axes, with_range: bool) -> Markup:
    color = series.color % NUM_COLORS
    drawn = Markup("")
    if with_range and any(bucket.high > bucket.low for bucket in line):
        above = [f"{axes.x(b.x):.1f} {axes.y(b.high):.1f}" for b in line]
        below = [f"{axes.x(b.x):.1f} {axes.y(b.low):.1f}" for b in reversed(line)]
        drawn += Markup('<path class="range c{}" d="M{}Z"/>').format(color, "L".join(above + below))
    path = "L".join(f"{axes.x(bucket.x):.1f} {axes.y(bucket.y):.1f}" for bucket in line)
    dashed = " dashed" if series.dashed else ""
    if len(line) == 1:
        return drawn + Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(
            color, axes.x(line[0].x), axes.y(line[0].y)
        )
    return drawn + Markup('<path class="line c{}{}" d="M{}"/>').format(color, dashed, path)


def _readout(x_label: str, x: float, values: Sequence[tuple[int, float]], axes: _Axes, css: str) -> Markup:
    spans = [
        Markup('<tspan class="value c{}" dx="9">{}</tspan>').format(color % NUM_COLORS, _precise(value, axes))
        for color, value in values
    ]
    return Markup('<text class="readout {}" x="{}" y="15" text-anchor="end">{} {}{}</text>').format(
        css, WIDTH - RIGHT, x_label, f"{x:,.0f}" if x < 1e6 else format_number(x), Markup("").join(spans)
    )


def _precise(value: float, axes: _Axes) -> str:
    """A value with two digits more than the ticks have."""
    if len(axes.y_ticks) < 2 or abs(axes.y_ticks[-1]) < 0.01 or abs(value) >= 1e4:
        return format_number(value)
    shown = format_number(value, (axes.y_ticks[1] - axes.y_ticks[0]) / 100)
    return shown.rstrip("0").rstrip(".") if "." in shown and "e" not in shown else shown


def _nearest(line: Sequence[Bucket], x: float) -> Bucket:
    return min(line, key=lambda bucket: abs(bucket.x - x))


def _bands(chart: Chart, lines: Sequence[Sequence[Bucket]], axes: _Axes) -> list[Markup]:
    longest = max(lines, key=len)
    stride = math.ceil(len(longest) / MAX_BANDS)
    chosen = [*longest[stride // 2 :: stride]] or [longest[0]]
    places = [axes.x(bucket.x) for bucket in chosen]
    edges = [axes.left, *((a + b) / 2 for a, b in pairwise(places)), WIDTH - RIGHT]
    parts = []
    for index, (bucket, place) in enumerate(zip(chosen, places, strict=True)):
        shown = [
            (series.color, _nearest(line, bucket.x))
            for series, line in zip(chart.series, lines, strict=True)
            if series.label and line[0].x <= bucket.x * 1.001 + 1 and line[-1].x >= bucket.x * 0.95 - 1
        ]
        dots = [
            Markup('<circle class="dot c{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(
                color % NUM_COLORS, axes.x(near.x), axes.y(near.y)
            )
            for color, near in shown
        ]
        width = max(0.5, edges[index + 1] - edges[index])
        parts.append(
            Markup(
                '<g class="hit"><rect x="{:.1f}" y="0" width="{:.1f}" height="{}"/><g class="mark">'
                '<rect class="cover" x="0" y="0" width="{}" height="{}"/>'
                '<path class="guide" d="M{:.1f} {}V{}"/>{}{}</g></g>'
            ).format(
                *(edges[index], width, HEIGHT, WIDTH, TOP - 5, place, TOP, HEIGHT - BOTTOM),
                *(Markup("").join(dots), _readout(chart.x_label, bucket.x, [(c, near.y) for c, near in shown], axes, "at")),
            )
        )
    return parts


def draw(chart: Chart, identity: str) -> Markup:
    """The chart as an <svg> element; `identity` is a plain word that is unique on the page. Empty series are an error."""
    lines = [downsample(series.points) for series in chart.series]
    axes = _axes(lines, chart.from_zero, chart.x_end)
    last = [(series.color, line[-1].y) for series, line in zip(chart.series, lines, strict=True) if series.label]
    summary = "; ".join(
        f"{series.label} from {format_number(line[0].y)} to {format_number(line[-1].y)}"
        for series, line in zip(chart.series, lines, strict=True)
        if series.label
    )
    with_range = len(lines) == 1 or not any(series.color == 0 for series in chart.series[1:])
    drawn = [
        _line(series, line, axes, with_range and index == 0)
        for index, (series, line) in enumerate(zip(chart.series, lines, strict=True))
    ]
    frame = Markup('<clipPath id="{}"><rect x="{:.1f}" y="{}" width="{:.1f}" height="{}"/></clipPath>').format(
        identity, axes.left - 3, TOP - 3, WIDTH - RIGHT - axes.left + 6, HEIGHT - BOTTOM - TOP + 6
    )
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}<g clip-path="url(#{})">{}</g>{}{}</svg>'
    ).format(
        *(WIDTH, HEIGHT, escape(f"{chart.title} by {chart.x_label}: {summary}")),
        *(frame, Markup("").join(_grid(axes)), identity, Markup("").join(reversed(drawn))),
        *(
            _readout(chart.x_label, max(line[-1].x for line in lines), last, axes, "now"),
            Markup("").join(_bands(chart, lines, axes)),
        ),
    )
