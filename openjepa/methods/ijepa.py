"""I-JEPA (Assran et al. 2023, arXiv 2301.08243): predict the representations of target blocks from one context block."""

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import record_function

from openjepa.methods.base import CoupledTerm, Encoders, Method, ProbeOutput, Surroundings
from openjepa.methods.teachers import EmaTeacher, encoders_with_average, momenta, slow_teacher_remarks
from openjepa.models.predictor import Predictor, build_predictor
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.refusals import Refusal
from openjepa.schedules import Progress, momentum
from openjepa.settings.derived import divisors, heads_of, resolved
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.methods.shared import TARGET_NORM_EPS
from openjepa.settings.models import EncoderConfig, PredictorConfig
from openjepa.types import Batch, BlockMasks, EncoderOutput, Export, InputSpec, LossOutput

VIEW = "image"


@final
class IJepa(Method):
    """A context encoder and a predictor learn to predict the target encoder's representations of hidden blocks."""

    def __init__(self, settings: IJepaSettings, surroundings: Surroundings) -> None:
        """Draws the weights from torch's global generator."""
        super().__init__()
        self.settings = settings
        self.view = surroundings.view
        self.encoder_config = surroundings.encoder_config()
        self.predictor_config = _predictor_config(settings, self.encoder_config)
        self.context_encoder: VisionTransformer = build_encoder(self.encoder_config)
        self.predictor: Predictor = build_predictor(self.predictor_config)
        self.target_encoder = EmaTeacher(self.context_encoder)

    def inputs(self) -> InputSpec:
        """One random crop with a context and target blocks."""
        return InputSpec(views={VIEW: self.view}, masked_views=(VIEW,))

    def forward(self, batch: Batch, progress: Progress) -> LossOutput:
        """Section 3 of the paper: targets, context, predictions, distance."""
        images, masks = _images_and_masks(batch)
        with record_function("target_encoder"):
            targets = self._targets(self.target_encoder(images), masks)  # [B, M, T, D]
        loss = self.distance(self._predictions(images, masks), targets)
        return LossOutput(total=loss)

    def distance(self, predictions: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        """The loss, averaged over images, blocks, patches and dimensions.

        The released code uses smooth L1 with beta 1. The paper has the squared L2 distance, summed over the patches of a block
        and averaged over blocks. That is `l2` here times the constant (patches per block x width).
        """
        return F.smooth_l1_loss(predictions, targets) if self.settings.loss == "smooth_l1" else F.mse_loss(predictions, targets)

    def after_step(self, progress: Progress) -> Mapping[str, float]:
        """Moves the target encoder towards the context encoder, which the optimizer has just updated."""
        value = momentum(*momenta(self.settings), progress)
        self.target_encoder.update(self.context_encoder, value)
        return {"momentum": value}

    def probe(self, batch: Batch, progress: Progress) -> ProbeOutput:
        """Pooled features of the target encoder, and the loss with its targets, without drop path."""
        images, masks = _images_and_masks(batch)
        with self.looking():
            encoded: EncoderOutput = self.target_encoder(images)
            targets = self._targets(encoded, masks)
            loss = self.distance(self._predictions(images, masks), targets)
        features = encoded.pooled(self.encoder_config.pooling)
        return ProbeOutput(features, loss, targets, masks.targets, self.distance)

    def predicted_features(self, batch: Batch, progress: Progress) -> Float[Tensor, "B D"]:
        """The predictor's outputs averaged over blocks and patches, without drop path."""
        with self.looking():
            predictions = self._predictions(*_images_and_masks(batch))  # [B, M, T, D]
        return predictions.mean(dim=(1, 2))

    def energies(self, batch: Batch, progress: Progress) -> Float[Tensor, "B B"]:
        """Distance between the predictions from the context of image i and the targets at the same places of image j."""
        images, masks = _images_and_masks(batch)
        with self.looking():
            predictions, encoded = self._predictions(images, masks), self.target_encoder(images)
            rows = []
            for image, prediction in enumerate(predictions):
                places = masks.targets[image].expand(len(images), -1, -1)
                targets = self._targets(encoded, replace(masks, targets=places))  # [B, M, T, D]
                rows.append(torch.stack([self.distance(prediction, target) for target in targets]))
        return torch.stack(rows)

    def coupled_terms(self) -> tuple[CoupledTerm, ...]:
        """There are none: the distance is a mean over images, which all have as many targets."""
        return ()

    def remarks(self, total_steps: int) -> list[str]:
        """A note if the target encoder, which is exported, hardly changes in a run of this length."""
        return slow_teacher_remarks(momentum, *momenta(self.settings), total_steps)

    def encoders(self) -> Encoders:
        """Context encoder and target encoder."""
        return encoders_with_average(self.context_encoder, self.target_encoder)

    def exports(self) -> Mapping[str, Export]:
        """The target encoder, which the paper evaluates, the predictor, and on request the context encoder.

        The predictor's config.json also says what it was trained for: the distance, and the normalization of targets.
        """
        trained_for = {"loss": self.settings.loss, "target_norm": self.settings.target_norm}
        exports = {
            "encoder": Export(self.encoder_config, self.target_encoder.network),
            "predictor": Export(self.predictor_config, self.predictor, trained_for),
        }
        if self.settings.export_context_encoder:
            exports["context_encoder"] = Export(self.encoder_config, self.context_encoder)
        return exports

    def _targets(self, encoded: EncoderOutput, masks: BlockMasks) -> Float[Tensor, "B M T D"]:
        """Features of the target blocks, taken from the target encoder's output on the whole image."""
        samples = torch.arange(len(encoded.patches), device=encoded.patches.device)[:, None, None]
        targets = encoded.patches[samples, masks.targets]
        if self.settings.target_norm == "layer_norm":
            return F.layer_norm(targets, targets.shape[-1:], eps=TARGET_NORM_EPS)
        return targets

    def _predictions(self, images: Float[Tensor, "B C h w"], masks: BlockMasks) -> Float[Tensor, "B M T D"]:
        with record_function("context_encoder"):
            context: EncoderOutput = self.context_encoder(images, masks.context, masks.context_valid)
        with record_function("predictor"):
            return self.predictor(context.patches, masks.context, masks.targets, masks.grid, masks.context_valid)  # type: ignore[no-any-return]


def _images_and_masks(batch: Batch) -> tuple[Float[Tensor, "B C h w"], BlockMasks]:
    masks = batch.masks[VIEW]
    if not isinstance(masks, BlockMasks):
        raise Refusal(
            "method.name='ijepa' needs blocks: use a mask strategy that draws them, such as masks.strategy='multiblock'"
        )
    return batch.views[VIEW][0], masks


def _predictor_config(settings: IJepaSettings, encoder: EncoderConfig) -> PredictorConfig:
    width, heads = resolved(settings.predictor_width), heads_of(settings.predictor_heads, encoder.heads)
    if width % heads:
        nearest = min(divisors(width), key=lambda number: abs(number - heads))
        raise Refusal(
            f"method.predictor_width={width} does not divide by its {heads} heads; "
            f"set method.predictor_heads={nearest}, or a width that {heads} divides"
        )
    return PredictorConfig(
        encoder_width=encoder.width,
        width=width,
        depth=settings.predictor_depth,
        heads=heads,
        grid=encoder.grid(),
        layer_norm_eps=encoder.layer_norm_eps,
        initialization=encoder.initialization,
    )
