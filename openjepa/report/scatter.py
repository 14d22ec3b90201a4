"""Accuracy of several runs against the resources that each used, as inline SVG: a dot per run, and lines along each series.

The file defines the points, in groups of comparable numbers, then the choice of charts for a group, then the drawing. A dot has
the run's number from the table under the chart. Name and value are shown if a dot is hovered or tapped.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from markupsafe import Markup

from openjepa.report.numbers import format_number, log_ticks, nice_ticks, power
from openjepa.report.probes import Score
from openjepa.report.reading import text
from openjepa.report.svg import BOTTOM, HEIGHT, RIGHT, TOP, WIDTH, Scale, at, circle, column, path, rows, tick_below, words
from openjepa.report.svg import chart as drawing

NUM_SERIES_COLORS = 7
"""Number of colors for series. The eighth color, gray, is for untrained encoders."""
SAME = 1.02
"""Values whose ratio is below this count as equal, such as the hours of two seeds."""
NOTES = {
    "flops": "Images seen times the FLOPs of an image in a training step.",
    "images": "Repeats counted.",
    "data": "Different images to train on.",
    "parameters": "Of the encoder. Gray: one recipe in several sizes.",
}
MIN_SPAN = 2.5
"""Smallest ratio of the ends of a logarithmic axis."""
LEFT = 34


@dataclass(frozen=True)
class Axis:
    """One quantity that accuracy is drawn against."""

    name: str
    title: str
    unit: str
    lacks: str
    """Words for a run without the number: the files that should have it."""


AXES = (
    Axis("flops", "Training compute", "FLOPs", "no training FLOPs: summary.json lacks flops_per_image or images_seen"),
    Axis("hours", "Training time", "device-hours", "no hours: neither summary.json nor metrics.jsonl has seconds"),
    Axis("images", "Images seen", "images", "no images seen: neither summary.json nor metrics.jsonl has them"),
    Axis("data", "Data size", "training images", "no data size: summary.json does not say how many training images there are"),
    Axis("parameters", "Model size", "parameters of the encoder", "no model size: summary.json lacks parameters.encoder"),
)


@dataclass(frozen=True)
class Training:
    """The resources that a run used, in total or up to the step of the evaluated encoder."""

    values: Mapping[str, float]
    """Values by name of the axis. Unknown values are missing."""
    family: str
    """Method, recipe, and the weights that the run started from."""
    size: str
    device: str

    @property
    def series(self) -> str:
        """Name of the series, which has one color: method, recipe, starting weights, and size."""
        return f"{self.family}, {self.size}" if self.size else self.family


@dataclass(frozen=True)
class Point:
    """One accuracy of one run."""

    number: int
    """Number of the run, counted from 1 in the order of the command line."""
    run: str
    training: Training
    score: Score
    untrained: Score | None
    num_train: float | None
    """Number of images that the probe was trained on."""
    remark: str
    """Anything unusual about the run: its status, or an encoder from an earlier step."""


@dataclass(frozen=True)
class Group:
    """The points of at least two runs for one probe on one task."""

    task: str
    probe: str
    selection: str
    variant: str
    data: str
    """Name of the data set, and number of test images."""
    points: Sequence[Point]

    @property
    def probe_images(self) -> list[float]:
        """The numbers of images that probes were trained on; empty if all runs have the same number."""
        counts = sorted({point.num_train for point in self.points if point.num_train is not None})
        return counts if len(counts) > 1 else []


@dataclass(frozen=True)
class Dot:
    """One run's accuracy."""

    number: int
    """Number written beside the dot."""
    label: str
    x: float
    """The quantity, which is positive."""
    y: float
    """Accuracy in percent."""
    error: float
    """Half the length of the bar through the dot, in percent."""
    untrained: float | None
    """Accuracy of the untrained encoder in percent; None if unknown."""
    color: int


@dataclass(frozen=True)
class Trend:
    """A line through points, of one series or across series."""

    points: Sequence[tuple[float, float]]
    color: int | None
    """Color of the series; None for a gray line across series."""


@dataclass(frozen=True)
class Scatter:
    """One chart."""

    title: str
    note: str
    unit: str
    dots: Sequence[Dot]
    trends: Sequence[Trend]
    scientific: bool = False
    """True if the horizontal axis is labeled in scientific notation."""


def charts(group: Group, series: Sequence[str]) -> list[Scatter]:
    """One chart for each quantity that at least two runs have and in which they differ."""
    return [_chart(group, axis, series) for axis in AXES if _differ(_values(group, axis))]


