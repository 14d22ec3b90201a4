"""Features of images for the pictures: pooled, and of patches at twice the resolution of the grid."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch.nn import functional as F

from openjepa.engine.device import autocast
from openjepa.engine.features import pooled_features
from openjepa.models.vit import VisionTransformer
from openjepa.settings.models import EncoderConfig
from openjepa.types import normalize


def unit_features(
    encoder: VisionTransformer, config: EncoderConfig, images: UInt8[torch.Tensor, "B 3 h w"], device: torch.device
) -> Float[np.ndarray, "B D"]:
    """One unit vector per image."""
    return F.normalize(pooled_features(encoder, config, images, device, "auto"), dim=1).numpy()


@torch.inference_mode()
def dense_features(
    encoder: VisionTransformer, config: EncoderConfig, images: UInt8[torch.Tensor, "B 3 h w"], device: torch.device
) -> Float[np.ndarray, "B H2 W2 D"]:
    """Patch features on a grid twice as fine: four passes over images shifted by a quarter of a patch up or down and sideways.

    Positions beyond the grid that the encoder was trained on mean nothing to it, so a larger input gives no finer map.
    """
    quarter = max(1, config.patch_size // 4)
    height, width = images.shape[-2:]
    pixels = normalize(images.to(device), config.pixel_mean, config.pixel_std)
    padded = F.pad(pixels, (quarter, quarter, quarter, quarter), mode="replicate")
    rows, columns = config.grid((height, width))
    dense = np.empty((len(images), 2 * rows, 2 * columns, config.width), dtype=np.float32)
    for down in (0, 1):
        for right in (0, 1):
            top, left = 2 * quarter * down, 2 * quarter * right
            shifted = padded[..., top : top + height, left : left + width].contiguous()
            with autocast(device, "auto"):
                output = encoder(shifted)
            patches = output.patches.float().cpu().numpy()
            dense[:, down::2, right::2] = patches.reshape(len(images), rows, columns, -1)
    return dense


def similarity_map(features: Float[np.ndarray, "H W D"], row: int, column: int) -> Float[np.ndarray, "H W"]:
    """Cosine of one patch to all patches of its image, after the mean of the image's patches is taken out."""
    centered = features - features.mean(axis=(0, 1))
    units = centered / np.maximum(np.linalg.norm(centered, axis=-1, keepdims=True), 1e-12)
    return units @ units[row, column]  # type: ignore[no-any-return]


def nearest(
    queries: Float[np.ndarray, "Q D"], gallery: Float[np.ndarray, "G D"], num: int, skip: list[int | None]
) -> list[list[int]]:
    """Indices of the `num` nearest of the gallery (largest dot product) for each query, without its own index in `skip`."""
    similarities = queries @ gallery.T
    for row, own in enumerate(skip):
        if own is not None:
            similarities[row, own] = -np.inf
    order = np.argsort(-similarities, axis=1, kind="stable")
    return [[int(index) for index in row[:num]] for row in order]
