"""The command `openjepa ablate`."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from openjepa.commands.parsing.arguments import (
    check_output_folder,
    is_help,
    normalized,
    option_value,
    parse,
    require,
    select_component,
    unless_help,
)
from openjepa.recipes import load_recipe
from openjepa.recipes.ablations import (
    ABLATIONS,
    Changes,
    Layers,
    Share,
    ablation_named,
    ablation_rows,
    parsed_changes,
    with_changes,
)
from openjepa.refusals import Refusal
from openjepa.settings.experiments import AblationSettings

ABLATE_HELP = """Trains the same run several times with one thing changed, evaluates every encoder, and writes a table at equal
images seen and one at equal training time.

examples:
  openjepa ablate --list
  openjepa ablate masks --data.path ~/photos --dry-run
  openjepa ablate methods --data.path ~/photos --images 100000 --seeds 3
  openjepa ablate methods --recipe cpu-64 --rows mae dino \\
      --data.path ~/photos --seconds none

names:
{names}

`openjepa ablate --list` prints the rows of each, with their settings and the published numbers.

Columns: linear and k-NN on the run's own images and on scenes (Clevr/Count and Clevr/Dist), RankMe, speed, FLOPs; the untrained
encoder and raw pixels beside them. Before the first run, speeds are measured in turns: short steps of every row in every round.
From them follow the steps of the table at equal time. Beside published numbers, a second table says whether their order
appears. Writes the run folders, NAME.md, NAME.json, NAME.svg, results.json and scaling.html.

The same command goes on where it was stopped and skips what is done. Started in several terminals (with --system.threads 1,
say), the processes share the runs. A run that fails does not end the others; the command then exits with 1."""


ABLATE_COMMON = (
    *("data.path", "data.source", "recipe", "rows", "images", "seconds", "seeds", "probe_images", "output"),
    *("dry_run", "device", "system.threads"),
)
"""The options that the help shows without --help-all, in this order."""


SHOWN = "cpu-32"
"""Recipe whose values the help shows if the command line names none that exists."""


def listed(name: str) -> str:
    """An ablation in words: its base, and the settings and the published number of each row."""
    ablation = ABLATIONS[name]
    common = [f"  all rows: {said(ablation.common)}"] if ablation.common else []
    source = [f"  published: {ablation.source}, in %"] if ablation.source else []
    rows = [
        f"  {row:<24}{item.title:<30}{_number(item.published):>5}  {said(item.changes)}" for row, item in ablation.rows.items()
    ]
    rows = [row.rstrip() for row in rows]
    return "\n".join([f"{name}: {ablation.title} ({ablation.base})", *common, *source, *rows])


def said(changes: Changes) -> str:
    """Changed settings in words."""
    return ", ".join(f"{name}={_value(value)}" for name, value in changes.items())


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    if isinstance(value, Layers):
        return f"{value.number} spread over the blocks" + (f" after {value.after:g} of the depth" if value.after else "")
    return f"{value.share:g} of the encoder's {value.of}" if isinstance(value, Share) else str(value)


def ablate(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa ablate`: trains, evaluates and compares the rows of an ablation."""
    if "--list" in argv and not is_help(argv):
        print("\n\n".join(map(listed, ABLATIONS)))
        return
    argv = require(AblationSettings, argv, f"the name of an ablation ({', '.join(ABLATIONS)})", prog)
    for setting in ("method.name", "masks.strategy"):
        if setting in map(normalized, argv):
            raise Refusal(f"--{setting} has no effect: the rows of an ablation say it; use --rows to choose some of them")
    recipe, preset = option_value(argv, "recipe"), option_value(argv, "preset")
    config = unless_help(argv, lambda: load_recipe(recipe or ablation_named(argv[0]).base, preset), lambda: load_recipe(SHOWN))
    config = replace(config, data=select_component(config.data, "data", argv))
    start = AblationSettings(data=config.data, model=config.model, system=config.system)
    names = "\n".join(f"  {name:<17}{item.title}" for name, item in ABLATIONS.items())
    options = parse(AblationSettings, argv, prog, ABLATE_HELP.format(names=names), start, common=ABLATE_COMMON)
    ablation_rows(options.ablation, with_changes(config, parsed_changes(options.set)), options.rows)
    check_output_folder(options.output)
    from openjepa.experiments.ablations.ablation_run import run_ablation

    if run_ablation(config, options):
        sys.exit(1)
