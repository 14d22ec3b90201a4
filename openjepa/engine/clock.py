"""Times a training loop: its steps, the work between them, and the time left."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import ParamSpec

import torch

from openjepa.engine import distributed
from openjepa.engine.device import synchronize

Parameters = ParamSpec("Parameters")

WARMUP_STEPS = 3
"""Number of first steps that are not timed: they start workers, compile, and fill caches."""
TIMED_STEPS, TIMED_SECONDS = 5, 2.0
"""Number of steps and seconds that must be timed before the time left is known."""
RECENT_SECONDS, MOST_MARKS = 120.0, 64
"""The pace is measured over slightly more than the last `RECENT_SECONDS`, from at most `MOST_MARKS` moments."""
MOST_WARMUP_SECONDS = 60.0
"""Longest time for which steps that use up prepared batches are not timed either."""


class LoopClock:
    """Counts the seconds of a loop over all its sessions, and estimates the seconds left.

    The time of a step includes its data path. Work between steps (looks, saving) goes through `aside`.
    """

    def __init__(
        self,
        device: torch.device,
        total_steps: int,
        first_step: int = 0,
        seconds_before: float = 0.0,
        step_seconds_before: float = 0.0,
        looks_before: int = 0,
        prepared_steps: int = 0,
        save_minutes: float = math.inf,
    ) -> None:
        """`seconds_before`, `step_seconds_before`, `looks_before`: totals of earlier sessions, which ended at `first_step`.

        `prepared_steps`: number of steps whose data may be ready before they begin. They do not measure the data path.
        `save_minutes`: time between two saves; by default nothing is saved.
        """
        self._device, self._total_steps, self._first_step = device, total_steps, first_step
        self._before, self._steps_before = seconds_before, step_seconds_before
        self._look_before = (seconds_before - step_seconds_before) / max(1, looks_before)
        self._begun = self._last_save = time.monotonic()
        self._save_seconds = 60 * save_minutes
        self._aside = 0.0
        self._costs: dict[str, float] = {}
        # twice as many, because the queue is refilled while it is used up
        self._warmup = first_step + WARMUP_STEPS + 2 * prepared_steps
        self._timed: deque[tuple[int, float]] = deque(maxlen=MOST_MARKS)  # steps done, and seconds of steps by then

    def seconds(self) -> float:
        """Time of the run so far. Waits until the device has finished its work."""
        synchronize(self._device)
        return self._before + time.monotonic() - self._begun

    def step_seconds(self) -> float:
        """Time of the steps so far. Waits until the device has finished its work."""
        return self.seconds() - self._before - self._aside + self._steps_before

    def aside(self, name: str, work: Callable[Parameters, object], *args: Parameters.args, **named: Parameters.kwargs) -> None:
        """Calls `work` with the other arguments, and times it under `name`. For work between steps: a look or a save."""
        begun = self.seconds()
        distributed.doing(name)
        work(*args, **named)
        took = self.seconds() - begun
        self._aside += took
        self._costs[name] = took

    def save_is_due(self) -> bool:
        """True if the last save is older than `save_minutes`."""
        return time.monotonic() - self._last_save > self._save_seconds

    def saved(self) -> None:
        """Starts the next interval between saves."""
        self._last_save = time.monotonic()

    def step_done(self, step: int) -> None:
        """Call it after every step. `step`: number of steps done. Waits for the device only when timing begins."""
        if self._timed or step - self._first_step < WARMUP_STEPS:
            return
        if step >= self._warmup or time.monotonic() - self._begun - self._aside > MOST_WARMUP_SECONDS:
            self._timed.append((step, self.step_seconds()))

    def seconds_left(self, step: int, looks: int = 0) -> float | None:
        """Seconds from `step` to the end, including saves and `looks` further looks. None before enough steps were timed.

        Uses the pace of the last minutes, because other programs can change it.
        """
        if step >= self._total_steps:
            return 0.0
        if not self._timed:
            return None
        now = self.step_seconds()
        while len(self._timed) > 1 and now - self._timed[1][1] >= RECENT_SECONDS and step - self._timed[1][0] >= TIMED_STEPS:
            self._timed.popleft()
        steps, seconds = step - self._timed[0][0], now - self._timed[0][1]
        if now - self._timed[-1][1] >= RECENT_SECONDS / (MOST_MARKS // 2):
            self._timed.append((step, now))
        if steps < TIMED_STEPS or seconds < TIMED_SECONDS:
            return None
        pace, steps_left = seconds / steps, self._total_steps - step
        return pace * steps_left + self._aside_left(looks, steps_left, pace)

    def _aside_left(self, looks: int, steps: int, pace: float) -> float:
        """Seconds of looks and saves in `steps` of `pace` seconds, each as long as the last, or as in earlier sessions."""
        saves = 1 + steps * pace / max(self._save_seconds, pace)  # at most one a step
        save = self._costs.get("save", 0.0) + self._costs.get("export", 0.0)
        return looks * self._costs.get("look", self._look_before) + saves * save
