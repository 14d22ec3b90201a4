"""Targets of I-JEPA: one or several spaces in which the hidden blocks of an image are predicted."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function

from openjepa.engine import distributed
from openjepa.methods.base import Surroundings
from openjepa.methods.mae import normalized_pixels
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.refusals import Refusal
from openjepa.schedules import Progress
from openjepa.settings.fields import as_setting
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.methods.ijepa import check_target_layers
from openjepa.settings.methods.shared import TARGET_NORM_EPS
from openjepa.settings.models import EncoderConfig
from openjepa.types import EncoderOutput

Distance = Callable[..., Tensor]
"""Takes predictions and targets, and `reduction` as torch's losses do."""
Weight = Callable[[Progress], float]
Norm = Callable[[Tensor, Tensor], Tensor]

DISTANCES: dict[str, Distance] = {"smooth_l1": F.smooth_l1_loss, "l2": F.mse_loss, "l1": F.l1_loss}
"""The loss forms, each a mean over all elements."""


@final
class WholeImages:
    """The images of a microbatch, and the target encoder's output of all their patches, which is computed once if asked for."""

    def __init__(self, images: Float[Tensor, "B 3 h w"], encoder: nn.Module | None, num_layers: int = 0) -> None:
        """`encoder`: the target encoder, which gives no gradients; None if there is none. `num_layers`: how many of its last
        blocks are asked for.
        """
        self.images = images
        self._encoder = encoder
        self._num_layers = num_layers

    @cached_property
    def encoded(self) -> EncoderOutput:
        """The target encoder's output for every patch of the images."""
        return self._encoded(None)

    def encoded_alone(self, places: Int[Tensor, "R M T"]) -> EncoderOutput:
        """The target encoder's output for the patches of each block, R x M rows, of which it sees no other patch."""
        return self._encoded(places.flatten(0, 1))

    def _encoded(self, keep: Int[Tensor, "rows T"] | None) -> EncoderOutput:
        assert self._encoder is not None, "no space of this run needs a target encoder"
        with record_function("target_encoder"):
            return self._encoder(self.images, keep, None, None, self._num_layers)  # type: ignore[no-any-return]


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


# ------------------------------------------------------------------------------------------------------------------- norms

# each takes the features of patches and the places of these patches


def layer_norm(rows: Float[Tensor, "R M T D"], places: Int[Tensor, "R M T"]) -> Float[Tensor, "R M T D"]:
    """Mean 0 and variance 1 over the width of each patch."""
    return F.layer_norm(rows, rows.shape[-1:], eps=TARGET_NORM_EPS)


def unchanged(rows: Float[Tensor, "R M T D"], places: Int[Tensor, "R M T"]) -> Float[Tensor, "R M T D"]:
    """The features as they are."""
    return rows


def dyntanh(alpha: float, rows: Float[Tensor, "R M T D"], places: Int[Tensor, "R M T"]) -> Float[Tensor, "R M T D"]:
    """tanh(alpha x). Patches with large features keep larger ones than others."""
    return torch.tanh(alpha * rows)


@final
class PositionStandardization(nn.Module):
    """Mean 0 and variance 1 of every dimension at every position, over the images of the batches so far.

    The running averages are of x and of x squared. `collect` adds the features of a microbatch, and `commit` moves the averages
    after the optimizer step, by the images of all microbatches and processes. What is collected lasts no longer than a step.
    """

    mean: Tensor
    square: Tensor
    weight: Tensor

    def __init__(self, patches: int, width: int, momentum: float) -> None:
        """Without statistics. Until the first `commit` features stay as they are."""
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(patches, width))
        self.register_buffer("square", torch.zeros(patches, width))
        self.register_buffer("weight", torch.zeros(()))  # the sum of the weights of all batches so far
        self._sums: Tensor | None = None
        self._images = 0

    def forward(self, rows: Float[Tensor, "R M T D"], places: Int[Tensor, "R M T"]) -> Float[Tensor, "R M T D"]:
        """The features of the patches `places`, standardized."""
        weight = self.weight.clamp(min=torch.finfo(torch.float32).tiny)
        mean = self.mean / weight
        variance = torch.where(self.weight > 0, (self.square / weight - mean.square()).clamp(min=0), 1.0)
        return (rows - F.embedding(places, mean)) * F.embedding(places, torch.rsqrt(variance + TARGET_NORM_EPS))

    @torch.no_grad()
    def collect(self, features: Float[Tensor, "B N D"]) -> None:
        """Adds the features of whole images to the sums for the next `commit`."""
        values = features.float()
        sums = torch.stack([values.sum(dim=0), values.square().sum(dim=0)])
        self._sums = sums if self._sums is None else self._sums + sums
        self._images += len(values)

    @torch.no_grad()
    def commit(self) -> None:
        """Moves the averages by the collected images of all processes. Does nothing if there are none."""
        if self._sums is not None:
            count = self._sums.new_full((1,), self._images)
            of_all = distributed.sum_over_ranks(torch.cat([self._sums.flatten(), count]))
            mean, square = (of_all[:-1] / of_all[-1]).view_as(self._sums)
            share = 1.0 - self.momentum
            self.mean.lerp_(mean, share)
            self.square.lerp_(square, share)
            self.weight.lerp_(torch.ones_like(self.weight), share)
        self._sums, self._images = None, 0


