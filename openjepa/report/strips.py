"""Our numbers among the published ones as a picture: one line per number on an axis from 0 to 100 %, the highest on top."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from openjepa.report.beside import Comparison, Number
from openjepa.report.curves import NUM_COLORS
from openjepa.report.reading import text

WIDTH, LINE, TOP, BOTTOM = 400, 19, 20, 6
LEFT, RIGHT = 172, 74
TICKS = (0, 25, 50, 75, 100)
MAX_LABEL = 25


def place(value: float) -> float:
    """Where a value in percent lies horizontally; what is outside of 0 to 100 stops at the frame."""
    return LEFT + min(100.0, max(0.0, value)) / 100 * (WIDTH - LEFT - RIGHT)


def draw_strip(comparison: Comparison) -> Markup:
    """The picture as an <svg> element.

    Published numbers are gray dots. Ours have their run's color: a filled dot where the published protocol was followed, a ring
    where another one was; a bar through it spans the larger of standard error and spread over seeds.
    """
    height = TOP + LINE * len(comparison.drawn) + BOTTOM
    lines = [_line(item, TOP + LINE * (index + 0.5)) for index, item in enumerate(comparison.drawn)]
    ours = ", ".join(f"{item.name} {item.value:.1f} %" for item in comparison.ours)
    theirs = ", ".join(f"{item.name} {item.value:.1f} %" for item in comparison.published)
    return Markup('<svg class="chart strip" viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}</svg>').format(
        WIDTH, height, escape(f"{comparison.task}: ours {ours}; published {theirs}"), _axis(height), Markup("").join(lines)
    )


def _axis(height: float) -> Markup:
    parts = []
    for tick in TICKS:
        x = place(tick)
        parts.append(Markup('<path class="grid" d="M{:.1f} {}V{}"/>').format(x, TOP - 4, height - BOTTOM))
        parts.append(Markup('<text class="tick" x="{:.1f}" y="11" text-anchor="middle">{}</text>').format(x, tick))
    return Markup("").join(parts)


def _line(item: Number, y: float) -> Markup:
    parts: Sequence[Markup] = _our_marks(item, y) if item.run is not None else _their_marks(item, y)
    return Markup('<g class="{}"><title>{}</title>{}{}</g>').format(
        "ours" if item.run is not None else "theirs", _sentence(item), _label(item, y), Markup("").join(parts)
    )


def _sentence(item: Number) -> str:
    error = f" ± {item.error}" if item.error else ""
    theirs = (item.epochs and f"epochs {item.epochs}", item.protocol, item.source)
    departed = f"not the paper's protocol: {', '.join(item.departures)}" if item.departures else "the paper's protocol"
    words = theirs if item.run is None else (item.source, item.spread, item.variant, departed)
    return f"{item.name}: {item.value:.1f}{error} % ({', '.join(word for word in words if word)})"


def _label(item: Number, y: float) -> Markup:
    more = item.epochs if item.run is None else item.source
    name = text(item.name, MAX_LABEL)
    more = text(more, max(1, MAX_LABEL - len(name))) if more and len(name) < MAX_LABEL - 2 else ""
    known = " same" if item.run is None and item.method == "I-JEPA" else ""
    value = Markup('<text class="value" x="{}" y="{:.1f}">{:.1f}<tspan class="more" dx="3">{}</tspan></text>').format(
        WIDTH - RIGHT + 12, y + 4, item.value, f"± {item.error}" if item.error else ""
    )
    return (
        Markup(
            '<text class="name{}" x="{}" y="{:.1f}" text-anchor="end">{}<tspan class="more" dx="5">{}</tspan></text>'
        ).format(known, LEFT - 10, y + 4, name, more)
        + value
    )


def _their_marks(item: Number, y: float) -> list[Markup]:
    x = place(item.value)
    return [
        Markup('<path class="stem" d="M{} {:.1f}H{:.1f}"/>').format(LEFT, y, x),
        Markup('<circle class="dot c7" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(x, y),
    ]


def _our_marks(item: Number, y: float) -> list[Markup]:
    x, color = place(item.value), (item.run or 0) % NUM_COLORS
    low, high = place(item.value - item.half_width), place(item.value + item.half_width)
    kind = "dot" if item.compares else "ring"
    return [
        Markup('<rect class="band c{}" x="0" y="{:.1f}" width="{}" height="{}" rx="4"/>').format(
            color, y - LINE / 2 + 1, WIDTH, LINE - 2
        ),
        Markup('<path class="stem c{}" d="M{} {:.1f}H{:.1f}"/>').format(color, LEFT, y, x),
        Markup('<path class="whisker c{}" d="M{:.1f} {:.1f}H{:.1f}"/>').format(color, low, y, high),
        Markup('<circle class="{} c{}" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(kind, color, x, y),
    ]
