"""The same I-JEPA step as one would first write it: the reference that `benchmarks/step.py` compares with.

It uses plain modules under autocast. A convolution embeds all patches, and the kept tokens are gathered. Attention is torch's
fused one, AdamW has its default settings, and the moving average is a loop over parameters. Nothing is slow on purpose, and
nothing is tuned.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from openjepa.models.transformer import sincos_positions
from openjepa.settings.models import EncoderConfig, PredictorConfig


class PlainBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        """MLP ratio 4."""
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, D] -> [B, S, D]."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.norm2(x))


def gather(tokens: Tensor, indices: Tensor) -> Tensor:
    """Rows [B, K] of tokens [B, N, D]."""
    return torch.gather(tokens, 1, indices[:, :, None].expand(-1, -1, tokens.shape[-1]))


class PlainEncoder(nn.Module):
    """Vision Transformer."""

    def __init__(self, config: EncoderConfig) -> None:
        """Weights as torch draws them."""
        super().__init__()
        self.patch_embed = nn.Conv2d(3, config.width, config.patch_size, config.patch_size)
        self.register_buffer("positions", sincos_positions(config.width, config.grid())[None])
        self.blocks = nn.ModuleList([PlainBlock(config.width, config.heads) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.width, eps=1e-6)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """[B, 3, h, w] -> [B, N or K, D]."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.positions
        if keep is not None:
            x = gather(x, keep)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class PlainPredictor(nn.Module):
    """I-JEPA's predictor."""

    def __init__(self, config: PredictorConfig) -> None:
        """Weights as torch draws them."""
        super().__init__()
        self.embed = nn.Linear(config.encoder_width, config.width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.register_buffer("positions", sincos_positions(config.width, config.grid)[None])
        self.blocks = nn.ModuleList([PlainBlock(config.width, config.heads) for _ in range(config.depth)])
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.proj = nn.Linear(config.width, config.encoder_width)

    def forward(self, context: Tensor, context_idx: Tensor, target_idx: Tensor) -> Tensor:
        """[B, K, D], [B, K], [B, M, T] -> [M B, T, D], target blocks first."""
        positions = self.positions.expand(len(context), -1, -1)
        seen = self.embed(context) + gather(positions, context_idx)
        blocks = []
        for block in target_idx.unbind(1):
            blocks.append(torch.cat([seen, self.mask_token + gather(positions, block)], dim=1))
        x = torch.cat(blocks)
        for layer in self.blocks:
            x = layer(x)
        return self.proj(self.norm(x)[:, context_idx.shape[1] :])


class PlainStep:
    """Networks, optimizer, and one training step."""

    def __init__(self, encoder: EncoderConfig, predictor: PredictorConfig) -> None:
        """The target encoder starts as a copy."""
        self.encoder, self.predictor = PlainEncoder(encoder), PlainPredictor(predictor)
        self.target_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            [*self.encoder.parameters(), *self.predictor.parameters()], lr=1e-6, weight_decay=0.04
        )

    def loss(self, images: Tensor, context: Tensor, targets: Tensor) -> Tensor:
        """Smooth L1 between predictions and layer-normed targets."""
        with torch.no_grad():
            features = self.target_encoder(images)
            features = F.layer_norm(features, features.shape[-1:])
            wanted = torch.cat([gather(features, block) for block in targets.unbind(1)])
        return F.smooth_l1_loss(self.predictor(self.encoder(images, context), context, targets), wanted)

    def run(self, images: Tensor, context: Tensor, targets: Tensor, precision: str) -> Tensor:
        """One step; returns the loss."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = self.loss(images, context, targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for ours, theirs in zip(self.target_encoder.parameters(), self.encoder.parameters(), strict=True):
                ours.mul_(0.996).add_(theirs, alpha=0.004)
        return loss.detach()
