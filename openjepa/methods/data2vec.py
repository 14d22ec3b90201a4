"""data2vec (Baevski et al. 2022, arXiv 2202.03555): predict a moving average's representations of the masked patches."""

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function

from openjepa.engine import distributed
from openjepa.methods.base import DEFAULT_RULES, CoupledTerm, Encoders, Method, ProbeOutput, Surroundings
from openjepa.methods.teachers import EmaTeacher, encoders_with_average, momenta, slow_teacher_remarks
from openjepa.models.transformer import initialize
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.schedules import Progress, ramped_momentum
from openjepa.settings.derived import resolved
from openjepa.settings.methods import Data2VecSettings
from openjepa.settings.methods.shared import TARGET_NORM_EPS
from openjepa.types import (
    Batch,
    ColorChange,
    EncoderOutput,
    Export,
    InputSpec,
    LossOutput,
    ParameterRule,
    TokenMask,
)

VIEW = "image"


class LayerAverage(nn.Module):
    """The teacher: the mean of the normalized outputs of its last blocks on the whole image (section 3.3)."""

    def __init__(self, encoder: VisionTransformer, settings: Data2VecSettings) -> None:
        """Starts as a copy of `encoder`, but without the mask token, which it does not need."""
        super().__init__()
        self.settings = settings
        self.average = EmaTeacher(encoder, without=("mask_token",))

    @property
    def encoder(self) -> VisionTransformer:
        """The averaged encoder."""
        network = self.average.network
        assert isinstance(network, VisionTransformer)
        return network

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B N D"]:
        """The targets of all patches, in fp32, without gradients."""
        outputs = self.encoder.block_outputs(images, resolved(self.settings.average_layers), self.settings.target_branch)
        mean = torch.stack([self._normalized(output.float()) for output in outputs]).mean(dim=0)
        return _standardized(mean, (2,)) if self.settings.target_layer_norm else mean

    def _normalized(self, output: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        kind = self.settings.layer_norm
        if kind in ("instance", "instance_then_layer"):
            output = _standardized(output, (1,))
        if kind == "batch":
            output = _scaled(output, *distributed.var_mean_over_ranks(output.flatten(0, 1)))
        return _standardized(output, (2,)) if kind in ("layer", "instance_then_layer") else output


@final
class Data2Vec(Method):
    """The student sees mask tokens instead of some patches and predicts the teacher's representations of these patches.

    Defaults are those of the published vision commands. The paper differs from them in three ways. It takes the output of each
    block's MLP before it is added (`target_branch=mlp`). It does not normalize the mean again (`target_layer_norm=False`). It
    shares patch embedding and positions between student and teacher; the released code and openjepa average everything.

    openjepa differs from the released code in four ways. Keys have biases (the softmax does not see them). There is no dropout
    of attention weights. The class token is optional. The loss is the mean over the masked patches of one microbatch of each
    process together, not over those of one device.
    """

    def __init__(self, settings: Data2VecSettings, surroundings: Surroundings) -> None:
        """Draws the weights from torch's global generator. Token counts are not used, because all patches are encoded."""
        super().__init__()
        self.settings = settings
        self.view = replace(surroundings.view, colors=(ColorChange(settings.jitter, settings.jitter_probability),))
        self.encoder_config = surroundings.encoder_config()
        self.student: VisionTransformer = build_encoder(replace(self.encoder_config, mask_token=True))
        self.head = nn.Linear(self.encoder_config.width, self.encoder_config.width)
        initialize(self.head, nn.ModuleList(), self.encoder_config.initialization)
        self.teacher = LayerAverage(self.student, settings)

    def inputs(self) -> InputSpec:
        """One random crop with changed colors, and a mask."""
        return InputSpec(views={VIEW: self.view}, masked_views=(VIEW,))

    def forward(self, batch: Batch, progress: Progress) -> LossOutput:
        """Sections 3.1 to 3.4: targets from the whole image, predictions from the masked one, distance at masked patches."""
        images, mask = _images_and_mask(batch)
        with record_function("teacher"):
            targets = self.teacher(images)  # [B, N, D]
        return LossOutput(total=self._loss(self._predictions(images, mask), targets, mask))

    def distance(self, predictions: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        """Smooth L1 or squared distance, averaged over all elements."""
        return self._distances(predictions, targets).mean()

    def after_step(self, progress: Progress) -> Mapping[str, float]:
        """Moves the teacher towards the student, which the optimizer has just updated."""
        value = self._momentum(*momenta(self.settings), progress)
        self.teacher.average.update(self.student, value)
        return {"momentum": value}

    def probe(self, batch: Batch, progress: Progress) -> ProbeOutput:
        """Pooled features of the exported encoder on the whole image, and the loss with its targets, without drop path.

        Images differ in their number of masked patches, so each target has its own row: [n, 1, 1, D].
        """
        images, mask = _images_and_mask(batch)
        with self.looking():
            encoded: EncoderOutput = self._exported()(images)
            targets, predictions = self.teacher(images), self._predictions(images, mask)
            loss = self._loss(predictions, targets, mask)
        features = encoded.pooled(self.encoder_config.pooling)
        sample, place = mask.masked.nonzero(as_tuple=True)
        chosen, predicted, others = (part[sample, place][:, None, None] for part in (targets, predictions, targets.roll(-1, 0)))
        return ProbeOutput(features, loss, chosen, place[:, None, None], self.distance, predicted, others)

    def predicted_features(self, batch: Batch, progress: Progress) -> Float[Tensor, "B D"]:
        """Predictions averaged over the masked patches of each image, without drop path."""
        images, mask = _images_and_mask(batch)
        with self.looking():
            predictions = self._predictions(images, mask)
        return _mean_where(mask.masked, predictions.permute(2, 0, 1)).T  # patches last: [D, B, N]

    def energies(self, batch: Batch, progress: Progress) -> Float[Tensor, "B B"]:
        """Distance between the predictions at the masked patches of image i and the targets at the same places of image j."""
        images, mask = _images_and_mask(batch)
        with self.looking():
            predictions, targets = self._predictions(images, mask), self.teacher(images)
        rows = [
            _mean_where(masked, self._distances(prediction.expand_as(targets), targets))
            for masked, prediction in zip(mask.masked, predictions, strict=True)
        ]
        return torch.stack(rows)

    def parameter_rules(self) -> tuple[ParameterRule, ...]:
        """As in the released code: no decay of biases, 1-D parameters, class token and positions. The mask token is decayed."""
        kept = ParameterRule(matches=lambda name, value: name.endswith(("cls_token", "pos_embed")), decay=False)
        return (kept, *DEFAULT_RULES)

    def coupled_terms(self) -> tuple[CoupledTerm, ...]:
        """Images have different numbers of masked patches, and `layer_norm=batch` normalizes over all images."""
        mean = CoupledTerm("the mean over masked patches", synchronized=True)
        of_targets = CoupledTerm("the batch norm of the targets", synchronized=True)
        return (mean, of_targets) if self.settings.layer_norm == "batch" else (mean,)

    def remarks(self, total_steps: int) -> list[str]:
        """Notes if the teacher hardly changes in a run of this length, and if beta has no effect."""
        settings, found = self.settings, []
        if settings.loss == "l2" and settings.smooth_l1_beta != Data2VecSettings.smooth_l1_beta:
            found.append(f"method.smooth_l1_beta={settings.smooth_l1_beta:g} has no effect with method.loss=l2")
        return found + slow_teacher_remarks(self._momentum, *momenta(settings), total_steps)

    def encoders(self) -> Encoders:
        """Student, which has a mask token, and teacher."""
        return encoders_with_average(self.student, self.teacher.average)

    def exports(self) -> Mapping[str, Export]:
        """`encoder` is the student with its mask token, or the teacher without one. `method.exported` chooses."""
        has_mask_token = self.settings.exported == "student"
        return {"encoder": Export(replace(self.encoder_config, mask_token=has_mask_token), self._exported())}

    def _exported(self) -> VisionTransformer:
        return self.teacher.encoder if self.settings.exported == "teacher" else self.student

    def _momentum(self, start: float, end: float, progress: Progress) -> float:
        return ramped_momentum(start, end, self.settings.ema_ramp, progress)

    def _predictions(self, images: Float[Tensor, "B 3 h w"], mask: TokenMask) -> Float[Tensor, "B N D"]:
        """The student's prediction for every patch, in fp32."""
        with record_function("student"):
            encoded: EncoderOutput = self.student(images, replace=mask.masked)
        with record_function("head"):
            return self.head(encoded.patches).float()  # type: ignore[no-any-return]

    def _loss(self, predictions: Float[Tensor, "B N D"], targets: Float[Tensor, "B N D"], mask: TokenMask) -> Float[Tensor, ""]:
        """Mean over the masked patches of all images of all processes. Every patch has the same weight.

        Divided by the mean number of masked patches of a process, so that the mean of the processes' losses is that mean.
        """
        weights = mask.masked.to(predictions.dtype)
        number = distributed.mean_over_ranks(weights.sum()).clamp(min=1.0 / distributed.world_size())
        return (self._distances(predictions, targets) * weights).sum() / number

    def _distances(self, predictions: Float[Tensor, "*lead D"], targets: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead"]:
        """Distance of each pair, averaged over the width."""
        if self.settings.loss == "l2":
            return F.mse_loss(predictions, targets, reduction="none").mean(dim=-1)
        beta = self.settings.smooth_l1_beta
        return F.smooth_l1_loss(predictions, targets, beta=beta, reduction="none").mean(dim=-1)


def _images_and_mask(batch: Batch) -> tuple[Float[Tensor, "B C h w"], TokenMask]:
    mask = batch.masks[VIEW]
    assert isinstance(mask, TokenMask)  # checks refuse other masks
    return batch.views[VIEW][0], mask


def _standardized(values: Float[Tensor, "B N D"], dims: tuple[int, ...]) -> Float[Tensor, "B N D"]:
    """Mean 0 and (biased) variance 1 over `dims`, without affine: 2 is layer norm, 1 instance norm."""
    return _scaled(values, *torch.var_mean(values, dim=dims, correction=0, keepdim=True))


def _scaled(
    values: Float[Tensor, "B N D"], variance: Float[Tensor, "*axes"], mean: Float[Tensor, "*axes"]
) -> Float[Tensor, "B N D"]:
    return (values - mean) * torch.rsqrt(variance + TARGET_NORM_EPS)


def _mean_where(masked: Bool[Tensor, "*lead N"], values: Float[Tensor, "*lead N"]) -> Float[Tensor, "*lead"]:
    """Mean over the masked patches, 0 if there are none. A weighted mean, so that the host need not know their number."""
    weights = masked.to(values.dtype)
    return (values * weights).sum(dim=-1) / weights.sum(dim=-1).clamp(min=1.0)
