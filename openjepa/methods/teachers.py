"""The moving average of a trained network: its update, and a check that a run is long enough for its momentum."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from openjepa.methods.base import Encoders
from openjepa.models.vit import VisionTransformer
from openjepa.operators import lerp_
from openjepa.schedules import Progress
from openjepa.settings.derived import resolved
from openjepa.settings.methods import TeacherSettings

FEW_RENEWALS = 5
"""Sum of 1 - momentum over a run below which the run is too short for its momentum (published I-JEPA runs: 375)."""
ENOUGH_RENEWALS = 50
"""Sum that was measured to suit short runs (docs/log.md)."""
MAX_POINTS = 2000
"""Largest number of steps at which a schedule is evaluated."""

MomentumSchedule = Callable[[float, float, Progress], float]
"""Momentum at a step, given the momentum at the start and at the end: `schedules.momentum` or `schedules.cosine_momentum`."""


class EmaTeacher(nn.Module):
    """An exponential moving average of a student network: a frozen copy that is never trained and has no gradients."""

    def __init__(self, student: nn.Module, without: tuple[str, ...] = ()) -> None:
        """Starts as an exact copy of `student`, except for `without`, the names of parameters that only the student needs."""
        super().__init__()
        self.network = copy.deepcopy(student).requires_grad_(False).eval()
        for name in without:
            holder, _, last = name.rpartition(".")
            setattr(self.network.get_submodule(holder), last, None)

    def train(self, mode: bool = True) -> "EmaTeacher":
        """Stays in evaluation mode, whatever the `mode` of the method that contains it. A moving average drops no paths."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Any:
        """Output of the averaged network, without gradients."""
        return self.network(*inputs)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, for parameters only.

        Ignores parameters that only the student has, such as a mask token.
        """
        sources = dict(student.named_parameters())
        names, averages = zip(*self.network.named_parameters(), strict=True)
        lerp_(averages, [sources[name] for name in names], 1.0 - momentum)


def networks(method: nn.Module) -> list[nn.Module]:
    """The networks of a method, each called as a whole: its children that have weights, and of a moving average the copy.

    FSDP2 divides each of them by itself.
    """
    found: list[nn.Module] = []
    for child in method.children():
        averages = [module.network for module in child.modules() if isinstance(module, EmaTeacher)]
        found += averages or ([child] if any(True for _ in child.parameters()) else [])
    return found


def encoders_with_average(trained: VisionTransformer, average: EmaTeacher) -> Encoders:
    """The encoders of a method that averages the whole network that it trains."""
    assert isinstance(average.network, VisionTransformer)
    return Encoders(trained, average.network)


def momenta(settings: TeacherSettings) -> tuple[float, float]:
    """Momentum of the moving average at the start and at the end of the run."""
    return resolved(settings.ema_start), resolved(settings.ema_end)


def slow_teacher_remarks(schedule: MomentumSchedule, start: float, end: float, total_steps: int) -> list[str]:
    """A note if the moving average hardly changes in a run of `total_steps`. It names a momentum that suits the run."""
    rates = renewal_rates(schedule, start, end, total_steps)
    renewals = total_steps * sum(rates) / len(rates)
    if renewals >= FEW_RENEWALS or renewals == 0:
        return []
    better = max(0.0, 1 - (1 - start) * ENOUGH_RENEWALS / renewals)
    too = "" if end == 1 else f" (and method.ema_end={end:g})"
    advice = f"; about {better:.3g} suits this length" if better < start else ""
    return [
        f"method.ema_start={start:g}{too} is slow for {total_steps} steps: the moving average is on "
        f"average {mean_age(rates, total_steps):.0%} of the run behind the network that it follows{advice}"
    ]


def renewal_rates(schedule: MomentumSchedule, start: float, end: float, total_steps: int) -> list[float]:
    """1 - momentum, at evenly spaced steps of the run."""
    points = min(total_steps, MAX_POINTS)
    steps = (point * total_steps // points for point in range(points))
    return [1 - schedule(start, end, Progress(step, total_steps, total_steps)) for step in steps]


def mean_age(rates: list[float], total_steps: int) -> float:
    """Mean age of the weights in the final average, as a share of the run.

    The weights from before a time x have the total weight exp(-(sum of 1 - momentum since x)). The mean age is the integral of
    that over x. For a linear momentum up to 1 it is sqrt(pi / a) / 2, where a = (1 - start) T / 2.
    """
    interval = total_steps / len(rates)
    weight, age = 1.0, 0.0
    for rate in reversed(rates):
        before = weight * math.exp(-rate * interval)
        age += (weight + before) / 2
        weight = before
    return age / len(rates)
