"""What is settled and said before the first step."""

import torch

from openjepa.data.source import ListSource, ShardSource
from openjepa.engine.device import device_name, memory_limit
from openjepa.engine.display import format_count, format_seconds
from openjepa.engine.estimate import Estimate, estimate
from openjepa.masks.base import MaskSampler
from openjepa.methods.base import Method
from openjepa.settings.data import DataSettings
from openjepa.settings.optimization import OptimizationSettings
from openjepa.settings.run import RunConfig
from openjepa.types import ViewSpec

BYTES_KEPT = {"bf16": 40.0, "fp32": 54.0}
"""Kept for the backward pass by a transformer block for each token and unit of width, without attention weights.

Measured as the storage of all saved tensors of I-JEPA's step with ViT-S/16 and B/16 at 224; attention weights add 28 % at
340 tokens.
"""


def default_view(data: DataSettings) -> ViewSpec:
    """The random crop that the data settings describe."""
    return ViewSpec(
        size=data.height_width(),
        scale=data.crop_scale,
        aspect=data.crop_aspect,
        interpolation=data.interpolation,
        horizontal_flip=data.horizontal_flip,
    )


def training_length(optim: OptimizationSettings, source: ListSource | ShardSource) -> tuple[int, float]:
    """Steps of the whole run and steps per pass over the data.

    Raises ValueError where the data has no known length and `optim.total_steps` is not set, or not even one batch.
    """
    num_images = len(source) if isinstance(source, ListSource) else source.num_records
    if num_images is None:
        if optim.total_steps is None:
            raise ValueError("optim.total_steps is required: the number of samples of this stream is not known")
        return optim.total_steps, float(optim.total_steps)
    per_epoch = num_images // optim.batch_size
    if per_epoch == 0:
        raise ValueError(f"optim.batch_size={optim.batch_size} is larger than the {num_images} training images; use fewer")
    return optim.total_steps or max(1, round(optim.epochs * per_epoch)), float(per_epoch)


def introduce(
    config: RunConfig, method: Method, sampler: MaskSampler, data: str, device: torch.device, precision: str, total_steps: int
) -> list[str]:
    """Lines that say what will run, on what, and roughly what it needs.

    Raises ValueError where the estimate of the memory is far over what the device has.
    """
    micro = config.optim.microbatch_size or config.optim.batch_size
    images = total_steps * config.optim.batch_size
    kept = BYTES_KEPT[precision] * method.kept_widths() * micro
    needs = estimate(method, method.step_flops(), kept, images, device, precision)
    shapes = ", ".join(f"{shape.context}/{shape.target}" for shape in sampler.shapes()[:4])
    lines = [
        f"recipe     {config.recipe} ({config.preset}), method {config.method.name}, seed {config.run.seed}",
        f"data       {data}",
        f"device     {device} ({device_name(device)}), {precision}, {torch.get_num_threads()} threads",
        f"model      {config.model.size}/{config.model.patch_size}, {format_count(needs.trained_parameters)} weights, "
        f"{format_count(needs.flops_per_image)} FLOPs an image and step",
        f"masks      {sampler.name} on {sampler.grid[0]}x{sampler.grid[1]} patches; context/target tokens: {shapes}",
        f"training   {total_steps} steps of {config.optim.batch_size} images ({format_count(images)} in all)",
        f"estimate   {format_count(needs.memory_bytes)}B of memory, {format_seconds(needs.seconds)} (within a factor of two)",
    ]
    _refuse_far_too_large(needs, micro, device)
    return lines


def _refuse_far_too_large(needs: Estimate, microbatch: int, device: torch.device) -> None:
    limit = memory_limit(device)
    if needs.memory_bytes > 2 * limit:
        raise ValueError(
            f"this run needs about {format_count(needs.memory_bytes)}B of memory and {device} has {format_count(limit)}B: "
            f"lower optim.microbatch_size (now {microbatch}) or choose a smaller model.size"
        )
