"""Predictions of hidden parts of an image by I-JEPA's predictor, beside the encoder's features of these parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from openjepa.refusals import Refusal
from openjepa.settings.fields import as_setting
from openjepa.settings.methods.ijepa import OTHER_TARGETS
from openjepa.settings.methods.shared import TARGET_NORM_EPS

Loss = Literal["smooth_l1", "l2", "l1"]
TargetNorm = Literal["layer_norm", "none", "position", "dyntanh"]


@dataclass(frozen=True)
class PredictorObjective:
    """The objective that a predictor was trained for. The defaults are those of the released program."""

    loss: Loss = "smooth_l1"
    """Distance from predictions to targets, averaged over everything: smooth L1 with beta 1, squares, or absolute values."""
    target_norm: TargetNorm = "layer_norm"
    """Normalization of the features of the target encoder: `layer_norm` without weights, or `none`. With another one, which
    needs more than the features, `refuse_other_targets` refuses the predictor."""

    def __post_init__(self) -> None:
        """Raises Refusal if a name is not known."""
        for name, value, known in (("loss", self.loss, Loss), ("target_norm", self.target_norm, TargetNorm)):
            if value not in get_args(known):
                raise Refusal(f"a predictor trained with {name}={value!r} is not known: {', '.join(get_args(known))}")

    def targets(self, features: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead D"]:
        """Features of an encoder, normalized as the targets of training, so that predictions can be compared with them."""
        if self.target_norm == "layer_norm":
            return F.layer_norm(features, features.shape[-1:], eps=TARGET_NORM_EPS)
        return features

    def distances(self, predicted: Float[Tensor, "B T D"], actual: Float[Tensor, "B T D"]) -> Float[Tensor, " B"]:
        """The loss of each image, averaged over patches and dimensions."""
        return _DISTANCES[self.loss](predicted, actual, reduction="none").mean(dim=(1, 2))


_DISTANCES: dict[str, Callable[..., Tensor]] = {"smooth_l1": F.smooth_l1_loss, "l2": F.mse_loss, "l1": F.l1_loss}


def objective_of(entries: Mapping[str, Any]) -> PredictorObjective:
    """The objective in the entries of a predictor's config.json. A missing entry is that of the released program."""
    return PredictorObjective(
        entries.get("loss", PredictorObjective.loss), entries.get("target_norm", PredictorObjective.target_norm)
    )


def refuse_other_targets(entries: Mapping[str, Any]) -> None:
    """Raises Refusal if a predictor was not trained for the features of an encoder's last layer, but for other targets.

    `entries`: those of its config.json.
    """
    names = [name for name in OTHER_TARGETS if name in entries]
    names += ["target_norm"] if entries.get("target_norm") in ("position", "dyntanh") else []
    others = [as_setting(f"method.{name}", entries[name]) for name in names]
    if others:
        raise Refusal(
            f"this predictor was trained with {', '.join(others)}: its outputs are no features of the encoder's last layer on "
            "the whole image, so that they cannot be compared with these. Encoder and features can be used as they are"
        )


@dataclass(frozen=True)
class BlockPrediction:
    """One target block of T patches in B images. Tensors are fp32 on the CPU."""

    indices: Int[Tensor, " T"]
    """Patches of the block: row * W + column."""
    predicted: Float[Tensor, "B T D"]
    """Features that the predictor predicts."""
    actual: Float[Tensor, "B T D"]
    """The encoder's features of these patches, from the whole image, normalized as the targets of training."""
    in_context: Bool[Tensor, " T"]
    """True for patches that are also in the context, so that they need no prediction. All False in training."""
    cosine: Float[Tensor, "B T"]
    """Cosine between `predicted` and `actual`, for every patch."""
    loss: Float[Tensor, " B"]
    """The training loss of this block alone, in each image."""


@dataclass(frozen=True)
class Prediction:
    """Result of `Encoder.predict` for B images."""

    grid: tuple[int, int]
    """Rows H and columns W of patches, to which all indices refer."""
    context: Int[Tensor, " K"]
    """Patches that the encoder saw for the predictions, as raster indices."""
    blocks: tuple[BlockPrediction, ...]
    """One prediction for each target, in the order of the targets."""

    @property
    def cosine(self) -> Float[Tensor, "B M"]:
        """Mean cosine over the patches of each block."""
        return torch.stack([block.cosine.mean(dim=1) for block in self.blocks], dim=1)

    @property
    def loss(self) -> Float[Tensor, "B M"]:
        """The training loss of each block. Its mean is the loss of a training step on these images and masks."""
        return torch.stack([block.loss for block in self.blocks], dim=1)

    def cosine_map(self) -> Float[Tensor, "B H W"]:
        """Cosine of every patch on the grid: the mean over its blocks, NaN for a patch in no block."""
        rows, columns = self.grid
        sums, counts = torch.zeros(len(self.blocks[0].cosine), rows * columns), torch.zeros(rows * columns)
        for block in self.blocks:
            sums[:, block.indices] += block.cosine
            counts[block.indices] += 1
        return (sums / counts).view(-1, rows, columns)


def compare_block(
    block: Int[Tensor, " T"],
    context: Int[Tensor, " K"],
    predicted: Float[Tensor, "B T D"],
    actual: Float[Tensor, "B T D"],
    objective: PredictorObjective,
) -> BlockPrediction:
    """A `BlockPrediction` with the cosine and the loss of `predicted` against `actual`."""
    return BlockPrediction(
        indices=block,
        predicted=predicted,
        actual=actual,
        in_context=torch.isin(block, context),
        cosine=F.cosine_similarity(predicted, actual, dim=-1),
        loss=objective.distances(predicted, actual),
    )
