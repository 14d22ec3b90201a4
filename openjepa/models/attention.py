"""Softmax attention, computed in whichever way is the fastest where it runs."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

VECTOR_LENGTH = 32
"""bf16 numbers in 512 bits. At 28 tokens a softmax in fp32, conversions included, takes 0.27 of the time of one in bf16 and its
derivative 0.31; from 32 tokens on it is the other way round (`benchmarks/attention.py`)."""
PLAIN_MAX_TOKENS = 1024
"""Longest sequence for plain products on a CPU: beyond it the scores of all heads take too much memory."""
HIDDEN = torch.finfo(torch.float16).min / 2
"""Added to the scores of what must not be seen: its weight is exactly 0, unless scores differ by tens of thousands. Finite in
every type that attention computes in, also after a score is added; the lowest number of fp32 would be infinite in bf16."""


def attention_bias(valid: Bool[Tensor, "B S"] | None, dtype: torch.dtype) -> Float[Tensor, "B 1 1 S"] | None:
    """What is added to attention scores so that nothing looks at invalid tokens. None where all are valid.

    `HIDDEN` instead of minus infinity: a row without any valid token stays finite.
    """
    if valid is None:
        return None
    bias = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    return bias.masked_fill_(~valid, HIDDEN)[:, None, None, :]


def attention(
    qkv: Float[Tensor, "B S 3D"], heads: int, bias: Float[Tensor, "#B #heads #S S"] | None = None, fused: bool = False
) -> Float[Tensor, "B S D"]:
    """softmax(q k^T / sqrt(d) + bias) v for every head; each head owns contiguous channels of queries, keys and values.

    `bias` may be shared by images, heads and queries (size 1), and may be learned.

    On a CPU in bf16 plain matrix products take a half to a fifth of the time of torch's fused kernel, forward and backward, at
    16 to 800 tokens (`benchmarks/attention.py`); in fp32 and on other devices the fused kernel is the faster one. `fused`: it
    is wanted anyway.
    """
    if not fused and qkv.device.type == "cpu" and qkv.dtype == torch.bfloat16 and qkv.shape[1] <= PLAIN_MAX_TOKENS:
        mixed: Tensor = _PlainAttention.apply(qkv, heads, bias)  # type: ignore[no-untyped-call]
        return mixed
    batch, length, width = qkv.shape
    queries, keys, values = qkv.view(batch, length, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
    mask = None if bias is None else bias.to(qkv.dtype)
    mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)  # [B, heads, S, d]
    return mixed.transpose(1, 2).reshape(batch, length, width // 3)


def _softmax_dtype(scores: Float[Tensor, "rows S S"]) -> torch.dtype:
    """fp32 for rows shorter than a vector register of bf16 numbers, which torch's bf16 softmax handles one number at a time."""
    short = scores.dtype == torch.bfloat16 and scores.shape[-1] < VECTOR_LENGTH
    return torch.float32 if short else scores.dtype


class _PlainAttention(torch.autograd.Function):
    """Attention as three-dimensional matrix products. Written with its derivative, which saves copies that autograd would make.

    With P = softmax(S), S = q k^T / sqrt(d), O = P v and the gradient G of O: dv = P^T G, dP = G v^T,
    dS = P * (dP - rowsum(dP * P)), dq = dS k / sqrt(d), dk = dS^T q / sqrt(d); a bias gets dS, summed where it is shared.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, bias: Tensor | None) -> Tensor:
        batch, length, width = qkv.shape
        size = width // (3 * heads)
        packed = qkv.view(batch, length, 3, heads, size).permute(2, 0, 3, 1, 4).reshape(3, batch * heads, length, size)
        queries, keys, values = packed.unbind(0)
        if bias is None:
            start, weight = queries.new_empty(1, 1, 1), 0
        else:
            start = bias.to(qkv.dtype).expand(batch, heads, -1, -1).reshape(batch * heads, bias.shape[2], length)
            weight = 1
        scores = torch.baddbmm(start, queries, keys.transpose(1, 2), beta=weight, alpha=size**-0.5)
        weights = torch.softmax(scores, dim=-1, dtype=_softmax_dtype(scores)).to(scores.dtype)  # [B heads, S, S]
        ctx.save_for_backward(packed, weights)
        ctx.bias_shape = None if bias is None or not bias.requires_grad else bias.shape
        ctx.bias_dtype = None if bias is None else bias.dtype
        mixed = torch.bmm(weights, values).view(batch, heads, length, size)
        return mixed.transpose(1, 2).reshape(batch, length, width // 3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor | None]:
        packed, weights = ctx.saved_tensors
        queries, keys, values = packed.unbind(0)
        batch, length, width = gradient.shape
        size = queries.shape[-1]
        heads = width // size
        incoming = gradient.view(batch, length, heads, size).transpose(1, 2).reshape(batch * heads, length, size)
        outgoing = torch.empty_like(packed)
        torch.bmm(weights.transpose(1, 2), incoming, out=outgoing[2])
        scores = torch.bmm(incoming, values.transpose(1, 2))
        wide = _softmax_dtype(scores)
        scores = torch._softmax_backward_data(scores.to(wide), weights.to(wide), -1, wide)
        bias_gradient = None
        if ctx.bias_shape is not None:
            whole = scores.view(batch, heads, length, length)
            # a copy even where nothing is summed or converted: the scores are scaled in place below
            bias_gradient = whole.float().sum_to_size(ctx.bias_shape).to(ctx.bias_dtype, copy=True)
        scores = scores.mul_(size**-0.5).to(weights.dtype)
        torch.bmm(scores, keys, out=outgoing[0])
        torch.bmm(scores.transpose(1, 2), queries, out=outgoing[1])
        unpacked = outgoing.view(3, batch, heads, length, size).permute(1, 3, 0, 2, 4)
        return unpacked.reshape(batch, length, 3 * width), None, bias_gradient
