"""What sets an evaluation apart from the run's own one, as a suffix of its file's name. Free of torch."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from openjepa.settings.data import DataSettings
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.low_shot import LowShotSettings

_TRAINING_ONLY = (
    *("image_size", "crop_scale", "crop_aspect", "interpolation", "horizontal_flip", "pixel_mean", "pixel_std"),
    *("cache", "cache_size", "max_skipped"),
)
"""Settings of the data that say how training sees the images; an evaluation shows them in its own view."""
BASELINES = ("untrained", "pixels")


def variant_name(
    settings: EvaluationSettings,
    own_size: tuple[int, int],
    size: tuple[int, int],
    *subject: str,
    usual: EvaluationSettings | None = None,
) -> str:
    """What differs from the run's own evaluation, joined by dashes; empty where nothing does.

    `subject`: what is known of encoder and data (`data_name`), empty words left out. `own_size`: the encoder's training size.
    `usual`: settings of a suite's row, which are no variant.
    """
    usual = usual or EvaluationSettings(protocols=("linear", "knn"))
    protocols = tuple(dict.fromkeys(settings.protocols or usual.protocols))
    height, width = size
    pixels = f"{height}px" if height == width else f"{height}x{width}px"
    most = settings.max_train_images
    parts = (
        *subject,
        settings.selection if settings.selection != "held_out" else "",
        pixels if size != own_size else "",
        f"max{most}" if most is not None else "",
        *(_protocol_words(protocols) if set(protocols) != set(usual.protocols) else ()),
        *(_shot_words(settings.low_shot) if settings.low_shot != usual.low_shot else ()),
        f"{settings.seeds}seeds" if settings.seeds != 1 else "",
        *(words for name in protocols for words in _protocol_settings(name, settings)),
        *(f"no-{name}" for name in BASELINES if name not in settings.baselines),
    )
    return "-".join(re.sub(r"[^\w.+-]+", "-", part) for part in parts if part)


def _protocol_words(protocols: tuple[str, ...]) -> tuple[str, ...]:
    return (f"{protocols[0]}-only",) if len(protocols) == 1 else protocols


def _protocol_settings(protocol: str, settings: EvaluationSettings) -> tuple[str, ...]:
    """`finetune.epochs-10`: settings of a protocol's own group that are not its defaults."""
    group = "dense" if protocol.startswith("dense") else protocol
    own, usual = getattr(settings, group, None), getattr(EvaluationSettings(), group, None)
    if own is None or own == usual:
        return ()
    changed = {name: value for name, value in vars(own).items() if value != getattr(usual, name)}
    return tuple(f"{group}.{name}-{_plain(value)}" for name, value in changed.items())


def _plain(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _shot_words(shot: LowShotSettings) -> tuple[str, ...]:
    """`1pct`, `5shot`, or the name of the list; and the seed where it is another than 0."""
    what = [f"{shot.percent:g}pct"] if shot.percent is not None else []
    what += [f"{shot.images_per_class}shot"] if shot.images_per_class is not None else []
    what += [Path(shot.list).stem] if shot.list is not None else []
    return (*what, f"seed{shot.seed}") if shot.seed else tuple(what)


def data_name(own: DataSettings | None, data: DataSettings) -> str:
    """What the results call `data`: nothing where an evaluation sees the run's own images, in the run's own split."""
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


def _seen(data: DataSettings) -> dict[str, Any]:
    """The settings that decide which images and labels an evaluation sees, paths in one spelling."""
    seen = {name: value for name, value in vars(data).items() if name not in _TRAINING_ONLY}
    return seen | {"path": str(Path(seen["path"]).expanduser().resolve())} if seen.get("path") else seen
