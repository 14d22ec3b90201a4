"""The command `openjepa ablate`."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from openjepa.commands.parsing.arguments import (
    check_output_folder,
    normalized,
    option_value,
    parse,
    require,
    select_component,
    unless_help,
)
from openjepa.recipes import load_recipe
from openjepa.recipes.ablations import ABLATIONS, ablation_rows
from openjepa.refusals import Refusal
from openjepa.settings.experiments import AblationSettings

ABLATE_HELP = """Trains the same run several times with one thing changed, evaluates every encoder, and writes a table at equal
images seen and one at equal training time.

examples:
  openjepa ablate methods --data.path ~/photos --dry-run
  openjepa ablate methods --data.path ~/photos --images 100000 --seeds 3
  openjepa ablate methods --recipe cpu-64 --rows mae dino \\
      --data.path ~/photos --seconds none

names:
{names}

Columns: linear and k-NN on the run's own images and on scenes (Clevr/Count and Clevr/Dist), RankMe, speed, FLOPs; the untrained
encoder and raw pixels beside them. Before the first run, speeds are measured in turns: short steps of every row in every round.
From them follow the steps of the table at equal time. Writes the run folders, tables.md, tables.json, results.json and
scaling.html.

The same command goes on where it was stopped and skips what is done. Started in several terminals (with --system.threads 1,
say), the processes share the runs. A run that fails does not end the others; the command then exits with 1."""


ABLATE_COMMON = (
    *("data.path", "data.source", "recipe", "rows", "images", "seconds", "seeds", "probe_images", "output"),
    *("dry_run", "device", "system.threads"),
)
"""The options that the help shows without --help-all, in this order."""


def ablate(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa ablate`: trains, evaluates and compares the rows of an ablation."""
    argv = require(AblationSettings, argv, f"the name of an ablation ({', '.join(ABLATIONS)})", prog)
    for setting in ("method.name", "masks.strategy"):
        if setting in map(normalized, argv):
            raise Refusal(f"--{setting} has no effect: the rows of an ablation say it; use --rows to choose some of them")
    name, preset = option_value(argv, "recipe") or AblationSettings.recipe, option_value(argv, "preset")
    config = unless_help(argv, lambda: load_recipe(name, preset), lambda: load_recipe(AblationSettings.recipe))
    config = replace(config, data=select_component(config.data, "data", argv))
    start = AblationSettings(data=config.data, model=config.model, system=config.system)
    names = "\n".join(f"  {name:<10}{item.title}: {', '.join(item.names)}" for name, item in ABLATIONS.items())
    options = parse(AblationSettings, argv, prog, ABLATE_HELP.format(names=names), start, common=ABLATE_COMMON)
    ablation_rows(options.ablation, config, options.rows)
    check_output_folder(options.output)
    from openjepa.experiments.ablation import run_ablation

    if run_ablation(config, options):
        sys.exit(1)
