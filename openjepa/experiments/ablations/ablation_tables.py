"""The results of an ablation's runs, one file each, and the tables made from them. Does not import torch.

One table has all numbers, the other one the differences to the first row beside the published numbers. Both are written as
Markdown and JSON beside the runs and printed in the terminal, where they fit into 100 columns.
"""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from openjepa.config import lenient, readable_object
from openjepa.experiments.ablations.ablation_lengths import PlannedRun
from openjepa.experiments.ablations.ablation_verdict import Paired, order_words, ordering, paired
from openjepa.recipes.ablations import ABLATIONS, Ablation
from openjepa.report import write_scaling
from openjepa.settings.protocols import PROTOCOLS
from openjepa.system import shared_files
from openjepa.system.console import format_count, format_seconds, plain_console
from openjepa.system.shared_files import whole_file

RESULTS = "results"
"""Folder that holds one file for every run."""
Numbers = Mapping[str, float]
BUDGETS = {"images": "At equal images seen", "seconds": "At equal training time"}
PROTOCOLS_OF_ROWS = ("linear", "knn")
"""Protocols that every run is evaluated with, whichever are usual elsewhere: its tables hold only these."""
TASKS_OF_ROWS = {"classification": "", "clevr_count": "Count ", "clevr_dist": "Dist "}
"""Task -> what its columns begin with."""
PROBE_COLUMNS = {
    f"{words}{PROTOCOLS[name].metric}": f"{task}/{name}" for task, words in TASKS_OF_ROWS.items() for name in PROTOCOLS_OF_ROWS
}
"""Name of the number in each column."""
WIDTH = 100
"""Width of a table in the terminal in characters. If the terminal is narrower, lines are folded and not cut."""
COSTS = ("images/s", "GFLOPs", "images", "step s", "total s")
COLUMNS = (*PROBE_COLUMNS, "rank", *COSTS)
SHOWN = COLUMNS[:-1]
"""Columns that fit into `WIDTH` in the terminal."""
LEGEND = """linear and k-NN: accuracy in % on the run's own test images; Count and Dist: the same probes on scenes (objects, and
distance of the nearest). rank: RankMe of the features. images/s: measured in turns. GFLOPs: of an image in a step. step s:
seconds of the steps alone, which are made equal. total s (in the file): with looks and saving. """
UNTRAINED = "untrained: the encoder of the first row before training."


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run: its costs and the numbers of its encoder, or the reason why it failed."""

    name: str
    """Name of its folder."""
    row: str
    seed: int
    budgets: tuple[str, ...]
    """Tables that it belongs to."""
    status: Literal["finished", "failed"]
    error: str = ""
    written: float = 0.0
    """Time of writing in seconds since 1970."""
    steps: int = 0
    images: int = 0
    """Images seen."""
    seconds: float = 0.0
    """Seconds of the training steps including the data path, without monitoring and saving."""
    total_seconds: float = 0.0
    """Seconds of training including monitoring and saving. 0 in results of older versions."""
    planned_seconds: float = 0.0
    """Seconds that the training should have taken at the measured speed."""
    images_per_second: float = 0.0
    """Speed, measured in turns with the other rows before the first run."""
    flops: float = 0.0
    """FLOPs per image in a training step."""
    evaluation_seconds: float = 0.0
    numbers: Numbers = field(default_factory=dict)
    """Numbers of the encoder: accuracies between 0 and 1, such as `classification/linear`, and `rank`."""
    errors: Numbers = field(default_factory=dict)
    """Standard error of each accuracy, from the number of test images."""
    references: Mapping[str, Numbers] = field(default_factory=dict)
    """The same numbers of the baselines `untrained` and `pixels`. Results on disk have this name."""


@dataclass(frozen=True)
class TableLine:
    """One row of a table."""

    row: str
    seeds: int
    means: Numbers
    """Mean of each column. Unknown numbers are missing."""
    spreads: Numbers
    """Standard deviation over seeds of the probes' columns, if there are several seeds."""


def write_result(output: Path, result: RunResult) -> None:
    """Writes the file of one run."""
    with whole_file(output / RESULTS / f"{result.name}.json") as file:
        file.write_text(json.dumps(asdict(result), indent=1) + "\n")


def read_run_result(output: Path, name: str) -> RunResult | None:
    """The result of a run; None if the run has not ended yet."""
    return lenient(RunResult, readable_object(output / RESULTS / f"{name}.json"))


def read_results(output: Path) -> list[RunResult]:
    """The results of all ended runs, in order of their names."""
    found = (lenient(RunResult, readable_object(path)) for path in sorted((output / RESULTS).glob("*.json")))
    return [result for result in found if result is not None]


