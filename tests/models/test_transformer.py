"""Blocks of a transformer: attention against the fused kernel and the definition, layer scale, outputs, initial weights."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from openjepa.models.transformer import Block, ImageSlots, _PlainAttention, attention, attention_bias
from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig


def test_drop_path_is_that_of_the_image_in_whatever_part_of_the_batch() -> None:
    """Three views of eight images at once, without slots as with them; or in parts, also compiled, also computed twice."""
    block, x = Block(8, 2, 16, 1e-6, drop_path=0.5), torch.randn(3, 8, 5, 8)

    def run(call: Callable[[Tensor], Tensor], first: int, number: int) -> Tensor:
        torch.manual_seed(1)
        output = call(x[:, first : first + number].flatten(0, 1))
        torch.rand(3)  # others draw numbers before the backward
        return output.view(3, number, 5, 8)

    whole, slots = run(block, 0, 8), ImageSlots(block)
    slots.set(0, 8, 8)
    assert torch.equal(run(block, 0, 8), whole)
    compiled = CompileCounter()
    calls = (block, torch.compile(block, backend=compiled), partial(checkpoint, block, use_reentrant=False))
    for call in calls:
        found = []
        for first in (0, 2, 4, 6):
            slots.set(first, 2, 8)
            block.zero_grad()
            part = run(call, first, 2)
            part.square().sum().backward()  # type: ignore[no-untyped-call]
            found.append((part.detach(), block.mlp.fc1.weight.grad))
        torch.testing.assert_close(torch.cat([part for part, _ in found], dim=1), whole)
        first_call = found if call is block else first_call
        assert all(torch.equal(a, b) for pair in zip(found, first_call, strict=True) for a, b in zip(*pair, strict=True))
    assert compiled.frame_count == 1, "the slots of another microbatch compiled the block anew"


def by_definition(qkv: Tensor, heads: int, valid: Tensor | None) -> Tensor:
    """One head and one query at a time."""
    batch, length, width = qkv.shape
    size = width // 3 // heads
    rows = []
    for sample in range(batch):
        queries, keys, values = qkv[sample].view(length, 3, heads, size).unbind(1)
        seen = torch.ones(length, dtype=torch.bool) if valid is None else valid[sample]
        for token in range(length):
            weights = [torch.softmax(keys[seen, head] @ queries[token, head] / size**0.5, 0) for head in range(heads)]
            rows.append(torch.cat([weight @ values[seen, head] for head, weight in enumerate(weights)]))
    return torch.stack(rows).view(batch, length, width // 3)


def plain(qkv: Tensor, heads: int, bias: Tensor | None) -> Tensor:
    mixed: Tensor = _PlainAttention.apply(qkv, heads, bias)  # type: ignore[no-untyped-call]
    return mixed


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("compute", [plain, attention])
def test_value_and_gradient(compute: object, padded: bool) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 5, 3 * 8, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True] * 5, [True, False, True, True, False]]) if padded else None
    direction = torch.randn(2, 5, 8, dtype=torch.float64)
    expected = by_definition(qkv, 2, valid)
    (expected_gradient,) = torch.autograd.grad((expected * direction).sum(), qkv)
    actual = compute(qkv, 2, attention_bias(valid, torch.float64))  # type: ignore[operator]
    (gradient,) = torch.autograd.grad((actual * direction).sum(), qkv)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)


def test_bf16_is_close_to_fp32() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(2, 20, 3 * 16)
    difference = attention(qkv.bfloat16(), 2).float() - attention(qkv, 2)
    assert difference.abs().max() < 0.02


TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("made_in", TYPES)
@pytest.mark.parametrize("computed_in", TYPES)
def test_the_bias_is_finite_in_every_type(made_in: torch.dtype, computed_in: torch.dtype) -> None:
    """Also where it is made in one type and used in another, as under autocast: fp32's lowest number is infinite in bf16."""
    bias = attention_bias(torch.tensor([[True, False]]), made_in)
    assert bias is not None and bias.dtype == made_in
    used = bias.to(computed_in)
    assert used.isfinite().all() and (used - 1000).isfinite().all()
    assert torch.softmax(used.float() + torch.tensor([0.0, 1000.0]), -1).flatten().tolist() == [1, 0]


@pytest.mark.parametrize("made_in", TYPES)
@pytest.mark.parametrize("computed_in", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compute", [plain, attention])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_nothing_valid_stays_finite(compute: object, computed_in: torch.dtype, made_in: torch.dtype, scale: float) -> None:
    """A row without any valid token; beside it one whose only valid token is what comes out."""
    bias = attention_bias(torch.tensor([[False] * 3, [False, True, False]]), made_in)
    qkv = (scale * torch.randn(2, 3, 12)).to(computed_in).requires_grad_()
    mixed = compute(qkv, 2, bias)  # type: ignore[operator]
    mixed.float().square().sum().backward()
    assert mixed.isfinite().all() and qkv.grad is not None and qkv.grad.isfinite().all()
    torch.testing.assert_close(mixed[1], qkv[1, 1, 8:].expand(3, 4))


# ---- layer scale, and outputs of blocks and branches


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
    torch.testing.assert_close(block(x, with_added=True)[1], added)
    torch.testing.assert_close(block(x, num_last=2, with_added=True)[1], added[:, -2:])


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


# ---- how weights are drawn


def test_a_block_that_is_computed_again_keeps_its_input_alone() -> None:
    """Outputs and gradients are the same, with drop path too. Without gradients nothing is computed twice."""
    block, x = Block(8, 2, 16, 1e-6, drop_path=0.5), torch.randn(4, 5, 8, requires_grad=True)
    found = []
    for recompute in (False, True):
        block.recompute, kept = recompute, list[Tensor]()
        block.zero_grad()
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda value, kept=kept: kept.append(value) or value, lambda value: value
        ):
            first, added = block(x, num_last=3, with_added=True)
        torch.rand(3)  # others draw numbers before the backward
        gradients = torch.autograd.grad(first.square().sum() + added.sum(), [x, *block.parameters()])
        found.append([first, added, *gradients])
        assert ([value.data_ptr() for value in kept] == [x.data_ptr()]) == recompute
    assert all(map(torch.equal, *found))
    with torch.no_grad():
        assert block(x, num_last=3).grad_fn is None


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
