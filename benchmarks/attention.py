"""Plain attention against torch's fused kernel on one core, with and without backward: `python -m benchmarks.attention`."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from openjepa.engine.device import keep_freed_memory
from openjepa.models.transformer import _PlainAttention

CASES = ((16, 3, 16, 64), (16, 3, 49, 64), (16, 6, 83, 32), (4, 6, 196, 64), (4, 6, 256, 64), (2, 6, 400, 64), (1, 6, 784, 64))
"""Batch, heads, tokens, channels per head."""


def fused(qkv: Tensor, heads: int) -> Tensor:
    """scaled_dot_product_attention."""
    batch, length, width = qkv.shape
    queries, keys, values = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).reshape(batch, length, width // 3)


def plain(qkv: Tensor, heads: int) -> Tensor:
    """Ours."""
    mixed: Tensor = _PlainAttention.apply(qkv, heads, None)  # type: ignore[no-untyped-call]
    return mixed


def processor_milliseconds(work: Callable[[], Any], repeats: int = 7) -> float:
    """Smallest processor time of several runs."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def time_both_ways(forward: Callable[[], Tensor]) -> tuple[float, float]:
    """Milliseconds of the forward without gradients, and of forward and backward."""
    with torch.no_grad():
        alone = processor_milliseconds(forward)
    return alone, processor_milliseconds(lambda: forward().sum().backward())  # type: ignore[no-untyped-call]


def time_softmax(length: int, dtype: torch.dtype) -> tuple[float, float]:
    """Milliseconds of a softmax of bf16 scores computed in `dtype`, and of its derivative, conversions included."""
    scores, gradient = torch.randn(2, 14336 // length, length, length).bfloat16()
    weights = torch.softmax(scores, dim=-1)

    def forward() -> Tensor:
        return torch.softmax(scores, dim=-1, dtype=dtype).bfloat16()

    def backward() -> Tensor:
        return torch._softmax_backward_data(gradient.to(dtype), weights.to(dtype), -1, dtype).bfloat16()

    return processor_milliseconds(forward), processor_milliseconds(backward)


def main() -> None:
    """Prints milliseconds: fused and plain, without and with backward; and the softmax alone in bf16 and in fp32."""
    torch.set_num_threads(1)
    keep_freed_memory()
    for length in (16, 28, 32, 49, 64, 84):
        narrow, wide = time_softmax(length, torch.bfloat16), time_softmax(length, torch.float32)
        print(
            f"softmax of {length} bf16 tokens: in bf16 {narrow[0]:.2f}, in fp32 {wide[0]:.2f}; "
            f"derivative in bf16 {narrow[1]:.2f}, in fp32 {wide[1]:.2f}"
        )
    for dtype in (torch.bfloat16, torch.float32):
        for batch, heads, length, size in CASES:
            qkv = torch.randn(batch, length, 3 * heads * size, dtype=dtype, requires_grad=True)
            cells = [*time_both_ways(partial(fused, qkv, heads)), *time_both_ways(partial(plain, qkv, heads))]
            print(
                f"{dtype!s:15} {batch:3} x {heads} heads x {length:3} tokens x {size}: forward fused {cells[0]:6.2f} "
                f"plain {cells[2]:6.2f}, with backward fused {cells[1]:6.2f} plain {cells[3]:6.2f}"
            )


if __name__ == "__main__":
    main()
