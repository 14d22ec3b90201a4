"""I-JEPA's predictor: a narrow transformer that predicts target blocks from context tokens."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.models.transformer import HIDDEN, INIT_STD, SlotDraws, attention_bias, build_blocks, initialize, sincos_positions
from openjepa.refusals import Refusal
from openjepa.settings.models import PredictorConfig


def build_predictor(config: PredictorConfig) -> "Predictor":
    """A new predictor with weights drawn from torch's global generator."""
    return Predictor(config)


class PositionNoise(SlotDraws):
    """Gaussian noise for each mask token, in the space of the encoder's features (StoP, arXiv 2308.00566, section 3)."""

    def __init__(self, variance: float) -> None:
        """`variance`: of each component. 0: no noise."""
        super().__init__()
        self.variance = variance

    def draws(self) -> bool:
        """True if the variance is above 0."""
        return self.variance > 0

    def forward(self, target_idx: Int[Tensor, "B M T"], width: int, dtype: torch.dtype) -> Float[Tensor, "B M T D"] | None:
        """Noise of `width` components for each target token. None outside of training, or if the variance is 0."""
        if self.variance == 0 or not self.training:
            return None
        shape, device = (*target_idx.shape[1:], width), target_idx.device
        noise: Tensor = self.drawn(len(target_idx), lambda n: torch.randn(n, *shape, device=device, dtype=dtype))
        return noise * math.sqrt(self.variance)


class Predictor(nn.Module):
    """Predicts the features of each target block from the context. Blocks never see one another (I-JEPA, section 3).

    With `passes` = `separate`, context and block form one sequence for each block, in which every token attends to every other.
    Context tokens thus attend to the mask tokens of the block, and are computed anew for each block. With `joint`, the context
    and all blocks form one sequence. A mask token attends to the context and to its own block, a context token to the context
    alone. It is computed once, so the pass is cheaper. A joint pass equals a joint pass over each block alone. But it
    is another network than `separate`: there the context depends on the block, so nothing that computes it once can be equal.

    With `cross`, mask tokens attend to the embedded context alone, not to one another. No block changes the context, and only
    mask tokens pass through the MLPs (CrossMAE, arXiv 2401.14391; CAPI, arXiv 2502.08769). Each token is predicted by itself.

    With `position_noise`, a mask token is A n + position + m (StoP, arXiv 2308.00566): n is drawn for each token in each step,
    m is the learned token, and A is the matrix of `embed`, which also projects the context (A s + b + position). The paper ties
    the two, so that A = 0, which would remove the noise, would remove the context too. The context gets no noise.
    """

    def __init__(self, config: PredictorConfig) -> None:
        """Builds and initializes the predictor. Raises Refusal if heads do not divide the width or there is no block."""
        super().__init__()
        if config.depth < 1:
            raise Refusal(
                f"predictor depth {config.depth} is too small: without attention no target sees the context; use 1 or more"
            )
        self.config = config
        self.embed = nn.Linear(config.encoder_width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.noise = PositionNoise(config.position_noise)
        self.blocks = build_blocks(config.width, config.depth, config.heads, config.mlp_ratio, config.layer_norm_eps)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.proj = nn.Linear(config.width, config.outputs)
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(config.width, config.grid), persistent=False)
        initialize(self, self.blocks, config.initialization)
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)

    def forward(
        self,
        context: Float[Tensor, "B K D"],
        context_idx: Int[Tensor, "B K"],
        target_idx: Int[Tensor, "B M T"],
        grid: tuple[int, int] | None = None,
        context_valid: Bool[Tensor, "B K"] | None = None,
        with_context: bool = False,
    ) -> Float[Tensor, "B M T W"] | tuple[Float[Tensor, "B M T W"], Float[Tensor, "B C K W"]]:
        """Predicts features of the patches `target_idx` of each block from `context`, the tokens of the patches `context_idx`.

        `grid` is the (rows, columns) that indices refer to. None means the grid that the predictor was built for.
        `context_valid` is False for tokens that are padding. No token attends to them. If `with_context`, returns also what the
        predictor makes of the context: in C = M passes, or in C = 1 if the pass is joint.
        """
        length = target_idx.shape[2]
        seen, asked = self._embedded(context, context_idx, target_idx, grid or self.config.grid)
        if self.config.passes == "cross":
            assert not with_context, "the context only gives keys and values"
            predictions = self.proj(self.norm(self._crossed(seen, asked, context_valid))).float()
            return predictions.view(*target_idx.shape, -1)  # type: ignore[no-any-return]
        x, bias = (_in_one_pass if self.config.passes == "joint" else _in_separate_passes)(seen, asked, context_valid)
        for block in self.blocks[:-1]:
            x = block(x, bias)
        # the last block's output for the context is computed only if it is asked for
        x = self.blocks[-1](x, bias, num_last=None if with_context else x.shape[1] - context.shape[1])
        predictions = self.proj(self.norm(x)).float()
        outputs = predictions.view(len(context), -1, *predictions.shape[1:])  # [B, passes, tokens, W]
        if not with_context:
            return outputs.reshape(*target_idx.shape, -1)  # type: ignore[no-any-return]
        of_context, of_targets = outputs.split([context.shape[1], outputs.shape[2] - context.shape[1]], dim=2)
        return of_targets.reshape(len(context), -1, length, outputs.shape[3]), of_context

    def _crossed(
        self, seen: Float[Tensor, "B K P"], asked: Float[Tensor, "B M T P"], valid: Bool[Tensor, "B K"] | None
    ) -> Float[Tensor, "B MT P"]:
        """The mask tokens after all blocks, in which they attend to the embedded context alone."""
        tokens = asked.flatten(1, 2)
        keys = torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device) if valid is None else valid
        bias = attention_bias(F.pad(keys, (0, tokens.shape[1]), value=False), tokens.dtype)
        for block in self.blocks:
            tokens = block(torch.cat([seen, tokens], dim=1), bias, num_last=tokens.shape[1])
        return tokens

    def _embedded(
        self,
        context: Float[Tensor, "B K D"],
        context_idx: Int[Tensor, "B K"],
        target_idx: Int[Tensor, "B M T"],
        grid: tuple[int, int],
    ) -> tuple[Float[Tensor, "B K P"], Float[Tensor, "B M T P"]]:
        """The tokens of the context and the mask tokens."""
        positions = self._positions(grid, context.device)
        seen = self.embed(context) + F.embedding(context_idx, positions)
        asked = self.mask_token[0] + F.embedding(target_idx, positions)
        noise = self.noise(target_idx, context.shape[2], context.dtype)
        if noise is not None:
            asked = asked + F.linear(noise, self.embed.weight)
        return seen, asked.to(seen.dtype)

    def _positions(self, grid: tuple[int, int], device: torch.device) -> Float[Tensor, "N P"]:
        if grid == self.config.grid:
            return self.positions
        return sincos_positions(self.config.width, grid).to(device, self.positions.dtype)


