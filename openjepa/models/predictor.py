"""I-JEPA's predictor: a narrow transformer that predicts target blocks from context tokens."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.models.transformer import INIT_STD, attention_bias, build_blocks, initialize, sincos_positions
from openjepa.refusals import Refusal
from openjepa.settings.models import PredictorConfig


def build_predictor(config: PredictorConfig) -> "Predictor":
    """A new predictor with weights drawn from torch's global generator."""
    return Predictor(config)


class Predictor(nn.Module):
    """Predicts the features of each target block from the context. Blocks never see one another (I-JEPA, section 3)."""

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
    ) -> Float[Tensor, "B M T W"]:
        """Predicts features of the patches `target_idx` of each block from `context`, the tokens of the patches `context_idx`.

        `grid` is the (rows, columns) that indices refer to. None means the grid that the predictor was built for.
        `context_valid` is False for tokens that are padding. No token attends to them.
        """
        batch, blocks, length = target_idx.shape
        positions = self._positions(grid or self.config.grid, context.device)
        seen = self.embed(context) + F.embedding(context_idx, positions)  # [B, K, P]
        asked = self.mask_token[0] + F.embedding(target_idx, positions)  # [B, M, T, P]
        seen = seen[:, None].expand(-1, blocks, -1, -1)
        x = torch.cat([seen, asked.to(seen.dtype)], dim=2).flatten(0, 1)  # [B*M, K+T, P]
        bias = self._bias(context_valid, target_idx, x.dtype)
        for block in self.blocks[:-1]:
            x = block(x, bias)
        x = self.blocks[-1](x, bias, num_last=length)  # the last block's output for the context is not used
        predictions = self.proj(self.norm(x))
        return predictions.float().view(batch, blocks, length, -1)  # type: ignore[no-any-return]

    def _positions(self, grid: tuple[int, int], device: torch.device) -> Float[Tensor, "N P"]:
        if grid == self.config.grid:
            return self.positions
        return sincos_positions(self.config.width, grid).to(device, self.positions.dtype)

    def _bias(
        self, valid: Bool[Tensor, "B K"] | None, target_idx: Int[Tensor, "B M T"], dtype: torch.dtype
    ) -> Float[Tensor, "BM 1 1 S"] | None:
        if valid is None:
            return None
        _, blocks, length = target_idx.shape
        return attention_bias(F.pad(valid, (0, length), value=True).repeat_interleave(blocks, dim=0), dtype)
