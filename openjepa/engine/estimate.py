"""What a run will need, before it starts: parameters, FLOPs, memory, time."""

import time
from dataclasses import dataclass

import torch
from torch import nn

from openjepa.engine.device import autocast, peak_memory, synchronize


@dataclass(frozen=True)
class Estimate:
    """Estimates of one run on one device."""

    trained_parameters: int
    frozen_parameters: int
    flops_per_image: float
    """Of a training step, 2 per multiply-add."""
    memory_bytes: float
    """Weights, gradients, moments and activations, on a CPU also what the process holds already; without cached pixels."""
    seconds: float
    """Time of the training steps at `expected_share` of the measured rate of a matrix product."""


def expected_share(width: int) -> float:
    """Share of a matrix product's rate that a step of an encoder this wide reaches, to about a factor of two.

    Measured on CPUs: 0.12 to 0.2 at 128, 0.7 at 384; narrow layers spend their time between the products.
    """
    return min(0.5, width / 768)


def estimate(
    model: nn.Module,
    flops_per_image: float,
    activation_bytes: float,
    images: float,
    width: int,
    device: torch.device,
    precision: str,
) -> Estimate:
    """Estimates for `images` training images in all; `activation_bytes` are those of one microbatch, `width` the encoder's."""
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    frozen = sum(value.numel() for value in model.parameters() if not value.requires_grad)
    weights = 16 * trained + 4 * frozen  # fp32 value, gradient and two moments; the teacher only its value
    if precision == "bf16":
        weights += 2 * (trained + frozen)  # the copies that autocast makes
    rate = matmul_rate(device, precision, size=1024, seconds=0.2)
    held = peak_memory(device) if device.type == "cpu" else 0
    seconds = images * flops_per_image / (expected_share(width) * rate)
    return Estimate(trained, frozen, flops_per_image, held + weights + activation_bytes, seconds)


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
    synchronize(device)
    return time.perf_counter() - start
