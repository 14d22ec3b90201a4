"""Results of an evaluation as tables in the terminal."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from openjepa.evaluation.results import Metric, Result

SUBJECT_NAMES = {"encoder": "trained", "untrained": "untrained", "pixels": "pixels"}
SELECTION_WORDS = {"both": "held_out; paper where the probe's name says so"}


def percent(metric: Metric) -> str:
    """`61.4 ± 0.5`, in percent; with several seeds `61.4 ± 0.5 (3 seeds: 0.2)`."""
    seeds = f" ({metric.seeds} seeds: {100 * metric.spread:.1f})" if metric.spread is not None else ""
    return f"{100 * metric.value:.1f} ± {100 * metric.standard_error:.1f}{seeds}"


def print_results(results: Sequence[Result], console: Console | None = None) -> None:
    """One table over all tasks, in percent with the standard error, baselines beside; then the paper's numbers, and remarks."""
    console = console or Console()
    done = [result for result in results if result.skipped is None]
    for selection in dict.fromkeys(result.selection for result in done):
        console.print(_table([result for result in done if result.selection == selection], selection))
    if any(result.published for result in done):
        console.print(_beside_the_paper([result for result in done if result.published]))
    if any(result.measures for result in done):
        console.print(_without_labels([result for result in done if result.measures]))
    for result in done:
        _print_remarks(result, console)
    if done:
        console.print("majority: always answering the most frequent class of the training images", style="dim", highlight=False)
    for result in results:
        if result.skipped is not None:
            console.print(f"{result.title}: skipped, {result.skipped}", style="yellow", highlight=False)


def _print_remarks(result: Result, console: Console) -> None:
    for name, metric in result.subjects["encoder"].metrics.items():
        console.print(f"{result.title}, {name}: best head {metric.chosen}", style="dim", highlight=False)
    if any(result.dropped.values()):
        lost = ", ".join(f"{number} of {split}" for split, number in result.dropped.items() if number)
        console.print(f"{result.title}: unreadable images left out: {lost}", style="yellow", highlight=False)
    if result.variant:
        console.print(f"{result.title}: not the run's own, kept as eval/{result.file_name}", highlight=False)


def _new_table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,  # no lines between the columns: 80 characters must hold the longest title beside five numbers
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )


def _table(results: Sequence[Result], selection: str) -> Table:
    subjects = [name for name in SUBJECT_NAMES if any(name in result.subjects for result in results)]
    words = SELECTION_WORDS.get(selection, selection)
    table = _new_table(f"Accuracy in % ± standard error, selection: {words}")
    table.add_column("task")  # folds between words
    table.add_column("probe", no_wrap=True)
    for heading in (*(SUBJECT_NAMES[name] for name in subjects), "majority"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        for metric in result.subjects["encoder"].metrics:
            cells = [_cell(result, name, metric) for name in subjects]
            table.add_row(f"{result.title} ({result.num_test:,} images)", metric, *cells, f"{100 * result.chance:.1f}")
    return table


def _cell(result: Result, subject: str, metric: str) -> str:
    """A number of a subject; protocols that work on images have none for pixels."""
    numbers = result.subjects.get(subject)
    return percent(numbers.metrics[metric]) if numbers is not None and metric in numbers.metrics else "-"


def _beside_the_paper(results: Sequence[Result]) -> Table:
    """Ours beside the published numbers of the same row."""
    table = _new_table("Beside published numbers (I-JEPA, arXiv 2301.08243), in %")
    table.add_column("task")
    table.add_column("ours", no_wrap=True)
    table.add_column("published")
    for result in results:
        ours = ", ".join(f"{name} {100 * metric.value:.1f}" for name, metric in result.subjects["encoder"].metrics.items())
        theirs = ", ".join(f"{item['method']} {item['architecture']} {item['value']}" for item in result.published)
        table.add_row(result.title, ours, theirs)
    return table


def _without_labels(results: Sequence[Result]) -> Table:
    """What the features of the test images say without labels."""
    table = _new_table("Quality without labels, features of the test images")
    names = list(dict.fromkeys(name for result in results for numbers in result.measures.values() for name in numbers))
    table.add_column("task")
    table.add_column("features of")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        for subject, numbers in result.measures.items():
            cells = [f"{numbers[name]:.2f}" if name in numbers else "-" for name in names]
            table.add_row(result.title, SUBJECT_NAMES.get(subject, subject), *cells)
    return table
