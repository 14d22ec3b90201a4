"""The command `openjepa evaluate`, and its results as tables in the terminal, which fit into 80 columns."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from openjepa.commands.parsing.arguments import Unprefixed, check_evaluated, data_of, given_settings, parse, require, subject_of
from openjepa.config import nearest_names
from openjepa.evaluation.tasks import with_current_names
from openjepa.records import MEASURES, OUR_METHOD, SIGMA, SUBJECT_NAMES, Metric, Published, Result, compares
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.protocols import PROTOCOLS, evaluation_remarks, evaluation_settings, usual_protocols
from openjepa.settings.sources import DataSettings, FolderSettings
from openjepa.system.console import plain_console, say

EVALUATE_HELP = """Probes of an encoder, beside the same on the untrained encoder and on raw pixels. ENCODER: an encoder folder,
a file of published weights, a Hugging Face folder or a name on the Hub.

examples:
  openjepa evaluate runs/cpu-64-default-photos
  openjepa evaluate runs/cpu-64-default-photos --neighbors 10 20
  openjepa evaluate runs/mine/encoder --data.source folder --data.path ~/labeled
  openjepa evaluate runs/mine --suite cached --data-root ~/datasets
  openjepa evaluate IN1K-vit.h.14-300e.pth.tar --suite paper \\
      --data-root ~/datasets
  torchrun --nproc-per-node 8 -m openjepa evaluate runs/mine \\
      --protocols linear-full finetune

protocols (--protocols; {usual} unless said otherwise):
{protocols}

tasks (all that the data has labels for, unless --tasks names some):
{tasks}"""

EVALUATE_DETAILS = """suites (--suite, with --data-root) and their rows, which --tasks can choose from:
{suites}

folders below --data-root (those that are missing are skipped):
{benchmarks}"""


EVALUATE_COMMON = (
    *("data.path", "data.source", "tasks", "protocols", "suite", "data_root", "again", "selection", "seeds"),
    *("image_size", "neighbors", "max_train_images", "encoder", "device", "workers"),
)
"""The options that the help shows without --help-all, in this order."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The arguments of `openjepa evaluate`."""

    subject: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|ENCODER")] = Path()
    """Run folder, encoder folder, file of published weights, Hugging Face folder, or name on the Hub."""
    suite: str | None = None
    """Evaluate on the rows of a suite instead of the run's own images: `paper`, `cached` or `dense` (see above)."""
    data_root: str | None = None
    """Folder that holds one folder per data set, as unpacked from its archive (see above). Needed by --suite."""
    again: bool = False
    """Compute all rows of a suite again, even those already finished with the same weights, settings and data."""
    evaluation: Annotated[EvaluationSettings, Unprefixed] = field(default_factory=lambda: evaluation_settings()())
    data: DataSettings = field(default_factory=FolderSettings)


def _evaluate_help() -> tuple[str, str]:
    """The help of the command, and the text that --help-all adds."""
    from openjepa.data.datasets.benchmarks import BENCHMARKS
    from openjepa.evaluation.tasks import SUITES, TASKS

    text = EVALUATE_HELP.format(
        usual=" and ".join(usual_protocols(on_maps=False)),
        protocols="\n".join(f"  {name:<16}{entry.summary}" for name, entry in PROTOCOLS.items()),
        tasks="\n".join(f"  {name:<16}{task.title}" for name, task in TASKS.items()),
    )
    details = EVALUATE_DETAILS.format(
        suites="\n".join(f"  {name:<16}{', '.join(row.name for row in rows)}" for name, rows in SUITES.items()),
        benchmarks="\n".join(f"  {item.folders[0]:<16}{item.layout}" for item in BENCHMARKS.values()),
    )
    return text, details


