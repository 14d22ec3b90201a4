"""One training step as the loop takes it, to be timed: on a method that is thrown away."""

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from openjepa.data import open_splits
from openjepa.data.loading.chunks import draw_masks
from openjepa.data.loading.loader import BatchPlan, TrainingLoader
from openjepa.data.source import ListSource, ShardSource
from openjepa.engine.device import autocast, keep_freed_memory, resolve_device, resolve_precision, set_threads, synchronize
from openjepa.engine.optimizer import build_optimizer, clip_gradients, gradient_norm, set_rates
from openjepa.masks import MASKS
from openjepa.masks.sampler import MaskSampler, TokenShape
from openjepa.methods.base import Method
from openjepa.refusals import Refusal
from openjepa.schedules import Progress
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import FolderSettings
from openjepa.training.generated import GeneratedPhotos
from openjepa.training.startup import build_method, default_view
from openjepa.types import Batch, BlockMasks, LossOutput, Masks

PROGRESS = Progress(step=10, total_steps=1000, steps_per_epoch=100)


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


def is_without_data(config: RunConfig) -> bool:
    """Whether generated photos stand in for data that nobody named."""
    return isinstance(config.data, FolderSettings) and not config.data.path


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
        if is_without_data(self.config):
            return GeneratedPhotos(2 * self.config.optim.batch_size)
        return open_splits(self.config.data, self.config.run.seed).train
