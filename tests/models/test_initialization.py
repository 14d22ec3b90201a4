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


def test_xavier_is_uniform_within_the_bound_of_each_matrix() -> None:
    """sqrt(6 / (inputs + outputs)) of every Linear, and of the patch embedding as the linear map of a patch; biases are 0."""
    config = EncoderConfig(
        width=96, depth=2, heads=4, mlp_ratio=4.0, patch_size=4, image_size=(32, 32), class_token=True, initialization="xavier"
    )
    torch.manual_seed(0)
    encoder = build_encoder(config)
    matrices = {
        name: value.flatten(1) for name, value in encoder.named_parameters() if name.endswith("weight") and value.ndim > 1
    }
    assert len(matrices) == 1 + 2 * 4
    for name, matrix in matrices.items():
        bound = (6 / sum(matrix.shape)) ** 0.5
        assert matrix.abs().max().item() == pytest.approx(bound, rel=0.01) and matrix.abs().max() <= bound, name
        assert matrix.std().item() == pytest.approx(bound / 3**0.5, rel=0.03), "of a uniform distribution"
    biases = [value for name, value in encoder.named_parameters() if name.endswith("bias")]
    assert biases and all((value == 0).all() for value in biases)
    assert encoder.cls_token is not None and encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.25)
