"""The curves of a page: the choice of logged numbers, and charts as inline SVG with a readout at the pointer.

Every chart has a few dozen invisible bands. style.css shows the marks of the band that is hovered or tapped.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from markupsafe import Markup

from openjepa.report.numbers import format_number, nice_ticks, tick_labels
from openjepa.report.reading import Run, text
from openjepa.report.svg import BOTTOM, HEIGHT, NUM_COLORS, RIGHT, TOP, WIDTH, Scale, at, circle, path, rows, tick_below, words
from openjepa.report.svg import chart as drawing

MAX_POINTS = 240
MAX_BANDS = 60


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    label: str
    """Name in legend and readout; an empty label is left out of both."""
    points: Sequence[tuple[float, float]]
    """Finite (x, y), in any order."""
    color: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Chart:
    """One quantity over the course of training, for one run or several."""

    title: str
    note: str
    """One sentence that says how to read the chart."""
    series: Sequence[Series]
    x_label: str = "step"
    from_zero: bool = False
    """True if the vertical axis starts at 0."""
    x_end: float = 1.0
    """Smallest end of the horizontal axis, which starts at 0. It is shared, so that the charts of a page line up."""


@dataclass(frozen=True)
class Quantity:
    """One number of metrics.jsonl, and how it is shown."""

    title: str
    kind: str
    name: str
    note: str
    from_zero: bool = False


LEARNING = (
    Quantity(
        "Effective rank", "monitor", "rankme", "RankMe of the probe batch's features; a fall towards 1 is collapse.", True
    ),
    Quantity("LiDAR", "monitor", "lidar", "Effective rank of what tells images apart; a fall towards 1 is collapse.", True),
    Quantity("Slope of the spectrum", "monitor", "alpha_req", "alpha-ReQ of the probe batch's features; near 1 is best."),
    Quantity(
        "Feature spread", "monitor", "feature_std", "Standard deviation over images, mean over dimensions; 0 is collapse.", True
    ),
    Quantity("Similarity of images", "monitor", "cosine", "Mean cosine between two images' features; 1 is collapse."),
    Quantity(
        "Beyond the position",
        "monitor",
        "cosine_gap",
        "Cosine of predictions with their own target, less that with another image's at the same place; 0 is only the place.",
        True,
    ),
    Quantity(
        "Explained by positions",
        "monitor",
        "position_share",
        "Share of the targets' variance that the mean of their position explains; 1 says nothing of the image.",
        True,
    ),
    Quantity(
        "Entropy of the targets",
        "train",
        "target_entropy",
        "Of the single assignments to outputs or prototypes, in nats; 0 is a sharp choice, the logarithm of their number none.",
        True,
    ),
    Quantity("Online k-NN accuracy", "monitor", "knn", "Share of test images whose nearest neighbors vote rightly."),
)
MACHINERY = (
    Quantity("Learning rate", "train", "lr", "Linear warm-up, then the schedule of the recipe.", True),
    Quantity("Weight decay", "train", "weight_decay", "Of matrices; biases and norms are never decayed.", True),
    Quantity("Target momentum", "train", "momentum", "How much of itself the target encoder keeps in a step."),
    Quantity("Gradient norm", "train", "grad_norm", "Before clipping, if there is any.", True),
    Quantity("Throughput", "train", "images_per_second", "Images per second, training only.", True),
    Quantity("Context size", "train", "context_tokens", "Patches that the context encoder sees.", True),
    Quantity("Visible patches", "train", "visible_tokens", "Patches of a masked view that are not masked, on average.", True),
)
LOSS_PARTS = (
    Series("probe batch", (), 1),
    Series("mean target", (), 7, dashed=True),
    Series("mean of the position", (), 3, dashed=True),
)
TERM = "loss/"
"""Prefix of the names of loss terms in the log."""
_LOSS_NAMES = ("loss", "loss_mean_target", "loss_position_mean")


def learning_charts(runs: Sequence[Run]) -> list[Chart]:
    """Charts of the loss and of the signs of collapse."""
    loss = [*_loss(runs[0]), *_terms(runs[0])] if len(runs) == 1 else _loss_of_several(runs)
    return _aligned(runs, [*loss, *_charts(runs, LEARNING)])


def machinery_charts(runs: Sequence[Run]) -> list[Chart]:
    """Charts of schedules, gradient norm and throughput."""
    return _aligned(runs, _charts(runs, MACHINERY))


def _aligned(runs: Sequence[Run], charts: Sequence[Chart]) -> list[Chart]:
    """The charts with the same horizontal axis."""
    ends = [point[0] for run in runs for point in run.log.points("train", "loss", _x_axis(runs)[0])[-1:]]
    return [replace(chart, x_end=max(ends, default=1.0)) for chart in charts]


def _x_axis(runs: Sequence[Run]) -> tuple[str, str]:
    # Runs with different batches are only comparable by the images they have seen.
    return ("step", "step") if len(runs) == 1 else ("images", "images")


def _charts(runs: Sequence[Run], quantities: Sequence[Quantity]) -> list[Chart]:
    axis, label = _x_axis(runs)
    charts = []
    for quantity in quantities:
        lines = [Series(run.name, run.log.points(quantity.kind, quantity.name, axis), index) for index, run in enumerate(runs)]
        lines = [line for line in lines if line.points]
        if lines:
            charts.append(Chart(quantity.title, quantity.note, lines, label, quantity.from_zero))
    return charts


def _loss(run: Run) -> list[Chart]:
    lines = [Series("training", run.log.points("train", "loss"), 0)]
    lines += [
        Series(part.label, run.log.points("monitor", name), part.color, part.dashed)
        for part, name in zip(LOSS_PARTS, _LOSS_NAMES, strict=True)
    ]
    lines = [line for line in lines if line.points]
    note = "The targets change while the encoder learns, so the loss may rise."
    if any(line.dashed for line in lines):
        note = f"Dashed: two predictors that see no image. {note}"
    return [Chart("Loss", note, lines, from_zero=True)] if lines else []


def _terms(run: Run) -> list[Chart]:
    """A chart of the terms of the loss; empty if it has only one."""
    names = [name for name in run.log.series.get("train", {}) if name.startswith(TERM)][:NUM_COLORS]
    lines = [
        Series(text(name.removeprefix(TERM), 20), run.log.points("train", name), color) for color, name in enumerate(names)
    ]
    return [Chart("Terms of the loss", "What the loss adds up, some with a weight.", lines)] if len(lines) > 1 else []


def _loss_of_several(runs: Sequence[Run]) -> list[Chart]:
    lines = [Series(run.name, run.log.points("train", "loss", "images"), index) for index, run in enumerate(runs)]
    lines += [
        Series("", run.log.points("monitor", "loss_position_mean", "images"), index, dashed=True)
        for index, run in enumerate(runs)
    ]
    lines = [line for line in lines if line.points]
    note = "Losses of runs with different targets do not compare."
    if any(line.dashed for line in lines):
        note = f"Dashed: the loss of predicting each position's mean. {note}"
    return [Chart("Loss", note, lines, "images", from_zero=True)] if lines else []


@dataclass(frozen=True)
class Bucket:
    """Neighboring points that are drawn as one: their mean and their range."""

    x: float
    y: float
    low: float
    high: float


def downsample(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[Bucket]:
    """Sorts the points by x and groups neighbors into at most `limit` buckets. If an x occurs twice, the later point counts."""
    ordered = sorted(dict(points).items())
    size = max(1, math.ceil(len(ordered) / limit))
    buckets = []
    for start in range(0, len(ordered), size):
        xs, ys = zip(*ordered[start : start + size], strict=True)
        buckets.append(Bucket(sum(xs) / len(xs), sum(ys) / len(ys), min(ys), max(ys)))
    return buckets


@dataclass(frozen=True)
class _Axes:
    """Both axes and their ticks."""

    x: Scale
    y: Scale
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    @property
    def left(self) -> float:
        return self.x.start

    def place(self, value: float) -> float:
        """The vertical place of a value. Outliers are placed just outside the frame, where the clip path hides them."""
        return min(HEIGHT * 2.0, max(-HEIGHT * 1.0, self.y(value)))


def _limits(values: Sequence[float], from_zero: bool) -> tuple[float, float]:
    ordered = sorted(values)
    # A loss can be much larger in its first steps than later: the highest half percent may leave the frame.
    low, high = ordered[0], ordered[max(0, math.ceil(0.995 * len(ordered)) - 1)]
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if high - low < 1e-9 * max(abs(high), abs(low), 1e-9):
        room = abs(high) * 0.1 or 1.0
        return low - room, high + room
    room = 0.06 * (high - low)
    return low if from_zero and low == 0 else low - room, high + room


def _axes(lines: Sequence[Sequence[Bucket]], from_zero: bool, x_end: float) -> _Axes:
    x_high = max(x_end, *(line[-1].x for line in lines), 1e-9)
    y_low, y_high = _limits([bucket.y for line in lines for bucket in line], from_zero)
    y_ticks = nice_ticks(y_low, y_high, 5)
    left = 14 + 6.6 * max(len(label) for label in tick_labels(y_ticks))
    x, y = Scale(0.0, x_high, left, WIDTH - RIGHT), Scale(y_low, y_high, HEIGHT - BOTTOM, TOP)
    return _Axes(x, y, nice_ticks(0.0, x_high), y_ticks)


def _grid(axes: _Axes) -> list[Markup]:
    across = rows(axes.y, axes.y_ticks, tick_labels(axes.y_ticks), axes.left)
    below = zip(axes.x_ticks, tick_labels(axes.x_ticks), strict=True)
    return [*across, *(tick_below(axes.x(tick), HEIGHT - 6, label, 0, WIDTH - RIGHT) for tick, label in below)]


def _line(series: Series, line: Sequence[Bucket], axes: _Axes, with_range: bool) -> Markup:
    color = series.color % NUM_COLORS
    drawn = Markup("")
    if with_range and any(bucket.high > bucket.low for bucket in line):
        above = [f"{at(axes.x(b.x))} {at(axes.place(b.high))}" for b in line]
        below = [f"{at(axes.x(b.x))} {at(axes.place(b.low))}" for b in reversed(line)]
        drawn += path(f"range c{color}", f"M{'L'.join(above + below)}Z")
    if len(line) == 1:
        return drawn + circle(f"dot c{color}", axes.x(line[0].x), axes.place(line[0].y), 3)
    through = "L".join(f"{at(axes.x(bucket.x))} {at(axes.place(bucket.y))}" for bucket in line)
    return drawn + path(f"line c{color}{' dashed' if series.dashed else ''}", f"M{through}")


def _readout(x_label: str, x: float, values: Sequence[tuple[int, float]], axes: _Axes, kind: str) -> Markup:
    spans = [
        Markup('<tspan class="value c{}" dx="9">{}</tspan>').format(color % NUM_COLORS, _precise(value, axes))
        for color, value in values
    ]
    where = Markup("{} {}{}").format(x_label, f"{x:,.0f}" if x < 1e6 else format_number(x), Markup("").join(spans))
    return words(f"readout {kind}", WIDTH - RIGHT, 15, where, "end")


def _precise(value: float, axes: _Axes) -> str:
    """A value with two more digits than the ticks."""
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
        dots = [circle(f"dot c{color % NUM_COLORS}", axes.x(near.x), axes.place(near.y), 3) for color, near in shown]
        width = max(0.5, edges[index + 1] - edges[index])
        parts.append(
            Markup(
                '<g class="hit"><rect x="{}" y="0" width="{}" height="{}"/><g class="mark">'
                '<rect class="cover" x="0" y="0" width="{}" height="{}"/>{}{}{}</g></g>'
            ).format(
                *(f"{edges[index]:.1f}", at(width), HEIGHT, WIDTH, TOP - 5),
                path("guide", f"M{at(place)} {TOP}V{HEIGHT - BOTTOM}"),
                *(Markup("").join(dots), _readout(chart.x_label, bucket.x, [(c, near.y) for c, near in shown], axes, "at")),
            )
        )
    return parts


def draw_chart(chart: Chart, identity: str) -> Markup:
    """The chart as an <svg> element. `identity` is a plain word that is unique on the page. No series may be empty."""
    lines = [downsample(series.points) for series in chart.series]
    axes = _axes(lines, chart.from_zero, chart.x_end)
    named = [(series, line) for series, line in zip(chart.series, lines, strict=True) if series.label]
    summary = "; ".join(
        f"{series.label} from {format_number(line[0].y)} to {format_number(line[-1].y)}" for series, line in named
    )
    with_range = len(lines) == 1 or not any(series.color == 0 for series in chart.series[1:])
    drawn = [
        _line(series, line, axes, with_range and index == 0)
        for index, (series, line) in enumerate(zip(chart.series, lines, strict=True))
    ]
    frame = Markup('<clipPath id="{}"><rect x="{}" y="{}" width="{}" height="{}"/></clipPath>').format(
        identity, at(axes.left - 3), TOP - 3, at(WIDTH - RIGHT - axes.left + 6), HEIGHT - BOTTOM - TOP + 6
    )
    clipped = Markup('<g clip-path="url(#{})">{}</g>').format(identity, Markup("").join(reversed(drawn)))
    last = [(series.color, line[-1].y) for series, line in named]
    now = _readout(chart.x_label, max(line[-1].x for line in lines), last, axes, "now")
    label = f"{chart.title} by {chart.x_label}: {summary}"
    return drawing("", HEIGHT, label, [frame, *_grid(axes), clipped, now, *_bands(chart, lines, axes)])
