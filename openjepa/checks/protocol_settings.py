"""Impossible settings of an evaluation are found here, before anything is loaded. Free of torch."""

import math
from collections.abc import Collection, Mapping
from dataclasses import is_dataclass
from pathlib import Path

from openjepa.config import flatten
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import BASE_DEPTH, EvaluationSettings, resolve_finetune
from openjepa.settings.fields import ABOVE_ZERO_FRACTION, BELOW_ONE, COUNT, FRACTION, NOT_NEGATIVE, POSITIVE, Range, check_range

EVALUATION_RANGES: dict[str, Range] = {
    "image_size": COUNT,
    "seeds": COUNT,
    "weight_decays": POSITIVE,
    "iterations": COUNT,
    "neighbors": COUNT,
    "neighbor_temperature": POSITIVE,
    "feature_batch_size": COUNT,
    "max_train_images": COUNT,
    "max_skipped": FRACTION,
    "lidar_images": (2.0, math.inf, "at least 2"),
    "lidar_views": (2.0, math.inf, "at least 2"),
    "seed": NOT_NEGATIVE,
    "workers": NOT_NEGATIVE,
    "low_shot.percent": (math.nextafter(0, 1), 100.0, "above 0 and at most 100"),
    "low_shot.images_per_class": COUNT,
    "low_shot.seed": NOT_NEGATIVE,
    "logistic.penalties": POSITIVE,
    "logistic.gradient_norm": POSITIVE,
    "logistic.relative_gradient": POSITIVE,
    "logistic.iterations": COUNT,
    "linear_full.epochs": COUNT,
    "linear_full.batch_size": COUNT,
    "linear_full.learning_rates": POSITIVE,
    "linear_full.weight_decays": NOT_NEGATIVE,
    "attentive.epochs": COUNT,
    "attentive.batch_size": COUNT,
    "attentive.learning_rates": POSITIVE,
    "attentive.weight_decay": NOT_NEGATIVE,
    "finetune.epochs": COUNT,
    "finetune.batch_size": COUNT,
    "finetune.microbatch_size": COUNT,
    "finetune.learning_rates": POSITIVE,
    "finetune.final_lr": NOT_NEGATIVE,
    "finetune.warmup_epochs": NOT_NEGATIVE,
    "finetune.weight_decay": NOT_NEGATIVE,
    "finetune.layer_decay": ABOVE_ZERO_FRACTION,
    "finetune.drop_path": BELOW_ONE,
    "finetune.label_smoothing": BELOW_ONE,
    "finetune.mixup": NOT_NEGATIVE,
    "finetune.cutmix": NOT_NEGATIVE,
    "finetune.random_erasing": FRACTION,
    "finetune.magnitude": (0.0, 10.0, "between 0 and 10"),
    "finetune.magnitude_std": NOT_NEGATIVE,
    "finetune.head_std": NOT_NEGATIVE,
    "dense.max_patches": COUNT,
}
"""Smallest and largest value of a setting, and how an error says it; where there are several values, for each."""
MAY_BE_EMPTY = {"baselines"}
"""Settings of several values whose default has some and which may have none. Others are swept: without any there is no result.
Where the default is empty, that means the usual ones."""


def check_evaluation(settings: EvaluationSettings) -> None:
    """Raises Refusal at the first setting of an evaluation that cannot work."""
    usual = flatten(type(settings)())
    for name, value in flatten(settings).items():
        default = usual[name]
        if value == () and isinstance(default, tuple) and default and name not in MAY_BE_EMPTY:
            words = " ".join(map(str, default))
            raise Refusal(f"evaluation.{name} is empty: give at least one number, or leave it out for {words}")
        if isinstance(value, tuple) and isinstance(default, tuple) and name in EVALUATION_RANGES:
            _check_repeats(f"evaluation.{name}", value)
        for item in value if isinstance(value, tuple) else (value,):
            if name in EVALUATION_RANGES and isinstance(item, int | float):
                check_range(f"evaluation.{name}", item, EVALUATION_RANGES[name])
    shot = settings.low_shot
    given = [name for name in ("list", "percent", "images_per_class") if getattr(shot, name) is not None]
    if len(given) > 1:
        raise Refusal(f"evaluation.low_shot.{given[0]} and low_shot.{given[1]} both say which images are labeled: give one")
    if shot.list is not None and not Path(shot.list).expanduser().is_file():
        raise Refusal(f"evaluation.low_shot.list={shot.list!r} is no file: give a text file with one image per line")
    # the depth is not known yet; shallow encoders have the longest runs, so that nothing possible is refused
    resolve_finetune(settings.finetune, shot.is_set(), BASE_DEPTH)


def _check_repeats(name: str, swept: tuple[object, ...]) -> None:
    """Every value is a classifier of its own, told from the others by it."""
    if len(set(swept)) < len(swept):
        values, once = (" ".join(map(str, items)) for items in (swept, dict.fromkeys(swept)))
        raise Refusal(f"{name}={values} repeats a value: give each once, {once}")


def evaluation_remarks(
    settings: EvaluationSettings, protocols: Collection[str], reads: Mapping[str, Collection[str]], unpooled: Collection[str]
) -> list[str]:
    """Settings that were changed and have no effect on an evaluation by these protocols, in words.

    `reads`: for each protocol there is, the settings and groups of settings that only some protocols read, it among them.
    `unpooled`: the protocols that learn from patches, not from one vector per image.
    """
    usual = type(settings)()
    heeded = {name for protocol in protocols for name in reads[protocol]}
    words = []
    for name, value in vars(usual).items():
        readers = [protocol for protocol, names in reads.items() if name in names]
        if readers and name not in heeded and getattr(settings, name) != value:
            shown = f"{name}.*" if is_dataclass(value) else name
            words.append(f"{shown} has no effect: the protocol {' or '.join(readers)} is not run (--protocols)")
    shot = settings.low_shot
    if shot.seed and (not shot.is_set() or shot.list is not None):
        words.append("low_shot.seed has no effect without low_shot.percent or low_shot.images_per_class")
    if settings.lidar_views != usual.lidar_views and settings.lidar_images is None:
        words.append("lidar_views has no effect without lidar_images")
    if settings.pooling != usual.pooling and set(unpooled).issuperset(protocols):
        words.append(f"pooling has no effect: protocols on patches ({', '.join(unpooled)}) pool nothing")
    tuned = settings.finetune
    changed = (tuned.magnitude, tuned.magnitude_std) != (usual.finetune.magnitude, usual.finetune.magnitude_std)
    if changed and tuned.randaugment is False:
        words.append("finetune.magnitude and magnitude_std have no effect without finetune.randaugment")
    return words
