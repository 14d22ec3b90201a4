"""Times a training step and its parts, relative to the rate of a matrix product that is measured in the same rounds."""

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from rich.filesize import decimal
from rich.table import Table

from openjepa.checks import check
from openjepa.engine.costs import times_contexts
from openjepa.engine.device import device_name, peak_memory, resolve_precision
from openjepa.engine.run_folder import environment
from openjepa.experiments.generated_photos import timed_source
from openjepa.recipes import load_recipe
from openjepa.recipes.matched import with_method
from openjepa.settings.derived import resolve
from openjepa.settings.experiments import StepBench
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import ModelSettings
from openjepa.settings.run import OptimizationSettings, RunConfig
from openjepa.settings.sources import FolderSettings, is_without_path
from openjepa.system.console import plain_console
from openjepa.system.shared_files import whole_file
from openjepa.training.startup import masks_line
from openjepa.training.timed_steps import PartTimer, TimedStep, measure
from openjepa.types import LoaderPosition


def step_config(options: StepBench) -> RunConfig:
    """The run whose step is timed. Raises Refusal if an option has no effect or is out of range, or if the run cannot work."""
    options.check()
    config = load_recipe(options.recipe, options.preset) if options.recipe else _at_sizes(options)
    config = with_method(config, options.method or config.method.name)
    run = replace(config.run, device=options.device, precision=options.precision, compile=options.compile)
    config = replace(config, run=run, system=replace(config.system, threads=options.threads))
    without_path = is_without_path(config.data)
    check(replace(config, data=replace(config.data, path="generated")) if without_path else config)  # type: ignore[call-arg]
    config = resolve(config)
    if options.recipe:  # one microbatch is timed, because gradient accumulation only repeats it
        optim = config.optim
        config = replace(config, optim=replace(optim, batch_size=optim.microbatch_size or optim.batch_size))
    return config


def _at_sizes(options: StepBench) -> RunConfig:
    """A run of I-JEPA with the sizes of the options."""
    return RunConfig(
        method=IJepaSettings(predictor_width=options.predictor_width, predictor_depth=options.predictor_depth),
        model=ModelSettings(size=options.size, patch_size=options.patch_size),
        data=FolderSettings(image_size=options.image_size),
        optim=OptimizationSettings(batch_size=options.batch_size),
    )


def time_step(options: StepBench) -> None:
    """The command `openjepa bench step`: measures, prints, and writes a JSON file if one was asked for."""
    result = bench_step(step_config(options), options.repeats)
    print_step(result)
    if options.output is not None:
        with whole_file(options.output) as file:
            file.write_text(json.dumps(result, indent=2) + "\n")


def bench_step(config: RunConfig, repeats: int = 7, product_size: int = 4096) -> dict[str, Any]:
    """Measures images per second, share of the matrix product's rate, peak memory, and the share of time of each part.

    Every round measures the product of two square matrices of side `product_size`, the data path, the masks and one step.
    Figures are medians over the rounds. The product is in bf16 if the hardware has it, whatever the run's precision. Blocks
    have their most frequent token counts. The data path (the views, and decoding unless `data.cache` keeps the pixels) runs in
    this process on one thread, so its figure is the time of one core. Images come from the run's data set, or are generated
    JPEGs if the settings name no data.
    """
    step = TimedStep(config)
    batches = step.loader(timed_source(config), torch.device("cpu")).iterate(0, LoaderPosition(), repeats + 1)
    load = one_threaded(lambda: next(batches))
    load()
    for _ in range(2):
        step.run()
    product = resolve_precision("auto", step.device)
    rounds = []
    for number in range(repeats):
        seconds = {"matmul_rate": matmul_rate(step.device, product, product_size, seconds=0.3)}
        drawing = measure(lambda number=number: step.draw(number), step.device)  # type: ignore[misc]
        loading = measure(load, step.device)
        timer = PartTimer(step.device)
        step.run(timer)
        # a GPU's step is timed as a whole, because waiting for the device after every part takes time
        whole = timer.total() if step.device.type == "cpu" else measure(step.run, step.device)
        data = loading - drawing if loading > drawing else loading  # on a busy machine the masks alone may once take longer
        seconds |= {"data": data, "masks": drawing, "step": whole, **timer.seconds}
        rounds.append(seconds)
    return _summary(step, rounds)


