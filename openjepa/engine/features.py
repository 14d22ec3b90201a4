"""What an encoder makes of uint8 images: its outputs, or one pooled vector for each, batch by batch on its device."""

from collections.abc import Callable
from typing import TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from openjepa.engine.device import autocast, to_device
from openjepa.models.vit import VisionTransformer
from openjepa.settings.models import EncoderConfig
from openjepa.types import EncoderOutput, normalize

Output = TypeVar("Output")

CPU_PATCHES = 2048
"""Patches of one forward for each thread of a CPU. The caches hold them: on one thread 1.3 to 1.8 times as fast as 16,384."""
BATCH = 256
CPU_BATCH = 32
"""Images of one forward on a CPU. The caches hold them: a nano encoder at 64 px took 0.7 (fp32) or 0.83 (bf16) of the time."""


def encode(
    network: Callable[[Float[Tensor, "B 3 h w"]], Output],
    images: UInt8[Tensor, "B 3 h w"],
    config: EncoderConfig,
    device: torch.device,
    precision: str,
) -> Output:
    """What `network`, which is on `device`, gives for images, which may be elsewhere.

    The images are normalized as `config` says. `network` computes in `precision` (auto, bf16 or fp32). Gradients are the
    caller's choice.
    """
    pixels = normalize(to_device(images, device), config.pixel_mean, config.pixel_std)
    with autocast(device, precision):
        return network(pixels)


def in_caches(images: UInt8[Tensor, "B 3 h w"], patch_size: int, device: torch.device) -> tuple[UInt8[Tensor, "b 3 h w"], ...]:
    """The images in parts. On a CPU the patches of a part fit the caches; on other devices there is one part."""
    if device.type != "cpu":
        return (images,)
    patches = (images.shape[2] // patch_size) * (images.shape[3] // patch_size)
    return torch.split(images, max(1, torch.get_num_threads() * CPU_PATCHES // patches))


@torch.no_grad()
def pooled_features(
    encoder: VisionTransformer,
    config: EncoderConfig,
    images: UInt8[Tensor, "B 3 h w"],
    device: torch.device,
    precision: str,
) -> Float[Tensor, "B D"]:
    """One vector per image, pooled as `config` says, in fp32 on the CPU. The encoder is on `device` already.

    No paths are dropped, even if the encoder is being trained.
    """
    training = encoder.training
    encoder.eval()
    pooled = [torch.empty(0, config.width)]
    for part in torch.split(images, CPU_BATCH if device.type == "cpu" else BATCH):
        output: EncoderOutput = encode(encoder, part, config, device, precision)
        pooled.append(output.pooled(config.pooling).cpu())
    encoder.train(training)
    return torch.cat(pooled)
