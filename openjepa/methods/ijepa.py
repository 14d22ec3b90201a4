"""I-JEPA (Assran et al. 2023, arXiv 2301.08243): predict the representations of target blocks from one context block."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.profiler import record_function

from openjepa.engine.run_folder import weights_name
from openjepa.methods.base import CoupledTerm, Encoders, Method, ProbeOutput, Surroundings
from openjepa.methods.predictions import SampledTargets, context_loss_weight, nearness
from openjepa.methods.regularizers import Regularizer
from openjepa.methods.targets import WholeImages, frozen_teacher, target_spaces
from openjepa.methods.teachers import EmaTeacher, encoders_with_average, momenta, slow_teacher_remarks
from openjepa.models.predictor import Predictor, build_predictor
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.refusals import Refusal
from openjepa.schedules import Progress, momentum
from openjepa.settings.derived import divisors, heads_of, resolved
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import EncoderConfig, PredictorConfig
from openjepa.types import TRAINED, Batch, BlockMasks, EncoderOutput, Export, InputSpec, LossOutput

VIEW = "image"


@dataclass(frozen=True)
class Predicted:
    """Outputs of the context encoder and of the predictor for one microbatch."""

    blocks: Float[Tensor, "R M T W"]
    """Predictions of the target blocks."""
    context: Float[Tensor, "R K D"]
    """The context encoder's tokens."""
    of_context: Float[Tensor, "R C K W"] | None = None
    """What the predictor makes of them, if there is a loss on context tokens: in each pass, or in the joint one."""


