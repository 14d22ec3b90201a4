"""Times a training step and its parts, as a share of the rate of a matrix product that is measured in the same rounds."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from openjepa.checks import check
from openjepa.data import open_splits
from openjepa.data.chunks import draw_masks
from openjepa.data.generated import GeneratedPhotos
from openjepa.data.loader import BatchPlan, TrainingLoader
from openjepa.data.source import ListSource, ShardSource
from openjepa.derived import resolve
from openjepa.engine.console import plain_console
from openjepa.engine.device import (
    autocast,
    device_name,
    keep_freed_memory,
    peak_memory,
    resolve_device,
    resolve_precision,
    set_threads,
    synchronize,
)
from openjepa.engine.optimizer import build_optimizer, clip_gradients, gradient_norm, set_rates
from openjepa.engine.run_folder import environment
from openjepa.masks import MASKS
from openjepa.masks.base import MaskSampler, TokenShape
from openjepa.methods.base import Method
from openjepa.recipes import load_recipe
from openjepa.recipes.matched import with_method
from openjepa.refusals import Refusal
from openjepa.schedules import Progress
from openjepa.settings.bench import StepBench
from openjepa.settings.data import FolderSettings
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import ModelSettings
from openjepa.settings.optimization import OptimizationSettings
from openjepa.settings.run import RunConfig
from openjepa.training.startup import build_method, default_view, masks_line
from openjepa.types import Batch, BlockMasks, LoaderPosition, LossOutput, Masks
from openjepa.whole_files import whole_file

PROGRESS = Progress(step=10, total_steps=1000, steps_per_epoch=100)


def step_config(options: StepBench) -> RunConfig:
    """The run whose step is timed. Refusal: an option that is out of range or without effect, or a run that cannot work."""
    options.check()
    config = load_recipe(options.recipe, options.preset) if options.recipe else _at_sizes(options)
    config = with_method(config, options.method or config.method.name)
    run = replace(config.run, device=options.device, precision=options.precision, compile=options.compile)
    config = replace(config, run=run, system=replace(config.system, threads=options.threads))
    without_path = _is_without_data(config)
    check(replace(config, data=replace(config.data, path="generated")) if without_path else config)  # type: ignore[call-arg]
    config = resolve(config)
    if options.recipe:  # the step of one microbatch: gradient accumulation only repeats it
        optim = config.optim
        config = replace(config, optim=replace(optim, batch_size=optim.microbatch_size or optim.batch_size))
    return config


def _at_sizes(options: StepBench) -> RunConfig:
    """I-JEPA at the sizes of the options."""
    return RunConfig(
        method=IJepaSettings(predictor_width=options.predictor_width, predictor_depth=options.predictor_depth),
        model=ModelSettings(size=options.size, patch_size=options.patch_size),
        data=FolderSettings(image_size=options.image_size),
        optim=OptimizationSettings(batch_size=options.batch_size),
    )


def _is_without_data(config: RunConfig) -> bool:
    """Whether generated photos stand in for data that nobody named."""
    return isinstance(config.data, FolderSettings) and not config.data.path


def time_step(options: StepBench) -> None:
    """The command `openjepa bench step`: measures, prints, and writes the JSON file that was asked for."""
    result = bench_step(step_config(options), options.repeats)
    print_step(result)
    if options.output is not None:
        with whole_file(options.output) as file:
            file.write_text(json.dumps(result, indent=2) + "\n")


def bench_step(config: RunConfig, repeats: int = 7, product_size: int = 4096) -> dict[str, Any]:
    """Images per second, share of the matrix product's rate, peak memory and the share of time of each part of a step.

    Every round measures the product of two square matrices of `product_size` (in bf16 where the hardware has it, whatever the
    run's precision is), the data path, the masks and one step; medians over the rounds. Blocks have their most frequent token
    counts. The data path (decoding, unless `data.cache` keeps the pixels, and the views) runs in this process with one thread,
    so that its figure is what one core spends; images are those of the run's data set, or generated JPEGs where its settings
    name none.
    """
    step = TimedStep(config)
    batches = step.loader().iterate(0, LoaderPosition(), repeats + 1)
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
        # waiting for a GPU after every part takes time of its own
        whole = timer.total() if step.device.type == "cpu" else measure(step.run, step.device)
        data = loading - drawing if loading > drawing else loading  # on a busy machine the masks alone may take longer once
        seconds |= {"data": data, "masks": drawing, "step": whole, **timer.seconds}
        rounds.append(seconds)
    return _summary(step, rounds)


class PartTimer:
    """Adds up the seconds of each part of a step; waits for the device at both ends of a part."""

    def __init__(self, device: torch.device) -> None:
        """Starts now."""
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = now(device)

    def lap(self, name: str) -> None:
        """Books the time since the last lap under `name`."""
        moment = now(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + moment - self._last
        self._last = moment

    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done all it was given."""
    synchronize(device)
    return time.perf_counter()


def measure(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes."""
    start = now(device)
    work()
    return now(device) - start


def matmul_rate(device: torch.device, precision: str, size: int = 4096, seconds: float = 1.0) -> float:
    """FLOP/s of a square matrix product, the yardstick of every speed this project reports; runs for about `seconds`."""
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
    """`work` on one thread of torch, as in a worker."""

    def run() -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return work()
        finally:
            torch.set_num_threads(threads)

    return run


class TimedStep:
    """One training step as the loop takes it, on one batch that stays the same."""

    def __init__(self, config: RunConfig) -> None:
        """Builds method, masks and optimizer like the loop does."""
        self.config = config
        self.device = resolve_device(config.run.device)
        self.precision = resolve_precision(config.run.precision, self.device)
        self.threads = set_threads(config.system.threads)
        keep_freed_memory()
        self.view = default_view(config.data)
        self.sampler: MaskSampler = MASKS[config.masks.strategy].load()(config.masks, config.model.grid(self.view.size))
        self.shape: TokenShape = self.sampler.shapes()[0]
        shapes = self.sampler.shapes()
        if config.masks.kind == "blocks":  # the batch has exactly this shape
            self.shape = replace(self.shape, probability=1.0)
            shapes = (self.shape,)
        self.method: Method = build_method(config, self.view, self.sampler, shapes).to(self.device)
        if config.run.compile:
            self.method.compile_blocks()
        self.optimizer = build_optimizer(self.method.named_parameters(), self.method.parameter_rules(), config.optim)
        set_rates(self.optimizer, config.optim.final_lr, config.optim.weight_decay)
        self.batch = self._batch().to(self.device)
        self._timer: PartTimer | None = None
        for name in self.method.flops():
            self._watch(name, self.method.get_submodule(name))

    def run(self, timer: PartTimer | None = None) -> Tensor:
        """Forward, backward, optimizer, moving average; returns the loss."""
        self._timer = timer
        data = self.config.data
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.batch.normalized(data.pixel_mean, data.pixel_std)
        with autocast(self.device, self.precision):
            output: LossOutput = self.method(batch, PROGRESS)
        self._lap("other")
        output.total.backward()  # type: ignore[no-untyped-call]
        self._lap("backward")
        self.method.before_step(PROGRESS)
        norm = gradient_norm(self.optimizer)
        optim = self.config.optim
        if optim.clip_grad is not None:
            clip_gradients(self.optimizer, norm, optim.clip_grad, optim.clip_mode)
        self.optimizer.step()
        self.method.after_step(PROGRESS)
        self._lap("optimizer_ema")
        return output.total.detach()

    def draw(self, step: int) -> dict[str, Masks]:
        """Masks of a whole batch, for every view that has them."""
        ids, seed = np.arange(self.config.optim.batch_size), self.config.run.seed
        return draw_masks(self.sampler, self.method.inputs(), ids, seed=seed, epoch=step, step=step, group=0)

    def loader(self) -> TrainingLoader:
        """The loop's loader, in this process."""
        size = self.config.optim.batch_size
        plan = BatchPlan(batch_size=size, microbatch_size=size)
        source, seed = self._source(), self.config.run.seed
        return TrainingLoader(source, self.config.data, self.method.inputs(), self.sampler, plan, seed, 0, torch.device("cpu"))

    def _watch(self, name: str, module: nn.Module) -> None:
        """Books what happens inside `module` under `name` and what came before it under `other`."""
        module.register_forward_pre_hook(lambda *_: self._lap("other"))
        module.register_forward_hook(lambda *_: self._lap(name))

    def _lap(self, name: str) -> None:
        if self._timer is not None:
            self._timer.lap(name)

    def _batch(self) -> Batch:
        """Random pixels with the first drawn masks of the most frequent token counts."""
        generator = torch.Generator().manual_seed(self.config.run.seed)
        size = self.config.optim.batch_size
        views = {
            name: torch.randint(0, 256, (view.count, size, 3, *view.size), dtype=torch.uint8, generator=generator)
            for name, view in self.method.inputs().views.items()
        }
        drawn = (self.draw(step) for step in range(1000))
        masks = next((item for item in drawn if all(map(self._is_usual, item.values()))), None)
        if masks is None:
            raise Refusal(f"no batch of masks has the token counts {self.shape} that {self.sampler.name} announces")
        return Batch(torch.arange(size), views, masks=masks)

    def _is_usual(self, masks: Masks) -> bool:
        if not isinstance(masks, BlockMasks):
            return True
        return masks.context.shape[1] == self.shape.context and masks.targets.shape[2] == self.shape.target

    def _source(self) -> ListSource | ShardSource:
        if _is_without_data(self.config):
            return GeneratedPhotos(2 * self.config.optim.batch_size)
        return open_splits(self.config.data, self.config.run.seed).train


def _summary(step: TimedStep, rounds: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds; shares are formed within each round first."""
    images, flops = step.config.optim.batch_size, step.method.step_flops()
    parts = [name for name in rounds[0] if name not in ("matmul_rate", "step")]
    whole = [sum(row[part] for part in parts) for row in rounds]
    where = environment(step.device, step.precision)
    return {
        "commit": where["commit"],
        "date": where["started"],
        "device": f"{step.device} ({device_name(step.device)})",
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
        "flops_per_image": {name: value for name, value in step.method.flops().items()},
        "flops_per_image_and_step": flops,
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
    """The result as a table."""
    console = plain_console()
    console.print(
        f"{result['method']}, {result['model']}, batch {result['batch_size']}, {result['precision']} on {result['device']}"
    )
    views = ", ".join(f"{name} {sizes}" for name, sizes in result["views"].items())
    console.print(f"views: {views}; masks: {result['masks_in_words']}")
    parts = ", ".join(f"{name} {value / 1e9:.2f}" for name, value in result["flops_per_image"].items())
    console.print(f"GFLOPs an image and step: {result['flops_per_image_and_step'] / 1e9:.2f} (forward of {parts})")
    # on a CPU the allocator does not count, and the process also holds Python, the photos and the matrices of the product
    peak = "peak memory of the process" if result["device"].startswith("cpu") else "peak memory"
    console.print(
        f"{result['images_per_second']:.1f} images/s, {result['share_of_matmul']:.0%} of a matrix product's "
        f"{result['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s, {peak} {result['peak_memory_bytes'] / 2**20:.0f} MiB"
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
