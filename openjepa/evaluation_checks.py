"""Impossible settings of an evaluation are found here, before anything is loaded. Free of torch."""

import math
from collections.abc import Collection
from pathlib import Path

from openjepa.config import flatten
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.finetune import BASE_DEPTH, resolve_finetune

_POSITIVE = (math.nextafter(0, 1), math.inf, "above 0")
_NOT_NEGATIVE = (0.0, math.inf, "at least 0")
_COUNT = (1.0, math.inf, "at least 1")
_BELOW_ONE = (0.0, math.nextafter(1, 0), "at least 0 and below 1")

EVALUATION_RANGES: dict[str, tuple[float, float, str]] = {
    "image_size": _COUNT,
    "seeds": _COUNT,
    "weight_decays": _POSITIVE,
    "iterations": _COUNT,
    "neighbors": _COUNT,
    "neighbor_temperature": _POSITIVE,
    "feature_batch_size": _COUNT,
    "max_train_images": _COUNT,
    "max_skipped": (0.0, 1.0, "between 0 and 1"),
    "lidar_images": (2.0, math.inf, "at least 2"),
    "lidar_views": (2.0, math.inf, "at least 2"),
    "seed": _NOT_NEGATIVE,
    "workers": _NOT_NEGATIVE,
    "low_shot.percent": (math.nextafter(0, 1), 100.0, "above 0 and at most 100"),
    "low_shot.images_per_class": _COUNT,
    "low_shot.seed": _NOT_NEGATIVE,
    "logistic.penalties": _POSITIVE,
    "logistic.gradient_norm": _POSITIVE,
    "logistic.relative_gradient": _POSITIVE,
    "logistic.iterations": _COUNT,
    "linear_full.epochs": _COUNT,
    "linear_full.batch_size": _COUNT,
    "linear_full.learning_rates": _POSITIVE,
    "linear_full.weight_decays": _NOT_NEGATIVE,
    "attentive.epochs": _COUNT,
    "attentive.batch_size": _COUNT,
    "attentive.learning_rates": _POSITIVE,
    "attentive.weight_decay": _NOT_NEGATIVE,
    "finetune.epochs": _COUNT,
    "finetune.batch_size": _COUNT,
    "finetune.microbatch_size": _COUNT,
    "finetune.learning_rates": _POSITIVE,
    "finetune.final_lr": _NOT_NEGATIVE,
    "finetune.warmup_epochs": _NOT_NEGATIVE,
    "finetune.weight_decay": _NOT_NEGATIVE,
    "finetune.layer_decay": (math.nextafter(0, 1), 1.0, "above 0 and at most 1"),
    "finetune.drop_path": _BELOW_ONE,
    "finetune.label_smoothing": _BELOW_ONE,
    "finetune.mixup": _NOT_NEGATIVE,
    "finetune.cutmix": _NOT_NEGATIVE,
    "finetune.random_erasing": (0.0, 1.0, "between 0 and 1"),
    "finetune.magnitude": (0.0, 10.0, "between 0 and 10"),
    "finetune.magnitude_std": _NOT_NEGATIVE,
    "finetune.head_std": _NOT_NEGATIVE,
    "dense.max_patches": _COUNT,
}
"""Smallest and largest value of a setting, and how an error says it; where there are several values, for each."""
PROTOCOL_GROUPS = ("logistic", "linear_full", "attentive", "finetune", "dense")
"""Groups of settings that only the protocols of their name heed."""


def check_evaluation(settings: EvaluationSettings) -> None:
    """Raises ValueError at the first setting of an evaluation that cannot work."""
    for name, value in flatten(settings).items():
        low, high, words = EVALUATION_RANGES.get(name, (-math.inf, math.inf, ""))
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, int | float) and (not low <= item <= high or (words and math.isinf(item))):
                raise ValueError(f"evaluation.{name}={item} must be {words}")
    shot = settings.low_shot
    given = [name for name in ("list", "percent", "images_per_class") if getattr(shot, name) is not None]
    if len(given) > 1:
        raise ValueError(f"evaluation.low_shot.{given[0]} and low_shot.{given[1]} both say which images are labeled: give one")
    if shot.list is not None and not Path(shot.list).expanduser().is_file():
        raise ValueError(f"evaluation.low_shot.list={shot.list!r} is no file: give a text file with one image per line")
    # the depth is not known yet; shallow encoders have the longest runs, so that nothing possible is refused
    resolve_finetune(settings.finetune, shot.is_set(), BASE_DEPTH)


def evaluation_remarks(settings: EvaluationSettings, protocols: Collection[str]) -> list[str]:
    """Settings that were changed and have no effect on an evaluation by these protocols, in words."""
    usual = EvaluationSettings()
    heeded = {"dense" if name.startswith("dense") else name for name in protocols}
    idle = [name for name in PROTOCOL_GROUPS if name not in heeded and getattr(settings, name) != getattr(usual, name)]
    words = [f"{name}.* has no effect: the protocol {name} is not run (--protocols)" for name in idle]
    shot = settings.low_shot
    if shot.seed and (not shot.is_set() or shot.list is not None):
        words.append("low_shot.seed has no effect without low_shot.percent or low_shot.images_per_class")
    if settings.lidar_views != usual.lidar_views and settings.lidar_images is None:
        words.append("lidar_views has no effect without lidar_images")
    tuned = settings.finetune
    changed = (tuned.magnitude, tuned.magnitude_std) != (usual.finetune.magnitude, usual.finetune.magnitude_std)
    if changed and tuned.randaugment is False:
        words.append("finetune.magnitude and magnitude_std have no effect without finetune.randaugment")
    return words
