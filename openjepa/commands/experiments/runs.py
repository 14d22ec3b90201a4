"""The command `openjepa runs`."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from openjepa.commands.parsing.arguments import parse, positionals_first
from openjepa.engine.run_states import RunState, State, list_runs
from openjepa.refusals import Refusal
from openjepa.settings.fields import POSITIVE
from openjepa.system.console import format_count, format_seconds, plain_console

RUNS_HELP = """Lists the runs below a folder: which of them train, are finished or stuck, and how far they are.
Reads only the run folders, no torch, so that it also works on copies of runs of other machines.

states: alive, stuck (no step for ten logging intervals), finished, interrupted, failed, never started

examples:
  openjepa runs
  openjepa runs runs/ablation --watch 10
  openjepa runs --json"""


STYLES: dict[State, str] = {
    "alive": "green",
    "stuck": "bold red",
    "finished": "",
    "interrupted": "yellow",
    "failed": "red",
    "never started": "dim",
}
WIDTH = 120
"""Columns of the table if it is not shown on a terminal."""


@dataclass(frozen=True, kw_only=True)
class RunsOptions:
    """The arguments of `openjepa runs`."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="[FOLDER]")] = Path("runs")
    """Folder with runs, at most three levels deep, or a run folder."""
    json: bool = False
    """Print JSON, for scripts. Unknown numbers are null; times are in seconds."""
    watch: Annotated[float | None, POSITIVE] = None
    """List them again after this number of seconds, until Ctrl-C."""


def runs(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa runs`: lists the runs below a folder with their states."""
    options = parse(RunsOptions, positionals_first(RunsOptions, argv, is_needed=False), prog, RUNS_HELP, RunsOptions())
    if options.json and options.watch is not None:
        raise Refusal(f"--watch {options.watch:g} has no effect with --json: call it again instead")
    if options.json:
        print(json.dumps([asdict(run) for run in list_runs(options.folder)], indent=1))
        return
    console = plain_console()
    if not console.is_terminal:
        console = plain_console(width=WIDTH)
    if options.watch is None:
        console.print(_shown(options.folder))
        return
    with suppress(KeyboardInterrupt), Live(_shown(options.folder), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(options.watch)
            live.update(_shown(options.folder), refresh=True)


def _shown(folder: Path) -> RenderableType:
    """A table of the runs, and below it a line for each that has more to say."""
    listed = list_runs(folder)
    if not listed:
        return Text(f"no run in {folder}: `openjepa train` writes them, to runs/ if nothing else is asked for")
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for name in ("done", "step", "img/s", "left", "processes", "loss", "saved"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in listed:
        table.add_row(_title(run), Text(run.state, STYLES[run.state]), *_numbers(run))
    notes = [Text(f"{run.name}: {run.reason}", STYLES[run.state]) for run in listed if run.reason]
    notes += [Text(f"{run.name}: cannot read {', '.join(run.damaged)}", "red") for run in listed if run.damaged]
    return Group(table, *notes)


def _title(run: RunState) -> Text:
    """The name of a run, with its recipe and method if the name does not say them."""
    known = [word for word in (run.recipe, run.method) if word and word not in run.name]
    known = known[:1] if known and known[0].startswith(run.method) else known
    return Text(run.name).append(f" ({' '.join(known)})" if known else "", "dim")


def _numbers(run: RunState) -> Iterator[str]:
    yield f"{100 * run.step // run.total_steps}%" if run.total_steps else ""
    yield f"{run.step}" + (f"/{run.total_steps}" if run.total_steps else "")
    yield "" if run.images_per_second is None else format_count(run.images_per_second)
    yield "" if run.seconds_left is None or run.state == "finished" else format_seconds(run.seconds_left)
    yield "" if run.processes is None else str(run.processes)
    yield "" if run.loss is None else f"{run.loss:.4f}"
    yield "" if run.checkpoint_age is None else format_seconds(run.checkpoint_age)
