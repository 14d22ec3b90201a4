"""Schedules as pure functions of progress: nothing to replay on resume. No torch here.

Steps are counted from 0. The released I-JEPA and MSN programs step their schedulers before the first update, so that their
learning rate and weight decay at step i are those of n = i + 1, while their momentum uses i; those of MAE, DINO, iBOT and
data2vec use i for all. `optim.schedule_steps` says which.
"""

import math
from dataclasses import dataclass

from openjepa.settings.derived import resolved
from openjepa.settings.run import OptimizationSettings


@dataclass(frozen=True)
class Progress:
    """Where training stands."""

    step: int
    """Optimizer steps already done (0 at the first)."""
    total_steps: int
    steps_per_epoch: float
    """Optimizer steps per pass over the data; `total_steps` where the length of the data is unknown."""
    stretch: float = 1.0
    """Schedules run over this many times `total_steps`."""

    @property
    def fraction(self) -> float:
        """Share of the training that is done before this step, in [0, 1)."""
        return self.step / max(1, self.total_steps)

    @property
    def epoch(self) -> float:
        """Passes over the data done before this step."""
        return self.step / self.steps_per_epoch


def linear(start: float, end: float, fraction: float) -> float:
    """Straight line from `start` to `end`; `fraction` is clipped to [0, 1]."""
    return start + (end - start) * min(1.0, max(0.0, fraction))


def cosine(start: float, end: float, fraction: float) -> float:
    """Half a cosine from `start` to `end`; `fraction` is clipped to [0, 1]."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, fraction))))


def warmup_steps(settings: OptimizationSettings, progress: Progress) -> int:
    """Steps of the warm-up: `warmup_steps`, or `warmup_epochs` rounded down to whole steps."""
    if settings.warmup_steps is not None:
        return settings.warmup_steps
    return int(resolved(settings.warmup_epochs) * progress.steps_per_epoch)


def learning_rate(settings: OptimizationSettings, progress: Progress) -> float:
    """Linear warm-up, then cosine or constant with a linear cooldown (Zhai et al. 2022), for the step about to be taken."""
    step = _numbered(settings, progress)
    warmup = warmup_steps(settings, progress)
    if step < warmup:
        return linear(settings.start_lr, settings.lr, step / _last_of(warmup, settings))
    length = int(progress.stretch * progress.total_steps)
    if settings.lr_schedule == "cosine":
        return cosine(settings.lr, settings.final_lr, (step - warmup) / max(1, length - warmup))
    cooldown = max(1, int(settings.cooldown * length))
    return linear(settings.lr, settings.final_lr, (step - (length - cooldown)) / _last_of(cooldown, settings))


def _last_of(num_steps: int, settings: OptimizationSettings) -> int:
    """Number, from 0, of the step at which a line over `num_steps` has reached its end: its last one, or the one after it."""
    return max(1, num_steps - 1) if settings.schedule_steps == "inclusive" else num_steps


def weight_decay(settings: OptimizationSettings, progress: Progress) -> float:
    """Weight decay of the step about to be taken."""
    start, end = settings.weight_decay, settings.final_weight_decay
    fraction = _numbered(settings, progress) / max(1, int(progress.stretch * progress.total_steps))
    if settings.weight_decay_schedule == "constant":
        return start
    return linear(start, end, fraction) if settings.weight_decay_schedule == "linear" else cosine(start, end, fraction)


def _numbered(settings: OptimizationSettings, progress: Progress) -> int:
    """Number of the step about to be taken, as the schedules of learning rate and weight decay count."""
    return progress.step + 1 if settings.schedule_steps == "from_one" else progress.step


def momentum(start: float, end: float, progress: Progress) -> float:
    """EMA momentum after the step about to be taken: linear over the training, reaching `end` only in the limit."""
    return linear(start, end, _stretched_fraction(progress))


def cosine_momentum(start: float, end: float, progress: Progress) -> float:
    """The same along half a cosine (DINO, iBOT)."""
    return cosine(start, end, _stretched_fraction(progress))


def ramped_momentum(start: float, end: float, ramp: float, progress: Progress) -> float:
    """The same linearly over the first `ramp` of the training, then constant (data2vec)."""
    return linear(start, end, _stretched_fraction(progress) / ramp) if ramp > 0 else end


def sharpening(start: float, end: float, progress: Progress) -> float:
    """MSN's T of the step about to be taken, by whose inverse targets are raised: linear over the training."""
    return linear(start, end, _stretched_fraction(progress))


def _stretched_fraction(progress: Progress) -> float:
    return progress.step / max(1e-9, progress.stretch * progress.total_steps)
