"""What a run will need, before it starts: parameters, FLOPs, memory, time."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from openjepa.engine.device import autocast


@dataclass(frozen=True)
class Estimate:
    """Estimates of one run on one device."""

    trained_parameters: int
    frozen_parameters: int
    flops_per_image: float
    """Of a training step, 2 per multiply-add."""
    memory_bytes: float
    """Weights, gradients, moments and activations; rough (within about a third)."""
    seconds: float
    """Time of the training steps at half the measured rate of a matrix product; rough (within about a factor of two)."""


def estimate(
    model: nn.Module, flops_per_image: float, activation_bytes: float, images: float, device: torch.device, precision: str
) -> Estimate:
    """Estimates for `images` training images in all; `activation_bytes` are those of one microbatch."""
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    frozen = sum(value.numel() for value in model.parameters() if not value.requires_grad)
    weights = 16 * trained + 4 * frozen  # fp32 value, gradient and two moments; the teacher only its value
    if precision == "bf16":
        weights += 2 * (trained + frozen)  # the copies that autocast makes
    rate = matmul_rate(device, precision, size=1024, seconds=0.2)
    return Estimate(trained, frozen, flops_per_image, weights + activation_bytes, images * flops_per_image / (0.5 * rate))


def matmul_rate(device: torch.device, precision: str, size: int = 4096, seconds: float = 1.0) -> float:
    """FLOP/s of a square matrix product, the yardstick of every speed this project reports; runs for about `seconds`."""
    left, right = torch.randn(size, size, device=device), torch.randn(size, size, device=device)
    with torch.no_grad(), autocast(device, precision):
        if precision == "bf16":
            left, right = left.bfloat16(), right.bfloat16()
        _run(left, right, 1, device)
        once = _run(left, right, 1, device)
        repeats = max(1, int(seconds / max(once, 1e-6)))
        return repeats * 2 * size**3 / _run(left, right, repeats, device)


def _run(left: torch.Tensor, right: torch.Tensor, repeats: int, device: torch.device) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
