"""Finds impossible settings before anything is loaded: every error names the setting, its value and what would fit."""

import math
import re

from openjepa.config import flatten
from openjepa.ranges import ABOVE_ZERO_FRACTION, BELOW_ONE, COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, Range, check_range
from openjepa.settings.data import DataSettings, FolderSettings, HuggingFaceSettings
from openjepa.settings.masks import MultiblockSettings
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import SIZES, ModelSettings
from openjepa.settings.optimization import OptimizationSettings
from openjepa.settings.run import RunConfig, RunSettings

PATCH_SIZES = range(4, 17)


def check(config: RunConfig, world_size: int = 1) -> None:
    """Raises ValueError at the first setting that cannot work, alone or with the others, on `world_size` processes."""
    _check_ranges(config)
    _check_pairs(config)
    _check_patches(config.model, config.data)
    _check_encoder(config.model)
    if isinstance(config.method, IJepaSettings):
        _check_predictor(config.method, config.model)
    _check_batch(config, world_size)
    _check_length(config.optim)
    if isinstance(config.masks, MultiblockSettings):
        _check_multiblock(config)
    _check_source(config)
    _check_run(config.run)
    if config.monitor.lidar_masks == 1:
        raise ValueError("monitor.lidar_masks=1 must be at least 2, because LiDAR compares draws; or 0 for no LiDAR")


def remarks(config: RunConfig) -> list[str]:
    """What is allowed but surely not meant: settings without effect, and a warm-up as long as the run.

    Mask strategies warn of their own, and methods remark on the length once it is known in steps.
    """
    found = []
    optim = config.optim
    if optim.total_steps is not None and optim.epochs != OptimizationSettings.epochs:
        found.append(f"optim.epochs={optim.epochs} has no effect: optim.total_steps={optim.total_steps} sets the length")
    if optim.warmup_steps is not None and optim.warmup_steps == optim.total_steps:
        found.append(
            f"optim.warmup_steps={optim.warmup_steps} is the whole training: the learning rate never falls from optim.lr"
        )
    if optim.weight_decay_schedule == "constant" and optim.final_weight_decay != OptimizationSettings.final_weight_decay:
        found.append(f"optim.final_weight_decay={optim.final_weight_decay} has no effect with weight_decay_schedule=constant")
    if optim.cooldown != OptimizationSettings.cooldown and optim.lr_schedule == "cosine":
        found.append(f"optim.cooldown={optim.cooldown} has no effect with optim.lr_schedule=cosine")
    if config.data.cache_size is not None and config.data.cache == "none":
        found.append(f"data.cache_size={config.data.cache_size} has no effect with data.cache=none")
    return found


# ------------------------------------------------------------------------------------------------------------ ranges


RANGES: dict[str, Range] = {
    "model.drop_path": BELOW_ONE,
    "model.layer_norm_eps": POSITIVE,
    "model.width": COUNT,
    "model.depth": COUNT,
    "model.heads": COUNT,
    "method.predictor_width": COUNT,
    "method.predictor_depth": COUNT,
    "method.predictor_heads": COUNT,
    "method.ema_start": FRACTION,
    "method.ema_end": FRACTION,
    "masks.group_size": COUNT,
    "masks.num_targets": COUNT,
    "masks.context_ratio": ABOVE_ZERO_FRACTION,
    "masks.min_keep": NOT_NEGATIVE,
    "masks.max_redraws": NOT_NEGATIVE,
    "data.max_skipped": FRACTION,
    "data.max_images": COUNT,
    "data.cache_size": COUNT,
    "data.test_fraction": BELOW_ONE,
    "data.window": COUNT,
    "optim.batch_size": COUNT,
    "optim.microbatch_size": COUNT,
    "optim.epochs": POSITIVE,
    "optim.total_steps": COUNT,
    "optim.lr": POSITIVE,
    "optim.start_lr": NOT_NEGATIVE,
    "optim.final_lr": NOT_NEGATIVE,
    "optim.warmup_epochs": NOT_NEGATIVE,
    "optim.warmup_steps": NOT_NEGATIVE,
    "optim.cooldown": FRACTION,
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.final_weight_decay": NOT_NEGATIVE,
    "optim.schedule_stretch": COUNT,
    "optim.beta1": BELOW_ONE,
    "optim.beta2": BELOW_ONE,
    "optim.eps": POSITIVE,
    "optim.clip_grad": POSITIVE,
    "run.seed": NOT_NEGATIVE,
    "monitor.every": NOT_NEGATIVE,
    "monitor.images": (2.0, math.inf, "at least 2"),
    "monitor.lidar_masks": NOT_NEGATIVE,
    "monitor.lidar_images": (2.0, math.inf, "at least 2"),
    "monitor.knn_images": COUNT,
    "system.workers": NOT_NEGATIVE,
    "system.threads": COUNT,
    "system.log_every": COUNT,
    "system.checkpoint_minutes": NOT_NEGATIVE,
    "system.keep_every": COUNT,
}
"""Smallest and largest value of a setting, and how an error says it. None, where a setting allows it, is always in range."""

