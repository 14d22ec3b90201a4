"""The command `openjepa quickstart`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from openjepa.commands.parsing.arguments import check_output_folder, parse
from openjepa.settings.ranges import AT_LEAST_1

QUICKSTART_HELP = """Trains, evaluates, draws and reports the recipe `quickstart` on the packaged scenes. Nothing is downloaded.

example:
  openjepa quickstart"""


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """The arguments of `openjepa quickstart`."""

    output: Path = Path("runs")
    """Folder that holds the run folder."""
    total_steps: Annotated[int | None, AT_LEAST_1] = None
    """Optimizer steps. None: the recipe's."""
    fresh: bool = False
    """Start a new run even if an earlier quickstart exists."""


def quickstart(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa quickstart`: train, evaluate, visualize, report."""
    options = parse(QuickstartOptions, argv, prog, QUICKSTART_HELP, QuickstartOptions())
    check_output_folder(options.output)
    from openjepa.experiments.pipeline import quickstart as run_quickstart

    run_quickstart(output=options.output, total_steps=options.total_steps, fresh=options.fresh)
