"""The page of scaling curves: accuracy against the resources of training, for any set of run folders.

A point is the accuracy of a run at the resources that the run used. Comparable points form a group with its own charts.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from openjepa import __version__
from openjepa.records import DataFacts, Result
from openjepa.refusals import Refusal
from openjepa.report.facts import command, images_seen, method_name, status, step_seconds, total_seconds
from openjepa.report.page import fill
from openjepa.report.probes import PROBE_WORDS, SELECTION_WORDS, Measured, measured, shown_variant
from openjepa.report.reading import Run, began_from, distinct, read_run, text
from openjepa.report.scatter import (
    AXES,
    NUM_SERIES_COLORS,
    Group,
    Point,
    Scatter,
    Training,
    charts,
    constants,
    draw_scatter,
    shown,
)
from openjepa.system.shared_files import whole_file

MAX_GROUPS = 60
MAX_RUNS = 200
MAX_REASONS = 4


@dataclass(frozen=True)
class Scaling:
    """Everything that is drawn, and what is missing."""

    groups: Sequence[Group]
    series: Sequence[str]
    """Names of the series, in the order of their colors."""
    missing: Sequence[tuple[str, str]]
    """What cannot be drawn, as (run, reason)."""


_Key = tuple[str, ...]


def scaling(runs: Sequence[Run]) -> Scaling:
    """Groups of comparable results, those with the most runs first, and what each run lacks."""
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


def _results(index: int, run: Run) -> Iterator[tuple[_Key, Group]]:
    """Yields each number of a run as a group of one point, with the key that comparable numbers share."""
    for result in run.evaluations:
        for item in measured(result):
            if "encoder" in item.scores:
                group = _group(index, run, result, item)
                yield (
                    (result.row or result.task, item.probe, item.selection, group.variant, group.data),
                    group,
                )


def _group(index: int, run: Run, result: Result, item: Measured) -> Group:
    facts = result.data_facts or run.summary.data_facts or DataFacts("")
    name = text(facts.name, 120)
    counts = (
        f"{result.num_test:,} test images" * bool(result.num_test),
        f"{result.num_classes} classes" * bool(result.num_classes),
    )
    data = ", ".join(part for part in (name, facts.pixels, *counts) if part)
    step, now = result.step, run.summary.step
    remarks = [] if status(run) == "finished" else [status(run)]
    remarks += [f"evaluated at step {step:,} of {now:,}"] if step is not None and now is not None and step != now else []
    point = Point(
        index,
        run.name,
        training(run, step),
        item.scores["encoder"],
        item.scores.get("untrained"),
        result.num_train or None,
        ", ".join(remarks),
    )
    # An evaluation on foreign data has the data's name first. For a run trained on that data it is the run's own evaluation.
    variant = shown_variant(result).removeprefix(name).removeprefix("-")
    # a suite's row is named after its data, but a task is not
    title = text(result.title, 80)
    return Group(title if result.row or not name else f"{title} on {name}", item.probe, item.selection, variant, data, [point])


def _with_points(group: Group, points: Sequence[Point]) -> Group:
    return Group(group.task, group.probe, group.selection, group.variant, group.data, _by_number(points))


def _by_number(points: Sequence[Point]) -> list[Point]:
    return sorted(points, key=lambda point: point.number)


def _reasons(index: int, run: Run, alone: Sequence[Group], groups: Sequence[Group]) -> Iterator[str]:
    """Yields the reason for each part of a run that is not drawn."""
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


def training(run: Run, step: float | None = None) -> Training:
    """The resources that the run used in total, or up to `step` if the evaluated encoder is from an earlier step."""
    share = _share_done(run, step)
    images, flops = images_seen(run), run.summary.flops_per_image
    seconds = step_seconds(run)
    seconds = seconds if seconds is not None else total_seconds(run)
    devices = run.summary.processes or 1
    found = {
        "flops": None if images is None or flops is None else flops * images * share,
        "hours": None if seconds is None else seconds * devices * share / 3600,
        "images": None if images is None else images * share,
        "data": _data_size(run),
        "parameters": run.summary.parameters.get("encoder"),
    }
    # a logarithmic axis cannot show 0
    values = {name: value for name, value in found.items() if value is not None and value > 0}
    return Training(values, _family(run), _size(run), _device(run, devices))


def _share_done(run: Run, step: float | None) -> float:
    """The share of the run up to `step`."""
    now = run.summary.step
    return step / now if step is not None and now is not None and 0 < step < now else 1.0


def _data_size(run: Run) -> float | None:
    """Number of training images from the summary, else the images seen per epoch."""
    if run.summary.train_images is not None:
        return run.summary.train_images
    epochs, images = run.log.last("train", "epoch"), run.log.last("train", "images")
    return float(round(images / epochs)) if epochs and images else None


def _family(run: Run) -> str:
    recipe, preset = (text(run.config.get(name) or "", 40) for name in ("recipe", "preset"))
    named = f"{recipe} ({preset})" if preset not in ("", "default", recipe) else recipe
    # no axis includes the cost of those weights, so runs with and without them never share a line
    origin = f"from {began_from(run)}" if began_from(run) else ""
    return " ".join(word for word in (method_name(run), named, origin) if word) or "unknown"


def _size(run: Run) -> str:
    size, patch = run.setting("model", "size"), text(run.setting("model", "patch_size") or "?", 8)
    changed = [f"{name} {text(value, 8)}" for name in ("width", "depth") if (value := run.setting("model", name))]
    if not size:
        return ""
    return f"{' '.join(changed)}, patch {patch}" if len(changed) == 2 else " ".join([f"{text(size, 20)}/{patch}", *changed])


def _device(run: Run, devices: int) -> str:
    known = run.environment
    name = text(known.device_name or known.cpu or known.device or "unknown device", 60)
    threads = known.threads if known.device == "cpu" else None
    shown = f"{name}, {threads} thread{'s' if threads != 1 else ''}" if threads else name
    return f"{devices} x {shown}" if devices > 1 else shown


@dataclass(frozen=True)
class GroupView:
    """One probe on one task as the template shows it."""

    group: Group
    charts: Sequence[tuple[Scatter, Markup]]
    constants: Sequence[str]
    """Quantities that are equal for all runs, in words."""
    rows: Sequence[Sequence[str]]
    """The quantities of each point in words, in the order of AXES."""
    colors: Sequence[int]
    probe_images: str


def write_scaling(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Writes an HTML page with accuracy against compute, time, images seen, data size and model size, and returns its path.

    `output` defaults to `scaling.html` in the folder that holds the first run. What cannot be drawn is listed with the reason,
    including folders that are not runs. Raises Refusal if none of `runs` is a run folder.
    """
    if not runs:
        raise Refusal("runs is empty: name run folders, e.g. `openjepa report --scaling runs/*`")
    if len(runs) > MAX_RUNS:
        raise Refusal(f"runs has {len(runs)} folders: at most {MAX_RUNS} fit on one page")
    folders: list[Run] = []
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


def render_scaling(folders: Sequence[Run], no_runs: Sequence[tuple[str, str]]) -> str:
    """The HTML of the page. `no_runs` holds the folders that are not runs, each with the reason."""
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
    """The quantities of a run in words, in the order of AXES; empty if unknown."""
    values = point.training.values
    return [shown(values[axis.name], axis) if axis.name in values else "" for axis in AXES]
