"""Finds impossible settings before anything is loaded: every error names the setting, its value and what would fit."""

import math
import re

from openjepa.checks.masks import check_blockwise, check_random_patches
from openjepa.checks.method_remarks import without_effect
from openjepa.checks.methods import check_method
from openjepa.checks.sizes import PATCH_SIZES, check_heads, check_patch_divides, check_positions
from openjepa.checks.values import check_pairs, check_ranges
from openjepa.refusals import Refusal
from openjepa.settings.data import DataSettings, FolderSettings, HuggingFaceSettings
from openjepa.settings.masks import BlockwiseSettings, MultiblockSettings, RandomPatchesSettings
from openjepa.settings.models import SIZES, ModelSettings
from openjepa.settings.optimization import OptimizationSettings
from openjepa.settings.run import RunConfig, RunSettings


def check(config: RunConfig, world_size: int = 1, is_model_known: bool = True) -> None:
    """Raises Refusal at the first setting that cannot work, alone or with the others, on `world_size` processes.

    Without `is_model_known`, of a run whose model follows weights that are not read yet, all that does not depend on it.
    """
    check_ranges(config)
    check_pairs(config)
    if is_model_known:
        _check_model(config)
    _check_batch(config, world_size)
    _check_length(config.optim)
    _check_source(config)
    _check_run(config.run)
    if config.monitor.lidar_masks == 1:
        raise Refusal("monitor.lidar_masks=1 must be at least 2, because LiDAR compares draws; or 0 for no LiDAR")


def _check_model(config: RunConfig) -> None:
    """What depends on the model: its own sizes, the method's and the masks'."""
    _check_patches(config.model, config.data)
    _check_encoder(config.model)
    check_method(config)
    if isinstance(config.masks, MultiblockSettings):
        _check_multiblock(config)
    if isinstance(config.masks, BlockwiseSettings):
        check_blockwise(config.masks, config.model.grid(config.data.height_width()))
    if isinstance(config.masks, RandomPatchesSettings):
        check_random_patches(config.masks, config.model.grid(config.data.height_width()))


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
    if optim.clip_mode != OptimizationSettings.clip_mode and optim.clip_grad is None:
        found.append(f"optim.clip_mode={optim.clip_mode} has no effect without optim.clip_grad")
    if config.data.cache_size is not None and config.data.cache == "none":
        found.append(f"data.cache_size={config.data.cache_size} has no effect with data.cache=none")
    masks = config.masks
    is_shared = isinstance(masks, MultiblockSettings) or (isinstance(masks, RandomPatchesSettings) and masks.shared)
    if masks.group_size is not None and not is_shared:
        found.append(f"masks.group_size={masks.group_size} has no effect: these masks ({masks.strategy}) share nothing")
    run, usual = config.run, RunSettings()
    for name in ("init_encoder", "init_heads"):
        if run.init is None and getattr(run, name) != getattr(usual, name):
            found.append(f"run.{name}={getattr(run, name)} has no effect without run.init")
    return found + without_effect(config.method)


# -------------------------------------------------------------------------------------------------- image and networks


def _check_patches(model: ModelSettings, data: DataSettings) -> None:
    patch = model.patch_size
    if patch not in PATCH_SIZES:
        raise Refusal(f"model.patch_size={patch} must be between {PATCH_SIZES[0]} and {PATCH_SIZES[-1]}")
    check_patch_divides(patch, data.height_width())


def _check_encoder(model: ModelSettings) -> None:
    shape = model.shape()
    check_heads("model.heads", shape.heads, "the width of the encoder", shape.width)
    check_positions("model.width", shape.width)


# ------------------------------------------------------------------------------------------------- batch, length, data


def _check_batch(config: RunConfig, world_size: int) -> None:
    batch, micro, group = config.optim.batch_size, config.optim.microbatch_size, config.masks.group_size
    if batch % world_size:
        raise Refusal(f"optim.batch_size={batch} must be a multiple of the {world_size} processes")
    share = batch // world_size
    if micro is not None and share % micro:
        fitting = _near_divisors(share, micro)
        per_process = f"optim.batch_size={batch}" + (f" / {world_size} processes" if world_size > 1 else "")
        raise Refusal(f"optim.microbatch_size={micro} does not divide {per_process}; near values that do: {fitting}")
    if group is None:
        return
    if batch % group:
        fitting = _near_divisors(batch, group)
        raise Refusal(f"masks.group_size={group} does not divide optim.batch_size={batch}; near values that do: {fitting}")
    if group % (micro or share):
        fix = f"set optim.microbatch_size to a divisor of {group}"
        raise Refusal(f"masks.group_size={group} is no multiple of the microbatch ({micro or share} images): {fix}")


def _near_divisors(number: int, value: int) -> str:
    divisors = [item for item in range(1, number + 1) if number % item == 0]
    closest = sorted(divisors, key=lambda item: abs(math.log(item / value)))[:4]
    return ", ".join(map(str, sorted(closest)))


def _check_length(optim: OptimizationSettings) -> None:
    if optim.total_steps is not None and optim.warmup_steps is not None and optim.warmup_steps > optim.total_steps:
        raise Refusal(f"optim.warmup_steps={optim.warmup_steps} is more than optim.total_steps={optim.total_steps}")
    if optim.total_steps is None and optim.warmup_steps is None and optim.warmup_epochs >= optim.epochs:
        raise Refusal(
            f"optim.warmup_epochs={optim.warmup_epochs:g} is not shorter than optim.epochs={optim.epochs:g}: the learning rate "
            f"would never reach optim.lr. Set optim.warmup_epochs, e.g. {optim.epochs / 20:g}"
        )


def _check_multiblock(config: RunConfig) -> None:
    masks = config.masks
    assert isinstance(masks, MultiblockSettings)
    grid = config.model.grid(config.data.height_width())
    if min(grid) < 2:
        fix = "use a smaller model.patch_size or a larger data.image_size"
        raise Refusal(f"masks.strategy=multiblock needs at least 2x2 patches; this grid is {grid[0]}x{grid[1]}: {fix}")


def _check_run(run: RunSettings) -> None:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", run.device):
        raise Refusal(f"run.device={run.device!r} must be auto, cpu, cuda, cuda:<number> or mps")
    if run.name is not None and (run.name in (".", "..") or re.search(r"[/\\\0]", run.name)):
        fix = "give the folder that holds the runs as run.output"
        raise Refusal(f"run.name={run.name!r} must be the name of one folder, without separators, '.' or '..': {fix}")
    for setting, value in (("run.name", run.name), ("run.output", run.output)):
        if value is not None and not _is_text(value):
            raise Refusal(f"{setting}={value!r} has bytes that are no text (UTF-8): weights cannot be read from such a path")


def _is_text(words: str) -> bool:
    return words.encode("utf-8", errors="ignore").decode() == words


def _check_source(config: RunConfig) -> None:
    data = config.data
    if isinstance(data, FolderSettings | HuggingFaceSettings) and not data.path:
        example = "--data.path ~/photos" if isinstance(data, FolderSettings) else "--data.path owner/name"
        raise Refusal(f"data.path is empty: say where the images are, e.g. {example}")
    if isinstance(data, HuggingFaceSettings) and data.streaming and config.optim.total_steps is None:
        raise Refusal("data.streaming=True needs optim.total_steps: the length of a stream is not known")
    if config.model.size not in SIZES:
        raise Refusal(f"model.size={config.model.size!r} must be one of {', '.join(SIZES)}")
