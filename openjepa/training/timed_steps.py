"""Times training steps like those of the loop, on a separate method that is thrown away.

`TimedStep` repeats one batch and measures the time of each part. `RealSteps` takes batches from the run's own loader and
measures images per second. `time_line` says before a run how long it will take.
"""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from openjepa.data.loading.chunks import draw_masks
from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan
from openjepa.data.passes import choose_workers
from openjepa.data.source import ListSource, ShardSource, open_splits
from openjepa.engine import distributed
from openjepa.engine.costs import OTHER
from openjepa.engine.device import autocast, keep_freed_memory, resolve_device, resolve_precision, set_threads, synchronize
from openjepa.engine.failures import explain_memory
from openjepa.engine.optimizer import build_optimizer, clip_gradients, gradient_norm, set_rates
from openjepa.engine.parallel import prepare_blocks
from openjepa.masks import MASKS
from openjepa.masks.sampler import MaskSampler, TokenShape
from openjepa.methods.base import Method
from openjepa.refusals import Refusal
from openjepa.schedules import Progress
from openjepa.settings.derived import resolve
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import DataSettings, HuggingFaceSettings
from openjepa.system.console import command, format_seconds
from openjepa.training.startup import build_method, default_view, microbatch, step_costs
from openjepa.types import Batch, BlockMasks, LoaderPosition, LossOutput, Masks

PROGRESS = Progress(step=10, total_steps=1000, steps_per_epoch=100)
"""The step that is timed."""
TURN_SECONDS = 0.5
"""Shortest duration of a turn of real steps."""
TURN_STEPS = 4
"""Fewest steps of a turn: more than the workers of a loader can prepare meanwhile."""
MAX_IMAGES = 2048
"""Most images of the data set that real steps decode. Each image is cropped anew in every epoch."""
CPU_FLOPS = 4e10
"""Most FLOPs of a step that is timed before a run on a CPU: about a second. Larger microbatches are timed with fewer images."""
MOST_CPU_FLOPS = 4e11
"""FLOPs of one image above which no step is timed before a run on a CPU, because a single step may take minutes."""


class PartTimer:
    """Sums the seconds of each part of a step. Waits for the device at the start and the end of a part."""

    def __init__(self, device: torch.device) -> None:
        """Starts the first lap."""
        self.device = device
        self.seconds: dict[str, float] = {}
        self._last = now(device)

    def lap(self, name: str) -> None:
        """Adds the time since the last lap to the part `name`."""
        moment = now(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + moment - self._last
        self._last = moment

    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.seconds.values())


def now(device: torch.device) -> float:
    """Seconds of a clock, read after the device has finished its work."""
    synchronize(device)
    return time.perf_counter()


