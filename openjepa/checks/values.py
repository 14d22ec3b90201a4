"""The range of every setting that has one."""

import math
from collections.abc import Callable, Iterator
from functools import partial

from openjepa.config import flatten
from openjepa.refusals import Refusal
from openjepa.settings.fields import ABOVE_ZERO_FRACTION, BELOW_ONE, COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, Range, check_range
from openjepa.settings.run import RunConfig

RANGES: dict[str, Range] = {
    "model.drop_path": BELOW_ONE,
    "model.layer_norm_eps": POSITIVE,
    "model.resampling_offset": BELOW_ONE,
    "model.layer_scale": POSITIVE,
    "model.width": COUNT,
    "model.depth": COUNT,
    "model.heads": COUNT,
    "model.mlp_ratio": POSITIVE,
    "method.predictor_width": COUNT,
    "method.predictor_depth": COUNT,
    "method.predictor_heads": COUNT,
    "method.decoder_width": COUNT,
    "method.decoder_depth": COUNT,
    "method.decoder_heads": COUNT,
    "method.ema_start": FRACTION,
    "method.ema_end": FRACTION,
    "method.average_layers": COUNT,
    "method.smooth_l1_beta": POSITIVE,
    "method.ema_ramp": FRACTION,
    "method.jitter": NOT_NEGATIVE,
    "method.jitter_probability": FRACTION,
    "method.grayscale_probability": FRACTION,
    "method.blur_probability": FRACTION,
    "method.solarize_probability": FRACTION,
    "method.local_crops": NOT_NEGATIVE,
    "method.local_size": COUNT,
    "method.outputs": COUNT,
    "method.head_layers": COUNT,
    "method.head_hidden": COUNT,
    "method.bottleneck": COUNT,
    "method.freeze_last_layer_epochs": NOT_NEGATIVE,
    "method.student_temperature": POSITIVE,
    "method.teacher_temperature_start": POSITIVE,
    "method.teacher_temperature": POSITIVE,
    "method.teacher_temperature_warmup_epochs": NOT_NEGATIVE,
    "method.center_momentum": FRACTION,
    "method.masked_views": COUNT,
    "method.prototypes": COUNT,
    "method.output_width": COUNT,
    "method.temperature": POSITIVE,
    "method.sharpening_start": POSITIVE,
    "method.sharpening_end": POSITIVE,
    "method.sinkhorn_iterations": COUNT,
    "method.mean_entropy_weight": NOT_NEGATIVE,
    "method.entropy_weight": NOT_NEGATIVE,
    "method.label_smoothing": BELOW_ONE,
    "method.patch_outputs": COUNT,
    "method.class_weight": NOT_NEGATIVE,
    "method.patch_weight": NOT_NEGATIVE,
    "method.patch_temperature_start": POSITIVE,
    "method.patch_temperature": POSITIVE,
    "method.patch_start_epoch": NOT_NEGATIVE,
    "method.patch_center_momentum": FRACTION,
    "masks.group_size": COUNT,
    "masks.num_targets": COUNT,
    "masks.context_ratio": ABOVE_ZERO_FRACTION,
    "masks.min_keep": NOT_NEGATIVE,
    "masks.max_redraws": NOT_NEGATIVE,
    "masks.min_block": COUNT,
    "masks.max_block": COUNT,
    "data.max_skipped": FRACTION,
    "data.max_images": COUNT,
    "data.cache_size": COUNT,
    "data.test_fraction": BELOW_ONE,
    "data.window": COUNT,
    "optim.batch_size": COUNT,
    "optim.microbatch_size": COUNT,
    "optim.images_per_device": COUNT,
    "optim.epochs": POSITIVE,
    "optim.total_steps": COUNT,
    "optim.lr": POSITIVE,
    "optim.start_lr": NOT_NEGATIVE,
    "optim.final_lr": NOT_NEGATIVE,
    "optim.warmup_epochs": NOT_NEGATIVE,
    "optim.warmup_steps": NOT_NEGATIVE,
    "optim.warmup_share": BELOW_ONE,
    "optim.cooldown": FRACTION,
    "optim.weight_decay": NOT_NEGATIVE,
    "optim.final_weight_decay": NOT_NEGATIVE,
    "optim.schedule_stretch": COUNT,
    "optim.beta1": BELOW_ONE,
    "optim.beta2": BELOW_ONE,
    "optim.eps": POSITIVE,
    "optim.clip_grad": POSITIVE,
    "run.seed": NOT_NEGATIVE,
    "run.init_heads": COUNT,
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
"""Smallest and largest value of a setting, or of each of its values, and how an error says it. None, where a setting allows
it, is always in range."""

PAIRS: dict[str, Range] = {
    "masks.target_scale": ABOVE_ZERO_FRACTION,
    "masks.context_scale": ABOVE_ZERO_FRACTION,
    "data.crop_scale": ABOVE_ZERO_FRACTION,
    "masks.target_aspect": POSITIVE,
    "masks.context_aspect": POSITIVE,
    "masks.aspect": POSITIVE,
    "data.crop_aspect": POSITIVE,
    "method.local_scale": ABOVE_ZERO_FRACTION,
    "method.blur_sigma": POSITIVE,
}
"""The same for settings that are (smallest, largest)."""


def value_checks(config: RunConfig) -> Iterator[tuple[str, Callable[[], None]]]:
    """One check, with its setting, for each number that has a range, alone or among others, and for each pair."""
    for name, value in flatten(config).items():
        for item in value if isinstance(value, tuple) else (value,):
            if name in RANGES and isinstance(item, int | float):
                yield name, partial(check_range, name, item, RANGES[name])
        if name in PAIRS and isinstance(value, tuple):
            yield name, partial(_check_pair, name, value)
    yield "data.pixel_std", partial(_check_deviations, config.data.pixel_std)
    yield "monitor.lidar_masks", partial(_check_draws, config.monitor.lidar_masks)


def _check_pair(name: str, value: tuple[float, float]) -> None:
    low, high, words = PAIRS[name]
    if not all(low <= item <= high for item in value):
        raise Refusal(f"{name}={_words(value)}: both values must be {words}")
    if value[0] > value[1]:
        raise Refusal(f"{name}={_words(value)}: smallest first, then largest: {value[1]} {value[0]}")


def _check_deviations(values: tuple[float, ...]) -> None:
    if not all(0 < deviation < math.inf for deviation in values):
        raise Refusal(f"data.pixel_std={_words(values)}: all values must be above 0")


def _check_draws(number: int) -> None:
    if number == 1:
        raise Refusal("monitor.lidar_masks=1 must be at least 2, because LiDAR compares draws; or 0 for no LiDAR")


def _words(value: tuple[object, ...]) -> str:
    return " ".join(map(str, value))
