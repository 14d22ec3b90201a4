"""Vision Transformer with fixed, learned or relative positions. Encodes all patches of an image or only some, at any size."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.models.transformer import (
    INIT_STD,
    RelativeBias,
    attention_bias,
    build_blocks,
    initialize,
    resampled_positions,
    sincos_positions,
)
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig, check_patch_divides
from openjepa.types import EncoderOutput

Branch = Literal["block", "mlp"]


def build_encoder(config: EncoderConfig) -> "VisionTransformer":
    """A new encoder with weights drawn from torch's global generator."""
    return VisionTransformer(config)


class PatchEmbedding(nn.Module):
    """Linear map of the pixels (channel, row, column) of each patch, stored as the equivalent convolution."""

    def __init__(self, patch_size: int, width: int) -> None:
        """A square patch of `patch_size` x `patch_size` pixels becomes a token of `width` numbers."""
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "B 3 h w"], keep: Int[Tensor, "R K"] | None) -> Float[Tensor, "R K D"]:
        """Tokens of all patches in raster order, or of the patches `keep`. Only these are then computed."""
        pixels = _patches(images, self.patch_size, keep)
        return F.linear(pixels, self.proj.weight.flatten(1), self.proj.bias)


def _patches(images: Float[Tensor, "B 3 h w"], side: int, keep: Int[Tensor, "R K"] | None) -> Float[Tensor, "R K pixels"]:
    """The pixels of each (kept) patch as one row. Each image has R / B successive rows of `keep`."""
    batch, channels, height, width = images.shape
    rows, columns = height // side, width // side
    cut = images.view(batch, channels, rows, side, columns, side)
    if keep is None:
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)
    samples = (torch.arange(len(keep), device=images.device) // (len(keep) // batch))[:, None]  # [R, 1]
    return cut[samples, :, keep // columns, :, keep % columns].flatten(2)  # [R, K, C, side, side] -> [R, K, pixels]


class VisionTransformer(nn.Module):
    """The encoder of Dosovitskiy et al. (2021), pre-norm, with fixed, learned or relative positions of the patches.

    Parameters have the names of the released code.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Builds and initializes the encoder. Raises Refusal if sizes do not divide."""
        super().__init__()
        check_patch_divides(config.patch_size, config.image_size, "image_size", of="the encoder")
        self.config = config
        self.patch_embed = PatchEmbedding(config.patch_size, config.width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width)) if config.class_token else None
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.width)) if config.mask_token else None
        self.blocks = build_blocks(
            config.width,
            config.depth,
            config.heads,
            config.mlp_ratio,
            config.layer_norm_eps,
            config.drop_path,
            config.layer_scale,
        )
        self.norm = nn.LayerNorm(config.width, eps=config.layer_norm_eps)
        rows, columns = config.grid()
        is_learned, is_fixed = config.positions == "learned", config.positions == "sincos"
        num_positions = rows * columns + int(config.class_token)
        self.pos_embed = nn.Parameter(torch.empty(1, num_positions, config.width)) if is_learned else None
        self.rel_pos_bias = RelativeBias(config.grid(), config.heads) if config.positions == "relative" else None
        self.positions: Tensor | None
        self.register_buffer("positions", sincos_positions(config.width, config.grid()) if is_fixed else None, persistent=False)
        initialize(self, self.blocks, config.initialization)
        for token in (self.cls_token, self.mask_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=INIT_STD)

    def forward(
        self,
        images: Float[Tensor, "B 3 h w"],
        keep: Int[Tensor, "R K"] | None = None,
        keep_valid: Bool[Tensor, "R K"] | None = None,
        replace: Bool[Tensor, "B N"] | None = None,
        num_layers: int = 0,
        branch: Branch = "block",
    ) -> EncoderOutput:
        """Encodes all patches, or only the patches `keep` (raster indices, in that order) at the cost of those alone.

        If `keep` has several rows per image, those of an image follow one another, and each is a sequence of its own.
        `keep_valid` is False for a patch that is padding. No other token sees it, and its own output has no meaning.
        `replace` is True for a patch that the mask token replaces, at the same position. It needs all patches (no `keep`).
        `num_layers` and `branch` ask for outputs of blocks, see `block_outputs`.
        Raises Refusal if the patch size does not divide the image, or if `replace` is given to an encoder without mask token.
        """
        x = self._tokens(images, keep, replace)
        bias = self._bias(images, keep, keep_valid, x.dtype)
        outputs = []
        for layer, block in enumerate(self.blocks):
            is_asked = layer >= len(self.blocks) - num_layers
            if is_asked and branch == "mlp":
                x, output = block(x, bias, with_added=True)
            else:
                x = output = block(x, bias)
            if is_asked:
                outputs.append(output[:, int(self.config.class_token) :])
        return self._output(x, tuple(outputs))

    def block_outputs(
        self, images: Float[Tensor, "B 3 h w"], num_layers: int, branch: Branch = "block"
    ) -> tuple[Float[Tensor, "B N D"], ...]:
        """Outputs of the last `num_layers` blocks for all patches, first to last, before any final norm, without class token.

        `branch`: `block` for the sequence after each block, `mlp` for the part that its MLP added (after layer scale).
        """
        encoded: EncoderOutput = self(
            images, num_layers=num_layers, branch=branch
        )  # a call: divided weights are gathered there
        return encoded.blocks

    def last_layers(self, images: Float[Tensor, "B 3 h w"], num_layers: int) -> list[EncoderOutput]:
        """Outputs of the last `num_layers` blocks for all patches, first to last, each passed through the final norm.

        Raises Refusal if the encoder does not have that many blocks.
        """
        if not 1 <= num_layers <= len(self.blocks):
            raise Refusal(f"num_layers={num_layers} of an encoder with {len(self.blocks)} blocks; use 1 to {len(self.blocks)}")
        x = self._tokens(images, None)
        bias = self._bias(images, None, None, x.dtype)
        outputs = []
        for layer, block in enumerate(self.blocks):
            x = block(x, bias)
            if layer >= len(self.blocks) - num_layers:
                outputs.append(self._output(x))
        return outputs

    def weights_for(self, grid: tuple[int, int]) -> dict[str, Tensor]:
        """The weights of the same encoder for images of `grid` patches. Learned positions are resampled."""
        weights = self.state_dict()
        if grid == self.config.grid():
            return weights
        if self.pos_embed is not None:
            patches = self._positions(grid, self.pos_embed.device)
            assert patches is not None
            weights["pos_embed"] = torch.cat([self.pos_embed[0, : int(self.config.class_token)], patches]).detach()[None]
        if self.rel_pos_bias is not None:
            weights["rel_pos_bias.relative_position_bias_table"] = self.rel_pos_bias.table_for(grid).detach()
        return weights

    def _tokens(
        self, images: Float[Tensor, "B 3 h w"], keep: Int[Tensor, "R K"] | None, replace: Bool[Tensor, "B N"] | None = None
    ) -> Float[Tensor, "R S D"]:
        height, width = images.shape[-2:]
        check_patch_divides(self.config.patch_size, (height, width), "image_size", of="the encoder")
        tokens = self.patch_embed(images, keep)
        if replace is not None:
            tokens = torch.where(replace[..., None], self._mask_token(keep).to(tokens.dtype), tokens)
        positions = self._positions(self.config.grid((height, width)), images.device)
        if positions is not None:
            tokens = tokens + (positions if keep is None else F.embedding(keep, positions))
        if self.cls_token is None:
            return tokens  # type: ignore[no-any-return]
        # the row of a fixed table for the class token is zero
        first = self.cls_token if self.pos_embed is None else self.cls_token + self.pos_embed[:, :1]
        return torch.cat([first.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)

    def _mask_token(self, keep: Int[Tensor, "R K"] | None) -> Float[Tensor, "1 1 D"]:
        if self.mask_token is None or keep is not None:
            raise Refusal("replace needs an encoder with mask_token=True, and all patches of the image (keep=None)")
        return self.mask_token

    def _positions(self, grid: tuple[int, int], device: torch.device) -> Float[Tensor, "N D"] | None:
        if self.pos_embed is not None:
            own = self.config.grid()
            table: Tensor = self.pos_embed[0, int(self.config.class_token) :]
            if grid == own:
                return table
            return resampled_positions(table, own, grid, self.config.resampling_offset).to(table.dtype)
        if self.rel_pos_bias is not None:
            return None
        assert self.positions is not None  # the third kind
        if grid == self.config.grid():
            return self.positions
        return sincos_positions(self.config.width, grid).to(device, self.positions.dtype)

    def _bias(
        self,
        images: Float[Tensor, "B 3 h w"],
        keep: Int[Tensor, "R K"] | None,
        valid: Bool[Tensor, "R K"] | None,
        dtype: torch.dtype,
    ) -> Float[Tensor, "#R #heads #S S"] | None:
        """The term added to the attention scores of every block: relative positions, and `HIDDEN` for padding."""
        if valid is not None and self.cls_token is not None:
            valid = F.pad(valid, (1, 0), value=True)
        hidden = attention_bias(valid, dtype)
        if self.rel_pos_bias is None:
            return hidden
        height, width = images.shape[-2:]
        relative: Tensor = self.rel_pos_bias(self.config.grid((height, width)), self.cls_token is not None, keep)
        return relative if hidden is None else relative + hidden

    def _output(self, x: Float[Tensor, "B S D"], blocks: tuple[Float[Tensor, "B K D"], ...] = ()) -> EncoderOutput:
        normed = self.norm(x).float()
        if self.cls_token is None:
            return EncoderOutput(normed, blocks=blocks)
        return EncoderOutput(normed[:, 1:], normed[:, 0], blocks)