def matmul_rate(device: torch.device, precision: str, size: int = 4096, seconds: float = 1.0) -> float:
    """FLOP/s of a square matrix product, with which every reported speed is compared. Runs for about `seconds`."""
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    if precision == "bf16":
        left, right = left.bfloat16(), right.bfloat16()

    def multiply(repeats: int) -> float:
        return measure(lambda: [torch.mm(left, right) for _ in range(repeats)], device)

    with torch.no_grad():
        multiply(1)
        repeats = max(1, int(seconds / max(multiply(1), 1e-6)))
        return repeats * 2 * size**3 / multiply(repeats)


def one_threaded(work: Callable[[], object]) -> Callable[[], object]:
    """Wraps `work` so that it runs on one thread of torch, as in a loader worker."""

    def run() -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return work()
        finally:
            torch.set_num_threads(threads)

    return run


def _summary(step: TimedStep, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds. Shares are computed within each round first."""
    images, flops = step.config.optim.batch_size, step.costs.step_flops
    parts = [name for name in rounds[0] if name not in ("matmul_rate", "step")]
    whole = [sum(row[part] for part in parts) for row in rounds]
    where = environment(step.device, step.precision)
    return {
        "commit": where.commit,
        "date": where.started,
        "device": f"{step.device} ({device_name(step.device)})",
        "device_type": step.device.type,
        "precision": step.precision,
        "threads": step.threads,
        "torch": torch.__version__,
        "compiled": step.config.run.compile,
        "method": step.config.method.name,
        "model": f"{step.config.model.size}/{step.config.model.patch_size} at {step.view.size[0]}x{step.view.size[1]}",
        "masks": step.sampler.name,
        "tokens": asdict(step.shape),
        "masks_in_words": masks_line(step.config.masks.kind, step.sampler),
        "views": {name: f"{view.count} x {view.size[0]}x{view.size[1]}" for name, view in step.method.inputs().views.items()},
        "batch_size": images,
        "repeats": len(rounds),
        "flops_per_image": dict(step.costs.flops),
        "flops_per_image_and_step": flops,
        "contexts_per_image": step.costs.contexts,
        "images_per_second": statistics.median(images / row["step"] for row in rounds),
        "data_images_per_second": statistics.median(images / row["data"] for row in rounds),
        "cores_that_feed_the_step": statistics.median(row["data"] / row["step"] for row in rounds),
        "matmul_flops_per_second": statistics.median(row["matmul_rate"] for row in rounds),
        "share_of_matmul": statistics.median(images * flops / row["step"] / row["matmul_rate"] for row in rounds),
        "peak_memory_bytes": peak_memory(step.device),
        "seconds": {part: statistics.median(row[part] for row in rounds) for part in parts},
        "time_share": {
            part: statistics.median(row[part] / all_ for row, all_ in zip(rounds, whole, strict=True)) for part in parts
        },
    }


def print_step(result: dict[str, Any]) -> None:
    """Prints the result."""
    console = plain_console()
    console.print(
        f"{result['method']}, {result['model']}, batch {result['batch_size']}, {result['precision']} on {result['device']}"
    )
    views = ", ".join(f"{name} {sizes}" for name, sizes in result["views"].items())
    console.print(f"views: {views}; masks: {result['masks_in_words']}")
    parts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in result["flops_per_image"].items())
    contexts, flops = result["contexts_per_image"], result["flops_per_image_and_step"]
    each = f", {flops / contexts / 1e9:.2f} for each of {contexts} contexts" if contexts > 1 else ""
    console.print(f"GFLOPs an image and step: {flops / 1e9:.2f}{each} (forward of {parts})")
    # a CPU's allocator has no count, so the figure is for the process, including Python, the photos and the product's matrices
    peak = "peak memory of the process" if result["device_type"] == "cpu" else "peak memory"
    speed = f"{result['images_per_second']:.1f} images/s{times_contexts(contexts)}"
    console.print(
        f"{speed}, {result['share_of_matmul']:.0%} of a matrix product's "
        f"{result['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s, {peak} {decimal(result['peak_memory_bytes'])}"
    )
    cores = result["cores_that_feed_the_step"]
    held = ", so that the views hold the step back" if cores > 1 else ""
    console.print(
        f"one core makes the views of {result['data_images_per_second']:.1f} images/s, the step takes those of "
        f"{cores:.2f} cores{held}"
    )
    table = Table("part", "ms a step", "share", title=f"median of {result['repeats']} rounds; data and masks in one process")
    for part, seconds in result["seconds"].items():
        table.add_row(part.replace("_", " "), f"{1000 * seconds:.1f}", f"{result['time_share'][part]:.1%}")
    console.print(table)
