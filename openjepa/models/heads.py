"""Heads that map features to the outputs by which DINO, iBOT and MSN compare views."""

import itertools
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.engine import distributed
from openjepa.models.transformer import INIT_STD

LENGTH_EPS = 1e-12
"""Lower limit on the length that a vector is divided by."""


class FeatureNorm(nn.BatchNorm1d):
    """Batch normalization of the last axis over all others and over all processes, whose numbers of vectors may differ.

    Always uses the statistics of the batch, so it has no buffers. Every process must call it equally often.
    """

    def __init__(self, width: int) -> None:
        """Starts with factors 1 and shifts 0. Epsilon is 1e-5."""
        super().__init__(width, track_running_stats=False)

    def forward(self, x: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead D"]:
        """Each channel with mean 0 and variance 1 over the vectors `x` of all processes, then scaled and shifted."""
        rows = x.flatten(0, -2)
        if distributed.world_size() == 1:
            return super().forward(rows).view(x.shape)
        variance, mean = distributed.var_mean_over_ranks(rows.float())
        normed = (rows.float() - mean) * (variance + self.eps).rsqrt()
        return (normed * self.weight + self.bias).to(x.dtype).view(x.shape)


def projection_layers(widths: tuple[int, ...], batch_norm: bool) -> nn.Sequential:
    """Linear layers between the successive `widths`. After all but the last come FeatureNorm, if `batch_norm`, and GELU.

    Weights are drawn from a normal distribution with standard deviation 0.02. Biases are 0.
    """
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        if layers:
            layers += [FeatureNorm(before), nn.GELU()] if batch_norm else [nn.GELU()]
        linear = nn.Linear(before, after)
        nn.init.trunc_normal_(linear.weight, std=INIT_STD)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
    return nn.Sequential(*layers)


class UnitRows(nn.Module):
    """Linear layer without bias whose rows are g_k v_k / |v_k|, with directions v, and lengths g that start at 1.

    The parameters have the names of the published DINO and iBOT weights.
    """

    def __init__(self, width: int, outputs: int, fixed_lengths: bool) -> None:
        """If `fixed_lengths`, g stays 1. Directions are drawn like torch's Linear: uniform (from memory of the DINO code)."""
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=not fixed_lengths)
        self.weight_v = nn.Parameter(torch.empty(outputs, width).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, x: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead K"]:
        """Products of `x` with every row."""
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1, eps=LENGTH_EPS))


