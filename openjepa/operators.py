"""Private operators of torch, each with a replacement made of public functions in case a version of torch lacks it.

They save time or memory, and change results by no more than rounding. No other file of the package calls a private name of
torch. A test compares each operator with its replacement.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

CPU_INFO = Path("/proc/cpuinfo")


def lerp_(averages: Sequence[Tensor], targets: Sequence[Tensor], weight: float) -> None:
    """averages <- averages + weight * (targets - averages), in place, in one kernel for all tensors.

    Both may be divided over the processes (DTensor) in the same way. Each process then updates its own part.
    """
    if hasattr(torch, "_foreach_lerp_"):
        torch._foreach_lerp_(list(averages), list(targets), weight)
        return
    for average, target in zip(averages, targets, strict=True):
        average.lerp_(target, weight)


def norms(tensors: Sequence[Tensor]) -> Float[Tensor, " n"]:
    """The Euclidean norm of each tensor, computed in one kernel."""
    if hasattr(torch, "_foreach_norm"):
        return torch.stack(torch._foreach_norm(list(tensors)))
    return torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors])


def scale_(tensors: Sequence[Tensor], factors: Float[Tensor, " n"]) -> None:
    """Multiplies each tensor by its own factor, in place and in one kernel."""
    if hasattr(torch, "_foreach_mul_"):
        torch._foreach_mul_(list(tensors), list(factors.unbind()))
        return
    for tensor, factor in zip(tensors, factors.unbind(), strict=True):
        tensor.mul_(factor)


def softmax_gradient(gradient: Float[Tensor, "*B S"], weights: Float[Tensor, "*B S"]) -> Float[Tensor, "*B S"]:
    """Gradient with respect to the scores of a softmax over the last axis: weights * (gradient - sum(gradient * weights)).

    `weights` is the output of the softmax. `gradient` is the gradient with respect to it, of the same dtype. One pass over
    memory instead of four.
    """
    if hasattr(torch, "_softmax_backward_data"):
        return torch._softmax_backward_data(gradient, weights, -1, weights.dtype)
    return weights * (gradient - (gradient * weights).sum(dim=-1, keepdim=True))


def has_fused_linear() -> bool:
    """True if `fused_linear` is a single kernel on this machine."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def fused_linear(x: Float[Tensor, "*B I"], weight: Float[Tensor, "O I"], bias: Tensor | None, gelu: bool) -> Tensor:
    """x W^T + b on a CPU, with the exact GELU if `gelu`. Bias and GELU are applied before the sums are rounded to bf16.

    It has no gradient. Without the private operator, the GELU is applied to rounded sums.
    """
    if has_fused_linear():
        activation, algorithm = ("gelu", "none") if gelu else ("none", "")
        rows: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)
        return rows
    rows = F.linear(x, weight, bias)
    return F.gelu(rows) if gelu else rows


def keep_graphs_whole() -> None:
    """Makes torch.compile compile each transformer block as one graph if DDP replicates the network.

    Otherwise torch cuts what it compiles where a bucket of gradients is full, so that their reduction can begin before all are
    there: a block of ViT-H into four graphs. Blocks compiled one by one already leave a place to begin after each of them.
    """
    torch._dynamo.config.optimize_ddp = False


def has_bf16_products() -> bool:
    """True if the processor multiplies matrices in bf16 (AVX-512 bf16 or AMX)."""
    return _has("_is_avx512_bf16_supported", "avx512_bf16") or has_tile_products()


def has_tile_products() -> bool:
    """True if the processor multiplies matrices by tiles (AMX)."""
    return _has("_is_amx_tile_supported", "amx_tile")


def _has(question: str, flag: str) -> bool:
    """The answer of torch's function `question`, or if torch lacks it, True if Linux lists the processor's `flag`."""
    if hasattr(torch.cpu, question):
        return bool(getattr(torch.cpu, question)())
    return CPU_INFO.exists() and flag in CPU_INFO.read_text().split()


def shared_bytes(number: int) -> UInt8[Tensor, " number"]:
    """Uninitialized memory that another process can read without a copy."""
    if hasattr(torch.UntypedStorage, "_new_shared"):
        storage = torch.UntypedStorage._new_shared(number)  # type: ignore[no-untyped-call]
        return torch.empty(0, dtype=torch.uint8).set_(storage)
    memory: Tensor = torch.empty(number, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    return memory
