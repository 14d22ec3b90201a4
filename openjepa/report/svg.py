"""What charts are made of as inline SVG: scales, axes and marks, in colors that follow the page's light or dark theme.

No script is needed: style.css shows what belongs to the mark that is hovered or tapped. Colors are the classes c0 to c7.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 400, 236
"""Size of a chart in units of the drawing. Lower charts have a height of their own."""
TOP, RIGHT, BOTTOM = 26, 8, 24
"""Margins around the axes."""
NUM_COLORS = 8
HALF_DIGIT = 3.2
"""Half the width of a digit of a tick's label."""


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` to places from `start` to `end` of the drawing."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False
    """Whether the scale is logarithmic; values are positive then."""
    stops: bool = False
    """Whether values beyond the limits stop at them."""

    def __call__(self, value: float) -> float:
        """The place of a value."""
        share = (value - self.low) / (self.high - self.low)
        if self.is_log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + (min(1.0, max(0.0, share)) if self.stops else share) * (self.end - self.start)


def at(place: float) -> str:
    """A coordinate as it is written: constants as they are, computed ones with one decimal."""
    return str(place) if isinstance(place, int) else f"{place:.1f}"


def chart(kind: str, height: int, label: str, parts: Sequence[Markup]) -> Markup:
    """The <svg> element; `label` says in words what it shows."""
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        f"chart {kind}".strip(), WIDTH, height, label, Markup("").join(parts)
    )


def path(kind: str, line: str) -> Markup:
    """A line or an area in the language of SVG's `d`."""
    return Markup('<path class="{}" d="{}"/>').format(kind, line)


def circle(kind: str, x: float, y: float, radius: float) -> Markup:
    """A round mark."""
    return Markup('<circle class="{}" cx="{}" cy="{}" r="{}"/>').format(kind, at(x), at(y), at(radius))


def words(kind: str, x: float, y: float, content: object, anchor: str = "") -> Markup:
    """A text that starts, or with another `anchor` is in the middle or ends, at `x`."""
    anchored = Markup(' text-anchor="{}"').format(anchor) if anchor else ""
    return Markup('<text class="{}" x="{}" y="{}"{}>{}</text>').format(kind, at(x), at(y), anchored, content)


def rows(scale: Scale, ticks: Sequence[float], labels: Sequence[str], left: float) -> list[Markup]:
    """The vertical axis: a line across the chart for each tick, its label to the left."""
    parts = []
    for tick, label in zip(ticks, labels, strict=True):
        y = scale(tick)
        parts.append(path("grid", f"M{at(left)} {at(y)}H{WIDTH - RIGHT}"))
        parts.append(words("tick", left - 6, y + 4, label, "end"))
    return parts


def column(x: float, top: float, bottom: float) -> Markup:
    """A line down the chart."""
    return path("grid", f"M{at(x)} {at(top)}V{at(bottom)}")


def tick_below(x: float, y: float, label: str, left: float, right: float) -> Markup:
    """A label of the horizontal axis, moved if it would leave the room from `left` to `right`."""
    half = HALF_DIGIT * len(label)
    return words("tick", min(max(x, left + half), right - half), y, label, "middle")
