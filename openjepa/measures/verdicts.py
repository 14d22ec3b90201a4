"""Verdicts on measured numbers: does an encoder collapse, does a run predict positions, do energies tell pairs apart?

Does not import torch.

Training and `bench energy` write the answers as flags beside their sentences. The report reads the flags. For older runs, which
have no flags, it applies the rules given here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CollapseStatistics:
    """One look at the features of a fixed probe batch."""

    feature_std: float
    """Standard deviation over images of each dimension, averaged over dimensions. 0 if all images look alike."""
    cosine: float
    """Mean cosine between two different images. 1 if all images look alike."""
    rankme: float
    """Effective rank of the features (raw, not centered)."""


SAME_COSINE = 0.9999
"""Mean cosine above which images differ by less than bf16 arithmetic resolves."""
FALLEN = 0.1
"""Share of its best value so far below which a quantity counts as fallen to nothing."""


HEALTHY = "The features keep their spread and rank: no sign of collapse."


@dataclass(frozen=True)
class Look:
    """The verdict on the looks at the features so far."""

    collapsed: bool | None
    """True if they point to collapse. None before the third finite look, and if the latest look is not finite."""
    words: str | None
    """The same in a sentence. None if it is not known."""


def judged(history: Sequence[CollapseStatistics]) -> Look:
    """Judges whether the looks so far (oldest first) point to collapse.

    The first look alone never counts, because it describes the random initialization, whose features are nearly parallel too. A
    sign that only the latest look shows never counts either, because healthy runs can dip once and recover.
    """
    finite = _finite(history)
    if len(finite) < 3 or not _is_finite(history[-1]):
        return Look(None, None)
    signs = set(_signs(finite[:-1])) & set(_signs(finite))
    if not signs:
        return Look(False, HEALTHY)
    words = "; ".join(text for sign, text in _signs(finite).items() if sign in signs)
    advice = "lower the learning rate, lengthen the warm-up, or start with a higher EMA momentum"
    return Look(True, f"The encoder is collapsing: {words}. Try to {advice}.")


def _finite(history: Sequence[CollapseStatistics]) -> list[CollapseStatistics]:
    """The looks whose numbers are all finite. Other looks cannot be compared."""
    return [look for look in history if _is_finite(look)]


def _signs(history: Sequence[CollapseStatistics]) -> dict[str, str]:
    """Signs of collapse in words: the latest look compared with the best of the earlier ones."""
    latest, earlier = history[-1], history[:-1]
    best_std = max(look.feature_std for look in earlier)
    best_rank = max(look.rankme for look in earlier)
    least_cosine = min(look.cosine for look in earlier)
    signs = {}
    if latest.feature_std < FALLEN * best_std:
        signs["std"] = f"the features' standard deviation fell from {best_std:.3g} to {latest.feature_std:.3g}"
    if latest.cosine > SAME_COSINE or 1 - latest.cosine < FALLEN * (1 - least_cosine):
        was, now = f"{least_cosine:.4f}", f"{latest.cosine:.4f}"
        # the weights that a run starts from may have collapsed before
        signs["cosine"] = f"the mean cosine between images {f'stays at {now}' if was == now else f'rose from {was} to {now}'}"
    if latest.rankme < FALLEN * best_rank or latest.rankme < 1.1 < best_rank / 1.5:
        signs["rank"] = f"the effective rank fell from {best_rank:.3g} to {latest.rankme:.3g}"
    return signs


def _is_finite(look: object) -> bool:
    """True if all numbers of a look are finite."""
    return all(math.isfinite(value) for value in vars(look).values())


# ------------------------------------------------------------------------------------------------------- predicting positions


@dataclass(frozen=True)
class PositionStatistics:
    """One look at what positions alone predict of the targets, and at what predictions say beyond it."""

    position_share: float
    """Share of the targets' variance over images and positions that the mean of their position explains. 1: all of it."""
    cosine_own: float
    """Mean cosine between a prediction and its own target."""
    cosine_other: float
    """Mean cosine between a prediction and the target of another image at the same position."""
    cosine_targets: float
    """Mean cosine between a target and that of another image at the same position."""

    @property
    def gap(self) -> float:
        """`cosine_own` - `cosine_other`. 0: a prediction says nothing about its image."""
        return self.cosine_own - self.cosine_other

    @property
    def beyond_position(self) -> float:
        """`gap` as a share of that of exact predictions, 1 - `cosine_targets`. 0 if targets have nothing beyond positions."""
        reach = 1 - self.cosine_targets
        return self.gap / reach if reach > 0 else 0.0


LEAST_BEYOND = 0.05
"""Share of what targets say beyond their position below which predictions count as predictions of the position."""


@dataclass(frozen=True)
class PositionLook:
    """The verdict on the looks at positions so far."""

    positions: bool | None
    """True if the run predicts positions. None before the third finite look, and if the latest look is not finite."""
    words: str | None
    """The same in a sentence. None if it is not known."""


def judged_positions(history: Sequence[PositionStatistics]) -> PositionLook:
    """Judges whether a run predicts positions instead of images, from its looks so far (oldest first).

    As in `judged`, the first look never counts, because an untrained predictor predicts nothing, nor does what only the latest
    look shows.
    """
    finite = [look for look in history if _is_finite(look)]
    if len(finite) < 3 or not _is_finite(history[-1]):
        return PositionLook(None, None)
    latest, before = finite[-1], finite[-2]
    if any(look.beyond_position >= LEAST_BEYOND for look in (before, latest)):
        own, other = f"{latest.cosine_own:.2f}", f"{latest.cosine_other:.2f}"
        words = f"cosine {own} with their own target, {other} with another image's at the same place"
        return PositionLook(False, f"Predictions tell images apart: {words}.")
    words = (
        f"the cosine of a prediction with its own target ({latest.cosine_own:.3f}) is hardly larger than that with another "
        f"image's target at the same place ({latest.cosine_other:.3f})"
    )
    return PositionLook(True, f"The run predicts positions, not images: {words}.")


# --------------------------------------------------------------------------------------------------------------- energies


@dataclass(frozen=True)
class EnergyStatistics:
    """Statistics of energies. If two energies are equal, each counts half, so that a flat landscape has AUC 0.5."""

    compatible: float
    """Mean energy of x and y of the same image."""
    incompatible: float
    """Mean energy of x of one image and y of another."""
    gap: float
    """(incompatible - compatible) / incompatible. 0 if they are alike, 1 if compatible pairs have no energy."""
    auc: float
    """Share of the triples (x, its own y, y of another image) in which the own y has the lower energy. 0.5 is chance."""
    auc_error: float
    """Standard error of `auc` over the images."""
    top1: float
    """Share of the x whose own y has the lowest energy of all. If several are equally low, each counts its share."""
    chance: float
    """The value of `top1` by chance: 1 / B."""
    std: float
    """Standard deviation of the energies over all pairs."""
    relative_std: float
    """`std` divided by the absolute value of the mean energy of all pairs. 0 if the landscape is flat."""


def tells_apart(auc: float, auc_error: float) -> bool:
    """True if compatible pairs have a lower energy than others, by more than twice the standard error of the share."""
    return auc >= 0.5 + 2 * auc_error