@final
class IJepa(Method):
    """A context encoder and a predictor learn to predict the target encoder's representations of hidden blocks."""

    def __init__(self, settings: IJepaSettings, surroundings: Surroundings) -> None:
        """Draws the weights from torch's global generator."""
        super().__init__()
        self.settings = settings
        self.view = surroundings.view
        self.encoder_config = surroundings.encoder_config()
        frozen = frozen_teacher(settings, surroundings)
        self.spaces = target_spaces(settings, self.encoder_config if frozen is None else frozen.config)
        self.predictor_config = _predictor_config(settings, self.encoder_config, self.spaces.width)
        self.context_encoder: VisionTransformer = build_encoder(self.encoder_config)
        self.predictor: Predictor = build_predictor(self.predictor_config)
        # a teacher that is never updated stays as it is
        self.target_encoder = EmaTeacher(frozen or self.context_encoder) if settings.encodes_targets() else None
        number = settings.sampled_targets
        self.sampled_targets = None if number is None else SampledTargets(number, surroundings.shapes)
        self.regularizer = None if settings.regularizer == "none" else Regularizer(settings, self.encoder_config.width)

    def inputs(self) -> InputSpec:
        """One random crop with a context and target blocks, or with several of both."""
        return InputSpec(views={VIEW: self.view}, masked_views=(VIEW,), contexts=self.settings.contexts)

    def forward(self, batch: Batch, progress: Progress) -> LossOutput:
        """Section 3 of the paper: targets, context, predictions, distance."""
        images, masks = _images_and_masks(batch)
        whole = self.spaces.whole(images, self.target_encoder)
        asked = masks if self.sampled_targets is None else self.sampled_targets(masks)
        targets = self.spaces.at(whole, asked.targets, progress)  # [R, M, T, W]
        self.spaces.collect(whole, progress)
        predicted = self._predictions(images, asked)
        loss = total = self.spaces.distance(predicted.blocks, targets, progress)
        parts: dict[str, Tensor] = {}
        if predicted.of_context is not None:
            parts["context"] = self._context_loss(predicted.of_context, whole, masks, progress)
            total = total + context_loss_weight(self.settings, progress) * parts["context"]
        if self.regularizer is not None:
            blocks = self.spaces.in_use(predicted.blocks, progress)
            terms = self.regularizer(predicted.context, masks.context_valid, blocks, targets)
            total = total + torch.stack([*terms.values()]).sum()
            parts |= terms
        if not parts:
            return LossOutput(total=loss)
        return LossOutput(total, {name: part.detach() for name, part in {"targets": loss, **parts}.items()})

    def after_step(self, progress: Progress) -> Mapping[str, float]:
        """Moves statistics of targets, then the target encoder towards the context encoder, which was just updated."""
        self.spaces.commit()
        if self._average is None:
            return {}
        value = momentum(*momenta(self.settings), progress)
        self._average.update(self.context_encoder, value)
        return {"momentum": value}

    def probe(self, batch: Batch, progress: Progress) -> ProbeOutput:
        """Pooled features of the exported encoder, and the loss with its targets, without drop path."""
        images, masks = _images_and_masks(batch)
        distance = partial(self.spaces.distance, progress=progress)
        with self.looking():
            whole = self.spaces.whole(images, self.target_encoder)
            targets = self.spaces.at(whole, masks.targets, progress)
            predictions = self.spaces.in_use(self._predictions(images, masks).blocks, progress)
            of_an_image = len(masks.targets) // len(images)
            # of each image at the places of the image before it
            others = self.spaces.at(whole, masks.targets.roll(of_an_image, 0), progress).roll(-of_an_image, 0)
            loss = distance(predictions, targets)
            encoded = self.context_encoder(images) if self._average is None else whole.encoded
        features = encoded.pooled(self.encoder_config.pooling)
        return ProbeOutput(features, loss, targets, masks.targets, distance, predictions, others)

    def predicted_features(self, batch: Batch, progress: Progress) -> Float[Tensor, "B D"]:
        """The predictor's outputs averaged over blocks and patches, without drop path."""
        images, masks = _images_and_masks(batch)
        with self.looking():
            blocks = self.spaces.in_use(self._predictions(images, masks).blocks, progress)
        of_rows = blocks.mean(dim=(1, 2))  # [R, W]
        return of_rows.view(len(images), -1, of_rows.shape[-1]).mean(dim=1)

    def energies(self, batch: Batch, progress: Progress) -> Float[Tensor, "B B"]:
        """Distance between the predictions from the context of image i and the targets at the same places of image j."""
        images, masks = _images_and_masks(batch)
        with self.looking():
            predictions, whole = self._predictions(images, masks).blocks, self.spaces.whole(images, self.target_encoder)
            rows = []
            for prediction, places in zip(predictions, masks.targets, strict=True):
                targets = self.spaces.at(whole, places.expand(len(images), -1, -1), progress)  # [B, M, T, W]
                rows.append(torch.stack([self.spaces.distance(prediction, target, progress) for target in targets]))
        return torch.stack(rows).view(len(images), -1, len(images)).mean(dim=1)  # over the contexts of an image

    def coupled_terms(self) -> tuple[CoupledTerm, ...]:
        """Those of the regularizer: the distance is a mean over images, which all have as many targets."""
        return () if self.regularizer is None else self.regularizer.coupled_terms()

    def remarks(self, total_steps: int) -> list[str]:
        """A note if the target encoder, which is exported, hardly changes in a run of this length."""
        return slow_teacher_remarks(momentum, *momenta(self.settings), total_steps) if self._average else []

    def encoders(self) -> Encoders:
        """Context encoder and its moving average, if there is one."""
        if self._average is None:
            return Encoders(self.context_encoder)
        return encoders_with_average(self.context_encoder, self._average)

    def exports(self) -> Mapping[str, Export]:
        """The target encoder, which the paper evaluates, the predictor, and on request the context encoder.

        Without a moving average, the context encoder is what is exported. The predictor's config.json also says what it was
        trained for: the distance, the normalization of targets, and other targets than those of the paper.
        """
        trained_for = {"loss": self.settings.loss, "target_norm": self.settings.target_norm, **self.settings.other_targets()}
        if self.settings.teacher is not None:  # whoever gets the predictor need not see where the folders of this machine lie
            trained_for["teacher"] = weights_name(self.settings.teacher)
        exported = self.context_encoder if self._average is None else self._average.network
        exports = {
            "encoder": Export(self.encoder_config, exported, TRAINED if self._average is None else {}),
            "predictor": Export(self.predictor_config, self.predictor, trained_for),
        }
        if self.settings.export_context_encoder and exported is not self.context_encoder:
            exports["context_encoder"] = Export(self.encoder_config, self.context_encoder)
        return exports

    @property
    def _average(self) -> EmaTeacher | None:
        """The target encoder, unless it stays as it is."""
        return self.target_encoder if self.settings.averages() else None

    def _predictions(self, images: Float[Tensor, "B C h w"], masks: BlockMasks) -> Predicted:
        """The only place where context encoder and predictor run. Masks have R rows, those of one image side by side."""
        with record_function("context_encoder"):
            context: EncoderOutput = self.context_encoder(images, masks.context, masks.context_valid)
        with_context = self.settings.context_loss > 0
        with record_function("predictor"):
            outputs = self.predictor(
                context.patches, masks.context, masks.targets, masks.grid, masks.context_valid, with_context
            )
        return Predicted(outputs[0], context.patches, outputs[1]) if with_context else Predicted(outputs, context.patches)

    def _context_loss(
        self, predicted: Float[Tensor, "R C K W"], whole: WholeImages, masks: BlockMasks, progress: Progress
    ) -> Float[Tensor, ""]:
        """Distance of what the predictor makes of the context from the targets there, more where a target block is near."""
        targets = self.spaces.at(whole, masks.context[:, None], progress).expand_as(predicted)
        return self.spaces.distance(predicted, targets, progress, nearness(masks))


def _images_and_masks(batch: Batch) -> tuple[Float[Tensor, "B C h w"], BlockMasks]:
    masks = batch.masks[VIEW]
    if not isinstance(masks, BlockMasks):
        raise Refusal(
            "method.name='ijepa' needs blocks: use a mask strategy that draws them, such as masks.strategy='multiblock'"
        )
    return batch.views[VIEW][0], masks


def _predictor_config(settings: IJepaSettings, encoder: EncoderConfig, output_width: int) -> PredictorConfig:
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
        passes=settings.predictor_pass,
        position_noise=settings.position_noise,
        output_width=None if output_width == encoder.width else output_width,
    )
