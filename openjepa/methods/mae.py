"""MAE (He et al. 2022, arXiv 2111.06377): reconstruct the pixels of masked patches from the few visible ones, by a decoder."""

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function

from openjepa.methods.base import CoupledTerm, Encoders, Method, ProbeOutput, Surroundings
from openjepa.models.transformer import INIT_STD, build_blocks, initialize, sincos_positions
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.refusals import Refusal
from openjepa.schedules import Progress
from openjepa.settings.derived import heads_of, resolved
from openjepa.settings.methods import MaeSettings
from openjepa.settings.models import DecoderConfig, EncoderConfig
from openjepa.types import TRAINED, Batch, EncoderOutput, Export, InputSpec, LossOutput, TokenMask

VIEW = "image"
VARIANCE_EPS = 1e-6
"""Added to the (unbiased) variance of a patch's pixels, as in the released code. The paper mentions neither."""


@final
class Mae(Method):
    """An encoder sees a quarter of the patches. A decoder reconstructs the pixels of the others from one mask token each.

    There is no moving average, and nothing is predicted in feature space. It differs from the released code in three ways. The
    class token is optional; without it, features are pooled by averaging. The bias of the patch embedding starts at zero.
    Visible tokens are kept in raster order, and masked ones are decoded last. Attention does not depend on this order.
    Published runs draw weights with `model.initialization=xavier`.
    """

    def __init__(self, settings: MaeSettings, surroundings: Surroundings) -> None:
        """Draws the weights from torch's global generator."""
        super().__init__()
        self.settings = settings
        self.view = surroundings.view
        self.encoder_config = _encoder_config(surroundings)
        self.encoder: VisionTransformer = build_encoder(self.encoder_config)
        self.decoder = Decoder(_decoder_config(settings, self.encoder_config))

    def inputs(self) -> InputSpec:
        """One random crop, with the same number of masked patches in every image."""
        return InputSpec(views={VIEW: self.view}, masked_views=(VIEW,))

    def forward(self, batch: Batch, progress: Progress) -> LossOutput:
        """Section 3 of the paper: encode the visible patches, decode the masked ones, squared distance to their pixels."""
        images, visible, masked = _images_and_patches(batch)
        predictions = self._reconstructions(images, visible, masked)
        return LossOutput(total=self.distance(predictions, _chosen(self.targets(images), masked)))

    def targets(self, images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B N pixels"]:
        """Pixels of all patches in the order (row, column, channel). Each patch is normalized if `norm_pixels` is set."""
        side = self.encoder_config.patch_size
        return normalized_pixels(images, side) if self.settings.norm_pixels else patch_pixels(images.float(), side)

    def distance(self, predictions: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
        """Squared distance, averaged over images, patches and pixels."""
        return F.mse_loss(predictions, targets)

    def after_step(self, progress: Progress) -> Mapping[str, float]:
        """Does nothing, because there is no teacher."""
        return {}

    def probe(self, batch: Batch, progress: Progress) -> ProbeOutput:
        """Pooled features of the encoder on the whole image, and the loss with its pixels, without drop path."""
        images, visible, masked = _images_and_patches(batch)
        with self.looking():
            encoded: EncoderOutput = self.encoder(images)
            pixels, predictions = self.targets(images), self._reconstructions(images, visible, masked)
            targets, others = _chosen(pixels, masked), _chosen(pixels.roll(-1, 0), masked)
            loss = self.distance(predictions, targets)
        features = encoded.pooled(self.encoder_config.pooling)
        rows = (part[:, None] for part in (predictions, others))
        return ProbeOutput(features, loss, targets[:, None], masked[:, None], self.distance, *rows)

    def energies(self, batch: Batch, progress: Progress) -> Float[Tensor, "B B"]:
        """Distance between the reconstruction from the visible patches of image i and the same patches' pixels in image j."""
        images, visible, masked = _images_and_patches(batch)
        with self.looking():
            predictions, targets = self._reconstructions(images, visible, masked), self.targets(images)
        rows = [
            (prediction - targets[:, places]).square().mean(dim=(1, 2))
            for prediction, places in zip(predictions, masked, strict=True)
        ]
        return torch.stack(rows)

    def coupled_terms(self) -> tuple[CoupledTerm, ...]:
        """There are none: the distance is a mean over images, which all have as many masked patches."""
        return ()

    def encoders(self) -> Encoders:
        """The only encoder."""
        return Encoders(self.encoder)

    def exports(self) -> Mapping[str, Export]:
        """The encoder. The decoder serves only for pretraining."""
        return {"encoder": Export(self.encoder_config, self.encoder, TRAINED)}

    def _reconstructions(
        self, images: Float[Tensor, "B 3 h w"], visible: Int[Tensor, "B K"], masked: Int[Tensor, "B T"]
    ) -> Float[Tensor, "B T pixels"]:
        with record_function("encoder"):
            seen: EncoderOutput = self.encoder(images, visible)
        with record_function("decoder"):
            return self.decoder(seen, visible, masked)  # type: ignore[no-any-return]


def patch_pixels(images: Float[Tensor, "B C h w"], side: int) -> Float[Tensor, "B N pixels"]:
    """The pixels of each patch of `side` x `side` as one row, in the order (row, column, channel)."""
    batch, channels, height, width = images.shape
    cut = images.reshape(batch, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)


def normalized_pixels(images: Float[Tensor, "B C h w"], side: int) -> Float[Tensor, "B N pixels"]:
    """`patch_pixels`, each patch with mean 0 and (unbiased) variance 1 over its pixels and channels."""
    pixels = patch_pixels(images.float(), side)
    variance, mean = torch.var_mean(pixels, dim=-1, correction=1, keepdim=True)
    return (pixels - mean) * torch.rsqrt(variance + VARIANCE_EPS)


def _chosen(rows: Float[Tensor, "B N pixels"], places: Int[Tensor, "B T"]) -> Float[Tensor, "B T pixels"]:
    return rows[torch.arange(len(rows), device=rows.device)[:, None], places]


def _images_and_patches(batch: Batch) -> tuple[Float[Tensor, "B C h w"], Int[Tensor, "B K"], Int[Tensor, "B T"]]:
    """The crops, and the indices of their visible and of their masked patches."""
    mask = batch.masks[VIEW]
    assert isinstance(mask, TokenMask)  # checks refuse other masks
    return batch.views[VIEW][0], *mask.divided()


def _encoder_config(surroundings: Surroundings) -> EncoderConfig:
    """Settings of the encoder. It is pooled by its class token if it has one, as in the released linear probe."""
    config = surroundings.encoder_config()
    return replace(config, pooling="class_token") if config.class_token else config


def _decoder_config(settings: MaeSettings, encoder: EncoderConfig) -> DecoderConfig:
    return DecoderConfig(
        encoder_width=encoder.width,
        width=resolved(settings.decoder_width),
        depth=settings.decoder_depth,
        heads=heads_of(settings.decoder_heads, encoder.heads),
        grid=encoder.grid(),
        patch_size=encoder.patch_size,
        mlp_ratio=encoder.mlp_ratio,
        layer_norm_eps=encoder.layer_norm_eps,
        initialization=encoder.initialization,
    )


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