def claimed_work(output: Path, name: str, wait: bool = False) -> AbstractContextManager[bool]:
    """True while this process holds the lock of `name` in the ablation. Released when the block ends or the process dies.

    If `wait` is True, waits until other processes have released the lock, so that the value is always True.
    """
    return shared_files.claimed(output / ".claims", name, wait)


def tables(results: Sequence[RunResult], order: Iterable[str]) -> dict[str, list[TableLine]]:
    """The lines of each table by its budget, from the finished runs. Lines of the baselines stand below."""
    order = list(order)
    done = [result for result in results if result.status == "finished" and result.row in order]
    baselines = _baselines(done)
    found = {}
    for budget in BUDGETS:
        belonging = [result for result in done if budget in result.budgets]
        rows = {row: [result for result in belonging if result.row == row] for row in order}
        lines = [_line(row, [_columns(result) for result in group]) for row, group in rows.items() if group]
        if lines:
            found[budget] = [*lines, *baselines]
    return found


def _baselines(results: Sequence[RunResult]) -> list[TableLine]:
    names = dict.fromkeys(name for result in results for name in result.references)
    return [
        _line(name, [_probe_columns(result.references[name]) for result in results if name in result.references])
        for name in names
    ]


def _columns(result: RunResult) -> dict[str, float]:
    costs = (result.images_per_second, result.flops / 1e9, float(result.images), result.seconds, result.total_seconds)
    known = {column: cost for column, cost in zip(COSTS, costs, strict=True) if cost > 0}  # older results lack the total
    return _probe_columns(result.numbers) | known


def _probe_columns(numbers: Numbers) -> dict[str, float]:
    """The accuracies in percent, and the rank."""
    shares = {column: 100 * numbers[name] for column, name in PROBE_COLUMNS.items() if name in numbers}
    return shares | ({"rank": numbers["rank"]} if "rank" in numbers else {})


def _line(row: str, runs: Sequence[Mapping[str, float]]) -> TableLine:
    values = {column: [run[column] for run in runs if column in run] for column in COLUMNS}
    means = {column: statistics.fmean(found) for column, found in values.items() if found}
    spreads = {
        column: statistics.stdev(found) for column, found in values.items() if column in PROBE_COLUMNS and len(found) > 1
    }
    return TableLine(row, len(runs), means, spreads)


def cells(line: TableLine, most_seeds: int, title: str, columns: Sequence[str] = COLUMNS) -> list[str]:
    """The cells of a row called `title`. A row with fewer seeds than others says so."""
    name = title if line.seeds == most_seeds else f"{title} ({line.seeds})"
    return [name, *(_cell(line, column) for column in columns)]


def known_columns(lines: Sequence[TableLine], columns: Sequence[str] = COLUMNS) -> list[str]:
    """Those of `columns` of which a line has a number."""
    return [column for column in columns if any(column in line.means for line in lines)]


def _cell(line: TableLine, column: str) -> str:
    if column not in line.means:
        return "-"
    value = line.means[column]
    if column in PROBE_COLUMNS:
        return f"{value:.1f}" + (_spread(line.spreads[column]) if column in line.spreads else "")
    if column == "images":
        return format_count(value)
    return f"{value:.2f}" if column == "GFLOPs" else f"{value:.0f}"


def _spread(value: float) -> str:
    return f"±{value:.1f}" if value < 9.95 else f"±{value:.0f}"  # so that the widest table still fits


def caption(budget: str, lines: Sequence[TableLine], results: Sequence[RunResult]) -> str:
    """The caption of a table: its budget, its number of seeds, and the uncertainty of its numbers."""
    seeds = max(line.seeds for line in lines)
    words = f"{BUDGETS[budget]}, one seed" if seeds == 1 else f"{BUDGETS[budget]}, mean ± standard deviation of {seeds} seeds"
    errors = [
        f"{name} {100 * max(found):.1f}"
        for name, start in (("own test images", "classification/"), ("scenes", "clevr_"))
        if (found := [error for result in results for key, error in result.errors.items() if key.startswith(start)])
    ]
    return f"{words}; largest standard error of one run: {', '.join(errors)}" if errors else words


def failures(ablation: Ablation, results: Sequence[RunResult]) -> list[str]:
    """The failed runs of an ablation, each with its error."""
    failed = [result for result in results if result.status == "failed" and result.row in ablation.rows]
    return [f"failed: {result.name}: {result.error}" for result in failed]