def constants(group: Group) -> list[str]:
    """The quantities that are equal for all runs, in words."""
    found = [(axis, _values(group, axis)) for axis in AXES]
    return [
        f"{axis.title.lower()}: {shown(values[0], axis)} {axis.unit}"
        for axis, values in found
        if values and not _differ(values)
    ]


def shown(value: float, axis: Axis) -> str:
    """The value of a quantity as text, without its unit."""
    return power(value) if axis.name == "flops" else format_number(value)


def _values(group: Group, axis: Axis) -> list[float]:
    return [point.training.values[axis.name] for point in group.points if axis.name in point.training.values]


def _differ(values: Sequence[float]) -> bool:
    return len(values) > 1 and max(values) > SAME * min(values)


def _chart(group: Group, axis: Axis, series: Sequence[str]) -> Scatter:
    points = [point for point in group.points if axis.name in point.training.values]
    dots = [
        Dot(
            number=point.number,
            label=point.run,
            x=point.training.values[axis.name],
            y=100 * point.score.value,
            error=100 * point.score.uncertainty,
            untrained=None if point.untrained is None else 100 * point.untrained.value,
            color=series.index(point.training.series),
        )
        for point in points
    ]
    return Scatter(axis.title, _note(points, axis), axis.unit, dots, _trends(points, axis, series), axis.name == "flops")


def _note(points: Sequence[Point], axis: Axis) -> str:
    if axis.name != "hours":
        return NOTES[axis.name]
    devices = list(dict.fromkeys(point.training.device for point in points))
    if len(devices) == 1:
        return f"Steps of training alone, without looks and saving, on {devices[0]}."
    kinds = f"{len(devices)} kinds of device (see the table): hours of different devices do not compare."
    return f"Steps of training alone, without looks and saving, on {kinds}"


def _trends(points: Sequence[Point], axis: Axis, series: Sequence[str]) -> list[Trend]:
    """Lines through runs that differ in the quantity of `axis`.

    Against model size, a line joins the sizes of one recipe. Against data size, it joins one series. Against other quantities
    it joins one series with one data size and model size, and against hours also one device. Seeds are averaged. If runs of one
    size have several lengths, the longest counts.
    """
    lines: dict[tuple[object, ...], list[Point]] = {}
    for point in points:
        lines.setdefault(_line(point, axis), []).append(point)
    trends = []
    for members in lines.values():
        line = _path(members, axis)
        names = {point.training.series for point in members}
        if len(line) > 1:
            trends.append(Trend(line, series.index(min(names)) if len(names) == 1 else None))
    return trends


def _line(point: Point, axis: Axis) -> tuple[object, ...]:
    used = point.training
    if axis.name == "parameters":
        return (used.family,)
    if axis.name == "data":
        return (used.series,)
    device = used.device if axis.name == "hours" else ""
    return (used.series, used.values.get("data"), used.values.get("parameters"), device)


def _path(points: Sequence[Point], axis: Axis) -> list[tuple[float, float]]:
    """Points of a line from left to right, averaged over seeds."""
    alike: dict[tuple[float | None, ...], list[Point]] = {}
    for point in points:
        alike.setdefault(tuple(point.training.values.get(name) for name in ("images", "data", "parameters")), []).append(point)
    line: dict[float, float] = {}
    for _, seeds in sorted(alike.items(), key=lambda item: item[0][0] or 0.0):
        x = fmean(point.training.values[axis.name] for point in seeds)
        line[x] = 100 * fmean(point.score.value for point in seeds)
    return sorted(line.items())


@dataclass(frozen=True)
class Frame:
    """Both axes: a logarithmic one for the quantity, a linear one for accuracy."""

    x: Scale
    y: Scale


def frame_of(dots: Sequence[Dot]) -> Frame:
    """Axes that hold every dot with its bar and every untrained encoder, with some margin."""
    xs = [dot.x for dot in dots]
    low, high = min(xs), max(xs)
    room = max((high / low) ** 0.09, math.sqrt(MIN_SPAN * low / high), 1.05)
    ys = [value for dot in dots for value in (dot.y - dot.error, dot.y + dot.error, dot.untrained) if value is not None]
    margin = max(0.09 * (max(ys) - min(ys)), 0.5)
    x = Scale(low / room, high * room, LEFT, WIDTH - RIGHT, is_log=True)
    return Frame(x, Scale(min(ys) - margin, max(ys) + margin, HEIGHT - BOTTOM, TOP))


