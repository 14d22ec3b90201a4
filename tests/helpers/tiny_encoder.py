"""A tiny encoder with random weights, with or without I-JEPA's predictor, as a run folder has it."""

from pathlib import Path

import torch

from openjepa.masks.sampler import TokenShape
from openjepa.methods.base import Surroundings
from openjepa.methods.ijepa import IJepa
from openjepa.models.vit import build_encoder
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import EncoderConfig, ModelSettings
from openjepa.types import Export, ViewSpec
from openjepa.weights.native import save_network

CONFIG = EncoderConfig(width=48, depth=2, heads=3, mlp_ratio=4.0, patch_size=8, image_size=(32, 32))
MEAN, STD = CONFIG.pixel_mean, CONFIG.pixel_std


def write_encoder(folder: Path, config: EncoderConfig = CONFIG) -> Path:
    """<folder>/encoder of random weights."""
    torch.manual_seed(0)
    save_network(folder / "encoder", Export(config=config, module=build_encoder(config)))
    return folder


def write_ijepa(folder: Path, settings: IJepaSettings) -> IJepa:
    """What a run of I-JEPA at 32 pixels exports, from weights so large that features differ; returns the method."""
    torch.manual_seed(0)
    shape = TokenShape(5, 4, 1.0, 3)
    method = IJepa(settings, Surroundings(ModelSettings(size="test", patch_size=8), ViewSpec((32, 32)), MEAN, STD, (shape,)))
    with torch.no_grad():
        for value in (*method.context_encoder.parameters(), *method.predictor.parameters()):
            value.add_(0.2 * torch.randn_like(value))
        if method.target_encoder is not None:
            method.target_encoder.update(method.context_encoder, 0.5)  # so that the encoders differ
    for name, export in method.exports().items():
        save_network(folder / name, export)
    return method
