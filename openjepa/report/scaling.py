"""The points of the scaling curves: accuracies of several runs by what each run has used."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openjepa.report.facts import command, status
from openjepa.report.probes import Measured, Score, measured, shown_variant, title_of
from openjepa.report.reading import RunFolder, text
from openjepa.report.training import AXES, Training, training
from openjepa.system.json_files import number

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