def write_tables(output: Path, name: str) -> None:
    """Writes the tables of the ablation `name` as NAME.md and NAME.json, and results.json, from the runs ended so far."""
    with claimed_work(output, "tables", wait=True):
        results = read_results(output)
        found = tables(results, ABLATIONS[name].rows)
        content: dict[str, Any] = {budget: [vars(line) for line in lines] for budget, lines in found.items()}
        content["compared"] = {budget: _compared(ABLATIONS[name], results, budget) for budget in found}
        _write(output / f"{name}.json", json.dumps(content, indent=1))
        _write(output / "results.json", json.dumps([vars(result) for result in results], indent=1))
        _write(output / f"{name}.md", markdown(ABLATIONS[name], found, results))


def _write(path: Path, text: str) -> None:
    with whole_file(path) as file:
        file.write_text(text + "\n")


def legend(ablation: Ablation, results: Sequence[RunResult]) -> str:
    """An explanation of the columns and of the lines below the rows, or of why there are none."""
    if any(result.references for result in results if result.row in ablation.rows):
        return LEGEND + UNTRAINED
    return f"{LEGEND}The untrained encoder and raw pixels are evaluated beside the row {ablation.first} only."


# -------------------------------------------------------------------------------------------- differences to the first row


def values_of(results: Sequence[RunResult], rows: Iterable[str], budget: str, column: str) -> dict[str, dict[int, float]]:
    """A column of the finished runs of one table by row and seed, rows in the order of `rows`."""
    found: dict[str, dict[int, float]] = {row: {} for row in rows}
    for result in results:
        known = _columns(result)
        if result.status == "finished" and budget in result.budgets and result.row in found and column in known:
            found[result.row][result.seed] = known[column]
    return found


def compared(ablation: Ablation, results: Sequence[RunResult], budget: str) -> dict[str, Paired]:
    """The rows of one table, compared seed by seed in each probe on the run's own images.

    If these have no classes, as scenes, in each probe on the scenes.
    """
    values = {column: values_of(results, ablation.rows, budget, column) for column in PROBE_COLUMNS}
    known = [column for column, found in values.items() if any(found.values())]
    own = [column for column in known if PROBE_COLUMNS[column].startswith("classification/")]
    return {column: paired(values[column]) for column in own or known}


def _compared(ablation: Ablation, results: Sequence[RunResult], budget: str) -> dict[str, Any]:
    """What NAME.json holds of the comparison of one table."""
    content: dict[str, Any] = {"published": ablation.published(), "source": ablation.source}
    for column, found in compared(ablation, results, budget).items():
        order = ordering(found, ablation.published())
        facts = {} if order is None else {**vars(order), "verdict": order.verdict}
        content[column] = {
            "differences": found.differences(ablation.first),
            "standard_error": found.error,
            "seeds": found.seeds,
            "ordering": facts,
        }
    return content


def difference_rows(ablation: Ablation, lines: Sequence[TableLine], found: Mapping[str, Paired]) -> list[list[str]]:
    """The table of differences to the first row: its heading, then its rows. Costs are relative to the first row."""
    with_published = bool(ablation.published())
    heading = [ablation.column, *(["published", "difference"] if with_published else [])]
    heading += [word for column in found for word in (column, "difference")]
    first = ablation.rows[ablation.first].published
    by_row = {line.row: line.means for line in lines}
    base = by_row.get(ablation.first, {})
    rows = [[*heading, "time an image", "FLOPs"]]
    for row, variant in ablation.rows.items():
        if row not in by_row:
            continue
        cells = [variant.title]
        if with_published:
            cells += _published_cells(variant.published, first)
        for column in found:
            cells += _difference_cells(row, by_row[row].get(column), found[column], ablation.first)
        costs = ((base.get("images/s"), by_row[row].get("images/s")), (by_row[row].get("GFLOPs"), base.get("GFLOPs")))
        rows.append([*cells, *(f"{top / below:.2f}" if top and below else "-" for top, below in costs)])
    return rows


def _published_cells(value: float | None, first: float | None) -> list[str]:
    if value is None:
        return ["-", "-"]
    return [f"{value:.1f}", "-" if first is None or value is first else f"{value - first:+.1f}"]


def _difference_cells(row: str, mean: float | None, found: Paired, first: str) -> list[str]:
    difference = found.differences(first).get(row)
    value = "-" if mean is None else f"{mean:.1f}"
    if difference is None or row == first:
        return [value, "-"]
    return [value, f"{difference:+.1f}" + ("" if found.error is None else f" ± {found.error:.1f}")]


