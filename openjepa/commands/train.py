"""The commands of a run, from training to report."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from openjepa.checks import check, remarks, value_problems
from openjepa.commands.parsing.arguments import (
    SHOWN_RECIPE,
    decided_by_file,
    given_settings,
    is_help,
    option_value,
    parse,
    parse_train,
    require,
    unless_help,
)
from openjepa.commands.parsing.paths import check_output_file, check_output_folder, check_subject
from openjepa.commands.recipes import recipe_groups
from openjepa.config import load_run_config
from openjepa.recipes import RECIPES, kept_by_file
from openjepa.settings.fields import CHOICES
from openjepa.settings.run import RunConfig
from openjepa.system.json_files import read_object
from openjepa.system.shell import command

TRAIN_HELP = """Trains an encoder on your images. The same command continues an interrupted run.

examples:
  openjepa train cpu-64 --data.path ~/photos
  openjepa train gpu-128 --data.path ~/photos --model.size base --dry-run
  openjepa train cpu-64 --data.source huggingface --data.path owner/name
  openjepa train ijepa-vitb16 --preset paper --data.path ~/imagenet
  openjepa train --config runs/cpu-64-default-photos/config.yaml
  openjepa train --init runs/cpu-64-default-photos --data.path ~/others

recipes (what each is: openjepa recipes; all settings: openjepa recipes NAME):
{recipes}

Every setting of a recipe can be changed. The defaults below are those of {shown}."""

TRAIN_DETAILS = """components (their options are shown when chosen before --help or --help-all):
{choices}

starting from weights instead of random ones (a run, a file of published weights, a Hugging Face folder, ...):
  openjepa train --init runs/cpu-64-default-photos --data.path ~/other-photos
  openjepa train gpu-224 --init IN1K-vit.h.14-300e.pth.tar \\
      --data.path ~/photos --optim.lr 1e-4 --dry-run
  openjepa train dino-gpu-224 --init dino_vits16_pretrain.pth \\
      --data.path ~/photos --optim.lr 1e-4

The model's settings follow the weights; rate and length are the recipe's. For weights of long training a lower --optim.lr
is the usual caution; the evaluation shows the weights of the start beside the result. More in docs/continue.md."""


VISUALIZE_HELP = """Masks on images, PCA maps of patch features, nearest neighbors before and
after training, as pictures.

example:
  openjepa visualize runs/cpu-64-default-photos"""


REPORT_HELP = """One self-contained HTML file on one run, or on several side by side.
Needs only the run folders, no torch. The folder of an encoder that was evaluated has a page too, of its numbers.

With --scaling: curves of accuracy against compute, time, images seen, data size and model size over any number of runs.

examples:
  openjepa report runs/cpu-64-default-photos
  openjepa report runs/first runs/second --output comparison.html
  openjepa report --scaling runs/* --output scaling.html"""


QUICKSTART_HELP = """Trains, evaluates, draws and reports the recipe `quickstart` on the packaged scenes. Nothing is downloaded.

example:
  openjepa quickstart"""


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """The arguments of `quickstart`."""

    output: Path = Path("runs")
    """Folder that holds the run folder."""
    total_steps: int | None = None
    """Optimizer steps. None: the recipe's."""
    fresh: bool = False
    """Start anew even if an earlier quickstart exists."""


def quickstart(argv: Sequence[str], prog: str) -> None:
    """Train, evaluate, visualize, report."""
    options = parse(QuickstartOptions, argv, prog, QUICKSTART_HELP, QuickstartOptions())
    check_output_folder(options.output)
    from openjepa.experiments.pipeline import quickstart as run_quickstart

    run_quickstart(output=options.output, total_steps=options.total_steps, fresh=options.fresh)


def train(argv: Sequence[str], prog: str) -> None:
    """Pretrains an encoder."""
    config, options = parse_train(argv, prog, *(_train_help(argv) if is_help(argv) else ("", "")))
    before = options.config or (Path(config.run.init) if config.run.init and not options.recipe else None)
    if before is not None:
        _note_kept(before, config)
    # a model that follows weights is known once these are read
    check(config, world_size=int(os.environ.get("WORLD_SIZE", "1")), is_model_known=config.run.init is None)
    given = given_settings(argv)
    for remark in remarks(config, given):
        print(f"note: {remark}", file=sys.stderr)
    from openjepa.training.loop import train as train_run

    given |= decided_by_file(options.config, config.run.init)
    folder = train_run(config, fresh=options.fresh, dry_run=options.dry_run, given=given)
    if folder is not None:
        labeled = (read_object(folder / "summary.json") or {}).get("labeled", True)
        print(f"next: {command('openjepa', 'evaluate' if labeled else 'visualize', folder)}")


def _train_help(argv: Sequence[str]) -> tuple[str, str]:
    """What the help says of the command, and what else with --help-all."""
    recipes = [f"  {title:<24}{', '.join(names)}" for title, names in recipe_groups().items()]
    file = option_value(argv, "config")
    is_file = file is not None and unless_help(argv, lambda: bool(load_run_config(file)), lambda: False)
    shown = next((name for name in argv if name in RECIPES), "the file" if is_file else SHOWN_RECIPE)
    choices = [f"  --{name}.{choice.field} {' | '.join(choice.options)}" for name, choice in CHOICES.items()]
    return TRAIN_HELP.format(recipes="\n".join(recipes), shown=shown), TRAIN_DETAILS.format(choices="\n".join(choices))


def _note_kept(file: Path, config: RunConfig) -> None:
    """Says that settings of the file stay though others that they followed have changed, and what would follow now.

    Nothing if values are impossible, from which nothing follows: `check` refuses them.
    """
    said = load_run_config(file)
    if value_problems(said) or value_problems(config):
        return
    if follows := kept_by_file(said, config):
        options = " ".join(f"--{name.replace('_', '-')} {_option_value(value)}" for name, value in follows.items())
        print(f"note: what {file} says stays; to follow the changed settings, give {options}", file=sys.stderr)


def _option_value(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, kw_only=True)
class VisualizeOptions:
    """The arguments of `visualize`."""

    subject: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = Path()
    """Run folder."""
    num_images: int = 8
    """Images in each picture (1 to 24)."""
    seed: int = 0
    """Seed of the choice of images."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `mps`."""


def visualize(argv: Sequence[str], prog: str) -> None:
    """Draws the pictures of a run."""
    options = parse(VisualizeOptions, require(VisualizeOptions, argv, "RUN", prog), prog, VISUALIZE_HELP, VisualizeOptions())
    check_subject(options.subject, "config.yaml")
    from openjepa.visualization import visualize_run

    for path in visualize_run(options.subject, options.num_images, options.seed, options.device):
        print(path)


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """The arguments of `report`."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")] = ()
    """Run folders."""
    output: Path | None = None
    """The HTML file. None: report.html in the run's folder, for several runs in the folder that holds the first; scaling.html
    there with --scaling."""
    scaling: bool = False
    """Curves over the runs instead of a report on each: accuracy against what a run has used."""


def report(argv: Sequence[str], prog: str) -> None:
    """Writes the HTML report."""
    options = parse(ReportOptions, require(ReportOptions, argv, "RUN", prog), prog, REPORT_HELP, ReportOptions())
    check_output_file(options.output, ".html")
    from openjepa.report import write_report, write_scaling

    write = write_scaling if options.scaling else write_report
    print(write(options.runs, options.output))
