"""Our numbers beside the paper's: for each row of a suite, our numbers among the published ones, and a picture of them.

The picture has one line per number on an axis from 0 to 100 %, the highest number on top.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from openjepa.records import OUR_METHOD, Published, Result, compares
from openjepa.report.probes import SUITE_ORDER, measured, place_of, shown_variant
from openjepa.report.reading import Run, text
from openjepa.report.svg import NUM_COLORS, WIDTH, Scale, at, chart, circle, column, path, words

LINE, TOP, BOTTOM = 19, 20, 6
LEFT, RIGHT = 172, 74
TICKS = (0, 25, 50, 75, 100)
MAX_LABEL = 25
PLACE = Scale(0, 100, LEFT, WIDTH - RIGHT, stops=True)
"""Horizontal scale of values in percent."""
MAX_PUBLISHED = 60
MAX_DEPARTURES = 12
OTHER_PROBE = "another probe"


@dataclass(frozen=True)
class Number:
    """One accuracy in percent, ours or published."""

    value: float
    error: str
    """The standard error as text to follow ±; empty for published numbers."""
    half_width: float
    """The larger of standard error and spread over seeds, in percent; 0 if neither is known."""
    protocol: str
    source: str
    """The paper's table for a published number, the selection rule for ours."""
    run: int | None = None
    """Index of the run; None for a published number."""
    method: str = ""
    architecture: str = ""
    epochs: str = ""
    spread: str = ""
    """Standard deviation over seeds as text; empty for one seed."""
    variant: str = ""
    departures: Sequence[str] = ()
    """Departures from the published protocol, in words."""
    is_folded: bool = False
    """True if the picture leaves it out, because another variant of its evaluation is drawn."""

    @property
    def compares(self) -> bool:
        """True if the number follows the published protocol."""
        return not self.departures

    @property
    def name(self) -> str:
        """Its label: method and network of a published number, or our probe."""
        return self.protocol if self.run is not None else f"{self.method} {self.architecture}".strip()


@dataclass(frozen=True)
class Comparison:
    """All numbers of one row of a suite, the highest first."""

    task: str
    numbers: Sequence[Number]

    @property
    def ours(self) -> list[Number]:
        """Our numbers, the highest first."""
        return [item for item in self.numbers if item.run is not None]

    @property
    def drawn(self) -> list[Number]:
        """The numbers in the picture, the highest first: one variant of each run, and all that follow the paper's protocol."""
        return [item for item in self.numbers if not item.is_folded]

    @property
    def departures(self) -> list[str]:
        """All departures from the published protocol among the numbers in the picture."""
        return list(dict.fromkeys(words for item in self.drawn for words in item.departures))

    @property
    def published(self) -> list[Number]:
        """The published numbers, the highest first."""
        return [item for item in self.numbers if item.run is None]

    @property
    def same_method(self) -> list[Number]:
        """The published numbers of I-JEPA, the highest first."""
        return [item for item in self.published if item.method == OUR_METHOD]


def comparisons(runs: Sequence[Run]) -> list[Comparison]:
    """The rows that have published numbers, in the order of the paper. Numbers of all runs stand together in a row."""
    rows: dict[str, tuple[str, list[Number], list[Number]]] = {}
    for index, run in enumerate(runs):
        for result in run.evaluations:
            theirs, ours = [_theirs(item) for item in _listed(result)], _ours(index, result)
            if theirs and ours:
                key = text(result.row or result.title, 80)
                rows.setdefault(key, (text(result.title, 80), theirs, []))[2].extend(ours)
    return [
        Comparison(task, sorted([*theirs, *_folded(ours)], key=lambda item: -item.value))
        for task, theirs, ours in (rows[key] for key in sorted(rows, key=lambda key: place_of(key, SUITE_ORDER)))
    ]


def _folded(ours: Sequence[Number]) -> list[Number]:
    """The numbers, with all but one variant of each run marked as folded. Numbers that follow the paper are never folded."""
    main = {run: min(item.variant for item in ours if item.run == run) for run in {item.run for item in ours}}
    return [replace(item, is_folded=item.variant != main[item.run] and not item.compares) for item in ours]