def judgment(ablation: Ablation, found: Mapping[str, Paired]) -> list[str]:
    """Sentences on the differences: what their errors are, and whether the published ordering appears."""
    number = max((item.seeds for item in found.values()), default=0)
    seeds = f"{number} seeds that all rows have" if number != 1 else "one seed that all rows have"
    lines = [f"Differences to the first row over the {seeds}, ± their standard error from the spread between seeds."]
    if not ablation.published():
        return lines
    source = f"Published: {ablation.source}, in %."
    return [
        f"{lines[0]} {source}",
        *(order_words(ordering(item, ablation.published()), column) for column, item in found.items()),
    ]


# ------------------------------------------------------------------------------------------------- Markdown and the terminal


def markdown(ablation: Ablation, found: Mapping[str, Sequence[TableLine]], results: Sequence[RunResult]) -> str:
    """The text of NAME.md."""
    parts = [f"# {ablation.title}", legend(ablation, results)]
    for budget, lines in found.items():
        columns = known_columns(lines)
        parts += [f"## {BUDGETS[budget]}", caption(budget, lines, results)]
        parts.append(_markdown_table([[ablation.column, *columns], *_words(ablation, lines, columns)]))
        pairs = compared(ablation, results, budget)
        parts += [_markdown_table(difference_rows(ablation, lines, pairs)), "\n".join(judgment(ablation, pairs))]
    return "\n\n".join([*parts, *failures(ablation, results)])


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def print_tables(output: Path, name: str, console: Console | None = None) -> None:
    """Prints the tables in the terminal, and the name of their file."""
    console, ablation = console or _console(), ABLATIONS[name]
    results = read_results(output)
    for budget, lines in tables(results, ablation.rows).items():
        columns, pairs = known_columns(lines, SHOWN), compared(ablation, results, budget)
        console.print(Text(caption(budget, lines, results), "italic"))
        console.print(_terminal_table([[ablation.column, *columns], *_words(ablation, lines, columns)]))
        console.print(_terminal_table(difference_rows(ablation, lines, pairs)))
        for line in judgment(ablation, pairs):
            console.print(Text(line, "dim"))
    console.print(Text(legend(ablation, results).replace("\n", " "), "dim"))
    for line in failures(ablation, results):
        console.print(Text(line, "red"))
    console.print(f"{output / f'{name}.md'}", soft_wrap=True)


def _terminal_table(rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    table.add_column(rows[0][0])
    for column in rows[0][1:]:
        table.add_column(column.replace(" ", "\n").replace("/", "\n/"), justify="right")
    for row in rows[1:]:
        table.add_row(*row)
    return table


def _console() -> Console:
    return plain_console(width=max(WIDTH, plain_console().width))


def _words(ablation: Ablation, lines: Sequence[TableLine], columns: Sequence[str]) -> list[list[str]]:
    most = max(line.seeds for line in lines)
    titles = {row: variant.title for row, variant in ablation.rows.items()}
    return [cells(line, most, titles.get(line.row, line.row), columns) for line in lines]


def print_plan(ablation: Ablation, runs: Sequence[PlannedRun], results: Sequence[RunResult]) -> None:
    """Prints every run with its length and expected time, and the number of finished runs."""
    done = {result.name for result in results if result.status == "finished"}
    titles = {row: variant.title for row, variant in ablation.rows.items()}
    table = Table(ablation.column, "seed", "equal", "steps", "images", "images/s", "training", box=SIMPLE_HEAD, show_edge=False)
    for run in runs:
        length = (f"{run.config.optim.total_steps:,}", format_count(run.images), f"{run.speed.images_per_second:.0f}")
        time = "finished" if run.name in done else format_seconds(run.seconds)
        table.add_row(titles.get(run.row, run.row), str(run.seed), " and ".join(run.budgets), *length, time)
    console = _console()
    console.print(table)
    left = [run for run in runs if run.name not in done]
    evaluation = [result.evaluation_seconds for result in results if result.status == "finished"]
    known = f", and {format_seconds(len(left) * statistics.fmean(evaluation))} of evaluation" if evaluation else ""
    more = known or "; evaluations come on top"
    total = format_seconds(sum(run.seconds for run in left))
    console.print(f"{len(left)} of {len(runs)} runs left: {total} of training{more}, divided by the processes that share them")


def write_page(output: Path, names: Sequence[str]) -> None:
    """Writes scaling.html: every number against images seen, time and compute. Skipped if the report's package is missing."""
    folders = [output / name for name in names if (output / name / "eval").is_dir()]
    if not folders:
        return
    try:
        print(write_scaling(folders, output / "scaling.html"))
    except ValueError as error:
        print(f"note: no page of curves: {error}")