# ------------------------------------------------------------------------------------------------------------------ spaces


class TargetSpace(nn.Module, ABC):
    """One space of targets, a part of the predictor's outputs. Abstract. A space may have buffers, but has no weights."""

    width: int
    """Numbers per patch."""
    num_layers: int = 0
    """How many of the target encoder's last blocks the space asks for."""
    weight: Weight
    """Weight of the space in the loss at a step. A space without weight is not computed."""

    @abstractmethod
    def at(self, whole: WholeImages, places: Int[Tensor, "R M T"]) -> Float[Tensor, "R M T W"]:
        """Targets of the patches `places`, without gradients. Row r belongs to image r // (R / B). Changes no state."""

    def collect(self, whole: WholeImages) -> None:
        """Adds the images of a microbatch to the statistics of this step, if it has any. They are used from `commit` on."""

    def commit(self) -> None:
        """Moves the statistics by what was collected in this step. Called after the optimizer."""


@final
class FeatureTargets(TargetSpace):
    """Outputs of the target encoder, normalized (I-JEPA, section 3): of its end, or of several blocks."""

    def __init__(self, settings: IJepaSettings, encoder: EncoderConfig, weight: Weight = always) -> None:
        """`encoder`: the target encoder's settings. Raises Refusal if it has too few blocks."""
        super().__init__()
        check_target_layers(settings.target_layers, encoder.depth)
        inner = settings.target_layers or ((encoder.depth,) if settings.target_norm == "dyntanh" else ())
        self.num_layers = max((encoder.depth + 1 - layer for layer in inner), default=0)
        self._from_last = [layer - encoder.depth - 1 for layer in inner]  # -1: the last block
        self._join = JOINS[settings.target_layers_join]
        self._sees_blocks_alone = settings.target_masking == "input"
        number, (rows, columns) = max(1, len(inner)), encoder.grid()
        self.statistics = nn.ModuleList()
        if settings.target_norm == "position":
            of_layer = partial(PositionStandardization, rows * columns, encoder.width, settings.position_momentum)
            self.statistics.extend(of_layer() for _ in range(number))
        plain: dict[str, Norm] = {
            "layer_norm": layer_norm,
            "none": unchanged,
            "dyntanh": partial(dyntanh, settings.dyntanh_alpha),
        }
        self._norms: list[Norm] = list(self.statistics) or [plain[settings.target_norm]] * number
        concatenates = settings.target_layers_join == "concatenated"
        self.width, self.weight = encoder.width * (number if concatenates else 1), weight

    def at(self, whole: WholeImages, places: Int[Tensor, "R M T"]) -> Float[Tensor, "R M T W"]:
        """Features at `places`: of each layer, normalized, joined."""
        if self._sees_blocks_alone:
            layers = [layer.view(*places.shape, -1) for layer in self._layers(whole.encoded_alone(places))]
        else:
            layers = [patches_at(layer, places) for layer in self._layers(whole.encoded)]
        return self._join([norm(layer, places) for norm, layer in zip(self._norms, layers, strict=True)])

    def collect(self, whole: WholeImages) -> None:
        """Adds the features of a microbatch to the statistics of this step, if there are any."""
        for statistics, layer in zip(self.statistics, self._layers(whole.encoded) if self.statistics else (), strict=True):
            assert isinstance(statistics, PositionStandardization)
            statistics.collect(layer)

    def commit(self) -> None:
        """Moves the statistics by what was collected in this step."""
        for statistics in self.statistics:
            assert isinstance(statistics, PositionStandardization)
            statistics.commit()

    def _layers(self, encoded: EncoderOutput) -> list[Float[Tensor, "rows T D"]]:
        return [encoded.blocks[number].float() for number in self._from_last] or [encoded.patches]


