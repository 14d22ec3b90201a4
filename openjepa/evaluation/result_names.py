"""Names of result files: the words that tell other evaluations from the run's own. Does not import torch."""

import hashlib
import json
import re
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from openjepa.evaluation import PROTOCOLS, usual_protocols
from openjepa.settings.evaluation import EvaluationSettings, LowShotSettings
from openjepa.settings.sources import DataSettings

_TRAINING_ONLY = (
    *("image_size", "crop_scale", "crop_aspect", "interpolation", "horizontal_flip", "pixel_mean", "pixel_std"),
    *("cache", "cache_size", "max_skipped"),
)
"""Settings of the data that only concern training's views. An evaluation has views of its own."""
BASELINES = ("untrained", "pixels")
OF_ALL = ("seed", "heads", "precision")
"""Settings that change the results of every protocol and for which `variant_name` has no special words. PROTOCOLS lists the
settings that only some protocols read."""
LONGEST_GROUP, LONGEST_NAME = 60, 160
"""Largest length of one group of words and of a name; the rest becomes a hash. The JSON file holds all settings."""


def variant_name(
    settings: EvaluationSettings,
    own_size: tuple[int, int],
    size: tuple[int, int],
    *subject: str,
    usual: EvaluationSettings | None = None,
) -> str:
    """The differences from the run's own evaluation, in words joined by dashes; empty if there are none.

    `subject` holds words for encoder and data (`data_name`); empty ones are left out. `own_size` is the encoder's training
    size, `size` that of the views. `usual` holds the settings of a suite's row, which do not count as differences.
    `settings.pooling` is `own`, or the pooling that is not the encoder's own.
    """
    usual = usual or EvaluationSettings(protocols=usual_protocols(on_maps=False))
    protocols = tuple(dict.fromkeys(settings.protocols or usual.protocols))
    height, width = size
    pixels = f"{height}px" if height == width else f"{height}x{width}px"
    most = settings.max_train_images
    parts = (
        *subject,
        settings.pooling if settings.pooling != "own" else "",
        settings.selection if settings.selection != "held_out" else "",
        pixels if size != own_size else "",
        f"max{most}" if most is not None else "",
        *(_protocol_words(protocols) if set(protocols) != set(usual.protocols) else ()),
        *(_shot_words(settings.low_shot) if settings.low_shot != usual.low_shot else ()),
        f"{settings.seeds}seeds" if settings.seeds != 1 else "",
        *_changed_settings(settings, protocols),
        *(f"no-{name}" for name in BASELINES if name not in settings.baselines),
    )
    name = "-".join(re.sub(r"[^\w.+-]+", "-", part) for part in parts if part)
    return (
        name if len(name.encode()) <= LONGEST_NAME else f"{name.encode()[:LONGEST_NAME].decode(errors='ignore')}-{_hash(name)}"
    )


def _protocol_words(protocols: tuple[str, ...]) -> tuple[str, ...]:
    """The protocol names with underscores, because dashes separate words. Older files are named in the same way."""
    words = tuple(name.replace("-", "_") for name in protocols)
    return (f"{words[0]}-only",) if len(words) == 1 else words


def _changed_settings(settings: EvaluationSettings, protocols: tuple[str, ...]) -> list[str]:
    """Words such as `seed-7` or `finetune.epochs-10` for settings that the protocols read and that are not the default.

    If a group has too many changes, its words are a hash.
    """
    usual = type(settings)()
    entries = [PROTOCOLS[name] for name in protocols]
    groups = {name for name, value in vars(usual).items() if is_dataclass(value)}
    words, named = [_differences("", settings, usual, OF_ALL)], set(groups)
    for entry in entries:
        words.append(_differences("", settings, usual, tuple(name for name in entry.reads if name not in named)))
        named |= set(entry.reads)
    for group in dict.fromkeys(name for entry in entries for name in entry.reads if name in groups):
        own = getattr(settings, group)
        words.append(_differences(f"{group}.", own, getattr(usual, group), tuple(vars(own))))
    return words


def _differences(prefix: str, own: object, usual: object, names: tuple[str, ...]) -> str:
    changed = [name for name in names if getattr(own, name) != getattr(usual, name)]
    text = "-".join(f"{prefix}{name}-{_plain(getattr(own, name))}" for name in changed)
    return text if len(text) <= LONGEST_GROUP else f"{prefix}settings-{_hash(text)}"


def _plain(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _short(value: float) -> str:
    """The number with as few digits as possible."""
    return f"{value:g}" if float(f"{value:g}") == value else str(value)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _shot_words(shot: LowShotSettings) -> tuple[str, ...]:
    """Words such as `1pct` or `5shot`, or the name of the list; then the seed if it is not 0."""
    what = [f"{_short(shot.percent)}pct"] if shot.percent is not None else []
    what += [f"{shot.images_per_class}shot"] if shot.images_per_class is not None else []
    what += [Path(shot.list).stem] if shot.list is not None else []
    return (*what, f"seed{shot.seed}") if shot.seed else tuple(what)


def data_name(own: DataSettings | None, data: DataSettings) -> str:
    """The name of `data` in results; empty if the evaluation uses the run's own images and split."""
    if own is None:
        return data.name()
    seen, usual = _seen(data), _seen(own)
    if seen == usual:
        return ""
    if data.name() != own.name() or type(data) is not type(own):
        return data.name()
    # different images under the same name: add the settings that differ
    return "-".join((data.name(), *(f"{name}-{value}" for name, value in seen.items() if value != usual[name])))


def data_key(data: DataSettings) -> str:
    """Short hash of the settings that decide which images and labels are used. It tells two folders of one name apart."""
    return hashlib.sha256(json.dumps(_seen(data), sort_keys=True, default=str).encode()).hexdigest()[:12]


def folder_key(folder: Path) -> str:
    """Short hash of the path of a benchmark's folder."""
    return _hash(str(folder.resolve()))


def _seen(data: DataSettings) -> dict[str, Any]:
    """The settings that decide which images and labels an evaluation uses, with paths resolved."""
    seen = {name: value for name, value in vars(data).items() if name not in _TRAINING_ONLY}
    return seen | {"path": str(Path(seen["path"]).expanduser().resolve())} if seen.get("path") else seen
