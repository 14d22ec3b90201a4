"""The command `openjepa quickstart`: all stages, one after the other. Each reads the run folder that the previous one wrote."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from openjepa.checks import check
from openjepa.commands.parsing.arguments import check_output_folder, parse
from openjepa.recipes import load_recipe
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.fields import AT_LEAST_1
from openjepa.settings.run import RunConfig

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

    run_through(quickstart_config(options.output, options.total_steps), EvaluationSettings(), options.fresh)


def quickstart_config(output: Path, total_steps: int | None) -> RunConfig:
    """The `quickstart` recipe with `total_steps` steps, in the folder `output`."""
    config = load_recipe("quickstart")
    if total_steps is not None:
        config = replace(config, optim=replace(config.optim, total_steps=total_steps))
    return replace(config, run=replace(config.run, name=config.run.name or "quickstart", output=str(output)))


def run_through(config: RunConfig, evaluation: EvaluationSettings, fresh: bool = False) -> Path:
    """Trains, evaluates, draws and reports a run. Returns the report's path."""
    check(config)
    from openjepa.commands.evaluate import print_results
    from openjepa.evaluation.evaluation_run import evaluate_run
    from openjepa.report import write_report
    from openjepa.training.loop import train
    from openjepa.visualization import visualize_run

    print("1/4 training")
    folder = train(config, fresh=fresh)
    assert folder is not None  # only a dry run has no folder
    print("2/4 probes on frozen features, beside the untrained encoder and raw pixels")
    print_results(evaluate_run(folder, evaluation, None))
    print("3/4 pictures")
    visualize_run(folder)
    print("4/4 report")
    report = write_report([folder])
    print(f"open {report.resolve()}")
    return report
