"""Steps of a run on real data, timed before it or beside others: its loader, and a method that is thrown away."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from openjepa.data import open_splits
from openjepa.data.loading.loader import BatchPlan, TrainingLoader
from openjepa.data.loading.workers import choose_workers
from openjepa.engine import distributed
from openjepa.engine.failures import explain_memory
from openjepa.methods.base import Method
from openjepa.settings.derived import resolve
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import DataSettings, HuggingFaceSettings
from openjepa.system.display import format_seconds
from openjepa.system.shell import command
from openjepa.training.timed_steps import TimedStep, measure
from openjepa.types import Batch, LoaderPosition

TURN_SECONDS = 0.5
"""Length of a turn, at least."""
TURN_STEPS = 4
"""Steps of a turn at least: more than the workers of a loader can prepare meanwhile."""
MAX_IMAGES = 2048
"""Images of the data set that are decoded to measure; each is cropped anew in every epoch."""
CPU_FLOPS = 4e10
"""Of a step before the run, on a CPU: about a second. A larger microbatch is timed with fewer images."""
MOST_CPU_FLOPS = 4e11
"""Of one image, on a CPU: beyond it nothing is timed before the run, since a single step may take minutes."""


def time_line(config: RunConfig, method: Method, device: torch.device, total_steps: int) -> str:
    """Says how long the steps of a run will take, from some that are taken and thrown away.

    `config`: the resolved settings; `method`: the method that they describe, which stays as it is.
    """
    flops = method.step_flops()
    batch = config.optim.microbatch_size or config.optim.batch_size
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
    """Steps of one row on batches of its loader, as training takes them."""

    def __init__(self, config: RunConfig, max_images: int = MAX_IMAGES) -> None:
        """Warms up, and chooses how many steps a turn has. `max_images`: so many of a list are used."""
        # a step of one microbatch: gradient accumulation only repeats it
        config = resolve(config)
        batch = config.optim.microbatch_size or config.optim.batch_size
        optim = replace(config.optim, batch_size=batch, microbatch_size=None)
        masks = replace(config.masks, group_size=None)
        self._step = TimedStep(replace(config, data=_few_images(config.data, max_images), optim=optim, masks=masks))
        self._loader = self._open_loader()
        self._batches = self._endless()
        self._take_step()
        seconds = measure(self._take_step, self._step.device)
        self.timed = max(TURN_STEPS, round(TURN_SECONDS / seconds))
        self.flops = float(self._step.method.step_flops())

    def images_per_second(self) -> float:
        """Of one turn."""
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

    def _endless(self) -> Iterator[Batch]:
        return self._loader.iterate(0, LoaderPosition(), num_steps=1_000_000)

    def _open_loader(self) -> TrainingLoader:
        step, config = self._step, self._step.config
        plan = BatchPlan(batch_size=config.optim.batch_size, microbatch_size=config.optim.batch_size)
        source, seed = open_splits(config.data, config.run.seed).train, config.run.seed
        workers = choose_workers(config.system.workers, config.data.cache)
        return TrainingLoader(source, config.data, step.method.inputs(), step.sampler, plan, seed, workers, step.device)


def _few_images(data: DataSettings, most: int) -> DataSettings:
    """At most so many of a list; a stream is read as it comes."""
    is_stream = isinstance(data, HuggingFaceSettings) and data.streaming
    return data if is_stream else replace(data, max_images=min(most, data.max_images or most))
