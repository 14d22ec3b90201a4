"""What a result's file is called: every evaluation that is not the run's own has words of its own. Free of torch."""

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
"""Settings of the data that say how training sees the images; an evaluation shows them in its own view."""
BASELINES = ("untrained", "pixels")
OF_ALL = ("seed", "heads", "precision")
"""Settings that change the results of every protocol and that `variant_name` has no words for. PROTOCOLS says which settings
only some protocols read."""
LONGEST_GROUP, LONGEST_NAME = 60, 160
"""Characters; longer words are replaced by a hash, because names of files must end somewhere. The JSON holds all settings."""


def variant_name(
    settings: EvaluationSettings,
    own_size: tuple[int, int],
    size: tuple[int, int],
    *subject: str,
    usual: EvaluationSettings | None = None,
) -> str:
    """What differs from the run's own evaluation, in words that are joined by dashes; empty if nothing does.

    `subject`: words for encoder and data (`data_name`); empty ones are left out. `own_size`: the encoder's training size.
    `usual`: settings of a suite's row, which are no variant. `settings.pooling`: `own`, or the one that is not the encoder's.
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
    """The names with underscores, because dashes stand between words; files of before are called so, too."""
    words = tuple(name.replace("-", "_") for name in protocols)
    return (f"{words[0]}-only",) if len(words) == 1 else words


def _changed_settings(settings: EvaluationSettings, protocols: tuple[str, ...]) -> list[str]:
    """`seed-7`, `finetune.epochs-10`: what is not the default of what the protocols read; many changes together as a hash."""
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
    """The number in as few digits as possible."""
    return f"{value:g}" if float(f"{value:g}") == value else str(value)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _shot_words(shot: LowShotSettings) -> tuple[str, ...]:
    """`1pct`, `5shot`, or the name of the list; and the seed if it is not 0."""
    what = [f"{_short(shot.percent)}pct"] if shot.percent is not None else []
    what += [f"{shot.images_per_class}shot"] if shot.images_per_class is not None else []
    what += [Path(shot.list).stem] if shot.list is not None else []
    return (*what, f"seed{shot.seed}") if shot.seed else tuple(what)


def data_name(own: DataSettings | None, data: DataSettings) -> str:
    """What the results call `data`; empty if an evaluation sees the run's own images in the run's own split."""
    if own is None:
        return data.name()
    seen, usual = _seen(data), _seen(own)
    if seen == usual:
        return ""
    if data.name() != own.name() or type(data) is not type(own):
        return data.name()
    # the same name for other images: say which settings make them so
    return "-".join((data.name(), *(f"{name}-{value}" for name, value in seen.items() if value != usual[name])))


def data_key(data: DataSettings) -> str:
    """Short hash of the settings that decide which images and labels are seen: tells two folders of one name apart."""
    return hashlib.sha256(json.dumps(_seen(data), sort_keys=True, default=str).encode()).hexdigest()[:12]


def folder_key(folder: Path) -> str:
    """Short hash of a benchmark's folder."""
    return _hash(str(folder.resolve()))


def _seen(data: DataSettings) -> dict[str, Any]:
    """The settings that decide which images and labels an evaluation sees, paths in one spelling."""
    seen = {name: value for name, value in vars(data).items() if name not in _TRAINING_ONLY}
    return seen | {"path": str(Path(seen["path"]).expanduser().resolve())} if seen.get("path") else seen
