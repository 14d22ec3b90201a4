"""The parts of charts as inline SVG: scales, axes and marks, in colors that follow the page's light or dark theme.

No script is needed: style.css shows the readout of the mark that is hovered or tapped. Colors are the classes c0 to c7.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 400, 236
"""Size of a chart in units of the drawing. Some charts have a smaller height of their own."""
TOP, RIGHT, BOTTOM = 26, 8, 24
"""Margins around the axes."""
NUM_COLORS = 8
HALF_DIGIT = 3.2
"""Half the width of a digit in a tick's label."""


@dataclass(frozen=True)
class Scale:
    """Maps values between `low` and `high` to coordinates between `start` and `end` of the drawing."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    """True if the scale is logarithmic, so that values must be positive."""
    stops: bool = False
    """True if values beyond the limits are placed at the limits."""

    def __call__(self, value: float) -> float:
        """The coordinate of a value."""
        share = (value - self.low) / (self.high - self.low)
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + (min(1.0, max(0.0, share)) if self.stops else share) * (self.end - self.start)


def at(place: float) -> str:
    """A coordinate as text: integers (constants) unchanged, floats (computed) with one decimal."""
    return str(place) if isinstance(place, int) else f"{place:.1f}"


def chart(kind: str, height: int, label: str, parts: Sequence[Markup]) -> Markup:
    """The <svg> element. `label` describes in words what it shows."""
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        f"chart {kind}".strip(), WIDTH, height, label, Markup("").join(parts)
    )


def path(kind: str, line: str) -> Markup:
    """A line or an area. `line` is the `d` attribute of an SVG path."""
    return Markup('<path class="{}" d="{}"/>').format(kind, line)


def circle(kind: str, x: float, y: float, radius: float) -> Markup:
    """A round mark."""
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(kind, at(x), at(y), at(radius))


def words(kind: str, x: float, y: float, content: object, anchor: str = "") -> Markup:
    """A text that starts at `x`; if `anchor` is "middle" or "end", `x` is its middle or its end."""
    anchored = Markup(' text-anchor="{}"').format(anchor) if anchor else ""
    return Markup('<text class="{}" x="{}" y="{}"{}>{}</text>').format(kind, at(x), at(y), anchored, content)


def rows(scale: Scale, ticks: Sequence[float], labels: Sequence[str], left: float) -> list[Markup]:
    """The vertical axis: for each tick a line across the chart, with its label to the left."""
    parts = []
    for tick, label in zip(ticks, labels, strict=True):
        y = scale(tick)
        parts.append(path("grid", f"M{at(left)} {at(y)}H{WIDTH - RIGHT}"))
        parts.append(words("tick", left - 6, y + 4, label, "end"))
    return parts


def column(x: float, top: float, bottom: float) -> Markup:
    """A vertical line from `top` to `bottom`."""
    return path("grid", f"M{at(x)} {at(top)}V{at(bottom)}")


def tick_below(x: float, y: float, label: str, left: float, right: float) -> Markup:
    """A label of the horizontal axis, moved if it would not fit between `left` and `right`."""
    half = HALF_DIGIT * len(label)
    return words("tick", min(max(x, left + half), right - half), y, label, "middle")