def _ours(index: int, result: Result) -> list[Number]:
    numbers = []
    protocols = {item.protocol for item in _listed(result)}
    departed = [text(words, 120) for words in result.departures[:MAX_DEPARTURES]]
    for found in measured(result):
        score = found.scores.get("encoder")
        if score is None:
            continue
        other = () if compares(found.probe, protocols) else (OTHER_PROBE,)
        numbers.append(
            Number(
                value=100 * score.value,
                error=score.shown_error,
                half_width=100 * score.uncertainty,
                protocol=found.probe,
                source=found.selection,
                run=index,
                spread=score.shown_spread,
                variant=shown_variant(result),
                departures=(*other, *departed),
            )
        )
    return numbers


def _listed(result: Result) -> list[Published]:
    """The published numbers of a result that are percentages."""
    return [item for item in result.published[:MAX_PUBLISHED] if 0 <= item.value <= 100]


def _theirs(item: Published) -> Number:
    method, architecture, epochs, protocol = (
        text(words, 24) for words in (item.method, item.architecture, item.epochs, item.protocol)
    )
    return Number(item.value, "", 0.0, protocol, text(item.source, 60), None, method, architecture, epochs)


def draw_strip(comparison: Comparison) -> Markup:
    """The picture as an <svg> element.

    Published numbers are gray dots. Ours have the color of their run: a filled dot if the number follows the published
    protocol, else a ring. A bar through it spans the larger of standard error and spread over seeds.
    """
    height = TOP + LINE * len(comparison.drawn) + BOTTOM
    lines = [_line(item, TOP + LINE * (index + 0.5)) for index, item in enumerate(comparison.drawn)]
    axis = [part for tick in TICKS for part in _tick(tick, height - BOTTOM)]
    ours = ", ".join(f"{item.name} {item.value:.1f} %" for item in comparison.ours)
    theirs = ", ".join(f"{item.name} {item.value:.1f} %" for item in comparison.published)
    return chart("strip", height, f"{comparison.task}: ours {ours}; published {theirs}", [*axis, *lines])


def _tick(value: int, bottom: float) -> tuple[Markup, Markup]:
    return column(PLACE(value), TOP - 4, bottom), words("tick", PLACE(value), 11, value, "middle")


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
    known = " same" if item.run is None and item.method == OUR_METHOD else ""
    error = f"± {item.error}" if item.error else ""
    return _two("name" + known, LEFT - 10, y, name, more, "end") + _two(
        "value", WIDTH - RIGHT + 12, y, f"{item.value:.1f}", error
    )


def _two(kind: str, x: float, y: float, first: str, more: str, anchor: str = "") -> Markup:
    """A text followed by a smaller one."""
    gap = 5 if kind.startswith("name") else 3
    return words(kind, x, y + 4, Markup('{}<tspan class="more" dx="{}">{}</tspan>').format(first, gap, more), anchor)


def _their_marks(item: Number, y: float) -> list[Markup]:
    return [path("stem", f"M{LEFT} {at(y)}H{at(PLACE(item.value))}"), circle("dot c7", PLACE(item.value), y, 4)]


def _our_marks(item: Number, y: float) -> list[Markup]:
    x, color = PLACE(item.value), (item.run or 0) % NUM_COLORS
    low, high = PLACE(item.value - item.half_width), PLACE(item.value + item.half_width)
    return [
        Markup('<rect class="band c{}" x="0" y="{}" width="{}" height="{}" rx="4"/>').format(
            color, at(y - LINE / 2 + 1), WIDTH, LINE - 2
        ),
        path(f"stem c{color}", f"M{LEFT} {at(y)}H{at(x)}"),
        path(f"whisker c{color}", f"M{at(low)} {at(y)}H{at(high)}"),
        circle(f"{'dot' if item.compares else 'ring'} c{color}", x, y, 5),
    ]
