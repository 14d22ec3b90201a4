"""The charts of one group of scaling points: one per quantity in which its runs differ."""

from collections.abc import Sequence
from statistics import fmean

from openjepa.report.curves import format_number
from openjepa.report.scaling import Group, Point
from openjepa.report.scatter import Dot, Scatter, Trend, power
from openjepa.report.training import AXES, Axis

SAME = 1.02
"""Values whose ratio is less do not differ: hours of two seeds, say."""
NOTES = {
    "flops": "Images seen times the FLOPs of an image in a training step.",
    "images": "Repeats counted.",
    "data": "Different images to train on.",
    "parameters": "Of the encoder. Gray: one recipe in several sizes.",
}


def charts(group: Group, series: Sequence[str]) -> list[Scatter]:
    """Charts of the quantities that at least two runs have and in which they differ."""
    return [_chart(group, axis, series) for axis in AXES if _differ(_values(group, axis))]


def constants(group: Group) -> list[str]:
    """The quantities that are the same for all runs, in words."""
    found = [(axis, _values(group, axis)) for axis in AXES]
    return [
        f"{axis.title.lower()}: {shown(values[0], axis)} {axis.unit}"
        for axis, values in found
        if values and not _differ(values)
    ]


def shown(value: float, axis: Axis) -> str:
    """A quantity without its unit."""
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
    """Lines through runs that differ in this quantity.

    Against model size through the sizes of one recipe; against data size through one series; else through one series of one
    data and model size (against hours: on one device). Seeds are averaged. Of several lengths at one size the longest is taken.
    """
    lines: dict[tuple[object, ...], list[Point]] = {}
    for point in points:
        lines.setdefault(_line(point, axis), []).append(point)
    trends = []
    for members in lines.values():
        path = _path(members, axis)
        names = {point.training.series for point in members}
        if len(path) > 1:
            trends.append(Trend(path, series.index(min(names)) if len(names) == 1 else None))
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
    """Means over seeds, from left to right."""
    alike: dict[tuple[float | None, ...], list[Point]] = {}
    for point in points:
        alike.setdefault(tuple(point.training.values.get(name) for name in ("images", "data", "parameters")), []).append(point)
    path: dict[float, float] = {}
    for _, seeds in sorted(alike.items(), key=lambda item: item[0][0] or 0.0):
        x = fmean(point.training.values[axis.name] for point in seeds)
        path[x] = 100 * fmean(point.score.value for point in seeds)
    return sorted(path.items())
