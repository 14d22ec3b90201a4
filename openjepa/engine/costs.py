"""What a run will need, before it starts: parameters, FLOPs, memory. Its time is known only from steps that are timed."""

from dataclasses import dataclass

import torch
from torch import nn

from openjepa.engine.device import peak_memory


@dataclass(frozen=True)
class Estimate:
    """Estimates of one run on one device."""

    trained_parameters: int
    frozen_parameters: int
    flops_per_image: float
    """Of a training step, 2 per multiply-add."""
    memory_bytes: float
    """Weights, gradients, moments and activations, on a CPU also what the process holds already; without cached pixels."""


def estimate(
    model: nn.Module, flops_per_image: float, activation_bytes: float, device: torch.device, precision: str
) -> Estimate:
    """Estimates for one run; `activation_bytes` are those of one microbatch."""
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    frozen = sum(value.numel() for value in model.parameters() if not value.requires_grad)
    weights = 16 * trained + 4 * frozen  # fp32 value, gradient and two moments; the teacher only its value
    if precision == "bf16":
        weights += 2 * (trained + frozen)  # the copies that autocast makes
    held = peak_memory(device) if device.type == "cpu" else 0
    return Estimate(trained, frozen, flops_per_image, held + weights + activation_bytes)
