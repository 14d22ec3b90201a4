"""Linear layers for a CPU that only infers in bf16: weights are converted once, bias and GELU are part of the matrix product.

Under autocast every forward converts all weights, torch copies the bias into the result before it multiplies, and the GELU
reads and writes the widest activations once more. oneDNN does it all in one go; torch has that as an operator for its own
compiler, which is used here where it exists. Numbers differ from autocast's by rounding: the GELU sees fp32 instead of bf16.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from openjepa.engine.device import supports_bf16
from openjepa.models.transformer import Block, attention, scaled
from openjepa.models.vit import VisionTransformer
from openjepa.operators import fused_linear, has_fused_linear, has_tile_products


def can_pack(device: torch.device, precision: str) -> bool:
    """Whether a network on `device` that computes in `precision` gains from `pack`."""
    is_fitting = device.type == "cpu" and precision == "bf16" and supports_bf16(device)
    return is_fitting and has_fused_linear()


def pack(network: VisionTransformer) -> None:
    """Makes the blocks of an encoder compute their linear layers in bf16, in place of fp32: it can only infer from then on.

    To be called under autocast to bf16, without gradients.
    """
    network.eval().requires_grad_(False)
    for number, block in enumerate(network.blocks):
        network.blocks[number] = PackedBlock(block)  # type: ignore[arg-type]


class PackedLinear(nn.Module):
    """x W^T + b in bf16, summed in fp32, optionally with the exact GELU."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        """Keeps a copy of the weights in bf16."""
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().bfloat16())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().bfloat16())
        self._gelu = gelu

    def forward(self, x: Float[Tensor, "B S inputs"]) -> Float[Tensor, "B S outputs"]:
        """The same map of every token."""
        return fused_linear(x.bfloat16(), self.weight, self.bias, self._gelu)


class PackedBlock(nn.Module):
    """`Block` of packed layers. The second branch is added in place, which would forbid gradients."""

    def __init__(self, block: Block) -> None:
        """Of its layers; the norms stay in fp32."""
        super().__init__()
        self._heads = block.attn.heads
        # with AMX the fused kernel takes 0.8 of the time of plain products (196 tokens, forward), without it more
        self._fused = has_tile_products()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv, self.proj = PackedLinear(block.attn.qkv), PackedLinear(block.attn.proj)
        self.fc1, self.fc2 = PackedLinear(block.mlp.fc1, gelu=True), PackedLinear(block.mlp.fc2)
        self.gamma_1, self.gamma_2 = block.gamma_1, block.gamma_2

    def forward(self, x: Float[Tensor, "B S D"], bias: Float[Tensor, "#B #heads #S S"] | None = None) -> Float[Tensor, "B S D"]:
        """The sequences after this block. `x` stays as it is: `VisionTransformer.block_outputs` keeps it."""
        mixed = self.proj(attention(self.qkv(self.norm1(x)), self._heads, bias, fused=self._fused))
        x = x + scaled(mixed, self.gamma_1)
        x += scaled(self.fc2(self.fc1(self.norm2(x))), self.gamma_2)
        return x
