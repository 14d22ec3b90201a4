"""The command line: parses, then calls one function. torch is imported by the functions that need it, after parsing."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import openjepa
from openjepa.engine.interrupts import Interrupted

Command = Callable[[Sequence[str]], None]

USAGE = """openjepa {version}: train I-JEPA encoders on your images, probe them, and look at them.

usage: openjepa COMMAND [OPTIONS]

{commands}

openjepa COMMAND --help explains a command and every setting of it.

examples:
  openjepa quickstart                                     train, probe and report on the packaged scenes
  openjepa train cpu-64 --data.path ~/photos              a recipe on a folder of images
  openjepa evaluate runs/cpu-64-default-folder            k-NN and linear probes beside their baselines
  openjepa visualize runs/cpu-64-default-folder           masks, feature maps, neighbors as pictures
  openjepa report runs/cpu-64-default-folder              one HTML file with everything"""

RECIPES_HELP = """Train an encoder. The recipe comes first, then any setting to change.

recipes and their presets (the first is the default):
{recipes}

components (their options are shown when chosen before --help):
{choices}

examples:
  openjepa train cpu-64 --data.path ~/photos
  openjepa train gpu-128 --data.source huggingface --data.path owner/name --model.size base
  openjepa train ijepa-vitb16 --preset paper --data.path ~/imagenet --dry-run
  openjepa train --config runs/cpu-64-default-folder/config.yaml

The same command continues an interrupted run."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `openjepa`: runs one command. Exits with 2 on a mistake in the settings, 130 when interrupted."""
    warnings.formatwarning = _format_warning
    try:
        _dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Interrupted as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `openjepa ... | head` closed the pipe; what Python still holds must not be flushed into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("OPENJEPA_DEBUG"):
            raise
        print(f"openjepa: {error}", file=sys.stderr)
        sys.exit(2)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our warnings are meant for the user: no file, no line of code."""
    return f"note: {message}\n" if category is UserWarning else f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _dispatch(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
    elif argv[0] in ("--version", "version"):
        print(openjepa.__version__)
    elif argv[0] in COMMANDS:
        COMMANDS[argv[0]][1](argv[1:])
    else:
        from openjepa.config import nearest

        raise ValueError(f"unknown command {argv[0]!r}: {nearest(argv[0], COMMANDS)} (see openjepa --help)")


def _usage() -> str:
    lines = [f"  {name:<12}{text}" for name, (text, _) in COMMANDS.items()]
    return USAGE.format(version=openjepa.__version__, commands="\n".join(lines))


def _train_help() -> str:
    from openjepa.recipes import RECIPES
    from openjepa.settings.choices import CHOICES

    recipes = [f"  {name:<18}{' | '.join(recipe.presets):<20}{recipe.summary()}" for name, recipe in RECIPES.items()]
    choices = [f"  --{name}.{choice.field} {' | '.join(choice.options)}" for name, choice in CHOICES.items()]
    return RECIPES_HELP.format(recipes="\n".join(recipes), choices="\n".join(choices))


def train(argv: Sequence[str]) -> None:
    """`openjepa train`."""
    from openjepa.arguments import parse_train
    from openjepa.checks import check, remarks

    config, options = parse_train(argv, "openjepa train", _train_help())
    check(config, world_size=int(os.environ.get("WORLD_SIZE", "1")))
    for remark in remarks(config):
        print(f"note: {remark}", file=sys.stderr)
    from openjepa.training.loop import train as train_run

    folder = train_run(config, fresh=options.fresh, dry_run=options.dry_run)
    if not options.dry_run:
        print(f"next: openjepa evaluate {folder}")


def evaluate(argv: Sequence[str]) -> None:
    """`openjepa evaluate`."""
    from openjepa.arguments import parse_evaluate

    description = """k-NN and linear probes on frozen features, beside the same on the untrained encoder and on raw pixels.

examples:
  openjepa evaluate runs/NAME
  openjepa evaluate runs/NAME/encoder --data.source folder --data.path ~/labeled"""
    options, data = parse_evaluate(argv, "openjepa evaluate", description)
    from openjepa.evaluation.suite import evaluate_run, print_results

    print_results(evaluate_run(options.subject, options.evaluation, data))


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """Train, evaluate, visualize and report on the packaged scenes. Nothing is downloaded."""

    output: Path = Path("runs")
    """Folder that holds the run folder."""
    total_steps: int | None = None
    """Optimizer steps. None: the recipe's."""
    fresh: bool = False
    """Start anew even if an earlier quickstart exists."""


def quickstart(argv: Sequence[str]) -> None:
    """`openjepa quickstart`."""
    from openjepa.arguments import parse

    description = "Train, evaluate, visualize and report on the packaged scenes. Nothing is downloaded."
    options = parse(QuickstartOptions, argv, "openjepa quickstart", description, QuickstartOptions())
    from openjepa.experiments import quickstart as run_quickstart

    run_quickstart(output=options.output, total_steps=options.total_steps, fresh=options.fresh)


COMMANDS: dict[str, tuple[str, Command]] = {
    "quickstart": ("train, evaluate and report on the packaged scenes, in a few minutes", quickstart),
    "train": ("train an encoder on your images", train),
    "evaluate": ("k-NN and linear probes of an encoder", evaluate),
}