PAIRS: dict[str, Range] = {
    "masks.target_scale": ABOVE_ZERO_FRACTION,
    "masks.context_scale": ABOVE_ZERO_FRACTION,
    "data.crop_scale": ABOVE_ZERO_FRACTION,
    "masks.target_aspect": POSITIVE,
    "masks.context_aspect": POSITIVE,
    "data.crop_aspect": POSITIVE,
}
"""The same for settings that are (smallest, largest)."""


def _check_ranges(config: RunConfig) -> None:
    for name, value in flatten(config).items():
        if name in RANGES and isinstance(value, int | float):
            check_range(name, value, RANGES[name])


def _check_pairs(config: RunConfig) -> None:
    if not all(0 < deviation < math.inf for deviation in config.data.pixel_std):
        raise ValueError(f"data.pixel_std={_words(config.data.pixel_std)}: all values must be above 0")
    for name, value in flatten(config).items():
        if name not in PAIRS or not isinstance(value, tuple):
            continue
        low, high, words = PAIRS[name]
        if not all(low <= item <= high for item in value):
            raise ValueError(f"{name}={_words(value)}: both values must be {words}")
        if value[0] > value[1]:
            raise ValueError(f"{name}={_words(value)}: smallest first, then largest: {value[1]} {value[0]}")


def _words(value: tuple[object, ...]) -> str:
    return " ".join(map(str, value))


# -------------------------------------------------------------------------------------------------- image and networks


def _check_patches(model: ModelSettings, data: DataSettings) -> None:
    patch = model.patch_size
    if patch not in PATCH_SIZES:
        raise ValueError(f"model.patch_size={patch} must be between {PATCH_SIZES[0]} and {PATCH_SIZES[-1]}")
    check_patch_divides(patch, data.height_width())


def check_patch_divides(
    patch: int, size: tuple[int, int], patch_name: str = "model.patch_size", size_name: str = "data.image_size"
) -> None:
    """Raises ValueError, with the values that fit, unless an image of `size` (height, width) is a whole number of patches."""
    height, width = size
    if min(size) < patch:
        raise ValueError(f"{size_name}={height}x{width} is smaller than a patch ({patch_name}={patch})")
    if height % patch or width % patch:
        fitting = [side for side in PATCH_SIZES if height % side == 0 and width % side == 0]
        patches = f"{patch_name} one of {', '.join(map(str, fitting))}" if fitting else "no patch size fits this image"
        nearest = " ".join(str(nearest_multiple(side, patch)) for side in dict.fromkeys(size))
        raise ValueError(
            f"{patch_name}={patch} does not divide {size_name}={height}x{width}: {patches}, or {size_name}={nearest}"
        )


def nearest_multiple(side: int, patch: int) -> int:
    """The whole number of patches nearest to `side`, in pixels; at least one patch."""
    return max(patch, round(side / patch) * patch)


def _check_encoder(model: ModelSettings) -> None:
    shape = model.shape()
    _check_heads("model.heads", shape.heads, "the width of the encoder", shape.width)
    _check_positions("model.width", shape.width)


def _check_predictor(method: IJepaSettings, model: ModelSettings) -> None:
    width = method.predictor_width
    _check_heads("method.predictor_heads", method.predictor_heads or model.shape().heads, "method.predictor_width", width)
    _check_positions("method.predictor_width", width)


