"""The page of scaling curves: accuracy against what training used, over any set of run folders."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from markupsafe import Markup

from openjepa import __version__
from openjepa.refusals import Refusal
from openjepa.report.reading import RunFolder, distinct, read_run, text
from openjepa.report.rendering import render
from openjepa.report.scaling import Group, Point, scaling
from openjepa.report.scaling_charts import charts, constants, shown
from openjepa.report.scatter import NUM_SERIES_COLORS, Scatter, draw_scatter
from openjepa.report.training import AXES
from openjepa.report.wording import PROBE_WORDS, SELECTION_WORDS
from openjepa.system.whole_files import whole_file

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
    return render("scaling.html", values)


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
