"""Attention: the plain products against the fused kernel and the definition; padding is invisible."""

import pytest
import torch
from torch import Tensor

from openjepa.models.transformer import _PlainAttention, attention, attention_bias


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
