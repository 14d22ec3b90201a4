"""The command `openjepa runs`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from openjepa.commands.parsing.arguments import parse, positionals_first
from openjepa.refusals import Refusal
from openjepa.settings.fields import POSITIVE

RUNS_HELP = """Lists the runs below a folder: which of them train, are finished or stuck, and how far they are.
Reads only the run folders, no torch, so that it also works on copies of runs of other machines.

states: alive, stuck (no step for ten logging intervals), finished, interrupted, failed, never started

examples:
  openjepa runs
  openjepa runs runs/ablation --watch 10
  openjepa runs --json"""


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
    from openjepa.engine.run_states import print_runs

    print_runs(options.folder, options.json, options.watch)
