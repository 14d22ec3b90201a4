"""Linear layers for a CPU that only infers in bf16: weights are converted once, bias and GELU are part of the matrix product.

Under autocast every forward converts all weights, torch copies the bias into the result before it multiplies, and the GELU
reads and writes the widest activations once more. oneDNN does it all in one go; torch has that as an operator for its own
compiler, which is used here where it exists. Numbers differ from autocast's by rounding: the GELU sees fp32 instead of bf16.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openjepa.engine.device import supports_bf16
from openjepa.models.blocks import Mlp
from openjepa.models.vit import VisionTransformer


def can_pack(device: torch.device, precision: str) -> bool:
    """Whether a network on `device` that computes in `precision` gains from `pack`."""
    is_fitting = device.type == "cpu" and precision == "bf16" and supports_bf16(device)
    return is_fitting and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def pack(network: VisionTransformer) -> None:
    """Makes the blocks of an encoder compute their linear layers in bf16, in place of fp32: it can only infer from then on.

    To be called under autocast to bf16, without gradients.
    """
    network.eval().requires_grad_(False)
    for block in network.blocks:
        block.attn.qkv = PackedLinear(block.attn.qkv)  # type: ignore[union-attr,arg-type]
        block.attn.proj = PackedLinear(block.attn.proj)  # type: ignore[union-attr,arg-type]
        block.mlp = PackedMlp(block.mlp)  # type: ignore[arg-type]


class PackedLinear(nn.Module):
    """x W^T + b in bf16, summed in fp32, optionally with the exact GELU."""

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        """Keeps a copy of the weights in bf16."""
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().bfloat16())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().bfloat16())
        self._activation = ("gelu", "none") if gelu else ("none", "")

    def forward(self, x: Float[Tensor, "B S inputs"]) -> Float[Tensor, "B S outputs"]:
        """The same map of every token."""
        activation, algorithm = self._activation
        rows: Tensor = torch.ops.mkldnn._linear_pointwise(x.bfloat16(), self.weight, self.bias, activation, [], algorithm)
        return rows


class PackedMlp(nn.Module):
    """`Mlp` of packed layers."""

    def __init__(self, mlp: Mlp) -> None:
        """Of its two layers."""
        super().__init__()
        self.fc1, self.fc2 = PackedLinear(mlp.fc1, gelu=True), PackedLinear(mlp.fc2)

    def forward(self, x: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """The same map of every token."""
        return self.fc2(self.fc1(x))  # type: ignore[no-any-return]
