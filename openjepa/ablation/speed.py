"""How fast each row trains on this machine: short turns of real steps, all rows in every round."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import replace

from openjepa.ablation.plan import Speed
from openjepa.bench import TimedStep, measure
from openjepa.data import open_splits
from openjepa.data.loader import BatchPlan, TrainingLoader
from openjepa.data.workers import choose_workers
from openjepa.derived import resolve
from openjepa.settings.data import DataSettings, HuggingFaceSettings
from openjepa.settings.run import RunConfig
from openjepa.types import Batch, LoaderPosition

TURN_SECONDS = 0.5
"""Length of a turn, at least."""
TURN_STEPS = 4
"""Steps of a turn at least: more than the workers of a loader can prepare meanwhile."""
MAX_IMAGES = 2048
"""Images of the data set that are decoded to measure; each is cropped anew in every epoch."""


def measure_speeds(rows: Mapping[str, RunConfig], rounds: int) -> dict[str, Speed]:
    """Images per second of every row: loader, masks, forward, backward, optimizer and moving average.

    The ratio of a row's speed to the first row's is formed within each round, so that what slows the machine down for longer
    than a round slows all of them; the medians over the rounds are multiplied by the first row's median.
    """
    turns = {row: _Turns(config) for row, config in rows.items()}
    try:
        found = [{row: turn.images_per_second() for row, turn in turns.items()} for _ in range(rounds)]
    finally:
        for turn in turns.values():
            turn.close()
    first = next(iter(rows))
    common = statistics.median(speeds[first] for speeds in found)
    return {
        row: Speed(common * statistics.median(speeds[row] / speeds[first] for speeds in found), turn.flops)
        for row, turn in turns.items()
    }


class _Turns:
    """Steps of one row on batches of its loader, as training takes them."""

    def __init__(self, config: RunConfig) -> None:
        """Warms up, and chooses how many steps a turn has."""
        # a step of one microbatch: gradient accumulation only repeats it
        config = resolve(config)
        batch = config.optim.microbatch_size or config.optim.batch_size
        optim = replace(config.optim, batch_size=batch, microbatch_size=None)
        masks = replace(config.masks, group_size=None)
        self._step = TimedStep(replace(config, data=_few_images(config.data), optim=optim, masks=masks))
        self._loader = self._open_loader()
        self._batches = self._endless()
        self._take_step()
        seconds = measure(self._take_step, self._step.device)
        self._steps = max(TURN_STEPS, round(TURN_SECONDS / seconds))
        self.flops = float(self._step.method.step_flops())

    def images_per_second(self) -> float:
        """Of one turn."""
        seconds = measure(self._turn, self._step.device)
        return self._steps * self._step.config.optim.batch_size / seconds

    def close(self) -> None:
        """Stops the loader's workers."""
        self._loader.close()

    def _turn(self) -> None:
        for _ in range(self._steps):
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


def _few_images(data: DataSettings) -> DataSettings:
    """At most `MAX_IMAGES` of a list; a stream is read as it comes."""
    is_stream = isinstance(data, HuggingFaceSettings) and data.streaming
    return data if is_stream else replace(data, max_images=min(MAX_IMAGES, data.max_images or MAX_IMAGES))
