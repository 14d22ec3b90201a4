"""The commands `openjepa bench ...`."""

from collections.abc import Sequence

from openjepa.arguments import (
    option_value,
    parse,
)
from openjepa.commands.paths import check_output_file
from openjepa.settings.bench import SAID_BY_THE_RECIPE, DataBench, StepBench

BENCH_STEP_HELP = """Times a training step and its parts: images/s, FLOPs, memory, and its share of the rate of a matrix
product that is measured in the same rounds.

examples:
  openjepa bench step
  openjepa bench step cpu-64
  openjepa bench step --size base --batch-size 16 --compile"""


BENCH_DATA_HELP = """Times decoding and cropping against Pillow with the same filter, and the loader end to end.

examples:
  openjepa bench data
  openjepa bench data --path ~/photos"""


def bench_step(argv: Sequence[str], prog: str) -> None:
    """Times a training step."""
    options = parse(StepBench, argv, prog, BENCH_STEP_HELP, StepBench())
    for name in SAID_BY_THE_RECIPE if options.recipe else ():
        if (value := option_value(argv, name)) is not None:
            given = f"--{name.replace('_', '-')} {value}"
            raise ValueError(f"{given} has no effect: the recipe {options.recipe} says it; leave out one of the two")
    check_output_file(options.output, ".json")
    from openjepa.bench import time_step

    time_step(options)


def bench_data(argv: Sequence[str], prog: str) -> None:
    """Times the data path."""
    options = parse(DataBench, argv, prog, BENCH_DATA_HELP, DataBench())
    from openjepa.bench_data import time_data

    time_data(options)
