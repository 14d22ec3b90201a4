"""Shared parts of DINO, iBOT and MSN for views: crops of two sizes with changed colors, and one forward for each size."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openjepa.methods.base import CoupledTerm, Encoders, Method
from openjepa.methods.teachers import EmaTeacher, encoders_with_average, momenta, slow_teacher_remarks
from openjepa.models.heads import ProjectionHead
from openjepa.models.vit import VisionTransformer
from openjepa.schedules import cosine_momentum
from openjepa.settings.derived import resolved
from openjepa.settings.methods.shared import MultiCropSettings, SelfDistillationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.types import ColorChange, EncoderOutput, Export, ViewSpec

GLOBAL, LOCAL = "global", "local"
NUM_GLOBAL = 2
"""Number of large crops of each image in DINO and iBOT."""
FIRST, SECOND, SMALL = 0, 1, 2
"""Indices in settings that have one value for each kind of crop: first large, second large, small."""


def views_of(settings: MultiCropSettings, view: ViewSpec) -> dict[str, ViewSpec]:
    """Two large crops as in `view`, with different color changes, and the small ones, if any (DINO, section 3.2)."""
    colors = (color_change(settings, FIRST), color_change(settings, SECOND))
    return {GLOBAL: replace(view, count=NUM_GLOBAL, colors=colors), **local_views(settings, view)}


def local_views(settings: MultiCropSettings, view: ViewSpec) -> dict[str, ViewSpec]:
    """The small crops: interpolation and mirroring as in `view`, size and area from the settings. Empty if there are none."""
    count = settings.local_crops
    if count == 0:
        return {}
    side, colors = resolved(settings.local_size), (color_change(settings, SMALL),) * count
    return {LOCAL: replace(view, size=(side, side), count=count, scale=settings.local_scale, colors=colors)}


def color_change(settings: MultiCropSettings, kind: int) -> ColorChange:
    """The color change of the first large (0), second large (1) or small (2) crops."""
    return ColorChange(
        jitter=settings.jitter,
        jitter_probability=settings.jitter_probability,
        grayscale_probability=settings.grayscale_probability,
        blur_probability=settings.blur_probability[kind],
        blur_sigma=resolved(settings.blur_sigma),
        solarize_probability=settings.solarize_probability[kind],
    )


def class_tokens(encoder: nn.Module, views: Mapping[str, Float[Tensor, "V B C h w"]]) -> Float[Tensor, "W B D"]:
    """Class tokens of all W views, name by name in the order of `views`. Crops of one name are encoded together."""
    return torch.cat([class_tokens_of(encoder(crops.flatten(0, 1)), len(crops)) for crops in views.values()])


def class_tokens_of(encoded: EncoderOutput, num_views: int) -> Float[Tensor, "V B D"]:
    """Class tokens of V x B encoded crops, view by view."""
    assert encoded.class_token is not None  # checks refuse an encoder without one
    return encoded.class_token.view(num_views, -1, encoded.class_token.shape[-1])


def build_head(
    settings: SelfDistillationSettings, width: int, patch_outputs: int | Literal["shared"] | None = None
) -> ProjectionHead:
    """The head that the settings describe, for an encoder of `width`."""
    return ProjectionHead(
        width,
        resolved(settings.outputs),
        layers=settings.head_layers,
        hidden=resolved(settings.head_hidden),
        bottleneck=resolved(settings.bottleneck),
        batch_norm=settings.head_batch_norm,
        norm_last_layer=settings.norm_last_layer,
        patch_outputs=patch_outputs,
    )


class SelfDistillation(Method):
    """Common to DINO and iBOT: their encoders, what is exported, and notes on batches and on the teacher. Abstract."""

    settings: SelfDistillationSettings
    encoder_config: EncoderConfig
    student: VisionTransformer
    teacher: EmaTeacher

    def coupled_terms(self) -> tuple[CoupledTerm, ...]:
        """Only the batch normalization of the head, if it has one. Centers count all microbatches."""
        norm = CoupledTerm("the batch normalization of method.head_batch_norm", synchronized=True)
        return (norm,) if self.settings.head_batch_norm else ()

    def remarks(self, total_steps: int) -> list[str]:
        """A note if the teacher, which is exported, hardly changes in a run of this length."""
        return slow_teacher_remarks(cosine_momentum, *momenta(self.settings), total_steps)

    def encoders(self) -> Encoders:
        """Student and teacher, without their heads."""
        return encoders_with_average(self.student, self.teacher)

    def exports(self) -> Mapping[str, Export]:
        """The teacher's encoder, which the papers evaluate by its class token. It has no token for masked patches."""
        return {"encoder": Export(self.encoder_config, self.teacher.network)}
