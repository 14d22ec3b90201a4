"""Ours beside the paper: for each row of a suite our numbers among those that were published for it.

Our numbers among the published ones as a picture: one line per number on an axis from 0 to 100 %, the highest on top.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup, escape

from openjepa.report.curves import NUM_COLORS
from openjepa.report.probes import SUITE_ORDER, departures_of, measured, place_of, shown_variant, title_of
from openjepa.report.reading import RunFolder, text
from openjepa.system.json_files import number

ANY_PROTOCOL = ("linear-full", "fine-tuned")
"""What a published number of protocol `any` is the better of (I-JEPA, Table 2)."""
OUR_METHOD = "I-JEPA"
MAX_PUBLISHED = 60
CHANGED = re.compile(r"(linear_full|finetune)\.|(^|-)max\d|(^|-)\d+shot|pct")
"""In the words that set a result of before apart, which does not list its departures: settings of the protocol itself, or
another number of labeled images."""
OTHER_PROBE = "another probe"


@dataclass(frozen=True)
class Number:
    """One accuracy in percent, ours or published."""

    value: float
    error: str
    """Behind ±: the standard error; empty for published numbers."""
    half_width: float
    """The larger of standard error and spread over seeds in percent, 0 where neither is known."""
    protocol: str
    source: str
    """The paper's table; for ours the selection rule."""
    run: int | None = None
    """Which run; None for a published number."""
    method: str = ""
    architecture: str = ""
    epochs: str = ""
    spread: str = ""
    """Standard deviation over seeds in words; empty for one seed."""
    variant: str = ""
    departures: Sequence[str] = ()
    """Why it is no number of the published protocol."""
    is_folded: bool = False
    """Whether it is a variant of an evaluation that is drawn."""

    @property
    def compares(self) -> bool:
        """Whether it is a number of the published protocol."""
        return not self.departures

    @property
    def name(self) -> str:
        """For a label: the method and its network, or our probe."""
        return self.protocol if self.run is not None else f"{self.method} {self.architecture}".strip()


@dataclass(frozen=True)
class Comparison:
    """One row of a suite: all numbers, the highest first."""

    task: str
    numbers: Sequence[Number]

    @property
    def ours(self) -> list[Number]:
        """Our numbers, the highest first."""
        return [item for item in self.numbers if item.run is not None]

    @property
    def drawn(self) -> list[Number]:
        """The numbers of the picture, the highest first: one variant of each run, and what follows the paper."""
        return [item for item in self.numbers if not item.is_folded]

    @property
    def departures(self) -> list[str]:
        """All reasons why numbers of the picture are not of the published protocol."""
        return list(dict.fromkeys(words for item in self.drawn for words in item.departures))

    @property
    def published(self) -> list[Number]:
        """The published ones, the highest first."""
        return [item for item in self.numbers if item.run is None]

    @property
    def same_method(self) -> list[Number]:
        """The published ones of I-JEPA, the highest first."""
        return [item for item in self.published if item.method == OUR_METHOD]


def comparisons(runs: Sequence[RunFolder]) -> list[Comparison]:
    """The rows that have published numbers, in the order of the paper; all runs' numbers of a row stand together."""
    rows: dict[str, tuple[str, list[Number], list[Number]]] = {}
    for index, run in enumerate(runs):
        for result in run.evaluations:
            theirs = _published(result)
            ours = _ours(index, result, {item.protocol for item in theirs})
            if theirs and ours:
                key = text(result.get("row") or result["_file"], 80)
                rows.setdefault(key, (title_of(result), theirs, []))[2].extend(ours)
    return [
        Comparison(task, sorted([*theirs, *_folded(ours)], key=lambda item: -item.value))
        for task, theirs, ours in (rows[key] for key in sorted(rows, key=lambda key: place_of(key, SUITE_ORDER)))
    ]


def compares(probe: str, protocols: set[str]) -> bool:
    """Whether a number of ours is measured as one of the published ones."""
    return probe in protocols or ("any" in protocols and probe in ANY_PROTOCOL)


def _folded(ours: Sequence[Number]) -> list[Number]:
    """The numbers with all but one variant of each run marked, as in the table of probes; none that follows the paper is."""
    main = {run: min(item.variant for item in ours if item.run == run) for run in {item.run for item in ours}}
    return [replace(item, is_folded=item.variant != main[item.run] and not item.compares) for item in ours]


def _departures(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Why the numbers of a result are not of the published protocol, whatever the probe."""
    said = departures_of(result)
    if said is not None:
        return said
    variant = text(result.get("variant") or "", 400)
    if " of its " in str(result.get("data") or ""):  # how the line about the data says that classes are missing
        return (text(result.get("data"), 80),)
    return (f"other settings: {text(variant, 80)}",) if CHANGED.search(variant) else ()


def _ours(index: int, result: Mapping[str, Any], protocols: set[str]) -> list[Number]:
    numbers = []
    departed = _departures(result)
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


def _published(result: Mapping[str, Any]) -> list[Number]:
    listed = result.get("published")
    numbers = []
    for item in listed[:MAX_PUBLISHED] if isinstance(listed, list) else []:
        value = number(item.get("value")) if isinstance(item, Mapping) else None
        if value is None or not 0 <= value <= 100:
            continue
        method, architecture, epochs = (text(item.get(name) or "", 24) for name in ("method", "architecture", "epochs"))
        protocol, source = text(item.get("protocol") or "", 24), text(item.get("source") or "", 60)
        numbers.append(Number(value, "", 0.0, protocol, source, None, method, architecture, epochs))
    return numbers


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
