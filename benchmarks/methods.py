"""Time of one step of every method in the same small run: `OMP_NUM_THREADS=1 python -m benchmarks.methods [RECIPE]`.

The run is that of an I-JEPA recipe (default: cpu-32), which `with_method` converts to each method. Encoder, data and batch stay
the same; masks, crops, colors and heads are the method's. In every round, each method in turn takes a step and loads a batch on
one thread. Figures are processor time, so that other programs hardly count. Ratios are computed within a round.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from benchmarks.records import keep, origin
from openjepa.experiments.generated_photos import timed_source
from openjepa.experiments.step_times import step_config
from openjepa.methods import METHODS
from openjepa.settings.experiments import StepBench
from openjepa.training.timed_steps import TimedStep
from openjepa.types import LoaderPosition

FIRST = "ijepa"
"""The method that the others are compared with."""


@dataclass(frozen=True)
class Options:
    """What is compared."""

    recipe: Annotated[str, tyro.conf.Positional] = "cpu-32"
    """A recipe of I-JEPA."""
    repeats: int = 7
    """Rounds."""
    output: Path | None = None
    """JSON file."""


def main() -> None:
    """Runs and prints."""
    options = tyro.cli(Options)
    result = compare(options)
    keep(result, options.output)


def compare(options: Options) -> dict[str, Any]:
    """FLOPs, images per second of step and views, and both beside I-JEPA's, by method."""
    steps, loads = {}, {}
    for name in METHODS:
        bench = StepBench(recipe=options.recipe, method=name, device="cpu", threads=1)  # type: ignore[arg-type]
        steps[name] = TimedStep(step_config(bench))
        source = timed_source(steps[name].config)
        batches = steps[name].loader(source, torch.device("cpu")).iterate(0, LoaderPosition(), options.repeats + 1)
        loads[name] = lambda batches=batches: next(batches)
    seconds = _seconds(steps, loads, options.repeats)
    images = steps[FIRST].config.optim.batch_size
    return {
        **origin(),
        "clock": "process",
        "precision": steps[FIRST].precision,
        "recipe": options.recipe,
        "batch_size": images,
        "repeats": options.repeats,
        "methods": {name: _row(steps[name], seconds, name, images) for name in METHODS},
    }


def _seconds(
    steps: dict[str, TimedStep], loads: dict[str, Callable[[], object]], repeats: int
) -> dict[tuple[str, str], list[float]]:
    """Processor seconds of each round, by method and by `step` or `views`; the round before them warms up."""
    seconds: dict[tuple[str, str], list[float]] = {(name, what): [] for name in steps for what in ("step", "views")}
    for number in range(repeats + 1):
        for name, step in steps.items():
            for what, work in (("step", step.run), ("views", loads[name])):
                start = time.process_time()
                work()
                if number:
                    seconds[name, what].append(time.process_time() - start)
    return seconds


def _row(step: TimedStep, seconds: dict[tuple[str, str], list[float]], name: str, images: int) -> dict[str, Any]:
    def ratio(above: tuple[str, str], below: tuple[str, str]) -> float:
        return statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))

    gflops = {part: value / 1e9 for part, value in step.costs.flops.items()}
    return {
        "views": {key: f"{view.count} x {view.size[0]}x{view.size[1]}" for key, view in step.method.inputs().views.items()},
        "forward_gflops_per_image": gflops,
        "step_gflops_per_image": step.costs.step_flops / 1e9,
        "step_images_per_second": images / statistics.median(seconds[name, "step"]),
        "views_images_per_second": images / statistics.median(seconds[name, "views"]),
        "views_over_step": ratio((name, "views"), (name, "step")),
        f"step_over_{FIRST}": ratio((name, "step"), (FIRST, "step")),
        f"views_over_{FIRST}": ratio((name, "views"), (FIRST, "views")),
    }


if __name__ == "__main__":
    main()
