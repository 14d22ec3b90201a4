"""Signs that an encoder collapses, that is, gives the same output for every image."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from openjepa.measures.rank import rankme
from openjepa.measures.verdicts import CollapseStatistics
from openjepa.refusals import Refusal

Distance = Callable[[Tensor, Tensor], Tensor]
"""(prediction, target) of equal shape -> scalar. The loss of the method."""


def collapse_statistics(features: Float[Tensor, "n D"]) -> CollapseStatistics:
    """Statistics of the pooled features of n images. Raises Refusal if n is below 2.

    With unit vectors u_i and s = sum u_i, the mean over pairs i != j of u_i . u_j is (|s|^2 - sum |u_i|^2) / (n (n - 1)).
    """
    num_images = len(features)
    if num_images < 2:
        raise Refusal(f"collapse is watched on at least 2 images; got {num_images}: raise monitor.images")
    values = features.detach().float()
    units = functional.normalize(values, dim=1).double() if values.device.type != "mps" else functional.normalize(values, dim=1)
    cosine = (units.sum(dim=0).square().sum() - units.square().sum()) / (num_images * (num_images - 1))
    return CollapseStatistics(float(values.std(dim=0).mean()), float(cosine), rankme(values))


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
    where = positions.flatten()  # [B*M*T]
    overall = flat.mean(dim=0, keepdim=True).expand_as(flat)
    num_positions = int(where.max()) + 1
    sums = torch.zeros(num_positions, flat.shape[1], device=flat.device).index_add_(0, where, flat)
    counts = torch.bincount(where, minlength=num_positions).clamp(min=1)
    by_position = (sums / counts[:, None])[where]
    return TrivialLosses(float(distance(overall, flat)), float(distance(by_position, flat)))
