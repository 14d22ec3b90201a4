"""Layer scale: learned factors on both branches of a block, and the outputs of blocks and branches."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from openjepa.models.transformer import Block
from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig

CONFIG = EncoderConfig(width=24, depth=3, heads=3, mlp_ratio=2.0, patch_size=4, image_size=(12, 8), layer_scale=0.1)


def test_both_branches_are_scaled() -> None:
    torch.manual_seed(0)
    block, x = Block(12, 3, 20, 1e-6, layer_scale=0.1), torch.randn(2, 5, 12)
    assert block.gamma_1 is not None and block.gamma_2 is not None
    assert torch.equal(block.gamma_1, torch.full((12,), 0.1)) and torch.equal(block.gamma_2, torch.full((12,), 0.1))
    torch.nn.init.normal_(block.gamma_1)
    torch.nn.init.normal_(block.gamma_2)
    attended = x + block.gamma_1 * block.attn(F.layer_norm(x, (12,), eps=1e-6), None)
    added = block.gamma_2 * block.mlp(F.layer_norm(attended, (12,), eps=1e-6))
    torch.testing.assert_close(block(x), attended + added)
    torch.testing.assert_close(block.branches(x)[1], added)
    torch.testing.assert_close(block.branches(x, num_last=2)[1], added[:, -2:])


@torch.no_grad()
def test_factors_of_one_change_nothing_and_of_zero_leave_the_tokens() -> None:
    images = torch.randn(2, 3, 12, 8)
    torch.manual_seed(0)
    plain = build_encoder(replace(CONFIG, layer_scale=None))
    assert not any("gamma" in name for name in plain.state_dict())
    encoder = build_encoder(CONFIG)
    assert sum("gamma" in name for name in encoder.state_dict()) == 2 * CONFIG.depth
    encoder.load_state_dict(plain.state_dict(), strict=False)
    for value, outputs in ((1.0, plain(images).patches), (0.0, plain.norm(plain._tokens(images, None)))):
        for name, parameter in encoder.named_parameters():
            if "gamma" in name:
                parameter.fill_(value)
        torch.testing.assert_close(encoder(images).patches, outputs)


@torch.no_grad()
@pytest.mark.parametrize("class_token", [False, True])
def test_outputs_of_blocks_add_up(class_token: bool) -> None:
    """Outputs of the last blocks; the difference of a block's output and its MLP's part is what attention alone gives."""
    torch.manual_seed(0)
    encoder, images = build_encoder(replace(CONFIG, class_token=class_token)), torch.randn(2, 3, 12, 8)
    outputs, added = encoder.block_outputs(images, 2), encoder.block_outputs(images, 2, "mlp")
    assert len(outputs) == len(added) == 2
    torch.testing.assert_close(encoder.norm(outputs[-1]), encoder(images).patches)
    x = encoder._tokens(images, None)
    for layer, block in enumerate(encoder.blocks):
        x = x + block.gamma_1 * block.attn(block.norm1(x), None)  # type: ignore[operator]
        part = block.gamma_2 * block.mlp(block.norm2(x))  # type: ignore[operator]
        x = x + part
        if layer >= 1:
            torch.testing.assert_close(outputs[layer - 1], x[:, int(class_token) :])
            torch.testing.assert_close(added[layer - 1], part[:, int(class_token) :])
