"""Signs that an encoder collapses: that it answers the same whatever the image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from openjepa.measures.rank import rankme
from openjepa.refusals import Refusal

Distance = Callable[[Tensor, Tensor], Tensor]
"""(prediction, target) of equal shape -> scalar: the loss of the method."""


@dataclass(frozen=True)
class CollapseStatistics:
    """One look at the features of a fixed probe batch."""

    feature_std: float
    """Standard deviation over images of each dimension, averaged over dimensions. 0 when all images look alike."""
    cosine: float
    """Mean cosine between two different images. 1 when all images look alike."""
    rankme: float
    """Effective rank of the features (raw, not centered)."""


def collapse_statistics(features: Float[Tensor, "n D"]) -> CollapseStatistics:
    """Statistics of the pooled features of n images (at least 2).

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
    """The loss of two predictors that look at no context. A method that learns comes below both."""

    mean_target: float
    """Always predicts the mean of all targets."""
    position_mean: float
    """Predicts, at each position of the grid, the mean target of that position."""


def trivial_losses(targets: Float[Tensor, "B M T D"], positions: Int[Tensor, "B M T"], distance: Distance) -> TrivialLosses:
    """Losses of the trivial predictors on these targets, under the method's own `distance`.

    Both means include the target itself, which flatters them when a position occurs only a few times.
    """
    flat = targets.detach().float().flatten(0, 2)  # [B*M*T, D]
    where = positions.flatten()  # [B*M*T]
    overall = flat.mean(dim=0, keepdim=True).expand_as(flat)
    num_positions = int(where.max()) + 1
    sums = torch.zeros(num_positions, flat.shape[1], device=flat.device).index_add_(0, where, flat)
    counts = torch.bincount(where, minlength=num_positions).clamp(min=1)
    by_position = (sums / counts[:, None])[where]
    return TrivialLosses(float(distance(overall, flat)), float(distance(by_position, flat)))


SAME_COSINE = 0.9999
"""Above this mean cosine, images differ by less than bf16 arithmetic resolves."""
FALLEN = 0.1
"""A quantity below this share of its best value so far has fallen toward nothing."""


def verdict(history: Sequence[CollapseStatistics]) -> str | None:
    """In words, what points to collapse in the looks so far (oldest first), or None.

    Never speaks on the first look, which describes the random initialization (whose features are nearly parallel, too), nor
    on a sign that only the latest look shows: healthy runs can dip once and recover.
    """
    if len(history) < 3:
        return None
    signs = set(_signs(history[:-1])) & set(_signs(history))
    if not signs:
        return None
    words = "; ".join(text for sign, text in _signs(history).items() if sign in signs)
    advice = "lower the learning rate, lengthen the warm-up, or start with a higher EMA momentum"
    return f"The encoder is collapsing: {words}. Try to {advice}."


def _signs(history: Sequence[CollapseStatistics]) -> dict[str, str]:
    """What the latest look shows against the best of the earlier ones, in words."""
    latest, earlier = history[-1], history[:-1]
    best_std = max(look.feature_std for look in earlier)
    best_rank = max(look.rankme for look in earlier)
    least_cosine = min(look.cosine for look in earlier)
    signs = {}
    if latest.feature_std < FALLEN * best_std:
        signs["std"] = f"the features' standard deviation fell from {best_std:.3g} to {latest.feature_std:.3g}"
    if latest.cosine > SAME_COSINE or 1 - latest.cosine < FALLEN * (1 - least_cosine):
        was, now = f"{least_cosine:.4f}", f"{latest.cosine:.4f}"
        # weights that a run starts from may have collapsed before
        signs["cosine"] = f"the mean cosine between images {f'stays at {now}' if was == now else f'rose from {was} to {now}'}"
    if latest.rankme < FALLEN * best_rank or latest.rankme < 1.1 < best_rank / 1.5:
        signs["rank"] = f"the effective rank fell from {best_rank:.3g} to {latest.rankme:.3g}"
    return signs
