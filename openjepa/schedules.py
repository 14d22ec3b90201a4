"""Schedules as pure functions of progress, so that a resumed run has nothing to replay. This file does not import torch.

Steps are counted from 0. The released I-JEPA and MSN programs step their schedulers before the first update. Their learning
rate and weight decay at step i are therefore those of n = i + 1, while their momentum uses i. The programs of MAE, DINO, iBOT
and data2vec use i for everything. `optim.schedule_steps` chooses between the two.
"""

import math
from dataclasses import dataclass

from openjepa.settings.derived import resolved
from openjepa.settings.run import OptimizationSettings


@dataclass(frozen=True)
class Progress:
    """Position of the training, and its length."""

    step: int
    """Number of optimizer steps done before this one (0 at the first)."""
    total_steps: int
    steps_per_epoch: float
    """Optimizer steps per pass over the data. Equal to `total_steps` if the length of the data is unknown."""
    stretch: float = 1.0
    """Length of the schedules as a multiple of `total_steps`."""

    @property
    def fraction(self) -> float:
        """Share of the training done before this step, in [0, 1)."""
        return self.step / max(1, self.total_steps)

    @property
    def epoch(self) -> float:
        """Number of passes over the data done before this step."""
        return self.step / self.steps_per_epoch


def linear(start: float, end: float, fraction: float) -> float:
    """Straight line from `start` to `end`; `fraction` is clipped to [0, 1]."""
    return start + (end - start) * min(1.0, max(0.0, fraction))


def cosine(start: float, end: float, fraction: float) -> float:
    """Half a cosine from `start` to `end`; `fraction` is clipped to [0, 1]."""
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, fraction))))


def warmup_steps(settings: OptimizationSettings, progress: Progress) -> int:
    """Number of warm-up steps: `warmup_steps` if set, or else `warmup_epochs` rounded down to whole steps."""
    if settings.warmup_steps is not None:
        return settings.warmup_steps
    return int(resolved(settings.warmup_epochs) * progress.steps_per_epoch)


def learning_rate(settings: OptimizationSettings, progress: Progress) -> float:
    """Learning rate of this step: linear warm-up, then a cosine, or constant with a linear cooldown (Zhai et al. 2022)."""
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
    """Index of the step at which a line over `num_steps` reaches its end: its last step, or the one after it."""
    return max(1, num_steps - 1) if settings.schedule_steps == "inclusive" else num_steps


def weight_decay(settings: OptimizationSettings, progress: Progress) -> float:
    """Weight decay of this step."""
    start, end = settings.weight_decay, settings.final_weight_decay
    fraction = _numbered(settings, progress) / max(1, int(progress.stretch * progress.total_steps))
    if settings.weight_decay_schedule == "constant":
        return start
    return linear(start, end, fraction) if settings.weight_decay_schedule == "linear" else cosine(start, end, fraction)


def _numbered(settings: OptimizationSettings, progress: Progress) -> int:
    """Number of this step as the schedules of learning rate and weight decay count it."""
    return progress.step + 1 if settings.schedule_steps == "from_one" else progress.step


def momentum(start: float, end: float, progress: Progress) -> float:
    """EMA momentum for this step. Rises linearly from `start`; unstretched, it would reach `end` one step after the last."""
    return linear(start, end, _stretched_fraction(progress))


def cosine_momentum(start: float, end: float, progress: Progress) -> float:
    """EMA momentum for this step, like `momentum` but along half a cosine (DINO, iBOT)."""
    return cosine(start, end, _stretched_fraction(progress))


def ramped_momentum(start: float, end: float, ramp: float, progress: Progress) -> float:
    """EMA momentum for this step (data2vec). Rises linearly over `ramp`, a fraction of the training, then stays at `end`."""
    return linear(start, end, _stretched_fraction(progress) / ramp) if ramp > 0 else end


def sharpening(start: float, end: float, progress: Progress) -> float:
    """MSN's temperature T of this step, linear over the training. Targets are raised to the power 1 / T."""
    return linear(start, end, _stretched_fraction(progress))


def _stretched_fraction(progress: Progress) -> float:
    return progress.step / max(1e-9, progress.stretch * progress.total_steps)