def measure(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that `work` takes, including its work on the device."""
    start = now(device)
    work()
    return now(device) - start


class TimedStep:
    """One training step that always takes the same batch."""

    def __init__(self, config: RunConfig) -> None:
        """Builds method, masks and optimizer as the loop does."""
        self.config = config
        self.device = resolve_device(config.run.device)
        self.precision = resolve_precision(config.run.precision, self.device)
        self.threads = set_threads(config.system.threads)
        keep_freed_memory()
        self.view = default_view(config.data)
        self.sampler: MaskSampler = MASKS[config.masks.strategy].load()(config.masks, config.model.grid(self.view.size))
        self.shape: TokenShape = self.sampler.shapes()[0]
        shapes = self.sampler.shapes()
        if config.masks.kind == "blocks":  # the batch has only this shape
            self.shape = replace(self.shape, probability=1.0)
            shapes = (self.shape,)
        self.costs = step_costs(config, self.view, self.sampler, shapes)
        self.method: Method = build_method(config, self.view, self.sampler).to(self.device)
        prepare_blocks(self.method, config.run)
        self.optimizer = build_optimizer(self.method.named_parameters(), self.method.parameter_rules(), config.optim)
        set_rates(self.optimizer, config.optim.final_lr, config.optim.weight_decay)
        self.batch = self._batch().to(self.device)
        self._timer: PartTimer | None = None
        for name in self.costs.flops:
            if name != OTHER:
                self._watch(name, self.method.get_submodule(name))

    def run(self, timer: PartTimer | None = None) -> Tensor:
        """Takes the step and returns its loss. `timer`: sums the seconds of each part."""
        self._timer = timer
        data = self.config.data
        self.optimizer.zero_grad(set_to_none=True)
        batch = self.batch.normalized(data.pixel_mean, data.pixel_std)
        with autocast(self.device, self.precision):
            output: LossOutput = self.method(batch, PROGRESS)
        self._lap(OTHER)
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
        """Masks of a whole batch, for every view that has masks. `step`: stands for the step and the epoch."""
        ids, seed = np.arange(self.config.optim.batch_size), self.config.run.seed
        return draw_masks(self.sampler, self.method.inputs(), ids, seed=seed, epoch=step, step=step, group=0)

    def loader(self, source: ListSource | ShardSource, device: torch.device, workers: int = 0) -> TrainingLoader:
        """The loop's loader, with whole batches from `source`. `device`: keeps the pixels if `data.cache` says so."""
        size = self.config.optim.batch_size
        plan = BatchPlan(batch_size=size, microbatch_size=size)
        inputs, seed = self.method.inputs(), self.config.run.seed
        return TrainingLoader(source, self.config.data, inputs, self.sampler, plan, seed, workers, device)

    def _watch(self, name: str, module: nn.Module) -> None:
        """Adds the time inside `module` to the part `name`, and the time before it to `other`."""
        module.register_forward_pre_hook(lambda *_: self._lap(OTHER))
        module.register_forward_hook(lambda *_: self._lap(name))

    def _lap(self, name: str) -> None:
        if self._timer is not None:
            self._timer.lap(name)

    def _batch(self) -> Batch:
        """A batch of random pixels with masks of the most frequent token counts."""
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


def time_line(config: RunConfig, flops: float, device: torch.device, total_steps: int) -> str:
    """A line that says how long a run will take. It is estimated from real steps that are taken now.

    `config`: resolved settings. `flops`: FLOPs of one image in a step.
    """
    batch = microbatch(config)
    is_heavy = device.type == "cpu" and flops > MOST_CPU_FLOPS
    if is_heavy or distributed.world_size() > 1:
        why = "a step is heavy for a CPU" if is_heavy else "several processes"
        return f"time       not measured ({why}); {command('openjepa', 'bench', 'step', config.recipe)} times a step"
    if device.type == "cpu":
        batch = min(batch, max(1, int(CPU_FLOPS / flops)))
    optim = replace(config.optim, microbatch_size=batch)
    with explain_memory(config):
        steps = RealSteps(replace(config, optim=optim), max_images=4 * batch)
        try:
            speed = steps.images_per_second()
        finally:
            steps.close()
    left = format_seconds(total_steps * config.optim.batch_size / speed)
    return (
        f"time       about {left} of steps at {speed:,.0f} images/s (timed: {steps.timed} steps of {batch} images); looks and "
        "saving come on top"
    )


class RealSteps:
    """Real steps of a run, with batches from its own loader."""

    def __init__(self, config: RunConfig, max_images: int = MAX_IMAGES) -> None:
        """Warms up and chooses the number of steps in a turn. `max_images`: most images of a list that are used."""
        # a step has one microbatch here, because gradient accumulation only repeats it
        config = resolve(config)
        batch = microbatch(config)
        optim = replace(config.optim, batch_size=batch, microbatch_size=None)
        masks = replace(config.masks, group_size=None)
        config = replace(config, data=_few_images(config.data, max_images), optim=optim, masks=masks)
        self._step = TimedStep(config)
        source = open_splits(config.data, config.run.seed).train
        workers = choose_workers(config.system.workers, config.data.cache)
        self._loader = self._step.loader(source, self._step.device, workers)
        self._batches = self._loader.iterate(0, LoaderPosition(), num_steps=1_000_000)
        self._take_step()
        seconds = measure(self._take_step, self._step.device)
        self.timed = max(TURN_STEPS, round(TURN_SECONDS / seconds))
        self.flops = self._step.costs.step_flops

    def images_per_second(self) -> float:
        """Takes one turn of steps and returns its speed."""
        seconds = measure(self._turn, self._step.device)
        return self.timed * self._step.config.optim.batch_size / seconds

    def close(self) -> None:
        """Stops the loader's workers."""
        self._loader.close()

    def _turn(self) -> None:
        for _ in range(self.timed):
            self._take_step()

    def _take_step(self) -> None:
        self._step.batch = next(self._batches).to(self._step.device)
        self._step.run()


def _few_images(data: DataSettings, most: int) -> DataSettings:
    """The settings with at most `most` images of a list. Those of a stream do not change."""
    is_stream = isinstance(data, HuggingFaceSettings) and data.streaming
    return data if is_stream else replace(data, max_images=min(most, data.max_images or most))
