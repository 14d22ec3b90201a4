"""Packed linear layers against the same layers as they are."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from openjepa.engine.device import autocast
from openjepa.inference.embedding.compute import PackedLinear, can_pack, pack_encoder
from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig

CPU = torch.device("cpu")
CONFIG = EncoderConfig(width=48, depth=3, heads=3, mlp_ratio=4.0, patch_size=8, image_size=(32, 32))

needs_bf16 = pytest.mark.skipif(not can_pack(CPU, "bf16"), reason="needs a CPU with bf16 products")


def test_only_a_cpu_in_bf16_gains() -> None:
    assert not can_pack(CPU, "fp32") and not can_pack(torch.device("cuda"), "bf16")


@needs_bf16
@pytest.mark.parametrize("bias", [True, False])
def test_a_packed_layer_is_the_layer_of_rounded_weights(bias: bool) -> None:
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(48, 96, bias=bias), torch.randn(2, 17, 48)
    with torch.no_grad():
        exact = F.linear(
            x.bfloat16().float(), linear.weight.bfloat16().float(), linear.bias.bfloat16().float() if bias else None
        )
        plain, activated = PackedLinear(linear)(x), PackedLinear(linear, gelu=True)(x)
    assert plain.dtype == torch.bfloat16 and plain.shape == (2, 17, 96)
    # one rounding to eight bits at the end: half a unit of the last place
    assert ((plain.float() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()
    torch.testing.assert_close(activated.float(), F.gelu(exact), atol=2**-8, rtol=2**-7)


@needs_bf16
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"class_token": True, "positions": "learned"},
        {"layer_scale": 0.5},
        {"positions": "relative"},
        {"mask_token": True, "drop_path": 0.5},
    ],
    ids=["plain", "class token", "layer scale", "relative", "while training"],
)
def test_a_packed_encoder_rounds_no_more_than_autocast(changes: dict[str, object]) -> None:
    torch.manual_seed(0)
    network = build_encoder(replace(CONFIG, **changes))  # type: ignore[arg-type]
    for value in network.parameters():
        value.data.add_(0.1 * torch.randn_like(value))
    images, copied = torch.randn(3, 3, 32, 40), copy.deepcopy(network)
    pack_encoder(copied)
    network.eval()
    with torch.no_grad():
        exact = network(images).patches
        with autocast(CPU, "bf16"):
            usual, ours = network(images).patches, copied(images).patches
    assert ours.dtype == torch.float32
    errors = [(item - exact).square().mean().sqrt() for item in (ours, usual)]
    assert 0 < errors[0] < 1.3 * errors[1] and errors[1] < 0.1 * exact.std()
    assert sum(value.numel() * value.element_size() for value in (*copied.parameters(), *copied.buffers())) < 0.7 * sum(
        4 * value.numel() for value in network.parameters()
    )  # the weights in fp32 are gone


@needs_bf16
def test_a_packed_encoder_keeps_the_outputs_of_earlier_blocks() -> None:
    network, images = build_encoder(CONFIG), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    packed = copy.deepcopy(network)
    pack_encoder(packed)
    with torch.no_grad(), autocast(CPU, "bf16"):
        pairs = zip(network.block_outputs(images, 3), packed.block_outputs(images, 3), strict=True)
    for usual, ours in pairs:
        torch.testing.assert_close(ours, usual, atol=0.02 * float(usual.std()), rtol=0.02)
