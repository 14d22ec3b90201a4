"""A training step beside the same step written plainly: `python -m benchmarks.step [--batch-size 32] [--clock process]`.

Four versions take turns in every round: ours in bf16 and fp32, and the plain one in bf16 autocast and fp32. A 4096-cubed bf16
product is also timed in every round. Figures are medians over the rounds, and ratios are computed within a round. On a shared
machine, `--clock process --threads 1` counts processor time instead.
"""

import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro

from benchmarks.plain_step import PlainStep
from benchmarks.records import keep, origin
from openjepa.experiments.step_times import step_config
from openjepa.methods.ijepa import IJepa
from openjepa.settings.experiments import StepBench
from openjepa.training.timed_steps import TimedStep
from openjepa.types import Batch, BlockMasks

SIZE = 4096
"""Side of the matrices of the product."""


@dataclass(frozen=True)
class Options:
    """What is compared."""

    batch_size: int = 32
    """Images per step."""
    size: str = "small"
    """Encoder."""
    image_size: int = 224
    """Pixels."""
    predictor_width: int = 192
    """Width of the six-layer predictor."""
    repeats: int = 7
    """Rounds."""
    threads: int | None = None
    """None: all cores."""
    clock: str = "wall"
    """`wall` or `process` (processor time)."""
    fp32: bool = True
    """Also time fp32."""
    output: Path | None = None
    """JSON file."""


def main() -> None:
    """Runs and prints."""
    options = tyro.cli(Options)
    result = compare(options)
    keep(result, options.output)


def compare(options: Options) -> dict[str, object]:
    """Images per second of every version and the ratios of each round."""
    bench = StepBench(
        size=options.size,  # type: ignore[arg-type]
        image_size=options.image_size,
        batch_size=options.batch_size,
        predictor_width=options.predictor_width,
        repeats=options.repeats,
        threads=options.threads,
        device="cpu",
    )
    config = step_config(bench)
    versions = {"ours bf16": _ours(TimedStep(_with_precision(config, "bf16")))}
    step = TimedStep(_with_precision(config, "fp32"))
    versions["plain bf16"] = _plain(step, "bf16")
    if options.fp32:
        versions |= {"ours fp32": _ours(step), "plain fp32": _plain(step, "fp32")}
    left, right = torch.randn(SIZE, SIZE).bfloat16(), torch.randn(SIZE, SIZE).bfloat16()
    versions["matmul"] = lambda: torch.mm(left, right)
    clock = time.process_time if options.clock == "process" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    for number in range(options.repeats + 1):
        for name, work in versions.items():
            start = clock()
            work()
            if number:  # the first round warms up
                seconds[name].append(clock() - start)
    return _summary(seconds, options, step)


def _with_precision(config, precision):  # type: ignore[no-untyped-def]
    return replace(config, run=replace(config.run, precision=precision))


def _ours(step: TimedStep):  # type: ignore[no-untyped-def]
    return lambda: step.run()


def _plain(step: TimedStep, precision: str):  # type: ignore[no-untyped-def]
    method = step.method
    assert isinstance(method, IJepa)
    plain = PlainStep(method.encoder_config, method.predictor_config)
    batch: Batch = step.batch.normalized(step.config.data.pixel_mean, step.config.data.pixel_std)
    masks = batch.masks["image"]
    assert isinstance(masks, BlockMasks)
    images = batch.views["image"][0]
    return lambda: plain.run(images, masks.context, masks.targets, precision)


def _summary(seconds: dict[str, list[float]], options: Options, step: TimedStep) -> dict[str, object]:
    flops = step.costs.step_flops
    steps = [name for name in seconds if name != "matmul"]

    def ratio(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[above], seconds[below], strict=True))

    return {
        **origin(),
        "clock": options.clock,
        "repeats": options.repeats,
        "model": f"{options.size}/16 at {options.image_size}, predictor {options.predictor_width} x 6",
        "batch_size": options.batch_size,
        "tokens": [step.shape.context, step.shape.num_targets, step.shape.target],
        "gflops_per_image": flops / 1e9,
        "matmul_gflops_per_second": 2 * SIZE**3 / statistics.median(seconds["matmul"]) / 1e9,
        "images_per_second": {name: options.batch_size / statistics.median(seconds[name]) for name in steps},
        "share_of_bf16_matmul": {name: flops * options.batch_size / (2 * SIZE**3) / ratio(name, "matmul") for name in steps},
        "speed_of_ours_bf16_over": {name: ratio(name, "ours bf16") for name in steps if name != "ours bf16"},
    }


if __name__ == "__main__":
    main()