def side_by_side(layers: list[Float[Tensor, "R M T D"]]) -> Float[Tensor, "R M T W"]:
    """All layers in the last axis."""
    return layers[0] if len(layers) == 1 else torch.cat(layers, dim=-1)


def mean_of(layers: list[Float[Tensor, "R M T D"]]) -> Float[Tensor, "R M T D"]:
    """The mean of all layers."""
    return layers[0] if len(layers) == 1 else torch.stack(layers).mean(dim=0)


JOINS: dict[str, Callable[[list[Tensor]], Tensor]] = {"concatenated": side_by_side, "averaged": mean_of}
"""The ways to make one target of several layers."""


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

    def whole(self, images: Float[Tensor, "B 3 h w"], encoder: nn.Module | None) -> WholeImages:
        """Images for `at`. `encoder`: the target encoder, if there is one."""
        return WholeImages(images, encoder, max(space.num_layers for space in self._all()))

    def collect(self, whole: WholeImages, progress: Progress) -> None:
        """Adds the images of a microbatch to the statistics of the spaces that have a weight at this step."""
        for space, weight in self._weighted(progress):
            if weight:
                space.collect(whole)

    def commit(self) -> None:
        """Moves the statistics of all spaces by what was collected in this step."""
        for space in self._all():
            space.commit()

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

    def in_use(self, predictions: Float[Tensor, "*lead W"], progress: Progress) -> Float[Tensor, "*lead W"]:
        """The predictions, with zeros in a space that has no weight at this step, as `at` gives for targets."""
        parts, weights = torch.split(predictions, self.widths, -1), [weight for _, weight in self._weighted(progress)]
        if all(weights):
            return predictions
        return torch.cat([part if weight else torch.zeros_like(part) for part, weight in zip(parts, weights, strict=True)], -1)

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
        return [(space, space.weight(progress)) for space in self._all()]

    def _all(self) -> list[TargetSpace]:
        return [space for space in self.spaces if isinstance(space, TargetSpace)]


def target_spaces(settings: IJepaSettings, encoder: EncoderConfig) -> TargetSpaces:
    """The spaces that the settings ask for. `encoder`: the target encoder's settings."""
    if settings.target_space == "features":
        return TargetSpaces([FeatureTargets(settings, encoder)], settings.loss)
    if settings.target_space == "pixels":
        return TargetSpaces([PixelTargets(encoder)], settings.loss)
    pixels = PixelTargets(encoder, partial(falling, settings.pixels_until))
    features = FeatureTargets(settings, encoder, partial(rising, settings.features_from))
    return TargetSpaces([features, pixels], settings.loss)


def frozen_teacher(settings: IJepaSettings, surroundings: Surroundings) -> VisionTransformer | None:
    """The encoder that gives the targets and stays as it is, for views of this size. None if the settings name none.

    Raises Refusal if its patches or its pixels are not those of the run.
    """
    if settings.teacher is None:
        return None
    assert surroundings.teacher is not None
    own, theirs = surroundings.encoder_config(), surroundings.teacher.config
    wrong = [
        f"{as_setting(group, getattr(own, name))}, but the teacher has {as_setting(name, getattr(theirs, name))}"
        for name, group in {name: f"{'model' if name == 'patch_size' else 'data'}.{name}" for name in SHARED}.items()
        if getattr(own, name) != getattr(theirs, name)
    ]
    if wrong:
        raise Refusal(f"method.teacher={settings.teacher} does not fit: {'; '.join(wrong)}. Use the teacher's values")
    if theirs.image_size == own.image_size:
        return surroundings.teacher
    resized = build_encoder(replace(theirs, image_size=own.image_size))
    resized.load_state_dict(surroundings.teacher.weights_for(own.grid()), assign=True)
    return resized


SHARED = ("patch_size", "pixel_mean", "pixel_std")
"""Settings of an encoder that a frozen teacher shares with the encoder that it teaches."""


def patches_at(rows: Float[Tensor, "B N W"], places: Int[Tensor, "R M T"]) -> Float[Tensor, "R M T W"]:
    """The patches `places` of each image. Row r belongs to image r // (R / B)."""
    images = torch.arange(len(places), device=rows.device) // (len(places) // len(rows))
    return rows[images[:, None, None], places]
