"""How weights are drawn."""

from dataclasses import replace

import pytest
import torch

from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig


def test_fan_in_keeps_the_variance_of_a_signal_where_the_released_weights_shrink_it() -> None:
    config = EncoderConfig(width=256, depth=1, heads=4, mlp_ratio=4.0, patch_size=4, image_size=(32, 32))
    torch.manual_seed(0)
    released, fan_in = build_encoder(config), build_encoder(replace(config, initialization="fan_in"))
    noise, tokens = torch.randn(64, 3, 32, 32), torch.randn(64, 10, 256)
    assert fan_in.patch_embed(noise, None).std().item() == pytest.approx(1.0, rel=0.03)
    assert released.patch_embed(noise, None).std().item() == pytest.approx(0.02 * 48**0.5, rel=0.03)
    assert fan_in.blocks[0].mlp.fc1(tokens).std().item() == pytest.approx(1.0, rel=0.03)
    assert released.blocks[0].mlp.fc1(tokens).std().item() == pytest.approx(0.02 * 256**0.5, rel=0.03)
