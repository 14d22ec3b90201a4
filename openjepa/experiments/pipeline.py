"""Experiments composed of the stages. Each stage reads the run folder that the previous one wrote."""

from dataclasses import replace
from pathlib import Path

from openjepa.checks import check
from openjepa.recipes import load_recipe
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.run import RunConfig


def quickstart(output: Path = Path("runs"), total_steps: int | None = None, fresh: bool = False) -> Path:
    """Trains the `quickstart` recipe on the packaged scenes, evaluates it, draws pictures and writes the report.

    Returns the report's path. `total_steps` changes the length of the training; warm-up and moving average scale with it. A
    finished training is not repeated.
    """
    return run_through(quickstart_config(output, total_steps), EvaluationSettings(), fresh)


def quickstart_config(output: Path, total_steps: int | None) -> RunConfig:
    """The `quickstart` recipe with `total_steps` steps, in the folder `output`."""
    config = load_recipe("quickstart")
    if total_steps is not None:
        config = replace(config, optim=replace(config.optim, total_steps=total_steps))
    return replace(config, run=replace(config.run, name=config.run.name or "quickstart", output=str(output)))


def run_through(config: RunConfig, evaluation: EvaluationSettings, fresh: bool = False) -> Path:
    """Trains, evaluates, draws and reports a run. Returns the report's path."""
    check(config)
    from openjepa.evaluation.evaluation_run import evaluate_run
    from openjepa.evaluation.tables import print_results
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
