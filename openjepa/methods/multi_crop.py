"""What DINO, iBOT and MSN share about views: crops of two sizes with changed colors, one forward for each size."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openjepa.models.heads import ProjectionHead
from openjepa.models.vit import VisionTransformer
from openjepa.settings.derived import resolved
from openjepa.settings.methods.shared import MultiCropSettings, SelfDistillationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.types import ColorChange, EncoderOutput, ViewSpec

GLOBAL, LOCAL = "global", "local"
NUM_GLOBAL = 2
"""Large crops of each image in DINO and iBOT."""
FIRST, SECOND, SMALL = 0, 1, 2
"""Places in settings that have one value for each kind of crop: first large, second large, small."""
VALUE_WIDTH = 0.09
"""One fp32 value that is kept for the backward, in the unit of `Method.kept_widths`: 4 of 40 (bf16) to 54 bytes (fp32)."""


def views_of(settings: MultiCropSettings, view: ViewSpec) -> dict[str, ViewSpec]:
    """Two large crops as in `view`, their colors changed differently, and the small ones, if any (DINO, section 3.2)."""
    colors = (color_change(settings, FIRST), color_change(settings, SECOND))
    return {GLOBAL: replace(view, count=NUM_GLOBAL, colors=colors), **local_views(settings, view)}


def local_views(settings: MultiCropSettings, view: ViewSpec) -> dict[str, ViewSpec]:
    """The small crops: filter and mirroring as in `view`, size and area from the settings. Empty where there are none."""
    count = settings.local_crops
    if count == 0:
        return {}
    side, colors = resolved(settings.local_size), (color_change(settings, SMALL),) * count
    return {LOCAL: replace(view, size=(side, side), count=count, scale=settings.local_scale, colors=colors)}


def color_change(settings: MultiCropSettings, kind: int) -> ColorChange:
    """How the colors of the first large (0), second large (1) or small (2) crops are changed."""
    return ColorChange(
        jitter=settings.jitter,
        jitter_probability=settings.jitter_probability,
        grayscale_probability=settings.grayscale_probability,
        blur_probability=settings.blur_probability[kind],
        blur_sigma=resolved(settings.blur_sigma),
        solarize_probability=settings.solarize_probability[kind],
    )


def class_tokens(encoder: nn.Module, views: Mapping[str, Float[Tensor, "V B C h w"]]) -> Float[Tensor, "W B D"]:
    """Class tokens of all W views, name by name in the order of `views`; crops of one name are encoded together."""
    return torch.cat([class_tokens_of(encoder(crops.flatten(0, 1)), len(crops)) for crops in views.values()])


def class_tokens_of(encoded: EncoderOutput, num_views: int) -> Float[Tensor, "V B D"]:
    """Class tokens of V x B encoded crops, view by view."""
    assert encoded.class_token is not None  # checks refuse an encoder without one
    return encoded.class_token.view(num_views, -1, encoded.class_token.shape[-1])


def num_patches(view: ViewSpec, patch_size: int) -> int:
    """Patches of one crop."""
    return (view.size[0] // patch_size) * (view.size[1] // patch_size)


def num_views(views: Mapping[str, ViewSpec]) -> int:
    """Crops of one image, of all sizes."""
    return sum(view.count for view in views.values())


def flops_of_views(encoder: VisionTransformer, views: Mapping[str, ViewSpec]) -> dict[str, float]:
    """FLOPs of encoding all crops of each name, for one image."""
    patch_size = encoder.config.patch_size
    return {name: view.count * encoder.flops(num_patches(view, patch_size)) for name, view in views.items()}


def encoder_kept_widths(config: EncoderConfig, views: Mapping[str, ViewSpec]) -> float:
    """What an encoder with a class token keeps of all crops of one image, as in `Method.kept_widths`."""
    tokens = sum(view.count * (num_patches(view, config.patch_size) + 1) for view in views.values())
    return tokens * config.width * config.depth


def head_coupled_terms(settings: SelfDistillationSettings) -> tuple[str, ...]:
    """Of DINO and iBOT only what batch normalization in the head makes so; their centers count all microbatches."""
    return ("the batch normalization of method.head_batch_norm",) if settings.head_batch_norm else ()


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


def head_kept_widths(settings: SelfDistillationSettings, num_views: int) -> float:
    """What the head and the loss of the class tokens of so many views keep for the backward, as in `Method.kept_widths`.

    Hidden layers before and after their GELU, the logits of every view, the targets of the large crops and their sum.
    """
    hidden = num_views * (settings.head_layers - 1) * 2 * resolved(settings.head_hidden)
    return VALUE_WIDTH * (hidden + (num_views + NUM_GLOBAL + 1) * resolved(settings.outputs))
