"""The points of the scaling curves: accuracies of several runs by what each run has used.

The charts of one group of scaling points: one per quantity in which its runs differ.

The page of scaling curves: accuracy against what training used, over any set of run folders.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup

from openjepa import __version__
from openjepa.refusals import Refusal
from openjepa.report.curves import format_number
from openjepa.report.facts import command, status
from openjepa.report.page import fill
from openjepa.report.probes import PROBE_WORDS, SELECTION_WORDS, Measured, Score, measured, shown_variant, title_of
from openjepa.report.reading import RunFolder, distinct, read_run, text
from openjepa.report.scatter import NUM_SERIES_COLORS, Dot, Scatter, Trend, draw_scatter, power
from openjepa.report.training import AXES, Axis, Training, training
from openjepa.system.json_files import number
from openjepa.system.whole_files import whole_file

MAX_GROUPS = 60


@dataclass(frozen=True)
class Point:
    """One accuracy of one run."""

    number: int
    """Which run, counted from 1 in the order they were named."""
    run: str
    training: Training
    score: Score
    untrained: Score | None
    num_train: float | None
    """Images that the probe was trained on."""
    remark: str
    """What is unusual about the run: its status, or an encoder of an earlier step."""


@dataclass(frozen=True)
class Group:
    """One probe on one task, by at least two runs."""

    task: str
    probe: str
    selection: str
    variant: str
    data: str
    """Which images, and how many are tested on."""
    points: Sequence[Point]

    @property
    def probe_images(self) -> list[float]:
        """How many images the probes were trained on, where the runs differ in it; else nothing."""
        counts = sorted({point.num_train for point in self.points if point.num_train is not None})
        return counts if len(counts) > 1 else []


@dataclass(frozen=True)
class Scaling:
    """All that is drawn, and what cannot be."""

    groups: Sequence[Group]
    series: Sequence[str]
    """What the colors stand for, in their order."""
    missing: Sequence[tuple[str, str]]
    """(run, reason)"""


_Key = tuple[str, ...]


def scaling(runs: Sequence[RunFolder]) -> Scaling:
    """Groups of comparable results, those of most runs first, and for each run what it lacks."""
    found: dict[_Key, list[Point]] = {}
    titles: dict[_Key, Group] = {}
    for index, run in enumerate(runs):
        for key, group in () if run.is_encoder else _results(index + 1, run):
            titles.setdefault(key, group)
            if all(point.number != index + 1 for point in found.setdefault(key, [])):
                found[key].extend(group.points)
    shared = {key: points for key, points in found.items() if len(points) > 1}
    groups = [_with_points(titles[key], points) for key, points in shared.items()]
    groups.sort(key=lambda group: -len(group.points))
    groups = groups[:MAX_GROUPS]
    series = list(dict.fromkeys(point.training.series for group in groups for point in _by_number(group.points)))
    alone = {
        index: [titles[key] for key in found if key not in shared and found[key][0].number == index + 1]
        for index in range(len(runs))
    }
    missing = [
        (run.name, reason) for index, run in enumerate(runs) for reason in _reasons(index + 1, run, alone[index], groups)
    ]
    return Scaling(groups, series, missing)


def _results(index: int, run: RunFolder) -> Iterator[tuple[_Key, Group]]:
    """Each number of a run as a group of one point, with what makes numbers comparable."""
    for result in run.evaluations:
        for item in measured(result):
            if "encoder" in item.scores:
                group = _group(index, run, result, item)
                yield (
                    (str(result.get("row") or result.get("task")), item.probe, item.selection, group.variant, group.data),
                    group,
                )


def _group(index: int, run: RunFolder, result: Mapping[str, Any], item: Measured) -> Group:
    name = text(result.get("data") or run.summary.get("data") or "", 120).split(":")[0]
    tests, classes = number(result.get("num_test")), number(result.get("num_classes"))
    data = ", ".join(
        part
        for part in (name, f"{tests:,.0f} test images" if tests else "", f"{classes:.0f} classes" if classes else "")
        if part
    )
    step, now = number(result.get("step")), number(run.summary.get("step"))
    remarks = [] if status(run) == "finished" else [status(run)]
    remarks += [f"evaluated at step {step:,.0f} of {now:,.0f}"] if step is not None and now is not None and step != now else []
    point = Point(
        index,
        run.name,
        training(run, step),
        item.scores["encoder"],
        item.scores.get("untrained"),
        number(result.get("num_train")),
        ", ".join(remarks),
    )
    # An evaluation on foreign data names the data first; for the run trained on that data it is its own.
    variant = shown_variant(result).removeprefix(name).removeprefix("-")
    # a row of a suite is named after its data, a task is not
    title = title_of(result) if result.get("row") or not name else f"{title_of(result)} on {name.split(',')[0]}"
    return Group(title, item.probe, item.selection, variant, data, [point])


def _with_points(group: Group, points: Sequence[Point]) -> Group:
    return Group(group.task, group.probe, group.selection, group.variant, group.data, _by_number(points))


def _by_number(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.number)


def _reasons(index: int, run: RunFolder, alone: Sequence[Group], groups: Sequence[Group]) -> Iterator[str]:
    """What of a run is not drawn, and why."""
    if run.is_encoder:
        yield "an evaluated encoder, no run of `openjepa train`: nothing is known of what its training used"
        return
    if not any(measured(result) for result in run.evaluations):
        yield f"no numbers in eval/*.json; to make them: {command(run, 'evaluate')}"
        return
    known = training(run).values
    yield from (axis.lacks for axis in AXES if axis.name not in known)
    drawn = any(point.number == index for group in groups for point in group.points)
    if alone:
        names = ", ".join(dict.fromkeys(f"{group.task} by {group.probe} ({group.selection or '-'})" for group in alone[:6]))
        more = f" and {len(alone) - 6} more" if len(alone) > 6 else ""
        yield f"{'no other run has' if drawn else 'shares no number with another run; has'} {names}{more} on the same images"


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


MAX_RUNS = 200
MAX_REASONS = 4


@dataclass(frozen=True)
class GroupView:
    """One probe on one task as the template shows it."""

    group: Group
    charts: Sequence[tuple[Scatter, Markup]]
    constants: Sequence[str]
    """What is the same for all runs."""
    rows: Sequence[Sequence[str]]
    """For each point the quantities in words, in the order of AXES."""
    colors: Sequence[int]
    probe_images: str


def write_scaling(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Writes one HTML page with accuracy against compute, time, images seen, data size and model size, and returns its path.

    `output` defaults to `scaling.html` in the folder that holds the first run. What cannot be drawn, folders that are no runs
    included, is listed with the reason. Raises Refusal where none of `runs` is a run folder.
    """
    if not runs:
        raise Refusal("runs is empty: name run folders, e.g. `openjepa report --scaling runs/*`")
    if len(runs) > MAX_RUNS:
        raise Refusal(f"runs has {len(runs)} folders: at most {MAX_RUNS} fit on one page")
    folders: list[RunFolder] = []
    no_runs: list[tuple[str, str]] = []
    for path in map(Path, runs):
        try:
            folders.append(read_run(path))
        except ValueError as error:
            no_runs.append((text(path.name or path, 80), text(error)))
    if not folders:
        raise Refusal("runs holds no run folder: " + "; ".join(reason for _, reason in no_runs[:MAX_REASONS]))
    for _, reason in no_runs[:MAX_REASONS]:
        warnings.warn(f"not on the page: {reason}", UserWarning, stacklevel=2)
    if len(no_runs) > MAX_REASONS:
        warnings.warn(f"not on the page: {len(no_runs) - MAX_REASONS} more, listed there", UserWarning, stacklevel=2)
    page = render_scaling(distinct(folders), no_runs).encode("utf-8", errors="backslashreplace")
    output = Path(runs[0]).parent / "scaling.html" if output is None else output
    with whole_file(output) as file:
        file.write_bytes(page)
    return output


