"""MAE's decoder: a light transformer that predicts the pixels of the masked patches from visible tokens."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.models.transformer import INIT_STD, build_blocks, initialize, sincos_positions
from openjepa.refusals import Refusal
from openjepa.settings.models import DecoderConfig
from openjepa.types import EncoderOutput


class Decoder(nn.Module):
    """A mask token at every masked place, fixed positions, blocks, and a linear map to pixels (MAE, section 3).

    Attention does not depend on the order of tokens, so masked places stand at the end instead of in raster order. The last
    block computes only those, because its output for the visible ones is not used.
    """

    def __init__(self, config: DecoderConfig) -> None:
        """Builds and initializes the decoder. Raises Refusal if heads do not divide the width or there is no block."""
        super().__init__()
        if config.depth < 1:
            raise Refusal(
                f"decoder depth {config.depth} is too small: without attention no masked patch sees the others; use 1 or more"
            )
        self.config = config
        self.embed = nn.Linear(config.encoder_width, config.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.blocks = build_blocks(config.width, config.depth, config.heads, config.mlp_ratio, config.layer_norm_eps)
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        self.pred = nn.Linear(config.width, config.pixels())
        self.positions: Tensor
        self.register_buffer("positions", sincos_positions(config.width, config.grid), persistent=False)
        initialize(self, self.blocks, config.initialization)
        nn.init.trunc_normal_(self.mask_token, std=INIT_STD)

    def forward(
        self, seen: EncoderOutput, visible: Int[Tensor, "B K"], masked: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T pixels"]:
        """Predicts the pixels of the patches `masked` from `seen`: tokens of the patches `visible`, and a class token if any.

        The pixels of a patch are in the order (row, column, channel). The result is in fp32.
        """
        tokens = self.embed(seen.patches) + F.embedding(visible, self.positions)  # [B, K, P]
        asked = self.mask_token[0] + F.embedding(masked, self.positions)  # [B, T, P]
        parts = [tokens, asked.to(tokens.dtype)]
        if seen.class_token is not None:  # its row of the fixed table is zero
            parts = [self.embed(seen.class_token)[:, None].to(tokens.dtype), *parts]
        x = torch.cat(parts, dim=1)
        for block in self.blocks[:-1]:
            x = block(x)
        x = self.blocks[-1](x, num_last=masked.shape[1])
        return self.pred(self.norm(x)).float()  # type: ignore[no-any-return]
