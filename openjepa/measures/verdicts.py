"""What measured numbers say: whether an encoder collapses, whether energies tell pairs apart. Free of torch.

Training and `bench energy` write the answers as flags beside their sentences. The report reads the flags; of runs that were
written before there were any it asks the same rules here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CollapseStatistics:
    """One look at the features of a fixed probe batch."""

    feature_std: float
    """Standard deviation over images of each dimension, averaged over dimensions. 0 when all images look alike."""
    cosine: float
    """Mean cosine between two different images. 1 when all images look alike."""
    rankme: float
    """Effective rank of the features (raw, not centered)."""


SAME_COSINE = 0.9999
"""Above this mean cosine, images differ by less than bf16 arithmetic resolves."""
FALLEN = 0.1
"""A quantity below this share of its best value so far has fallen toward nothing."""


HEALTHY = "The features keep their spread and rank: no sign of collapse."
"""In words, what a history without signs says."""


def collapsed(history: Sequence[CollapseStatistics]) -> bool | None:
    """Whether the looks so far (oldest first) point to collapse. None before the third finite one, or if the latest is not."""
    if len(_finite(history)) < 3 or not _finite(history[-1:]):
        return None
    return verdict(history) is not None


def verdict(history: Sequence[CollapseStatistics]) -> str | None:
    """In words, what points to collapse in the looks so far (oldest first), or None.

    Never speaks on the first look, which describes the random initialization (whose features are nearly parallel, too), nor
    on a sign that only the latest look shows: healthy runs can dip once and recover.
    """
    history = _finite(history)
    if len(history) < 3:
        return None
    signs = set(_signs(history[:-1])) & set(_signs(history))
    if not signs:
        return None
    words = "; ".join(text for sign, text in _signs(history).items() if sign in signs)
    advice = "lower the learning rate, lengthen the warm-up, or start with a higher EMA momentum"
    return f"The encoder is collapsing: {words}. Try to {advice}."


def _finite(history: Sequence[CollapseStatistics]) -> list[CollapseStatistics]:
    """The looks whose numbers are all finite: others compare with nothing."""
    return [look for look in history if all(math.isfinite(value) for value in vars(look).values())]


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


def tells_apart(auc: float, auc_error: float) -> bool:
    """Whether compatible pairs have a lower energy than others, by more than twice the standard error of the share."""
    return auc >= 0.5 + 2 * auc_error
