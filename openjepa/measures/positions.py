"""Measures of what a position alone predicts: do targets, or predictions of them, say anything about the image?

A target encoder or a predictor can settle for the average patch of each place. The rank of the features, their spread and the
loss do not show it (CAPI, arXiv 2502.08769, section 3.1; StoP, arXiv 2308.00566).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from openjepa.measures.verdicts import PositionStatistics

Distance = Callable[[Tensor, Tensor], Tensor]
"""(prediction, target) of equal shape -> scalar. The loss of the method."""


@dataclass(frozen=True)
class TrivialLosses:
    """The losses of two predictors that do not look at the context. A method that learns comes below both."""

    mean_target: float
    """Loss if the prediction is always the mean of all targets."""
    position_mean: float
    """Loss if the prediction at each position of the grid is the mean target of that position."""


def trivial_losses(targets: Float[Tensor, "B M T D"], positions: Int[Tensor, "B M T"], distance: Distance) -> TrivialLosses:
    """Losses of the trivial predictors on these targets, under the method's own `distance`.

    Both means include the target itself. This favors the trivial predictors if a position occurs only a few times.
    """
    flat = targets.detach().float().flatten(0, 2)  # [B*M*T, D]
    overall = flat.mean(dim=0, keepdim=True).expand_as(flat)
    means, _ = _position_means(flat, positions.flatten())
    return TrivialLosses(float(distance(overall, flat)), float(distance(means, flat)))


def position_share(targets: Float[Tensor, "B M T D"], positions: Int[Tensor, "B M T"]) -> float:
    """Share of the variance of the targets over images and positions that the mean target of each position explains.

    With n targets at P positions, S their squared distances from the mean of all and W those from the means of their positions:
    1 - (W / (n - P)) / (S / (n - 1)). The divisors count what the means have used up, so that the share of random targets is 0
    on average for any number of images; it can be a little below 0. 1: an image changes nothing. nan if no position has two
    targets, or if all targets are equal.
    """
    flat = targets.detach().float().flatten(0, 2)
    flat = flat - flat.mean(dim=0)  # sums of squares in fp32 keep their digits
    means, num_positions = _position_means(flat, positions.flatten())
    total, within = flat.square().mean(), (flat - means).square().mean()
    number = len(flat)
    if number == num_positions or float(total) == 0:
        return float("nan")
    return 1 - float(within / total) * (number - 1) / (number - num_positions)


def _position_means(rows: Float[Tensor, "n D"], where: Int[Tensor, " n"]) -> tuple[Float[Tensor, "n D"], int]:
    """For each row the mean of the rows with the same position, and the number of positions that occur."""
    counts = torch.bincount(where)
    sums = torch.zeros(len(counts), rows.shape[1], device=rows.device).index_add_(0, where, rows)
    return (sums / counts.clamp(min=1)[:, None])[where], int((counts > 0).sum())


def position_statistics(
    predictions: Float[Tensor, "B M T D"],
    targets: Float[Tensor, "B M T D"],
    other_targets: Float[Tensor, "B M T D"],
    positions: Int[Tensor, "B M T"],
) -> PositionStatistics:
    """What positions say of the targets, and predictions beyond it. `other_targets` are another image's at `positions`."""
    pairs = ((predictions, targets), (predictions, other_targets), (targets, other_targets))
    cosines = (float(functional.cosine_similarity(a.float(), b.float(), dim=-1).mean()) for a, b in pairs)
    return PositionStatistics(position_share(targets, positions), *cosines)