def draw_scatter(chart: Scatter) -> Markup:
    """The chart as an <svg> element. Needs at least one dot."""
    frame = frame_of(chart.dots)
    summary = "; ".join(f"{dot.number} {dot.label}: {dot.y:.1f} % at {format_number(dot.x)}" for dot in chart.dots)
    parts = [
        *_grid(frame, chart.scientific),
        *(_untrained(dot.x, dot.untrained, frame) for dot in chart.dots if dot.untrained is not None),
        *(_trend(trend, frame) for trend in chart.trends),
        *(_mark(dot, frame) for dot in chart.dots),
        *_numbers(chart.dots, frame),
        words("readout", 4, 15, "accuracy, %"),
        words("readout", WIDTH - RIGHT, 15, chart.unit, "end"),
        *(_hit(dot, chart, frame) for dot in chart.dots),
    ]
    return drawing("scatter", HEIGHT, f"Accuracy by {chart.title.lower()} ({chart.unit}): {summary}", parts)


def _grid(frame: Frame, scientific: bool) -> list[Markup]:
    ticks = nice_ticks(frame.y.low, frame.y.high, 5)
    spacing = ticks[1] - ticks[0] if len(ticks) > 1 else None
    parts = rows(frame.y, ticks, [format_number(tick, spacing) for tick in ticks], LEFT)
    write: Callable[[float], str] = power if scientific else format_number
    for tick in log_ticks(frame.x.low, frame.x.high):
        parts.append(column(frame.x(tick), TOP, HEIGHT - BOTTOM))
        parts.append(tick_below(frame.x(tick), HEIGHT - 6, write(tick), LEFT - 8, WIDTH - RIGHT + 6))
    return parts


def _untrained(x: float, y: float, frame: Frame) -> Markup:
    return path("base", f"M{at(frame.x(x) - 5)} {at(frame.y(y))}h10")


def _trend(trend: Trend, frame: Frame) -> Markup:
    through = "L".join(f"{at(frame.x(x))} {at(frame.y(y))}" for x, y in trend.points)
    return path("line across" if trend.color is None else f"line c{trend.color % NUM_SERIES_COLORS}", f"M{through}")


def _mark(dot: Dot, frame: Frame) -> Markup:
    x, color = frame.x(dot.x), dot.color % NUM_SERIES_COLORS
    low, high = frame.y(dot.y - dot.error), frame.y(dot.y + dot.error)
    bar = path(f"whisker c{color}", f"M{at(x)} {at(low)}V{at(high)}") if dot.error > 0 else Markup("")
    return bar + circle(f"dot c{color}", x, frame.y(dot.y), 4.5)


def _numbers(dots: Sequence[Dot], frame: Frame) -> list[Markup]:
    """The number of each dot, on the side where it covers least of other dots and numbers."""
    taken = [(frame.x(dot.x), frame.y(dot.y)) for dot in dots]
    parts = []
    for dot in dots:
        x, y = frame.x(dot.x), frame.y(dot.y)
        around = [
            (x + dx, y + dy) for dx, dy in ((12, 0), (-12, 0), (10, -10), (-10, -10), (10, 10), (-10, 10), (0, -14), (0, 14))
        ]
        place = max(around, key=lambda spot: (_is_inside(spot), min(11.0, _distance(spot, taken))))
        taken.append(place)
        parts.append(words(f"number c{dot.color % NUM_SERIES_COLORS}", place[0], place[1] + 4, dot.number, "middle"))
    return parts


def _is_inside(spot: tuple[float, float]) -> bool:
    return LEFT + 2 < spot[0] < WIDTH - RIGHT and TOP + 4 < spot[1] < HEIGHT - BOTTOM - 4


def _distance(spot: tuple[float, float], taken: Sequence[tuple[float, float]]) -> float:
    # the dot itself is included; it is 12 to 14 away from each spot
    return min(math.dist(spot, other) for other in taken)


def _hit(dot: Dot, chart: Scatter, frame: Frame) -> Markup:
    """An area around a dot that shows the run's name and value above the chart while the pointer is on it."""
    x, y, color = frame.x(dot.x), frame.y(dot.y), dot.color % NUM_SERIES_COLORS
    value = Markup('<tspan class="value c{}" dx="9">{:.1f}</tspan>').format(color, dot.y)
    named = f"{dot.number} {text(dot.label, 34)}, {power(dot.x) if chart.scientific else format_number(dot.x)}"
    return Markup(
        '<g class="hit"><circle cx="{}" cy="{}" r="9"/><g class="mark"><rect class="cover" x="0" y="0" width="{}" '
        'height="{}"/>{}{}</g></g>'
    ).format(
        *(at(x), at(y), WIDTH, TOP - 5, circle(f"ring c{color}", x, y, 6)),
        words("readout", WIDTH - RIGHT, 15, Markup("{}{}").format(named, value), "end"),
    )