class ProjectionHead(nn.Module):
    """Head of DINO (Caron et al. 2021, section 3.1) and iBOT (Zhou et al. 2022): an MLP, length 1, a layer of unit rows.

    Outputs are cosines if the rows keep their length. iBOT has a second last layer for patches, or one layer for both.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        layers: int = 3,
        hidden: int = 2048,
        bottleneck: int = 256,
        batch_norm: bool = False,
        norm_last_layer: bool = True,
        patch_outputs: int | Literal["shared"] | None = None,
    ) -> None:
        """`layers` Linear layers go from `width` over `hidden` to `bottleneck`. The last layer has `outputs` rows (K).

        If `norm_last_layer`, those rows keep length 1. `patch_outputs` is the number of outputs of a separate last layer for
        patches, or `shared` to use the last layer of the class token.
        """
        super().__init__()
        self.mlp = projection_layers((width, *[hidden] * (layers - 1), bottleneck), batch_norm)
        self.last_layer = UnitRows(bottleneck, outputs, norm_last_layer)
        own = isinstance(patch_outputs, int)
        self.last_layer_patches = UnitRows(bottleneck, patch_outputs, norm_last_layer) if own else None  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "*lead D"], patches: bool = False) -> Float[Tensor, "*lead K"]:
        """Outputs of every vector of `x`. If `patches`, from the last layer for patches, if there is one."""
        return self.outputs_of(self.points(x), patches)

    def points(self, x: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead P"]:
        """Inputs of the last layer: vectors of length 1 in the bottleneck, in fp32."""
        return F.normalize(self.mlp(x).float(), dim=-1, eps=LENGTH_EPS)

    def outputs_of(self, points: Float[Tensor, "*lead P"], patches: bool = False) -> Float[Tensor, "*lead K"]:
        """The last layer alone. It is linear, so the mean of many outputs is the output of the mean of their points."""
        last = self.last_layer_patches if patches and self.last_layer_patches is not None else self.last_layer
        return last(points)  # type: ignore[no-any-return]

    def drop_last_gradients(self) -> None:
        """Drops the gradients of the last layers. The optimizer then skips these layers: no decay, no moments."""
        for layer in (self.last_layer, self.last_layer_patches):
            for value in layer.parameters() if layer is not None else ():
                value.grad = None


class BatchNormHead(nn.Module):
    """Head of MSN (Assran et al. 2022): three linear layers, with batch normalization and GELU after the first two.

    The statistics are always those of the input vectors.
    """

    def __init__(self, width: int, hidden: int, outputs: int, input_norm: bool = False) -> None:
        """From `width` over two hidden layers to `outputs`. If `input_norm`, the input is batch-normalized, too."""
        super().__init__()
        self.input_norm = FeatureNorm(width) if input_norm else None
        self.mlp = projection_layers((width, hidden, hidden, outputs), batch_norm=True)

    def forward(self, x: Float[Tensor, "*lead D"]) -> Float[Tensor, "*lead P"]:
        """Maps every vector in the same way. The normalization uses the statistics of the vectors `x` of all processes."""
        return self.mlp(x if self.input_norm is None else self.input_norm(x))  # type: ignore[no-any-return]


class Prototypes(nn.Module):
    """K learned vectors. Only their directions matter."""

    def __init__(self, number: int, width: int) -> None:
        """Drawn like torch's Linear (uniform; the published initialization is not known)."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty(number, width).uniform_(-(width**-0.5), width**-0.5))

    def forward(self, x: Float[Tensor, "*lead P"]) -> Float[Tensor, "*lead K"]:
        """Cosines of every vector of `x` with every prototype. In fp32, because they are divided by small temperatures."""
        # costs are counted on the meta device, which has no autocast
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            units = F.normalize(x.float(), dim=-1, eps=LENGTH_EPS)
            return F.linear(units, F.normalize(self.weight, dim=-1, eps=LENGTH_EPS))


@dataclass(frozen=True)
class TokenOutputs:
    """Outputs of a head for class tokens and patches."""

    class_tokens: Float[Tensor, "V B K"]
    patches: Float[Tensor, "R S K"]
    patch_mean: Float[Tensor, "1 K"]
    """Mean output of all patches, including those without outputs of their own."""


# FSDP2 must find the tensors that its networks return
torch.export.register_dataclass(TokenOutputs)


class TokenHead(nn.Module):
    """A head on the class tokens of V x B crops and on the patches of R of them (iBOT)."""

    def __init__(self, head: ProjectionHead) -> None:
        """`head` serves both class tokens and patches."""
        super().__init__()
        self.head = head

    def forward(
        self,
        class_tokens: Float[Tensor, "V B D"],
        patches: Float[Tensor, "R N D"],
        places: Int[Tensor, "R S"] | None = None,
    ) -> TokenOutputs:
        """Outputs of the class tokens and of the patches at `places` (None: all), and the mean output of all patches.

        The MLP is applied to every patch, but only patches at `places` get outputs, because a patch has thousands of them.
        """
        points = self.head.points(torch.cat([class_tokens.flatten(0, 1), patches.flatten(0, 1)]))
        first = class_tokens.shape[0] * class_tokens.shape[1]
        of_class, of_patches = points[:first].view(*class_tokens.shape[:2], -1), points[first:].view(*patches.shape[:2], -1)
        return TokenOutputs(
            self.head.outputs_of(of_class),
            self.head.outputs_of(of_patches if places is None else at_places(of_patches, places), patches=True),
            self.head.outputs_of(of_patches.flatten(0, 1).mean(dim=0, keepdim=True), patches=True),
        )


def at_places(patches: Float[Tensor, "R N D"], places: Int[Tensor, "R S"]) -> Float[Tensor, "R S D"]:
    """Picks the patches of each image at its own `places`."""
    return patches[torch.arange(len(patches), device=patches.device)[:, None], places]
