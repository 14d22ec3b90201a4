"""The command `openjepa report`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from openjepa.commands.parsing.arguments import check_output_file, parse, require

REPORT_HELP = """One self-contained HTML file on one run, or on several side by side.
Needs only the run folders, no torch. The folder of an encoder that was evaluated has a page too, of its numbers.

With --scaling: curves of accuracy against compute, time, images seen, data size and model size over any number of runs.

examples:
  openjepa report runs/cpu-64-default-photos
  openjepa report runs/first runs/second --output comparison.html
  openjepa report --scaling runs/* --output scaling.html"""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """The arguments of `openjepa report`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")] = ()
    """Run folders."""
    output: Path | None = None
    """HTML file to write. None: report.html in the run's folder, or beside the first run if there are several. With --scaling
    the name is scaling.html."""
    scaling: bool = False
    """Draw curves over the runs instead of a report on each: accuracy against what a run has used."""


def report(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa report`: writes the HTML report."""
    options = parse(ReportOptions, require(ReportOptions, argv, "RUN", prog), prog, REPORT_HELP, ReportOptions())
    check_output_file(options.output, ".html")
    from openjepa.report import write_report, write_scaling

    write = write_scaling if options.scaling else write_report
    print(write(options.runs, options.output))