def _check_heads(name: str, heads: int, width_name: str, width: int) -> None:
    if width % heads:
        fitting = [number for number in range(1, 33) if width % number == 0]
        raise ValueError(
            f"{name}={heads} does not divide {width_name} ({width}); heads that do: {', '.join(map(str, fitting))}"
        )


def _check_positions(name: str, width: int) -> None:
    if width % 4:
        low = width // 4 * 4
        raise ValueError(f"{name}={width} must be a multiple of 4 for sine-cosine positions, e.g. {low or 4} or {low + 4}")


# ------------------------------------------------------------------------------------------------- batch, length, data


def _check_batch(config: RunConfig, world_size: int) -> None:
    batch, micro, group = config.optim.batch_size, config.optim.microbatch_size, config.masks.group_size
    if batch % world_size:
        raise ValueError(f"optim.batch_size={batch} must be a multiple of the {world_size} processes")
    share = batch // world_size
    if micro is not None and share % micro:
        fitting = _near_divisors(share, micro)
        per_process = f"optim.batch_size={batch}" + (f" / {world_size} processes" if world_size > 1 else "")
        raise ValueError(f"optim.microbatch_size={micro} does not divide {per_process}; near values that do: {fitting}")
    if group is None:
        return
    if batch % group:
        fitting = _near_divisors(batch, group)
        raise ValueError(f"masks.group_size={group} does not divide optim.batch_size={batch}; near values that do: {fitting}")
    if group % (micro or share):
        fix = f"set optim.microbatch_size to a divisor of {group}"
        raise ValueError(f"masks.group_size={group} is no multiple of the microbatch ({micro or share} images): {fix}")


def _near_divisors(number: int, value: int) -> str:
    divisors = [item for item in range(1, number + 1) if number % item == 0]
    closest = sorted(divisors, key=lambda item: abs(math.log(item / value)))[:4]
    return ", ".join(map(str, sorted(closest)))


def _check_length(optim: OptimizationSettings) -> None:
    if optim.total_steps is not None and optim.warmup_steps is not None and optim.warmup_steps > optim.total_steps:
        raise ValueError(f"optim.warmup_steps={optim.warmup_steps} is more than optim.total_steps={optim.total_steps}")
    if optim.total_steps is None and optim.warmup_steps is None and optim.warmup_epochs >= optim.epochs:
        raise ValueError(
            f"optim.warmup_epochs={optim.warmup_epochs:g} is not shorter than optim.epochs={optim.epochs:g}: the learning rate "
            f"would never reach optim.lr. Set optim.warmup_epochs, e.g. {optim.epochs / 20:g}"
        )


def _check_multiblock(config: RunConfig) -> None:
    masks = config.masks
    assert isinstance(masks, MultiblockSettings)
    grid = config.model.grid(config.data.height_width())
    if min(grid) < 2:
        fix = "use a smaller model.patch_size or a larger data.image_size"
        raise ValueError(f"masks.strategy=multiblock needs at least 2x2 patches; this grid is {grid[0]}x{grid[1]}: {fix}")


def _check_run(run: RunSettings) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", run.device):
        raise ValueError(f"run.device={run.device!r} must be auto, cpu, cuda, cuda:<number> or mps")
    if run.name is not None and (run.name in (".", "..") or re.search(r"[/\\\0]", run.name)):
        fix = "give the folder that holds the runs as run.output"
        raise ValueError(f"run.name={run.name!r} must be the name of one folder, without separators, '.' or '..': {fix}")


def _check_source(config: RunConfig) -> None:
    data = config.data
    if isinstance(data, FolderSettings | HuggingFaceSettings) and not data.path:
        example = "--data.path ~/photos" if isinstance(data, FolderSettings) else "--data.path owner/name"
        raise ValueError(f"data.path is empty: say where the images are, e.g. {example}")
    if isinstance(data, HuggingFaceSettings) and data.streaming and config.optim.total_steps is None:
        raise ValueError("data.streaming=True needs optim.total_steps: the length of a stream is not known")
    if config.model.size not in SIZES:
        raise ValueError(f"model.size={config.model.size!r} must be one of {', '.join(SIZES)}")