def parse_evaluate(
    argv: Sequence[str], prog: str, description: str, details: str = "", check: Callable[[Path], object] = Path
) -> tuple[EvaluateOptions, DataSettings | None]:
    """The options of `openjepa evaluate`, and its data settings. These are None, for the run's own, if none is given.

    Given data settings override those of the run's `config.yaml`, if there is one. `check`: may refuse the subject before the
    options are read, because they depend on its data.
    """
    argv = require(EvaluateOptions, argv, "a run folder or the folder of an encoder", prog)
    defaults = EvaluateOptions(data=data_of(subject_of(argv, check), argv))
    options = parse(EvaluateOptions, argv, prog, description, defaults, details, EVALUATE_COMMON)
    return options, options.data if any(name.startswith("data.") for name in given_settings(argv)) else None


def evaluate(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa evaluate`: probes an encoder."""
    options, data = parse_evaluate(argv, prog, *_evaluate_help(), check=check_evaluated)
    _check_evaluation_options(options, data is not None)
    options = replace(options, evaluation=with_current_names(options.evaluation, say))
    reads = {name: entry.reads for name, entry in PROTOCOLS.items()}
    unpooled = [name for name, entry in PROTOCOLS.items() if not entry.pools]
    for remark in evaluation_remarks(options.evaluation, _protocols(options), reads, unpooled):
        say(f"note: {remark}")
    from openjepa.engine import distributed
    from openjepa.engine.device import resolve_device

    # one process may solve a probe for hours while the others wait
    with distributed.joined(resolve_device(options.evaluation.device), distributed.PATIENT_SECONDS):
        results = _evaluated(options, data)
        print_results(results)
    if any(result.failed for result in results):
        sys.exit(1)
    if all(result.skipped is not None for result in results):
        sys.exit(2)


def _evaluated(options: EvaluateOptions, data: DataSettings | None) -> list[Result]:
    from openjepa.evaluation.evaluation_run import evaluate_run
    from openjepa.evaluation.suite_run import evaluate_suite

    if options.suite is None:
        return evaluate_run(options.subject, options.evaluation, data, say)
    assert options.data_root is not None
    return evaluate_suite(
        options.subject, options.suite, Path(options.data_root), options.evaluation, say, print_row, options.again
    )


def _protocols(options: EvaluateOptions) -> set[str]:
    """All protocols that may run."""
    from openjepa.evaluation.tasks import suite_rows

    if options.evaluation.protocols or options.suite is None:
        return set(options.evaluation.protocols or (*usual_protocols(on_maps=False), *usual_protocols(on_maps=True)))
    return {name for row in suite_rows(options.suite, options.evaluation.tasks) for name in row.protocols}


def _check_evaluation_options(options: EvaluateOptions, has_data: bool) -> None:
    """Raises Refusal if a suite lacks its data or is combined with other data, or if a task is not among its rows."""
    from openjepa.evaluation.tasks import SUITES, TASKS, suite_rows

    if options.suite is None and options.data_root is not None:
        raise Refusal(f"--data-root {options.data_root} has no effect without --suite ({' or '.join(SUITES)})")
    if options.suite is None and options.again:
        raise Refusal("--again has no effect without --suite: other evaluations are always computed anew")
    if options.suite is not None and options.data_root is None:
        raise Refusal("--suite needs --data-root, the folder that holds one folder per data set (see --help)")
    if options.suite is not None and has_data:
        raise Refusal("--suite and --data.* both say what to evaluate on: leave out one")
    if options.suite is not None:
        suite_rows(options.suite, options.evaluation.tasks)
    elif unknown := [name for name in options.evaluation.tasks if name not in TASKS]:
        raise Refusal(f"--tasks {unknown[0]} does not exist: {nearest_names(unknown[0], TASKS)}")


# ----------------------------------------------------------------------------------------------------------------------- tables


SELECTION_NOTES = {"both": "held_out; paper where the probe's name says so"}
GAP = 2
"""Characters between two columns: one for the box, one for padding."""
NARROWEST_NAME = 12
"""Smallest width of the probe's name in characters. Narrower terminals fold the numbers."""


def percent_with_error(metric: Metric) -> str:
    """Value and standard error in percent, such as `61.4 ± 0.5`; then a sigma and the standard deviation over seeds."""
    spread = f" {SIGMA}{100 * metric.spread:.1f}" if metric.spread is not None else ""
    error = f" ± {100 * metric.standard_error:.1f}" if metric.standard_error is not None else ""
    return f"{100 * metric.value:.1f}{error}{spread}"


def follows_published(result: Result, metric: Metric) -> bool:
    """True if a number follows a published protocol of its row: the same probe, and no departure."""
    return not result.departures and compares(metric.probe, {item.protocol for item in result.published})


def print_row(result: Result, console: Console | None = None) -> None:
    """Prints a finished row in one line, before the tables of all rows."""
    numbers = result.subjects["encoder"].metrics if "encoder" in result.subjects else {}
    words = (
        ", ".join(f"{name} {percent_with_error(metric)}" for name, metric in numbers.items()) or f"skipped, {result.skipped}"
    )
    (console or plain_console()).print(f"{_title(result)}: {words}")


def print_results(results: Sequence[Result], console: Console | None = None) -> None:
    """Prints every number in percent with its standard error, beside the baselines; then the paper's numbers, and remarks."""
    console = console or plain_console()
    done = [result for result in results if result.skipped is None]
    for selection in dict.fromkeys(result.selection for result in done):
        for measure in MEASURES:
            _print_numbers([result for result in done if result.selection == selection], measure, selection, console)
    if any(result.published for result in done):
        _print_beside([result for result in done if result.published], console)
    if any(result.measures for result in done):
        _say("Quality without labels, features of the test images", console, "italic")
        console.print(_without_labels([result for result in done if result.measures]))
    for result in done:
        _print_remarks(result, console)
    if done:
        _say("majority: always answering the most frequent class of the training images", console, "dim")
    if any("start" in result.subjects for result in done):
        _say("start: the weights that the run began from; untrained: random ones", console, "dim")
    for result in results:
        if result.skipped is not None:
            _say(f"{_title(result)}: skipped, {result.skipped}", console, "yellow")


def _say(line: str, console: Console, style: str = "") -> None:
    console.print(line, style=style)


def _print_remarks(result: Result, console: Console) -> None:
    for name, metric in result.subjects["encoder"].metrics.items():
        which = "best head of the first seed" if metric.seeds > 1 else "best head"
        _say(f"{_title(result)}, {name}: {which} {metric.chosen}", console, "dim")
    if any(result.dropped.values()):
        lost = ", ".join(f"{number} of {split}" for split, number in result.dropped.items() if number)
        _say(f"{_title(result)}: unreadable images left out: {lost}", console, "yellow")
    if result.variant:
        # a folded name could not be copied
        console.print(f"{_title(result)}: not the run's own, kept as eval/{result.file_name}", soft_wrap=True)


def _print_numbers(results: Sequence[Result], measure: str, selection: str, console: Console) -> None:
    """Prints one block of lines per task under one heading. All blocks have the same column widths."""
    blocks = [(result, probes) for result in results if (probes := _probes(result, measure))]
    if not blocks:
        return
    subjects = [name for name in SUBJECT_NAMES if any(name in result.subjects for result in results)]
    seeds = sorted({result.subjects["encoder"].metrics[probe].seeds for result, probes in blocks for probe in probes} - {1})
    spread = f" and {SIGMA}, the standard deviation over {' or '.join(map(str, seeds))} seeds" if seeds else ""
    _say(
        f"{MEASURES[measure]} in % ± standard error{spread}, selection: {SELECTION_NOTES.get(selection, selection)}",
        console,
        "italic",
    )
    lines = [(probe, *(_cell(result, name, probe) for name in subjects)) for result, probes in blocks for probe in probes]
    headings = ("probe", *(SUBJECT_NAMES[name] for name in subjects))
    widths = _widths([headings, *lines], console.width)
    console.print(_grid(headings, widths, has_head=True))
    for result, probes in blocks:
        # the task has its own line: as a column beside the numbers of several seeds it would be cut at 80 columns
        _say(f"{_title(result)} ({result.num_test:,} images, majority {100 * result.chance:.1f})", console, "bold")
        table = _grid(headings, widths, has_head=False)
        for probe in probes:
            table.add_row(probe, *(_cell(result, name, probe) for name in subjects))
        console.print(table)
    console.print()


def _probes(result: Result, measure: str) -> list[str]:
    return [name for name, metric in result.subjects["encoder"].metrics.items() if metric.measure == measure]


def _widths(lines: Sequence[Sequence[str]], most: int) -> list[int]:
    """Widths of the columns: that of their longest cell. If the sum exceeds `most`, the first column folds."""
    longest = [max(map(len, column)) for column in zip(*lines, strict=True)]
    room = most - sum(longest[1:]) - GAP * len(longest[1:])
    return [max(NARROWEST_NAME, min(longest[0], room)), *longest[1:]]


def _grid(headings: Sequence[str], widths: Sequence[int], has_head: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False, pad_edge=False, show_header=has_head)
    for number, (heading, width) in enumerate(zip(headings, widths, strict=True)):
        table.add_column(heading, width=width, justify="right" if number else "left", overflow="fold")
    return table


def _cell(result: Result, subject: str, metric: str) -> str:
    """A subject's number, or `-`: protocols that work on images have no number for pixels."""
    numbers = result.subjects.get(subject)
    return percent_with_error(numbers.metrics[metric]) if numbers is not None and metric in numbers.metrics else "-"


def _print_beside(results: Sequence[Result], console: Console) -> None:
    """Prints our numbers, I-JEPA's published numbers of the same row, and the best of another method, one line each."""
    _say("Beside published numbers (I-JEPA, arXiv 2301.08243), in %", console, "italic")
    blocks = [[*_our_lines(result), *_their_lines(result.published)] for result in results]
    names, values = (max(len(line[column]) for lines in blocks for line in lines) for column in (0, 1))
    for result, lines in zip(results, blocks, strict=True):
        _say(_title(result), console, "bold")
        if result.departures:
            _say(f"not the published protocol: {', '.join(result.departures)}", console, "yellow")
        table = Table(box=None, padding=(0, 1, 0, 1), show_edge=False, pad_edge=False, show_header=False)
        table.add_column(width=names)
        table.add_column(width=values, justify="right")
        table.add_column()
        for line in lines:
            table.add_row(*line)
        console.print(table)
    console.print()


def _our_lines(result: Result) -> list[tuple[str, str, str]]:
    return [
        (
            f"ours: {metric.probe}",
            percent_with_error(metric),
            f"{metric.selection}, {'the paper' if follows_published(result, metric) else 'not the paper'}'s protocol",
        )
        for metric in result.subjects["encoder"].metrics.values()
    ]


def _their_lines(published: Sequence[Published]) -> list[tuple[str, str, str]]:
    ordered = sorted(published, key=lambda item: -item.value)
    same = [item for item in ordered if item.method == OUR_METHOD]
    others = [item for item in ordered if item.method != OUR_METHOD]
    return [*(_their_line(item, "") for item in same), *(_their_line(item, "best other: ") for item in others[:1])]


def _their_line(item: Published, what: str) -> tuple[str, str, str]:
    epochs = f", {item.epochs} epochs" if item.epochs else ""
    return f"{what}{item.method} {item.architecture}", f"{item.value:.1f}", f"{item.source}{epochs}"


def _without_labels(results: Sequence[Result]) -> Table:
    """A table of the measures of the test images' features that need no labels."""
    names = list(dict.fromkeys(name for result in results for numbers in result.measures.values() for name in numbers))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("task")
    table.add_column("features of")
    for name in names:
        table.add_column(name, justify="right")
    for result in results:
        for subject, numbers in result.measures.items():
            cells = [f"{numbers[name]:.2f}" if name in numbers else "-" for name in names]
            table.add_row(_title(result), SUBJECT_NAMES.get(subject, subject), *cells)
    return table


def _title(result: Result) -> str:
    """The title, with the pooling if it is not the encoder's own, because a table may show both poolings."""
    pooling = str(result.settings.get("pooling", "own"))
    return result.title if pooling == "own" else f"{result.title}, {pooling.replace('_', ' ')}"
