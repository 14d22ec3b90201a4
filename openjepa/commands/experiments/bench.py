"""The commands `openjepa bench ...`."""

from collections.abc import Sequence

from openjepa.commands.parsing.arguments import (
    check_output_file,
    check_subject,
    option_value,
    parse,
    positionals_first,
    require,
)
from openjepa.refusals import Refusal
from openjepa.settings.experiments import SAID_BY_THE_RECIPE, DataBench, EnergyBench, StepBench

BENCH_STEP_HELP = """Times a training step and its parts: images/s, FLOPs, memory, and its share of the rate of a matrix
product that is measured in the same rounds.

examples:
  openjepa bench step
  openjepa bench step cpu-64
  openjepa bench step cpu-64 --method dino
  openjepa bench step --size base --batch-size 16 --compile"""


BENCH_DATA_HELP = """Times decoding and cropping against Pillow with the same filter, and the loader end to end; or, of a recipe
or method, the views of one image: crops of all sizes, their colors and masks.

examples:
  openjepa bench data
  openjepa bench data --path ~/photos
  openjepa bench data --recipe cpu-64 --method dino"""


BENCH_ENERGY_HELP = """The energy of compatible pairs (x, y of the same image) beside that
of others, before and after training: whether the method tells them apart, or has collapsed to a flat landscape. What x, y and
the energy are for each method: docs/methods.md. Writes energy.json into the run's folder, which the report shows.

examples:
  openjepa bench energy runs/cpu-64-default-photos
  openjepa bench energy runs/cpu-64-default-photos --images 1024 --device cpu"""


def bench_step(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa bench step`: times a training step."""
    options = parse(StepBench, positionals_first(StepBench, argv, is_needed=False), prog, BENCH_STEP_HELP, StepBench())
    for name in SAID_BY_THE_RECIPE if options.recipe else ():
        if (value := option_value(argv, name)) is not None:
            given = f"--{name.replace('_', '-')} {value}"
            raise Refusal(f"{given} has no effect: the recipe {options.recipe} says it; leave out one of the two")
    check_output_file(options.output, ".json")
    from openjepa.experiments.step_times import time_step

    time_step(options)


def bench_data(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa bench data`: times the data path."""
    options = parse(DataBench, argv, prog, BENCH_DATA_HELP, DataBench())
    from openjepa.experiments.data_times import time_data

    time_data(options)


def bench_energy(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa bench energy`: measures the energies of a run."""
    options = parse(EnergyBench, require(EnergyBench, argv, "RUN", prog), prog, BENCH_ENERGY_HELP, EnergyBench())
    check_subject(options.run, "config.yaml")
    from openjepa.experiments.energies import measure_energy

    measure_energy(options)
