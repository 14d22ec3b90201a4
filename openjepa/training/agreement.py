"""Agreement: what the processes of a run decide together, so that all of them save and stop after the same step."""

import time
from dataclasses import dataclass

from openjepa.engine import distributed
from openjepa.system.interrupts import CAUGHT

LONGEST_SECONDS = 5.0
"""Longest time between two agreements, so that a signal is served soon even if steps are slow."""


@dataclass(frozen=True)
class Decision:
    """What all processes do after a step."""

    stop: str | None = None
    """Name of the signal that ends the run; None: go on."""
    save: bool = False
    """True if a checkpoint is due."""


class Agreement:
    """Asks all processes whether one has got a signal, and the main process whether a checkpoint is due.

    A single process is asked after every step. Several processes exchange three numbers on their CPUs, so that no GPU is waited
    for, and not after every step: the main process, whose clock decides, says at each exchange when the next one is.
    """

    def __init__(self, log_every: int, first_step: int) -> None:
        """`log_every`: most steps between two exchanges. `first_step`: number of steps that are done already."""
        self._log_every = log_every
        self._next = first_step + 1
        self._asked = (first_step, time.monotonic())

    def after(self, step: int, requested: str | None, save_is_due: bool, is_last: bool = False) -> Decision:
        """The decision after `step` steps. `requested`: signal that this process has got. `is_last`: no step follows."""
        if distributed.world_size() == 1:
            return Decision(requested, save_is_due)
        if step < self._next and not is_last:
            return Decision()
        distributed.doing(f"the decision after step {step}")
        number = 0 if requested is None else 1 + CAUGHT.index(requested)
        is_main = distributed.is_main()
        mine = (number, int(save_is_due and is_main), self._proposed(step) if is_main else 0)
        number, save, following = map(int, distributed.largest_over_ranks(mine))
        self._next, self._asked = following, (step, time.monotonic())
        return Decision(CAUGHT[number - 1] if number else None, bool(save))

    def _proposed(self, step: int) -> int:
        """The step after which to ask again: the end of the logging interval, or earlier if steps are slow."""
        before, moment = self._asked
        seconds = (time.monotonic() - moment) / max(1, step - before)
        soon = max(1, int(LONGEST_SECONDS / max(seconds, 1e-9)))
        return step + min(soon, self._log_every - step % self._log_every)
