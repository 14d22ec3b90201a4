"""The picture of an ablation: published numbers beside ours, every seed as a point. An SVG file for light and dark pages."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path
from textwrap import wrap

from markupsafe import Markup

from openjepa.experiments.ablations.ablation_tables import BUDGETS, PROBE_COLUMNS, RunResult, read_results, tables, values_of
from openjepa.recipes.ablations import ABLATIONS, Ablation
from openjepa.report.svg import Scale, at, circle, path, words
from openjepa.system.shared_files import whole_file

LABELS, PANEL, GAP = 190, 130, 22
"""Widths of the column with the names of rows, of a panel, and of the space between two panels."""
HEAD, ROW, FOOT, LINE = 62, 26, 26, 15
"""Heights above the rows, of a row, of the numbers below the rows, and of a line of text below these."""
LETTER = 5.6
"""Mean width of a letter of the text below."""
MOST_TICKS = 4
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}"><style>{}</style>{}</svg>"""
STYLE = """\
svg { font: 12px system-ui, sans-serif; background: #fff }
text { fill: #333 } .tick { fill: #777; font-size: 10px } .title { font-weight: 600; font-size: 13px }
.grid { stroke: #ddd } .untrained { stroke: #999; stroke-dasharray: 3 3 } .range { stroke-width: 2; stroke: #1f6fb2 }
.ours { fill: #1f6fb2 } .seed { fill: #fff; stroke: #1f6fb2 } .published { fill: #b5651d }
@media (prefers-color-scheme: dark) {
svg { background: #16181c } text { fill: #ddd } .tick { fill: #999 } .grid { stroke: #33373d } .untrained { stroke: #888 }
.range { stroke: #6db3f2 } .ours { fill: #6db3f2 } .seed { fill: #16181c; stroke: #6db3f2 } .published { fill: #f0a35e } }"""


@dataclass(frozen=True)
class NumberPanel:
    """One number of all rows."""

    title: str
    values: Mapping[str, Sequence[float]]
    """Row -> the value of each seed, in %. A row may be missing."""
    kind: str
    """Class of its points: published or ours."""
    untrained: float | None = None
    """The same number of the untrained encoder."""


def write_picture(output: Path, name: str) -> Path | None:
    """Writes NAME.svg of the table at equal images, or of the one at equal time if it is the only one. None without runs."""
    ablation, results = ABLATIONS[name], read_results(output)
    found = tables(results, ablation.rows)
    if not found:
        return None
    budget = next(iter(found))
    with whole_file(output / f"{name}.svg") as file:
        file.write_text(picture(ablation, results, budget) + "\n", encoding="utf-8")
    return output / f"{name}.svg"


def picture(ablation: Ablation, results: Sequence[RunResult], budget: str) -> str:
    """The picture of one table as an <svg> element. Rows with the best published numbers come first."""
    panels = _panels(ablation, results, budget)
    rows = [row for row in ablation.rows if any(row in panel.values for panel in panels if panel.kind == "ours")]
    published = ablation.published()
    rows.sort(key=lambda row: -published.get(row, -1.0))
    width, bottom = LABELS + len(panels) * (PANEL + GAP), HEAD + ROW * len(rows) + FOOT
    parts = [words("title", 8, 20, ablation.title), words("tick", 8, HEAD - 10, ablation.column)]
    parts += [words("row", 8, _middle(number) + 4, ablation.rows[row].title) for number, row in enumerate(rows)]
    for panel, left in zip(panels, count(LABELS, PANEL + GAP), strict=False):
        parts += _drawn(panel, rows, left)
    below = f"{BUDGETS[budget]}, in %. Small circles: seeds. Dashed: the untrained encoder."
    lines = wrap(f"{below} Published: {ablation.source}." if published else below, int((width - 16) / LETTER))
    parts += [words("tick", 8, bottom + LINE * (number + 0.5), line) for number, line in enumerate(lines)]
    height = bottom + LINE * (len(lines) + 0.5)
    label = f"{ablation.title}: {', '.join(panel.title for panel in panels)}"
    return str(Markup(SVG).format(width, height, width, label, Markup(STYLE), Markup("").join(parts)))


def _panels(ablation: Ablation, results: Sequence[RunResult], budget: str) -> list[NumberPanel]:
    """The published numbers, if there are any, and each probe with numbers."""
    lines = {line.row: line.means for line in tables(results, ablation.rows)[budget]}
    published = {row: [value] for row, value in ablation.published().items() if row in lines}
    found = [NumberPanel("published", published, "published")] if published else []
    for column in PROBE_COLUMNS:
        seeds = values_of(results, ablation.rows, budget, column)
        values = {row: list(by_seed.values()) for row, by_seed in seeds.items() if by_seed}
        if values:
            found.append(NumberPanel(column, values, "ours", lines.get("untrained", {}).get(column)))
    return found


def _middle(number: int) -> float:
    """Height of the middle of a row."""
    return HEAD + ROW * (number + 0.5)


def _drawn(panel: NumberPanel, rows: Sequence[str], left: int) -> list[Markup]:
    low, high = _limits(panel)
    scale, bottom = Scale(low, high, left + 6, left + PANEL - 6), HEAD + ROW * len(rows)
    parts = [words("column", left, HEAD - 10, panel.title)]
    for tick in _ticks(low, high):
        parts.append(path("grid", f"M{at(scale(tick))} {HEAD}V{bottom}"))
        parts.append(words("tick", scale(tick), bottom + 14, f"{tick:g}", "middle"))
    if panel.untrained is not None:
        parts.append(path("untrained", f"M{at(scale(panel.untrained))} {HEAD}V{bottom}"))
    for number, row in enumerate(rows):
        values, y = panel.values.get(row, []), _middle(number)
        if len(values) > 1:
            parts.append(path("range", f"M{at(scale(min(values)))} {at(y)}H{at(scale(max(values)))}"))
            parts += [circle("seed", scale(value), y, 2.5) for value in values]
        if values:
            parts.append(circle(panel.kind, scale(statistics.fmean(values)), y, 4.5))
    return parts


def _limits(panel: NumberPanel) -> tuple[float, float]:
    values = [value for found in panel.values.values() for value in found]
    values += [] if panel.untrained is None else [panel.untrained]
    margin = max(0.08 * (max(values) - min(values)), 0.25)
    return min(values) - margin, max(values) + margin


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between the limits, at most `MOST_TICKS`."""
    steps = (step * 10**power for power, step in product(range(-1, 4), (1, 2, 5)))
    step = next(step for step in steps if (high - low) / step <= MOST_TICKS)
    return [number * step for number in range(int(low // step) + 1, int(high // step) + 1)]
