"""How weights are drawn."""

from dataclasses import replace

import pytest
import torch

from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig


def test_patch_scaled_tokens_have_unit_variance_and_all_else_is_as_released() -> None:
    config = EncoderConfig(width=256, depth=1, heads=4, mlp_ratio=4.0, patch_size=4, image_size=(32, 32))
    torch.manual_seed(0)
    released = build_encoder(config)
    torch.manual_seed(0)
    scaled = build_encoder(replace(config, initialization="patch_scaled"))
    noise = torch.randn(64, 3, 32, 32)
    assert scaled.patch_embed(noise, None).std().item() == pytest.approx(1.0, rel=0.03)
    assert released.patch_embed(noise, None).std().item() == pytest.approx(0.02 * 48**0.5, rel=0.03)
    assert torch.equal(scaled.blocks[0].mlp.fc1.weight, released.blocks[0].mlp.fc1.weight)
