"""Pretraining: the command, its help, and notes on what a file of settings keeps."""

import os
from collections.abc import Sequence
from pathlib import Path

from openjepa.checks import check, remarks, value_problems
from openjepa.commands.parsing.arguments import (
    SHOWN_RECIPE,
    decided_by_file,
    given_settings,
    is_help,
    option_value,
    parse_train,
    unless_help,
)
from openjepa.commands.recipes import recipe_groups
from openjepa.config import load_run_config
from openjepa.recipes import RECIPES, kept_by_file
from openjepa.records import read_summary
from openjepa.settings.run import CHOICES, RunConfig
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


def train(argv: Sequence[str], prog: str) -> None:
    """Pretrains an encoder."""
    from openjepa.system.console import say

    config, options = parse_train(argv, prog, *(_train_help(argv) if is_help(argv) else ("", "")))
    before = options.config or (Path(config.run.init) if config.run.init and not options.recipe else None)
    if before is not None:
        _note_kept(before, config)
    # a model that follows weights is known once these are read
    check(config, world_size=int(os.environ.get("WORLD_SIZE", "1")), is_model_known=config.run.init is None)
    given = given_settings(argv)
    for remark in remarks(config, given):
        say(f"note: {remark}")
    from openjepa.training.loop import train as train_run

    given |= decided_by_file(options.config, config.run.init)
    folder = train_run(config, fresh=options.fresh, dry_run=options.dry_run, given=given)
    if folder is not None:
        labeled = read_summary(read_object(folder / "summary.json") or {}).labeled is not False
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
    from openjepa.system.console import say

    said = load_run_config(file)
    if value_problems(said) or value_problems(config):
        return
    if follows := kept_by_file(said, config):
        options = " ".join(f"--{name.replace('_', '-')} {_option_value(value)}" for name, value in follows.items())
        say(f"note: what {file} says stays; to follow the changed settings, give {options}")


def _option_value(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