def render_scaling(folders: Sequence[RunFolder], no_runs: Sequence[tuple[str, str]]) -> str:
    """The page as text. `no_runs`: what else was named, each with the reason why it is no run."""
    found = scaling(folders)
    groups = [_view(group, found.series) for group in found.groups]
    drawn = {point.run for group in found.groups for point in group.points}
    probes = dict.fromkeys(group.probe for group in found.groups)
    selections = dict.fromkeys(group.selection for group in found.groups)
    values = {
        "title": "Scaling",
        "num_runs": len(folders),
        "num_drawn": len(drawn),
        "groups": groups,
        "series": [(name, index % NUM_SERIES_COLORS) for index, name in enumerate(found.series)],
        "missing": [*found.missing, *no_runs],
        "axes": AXES,
        "words": {name: PROBE_WORDS[name] for name in probes if name in PROBE_WORDS}
        | {name: SELECTION_WORDS[name] for name in selections if name in SELECTION_WORDS},
        "version": __version__,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return fill("scaling.html", values)


def _view(group: Group, series: Sequence[str]) -> GroupView:
    counts = group.probe_images
    return GroupView(
        group=group,
        charts=[(chart, draw_scatter(chart)) for chart in charts(group, series)],
        constants=constants(group),
        rows=[_cells(point) for point in group.points],
        colors=[series.index(point.training.series) % NUM_SERIES_COLORS for point in group.points],
        probe_images=f"{counts[0]:,.0f} to {counts[-1]:,.0f}" if counts else "",
    )


def _cells(point: Point) -> list[str]:
    """The quantities of a run in words, in the order of AXES; empty where they are not known."""
    values = point.training.values
    return [shown(values[axis.name], axis) if axis.name in values else "" for axis in AXES]
