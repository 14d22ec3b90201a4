"""Targets of I-JEPA: one or several spaces in which the hidden blocks of an image are predicted."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function

from openjepa.methods.mae import normalized_pixels
from openjepa.schedules import Progress
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.methods.shared import TARGET_NORM_EPS
from openjepa.settings.models import EncoderConfig
from openjepa.types import EncoderOutput

Distance = Callable[..., Tensor]
"""Takes predictions and targets, and `reduction` as torch's losses do."""
Weight = Callable[[Progress], float]

DISTANCES: dict[str, Distance] = {"smooth_l1": F.smooth_l1_loss, "l2": F.mse_loss, "l1": F.l1_loss}
"""The loss forms, each a mean over all elements."""


@final
class WholeImages:
    """The images of a microbatch, and the target encoder's output of all their patches, which is computed once if asked for."""

    def __init__(self, images: Float[Tensor, "B 3 h w"], encoder: nn.Module | None) -> None:
        """`encoder`: the target encoder, which gives no gradients. None if there is none."""
        self.images = images
        self._encoder = encoder

    @cached_property
    def encoded(self) -> EncoderOutput:
        """The target encoder's output for every patch of the images."""
        assert self._encoder is not None, "no space of this run needs a target encoder"
        with record_function("target_encoder"):
            return self._encoder(self.images)  # type: ignore[no-any-return]


# ----------------------------------------------------------------------------------------------------------------- weights


def always(progress: Progress) -> float:
    """The weight of the only space of a run."""
    return 1.0


def rising(ramp: tuple[float, float], progress: Progress) -> float:
    """A weight of 0 until the first share of the run, of 1 from the second one on, and on a line between them."""
    first, last = ramp
    if progress.fraction >= last:
        return 1.0
    return max(0.0, (progress.fraction - first) / (last - first)) if last > first else 0.0


def falling(ramp: tuple[float, float], progress: Progress) -> float:
    """A weight of 1 until the first share of the run, of 0 from the second one on, and on a line between them."""
    return 1.0 - rising(ramp, progress)


# ------------------------------------------------------------------------------------------------------------------ spaces


class TargetSpace(nn.Module, ABC):
    """One space of targets, a part of the predictor's outputs. Abstract. A space may have buffers, but has no weights."""

    width: int
    """Numbers per patch."""
    weight: Weight
    """Weight of the space in the loss at a step. A space without weight is not computed."""

    @abstractmethod
    def at(self, whole: WholeImages, places: Int[Tensor, "R M T"]) -> Float[Tensor, "R M T W"]:
        """Targets of the patches `places`, without gradients. Row r belongs to image r // (R / B). Changes no state."""


@final
class FeatureTargets(TargetSpace):
    """The target encoder's output on whole images, normalized (I-JEPA, section 3)."""

    def __init__(self, settings: IJepaSettings, encoder: EncoderConfig, weight: Weight = always) -> None:
        """`encoder`: the target encoder's settings."""
        super().__init__()
        self.width, self.weight = encoder.width, weight
        self.norm = settings.target_norm

    def at(self, whole: WholeImages, places: Int[Tensor, "R M T"]) -> Float[Tensor, "R M T W"]:
        """Features at `places`."""
        targets = patches_at(whole.encoded.patches, places)
        if self.norm == "layer_norm":
            return F.layer_norm(targets, targets.shape[-1:], eps=TARGET_NORM_EPS)
        return targets


@final
class PixelTargets(TargetSpace):
    """The pixels of each patch, normalized by their own mean and standard deviation as in MAE (I-JEPA, Table 7)."""

    def __init__(self, encoder: EncoderConfig, weight: Weight = always) -> None:
        """`encoder`: settings of an encoder with the same patches."""
        super().__init__()
        self.width, self.weight = 3 * encoder.patch_size**2, weight
        self.patch_size = encoder.patch_size

    def at(self, whole: WholeImages, places: Int[Tensor, "R M T"]) -> Float[Tensor, "R M T W"]:
        """Pixels at `places`, each patch in the order (row, column, channel)."""
        return patches_at(normalized_pixels(whole.images, self.patch_size), places)


@final
class TargetSpaces(nn.Module):
    """All spaces of a run, side by side in the last axis of predictions and of targets."""

    def __init__(self, spaces: Sequence[TargetSpace], loss: str) -> None:
        """`loss`: a name of DISTANCES."""
        super().__init__()
        self.spaces = nn.ModuleList(spaces)
        self.widths = [space.width for space in spaces]
        self._distance = DISTANCES[loss]

    @property
    def width(self) -> int:
        """Numbers per patch in all spaces together: the width of the predictor's output."""
        return sum(self.widths)

    def at(self, whole: WholeImages, places: Int[Tensor, "R M T"], progress: Progress) -> Float[Tensor, "R M T W"]:
        """Targets of the patches `places` in all spaces. Zeros in a space that has no weight at this step."""
        found = [
            space.at(whole, places) if weight else whole.images.new_zeros(*places.shape, space.width)
            for space, weight in self._weighted(progress)
        ]
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    def distance(
        self,
        predictions: Float[Tensor, "*lead W"],
        targets: Float[Tensor, "*lead W"],
        progress: Progress,
        of_tokens: Float[Tensor, "*lead"] | None = None,
    ) -> Float[Tensor, ""]:
        """The weighted sum of the distances in all spaces. Each is averaged over images, blocks, patches and dimensions.

        `of_tokens`: a factor for each patch. None: 1.
        """
        pairs = zip(torch.split(predictions, self.widths, -1), torch.split(targets, self.widths, -1), strict=True)
        weights = [weight for _, weight in self._weighted(progress)]
        terms = [weight * self._mean(*pair, of_tokens) for weight, pair in zip(weights, pairs, strict=True) if weight]
        return torch.stack(terms).sum() if len(terms) > 1 else terms[0]

    def _mean(self, predictions: Tensor, targets: Tensor, of_tokens: Tensor | None) -> Float[Tensor, ""]:
        if of_tokens is None:
            return self._distance(predictions, targets)
        return (self._distance(predictions, targets, reduction="none") * of_tokens[..., None]).mean()

    def _weighted(self, progress: Progress) -> list[tuple[TargetSpace, float]]:
        spaces = [space for space in self.spaces if isinstance(space, TargetSpace)]
        return [(space, space.weight(progress)) for space in spaces]


def target_spaces(settings: IJepaSettings, encoder: EncoderConfig) -> TargetSpaces:
    """The spaces that the settings ask for. `encoder`: the target encoder's settings."""
    if settings.target_space == "features":
        return TargetSpaces([FeatureTargets(settings, encoder)], settings.loss)
    if settings.target_space == "pixels":
        return TargetSpaces([PixelTargets(encoder)], settings.loss)
    pixels = PixelTargets(encoder, partial(falling, settings.pixels_until))
    features = FeatureTargets(settings, encoder, partial(rising, settings.features_from))
    return TargetSpaces([features, pixels], settings.loss)


def patches_at(rows: Float[Tensor, "B N W"], places: Int[Tensor, "R M T"]) -> Float[Tensor, "R M T W"]:
    """The patches `places` of each image. Row r belongs to image r // (R / B)."""
    images = torch.arange(len(places), device=rows.device) // (len(places) // len(rows))
    return rows[images[:, None, None], places]
