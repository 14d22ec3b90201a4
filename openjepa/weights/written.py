"""What is written, what the writer of a format is, and which formats have a place for which encoders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from openjepa.models.positions import sincos_positions
from openjepa.models.predictor import Predictor
from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig, PredictorConfig

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""How weights may be stored, by name."""


@dataclass(frozen=True)
class Networks:
    """The networks of one training, on the CPU."""

    encoder: VisionTransformer
    config: EncoderConfig
    predictor: Predictor | None = None
    predictor_config: PredictorConfig | None = None
    predictor_extra: Mapping[str, Any] = field(default_factory=dict)
    """What is written beside the predictor's settings: how masks were drawn for it."""
    context: VisionTransformer | None = None
    """The context encoder, where the format holds both and `encoder` is the target encoder."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the training in single numbers: step, epoch, loss, batch_size, ..."""
    source: str = ""
    """What it was made from, for people to read."""


Write = Callable[[Path, Networks, str], list[str]]
"""Writes one format into a folder that is there and empty; the last argument is a name of DTYPES. Returns what is left out."""


@dataclass(frozen=True)
class Trait:
    """Something that not every format has a place for."""

    words: Callable[[EncoderConfig], str]
    """What the encoder has, in words; empty where it has not."""
    formats: tuple[str, ...]
    """The formats that hold it."""


TRAITS = (
    Trait(lambda config: "relative positions" if config.positions == "relative" else "", ("safetensors", "onnx")),
    Trait(lambda config: "layer scale" if config.layer_scale is not None else "", ("safetensors", "timm", "onnx")),
    Trait(lambda config: "a class token" if config.class_token else "", ("safetensors", "transformers", "timm", "onnx")),
    Trait(
        lambda config: "learned positions" if config.positions == "learned" else "",
        ("safetensors", "transformers", "timm", "onnx"),
    ),
    Trait(
        lambda config: f"a LayerNorm epsilon of {config.layer_norm_eps:g}" if config.layer_norm_eps != 1e-6 else "",
        ("safetensors", "transformers", "onnx"),
    ),
    Trait(
        lambda config: "a training size that is not square" if config.image_size[0] != config.image_size[1] else "",
        ("safetensors", "transformers", "timm", "onnx"),
    ),
)


def check_holds(name: str, config: EncoderConfig, formats: tuple[str, ...]) -> None:
    """Refusal where the format `name` has no place for what the encoder has; names those of `formats` that have."""
    has = [(trait.words(config), trait.formats) for trait in TRAITS if trait.words(config)]
    lost = [words for words, holding in has if name not in holding]
    if lost:
        fitting = [item for item in formats if all(item in holding for _, holding in has)]
        raise Refusal(
            f"to={name!r}: the encoder has {' and '.join(lost)}, which that format has no place for; "
            f"use {' or '.join(f'--to {item}' for item in fitting)}"
        )


def position_table(encoder: VisionTransformer) -> Float[Tensor, "1 S D"]:
    """Positions of the training size as other programs store them: the class token's first, zeros where they are fixed."""
    if encoder.pos_embed is not None:
        table: Tensor = encoder.pos_embed.detach()
        return table
    config = encoder.config
    table = sincos_positions(config.width, config.grid())
    return torch.cat([table.new_zeros(int(config.class_token), config.width), table])[None]


def stored(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Tensors as they are written: on the CPU, in one piece each, floats in `dtype`."""
    plain = {name: value.detach().cpu() for name, value in tensors.items()}
    return {name: _alone(value.to(DTYPES[dtype]) if value.is_floating_point() else value) for name, value in plain.items()}


def _alone(value: Tensor) -> Tensor:
    """In one piece, and without the rest of a larger tensor that it is a part of, which would be written with it."""
    value = value.contiguous()
    return value if value.untyped_storage().nbytes() == value.numel() * value.itemsize else value.clone()


def mask_token_remark(networks: Networks) -> list[str]:
    """Where the encoder has a mask token, that it is left out."""
    if networks.encoder.mask_token is None:
        return []
    return ["the mask token, which an encoder of whole images does not need, is left out"]