def _in_separate_passes(
    seen: Float[Tensor, "B K P"], asked: Float[Tensor, "B M T P"], valid: Bool[Tensor, "B K"] | None
) -> tuple[Float[Tensor, "BM S P"], Float[Tensor, "BM 1 1 S"] | None]:
    """A sequence of context and mask tokens for each block, and the bias that hides padding."""
    blocks, length = asked.shape[1:3]
    x = torch.cat([seen[:, None].expand(-1, blocks, -1, -1), asked], dim=2).flatten(0, 1)  # [B*M, K+T, P]
    if valid is None:
        return x, None
    return x, attention_bias(F.pad(valid, (0, length), value=True).repeat_interleave(blocks, dim=0), x.dtype)


def _in_one_pass(
    seen: Float[Tensor, "B K P"], asked: Float[Tensor, "B M T P"], valid: Bool[Tensor, "B K"] | None
) -> tuple[Float[Tensor, "B S P"], Float[Tensor, "#B 1 S S"]]:
    """One sequence of the context and all mask tokens, and the bias that hides padding, and blocks from one another."""
    context, (blocks, length) = seen.shape[1], asked.shape[1:3]
    x = torch.cat([seen, asked.flatten(1, 2)], dim=1)  # [B, K+M*T, P]
    number = torch.arange(blocks, device=x.device).repeat_interleave(length)
    number = F.pad(number, (context, 0), value=-1)  # number of each token's block; the context is -1
    visible = (number[:, None] == number) | (number == -1)  # [S, S]: the token of the row attends to that of the column
    if valid is not None:
        visible = visible & F.pad(valid, (0, blocks * length), value=True)[:, None, :]
    bias = torch.zeros(visible.shape, dtype=x.dtype, device=x.device).masked_fill_(~visible, HIDDEN)
    return x, bias.view(-1, 1, *bias.shape[-2:])
