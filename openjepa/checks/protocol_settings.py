"""Finds settings of an evaluation that are impossible or have no effect, before anything is loaded. Free of torch."""

from collections.abc import Collection, Mapping
from dataclasses import is_dataclass
from pathlib import Path

from openjepa.refusals import Refusal
from openjepa.settings.evaluation import BASE_DEPTH, EvaluationSettings, resolve_finetune
from openjepa.settings.ranges import check_ranges


def check_evaluation(settings: EvaluationSettings) -> None:
    """Raises Refusal if a setting of an evaluation is out of its range, or cannot work with the others."""
    check_ranges(settings, "evaluation.")
    shot = settings.low_shot
    given = [name for name in ("list", "percent", "images_per_class") if getattr(shot, name) is not None]
    if len(given) > 1:
        raise Refusal(f"evaluation.low_shot.{given[0]} and low_shot.{given[1]} both say which images are labeled: give one")
    if shot.list is not None and not Path(shot.list).expanduser().is_file():
        raise Refusal(f"evaluation.low_shot.list={shot.list!r} is no file: give a text file with one image per line")
    # the depth is not known yet: shallow encoders train longest, so their values refuse nothing that is possible
    resolve_finetune(settings.finetune, shot.is_set(), BASE_DEPTH)


def evaluation_remarks(
    settings: EvaluationSettings, protocols: Collection[str], reads: Mapping[str, Collection[str]], unpooled: Collection[str]
) -> list[str]:
    """Remarks on settings that were changed but have no effect on an evaluation by `protocols`.

    `reads`: for every existing protocol, the settings and groups that it reads, without those that all protocols read.
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
