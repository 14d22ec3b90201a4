"""Settings of an encoder that other programs' config.json has no place for. They travel in it under a name of our own."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig, Initialization

KEY = "openjepa"
POOLINGS = ("average", "class_token")


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


FIELDS: dict[str, Callable[[object], bool]] = {
    "pooling": lambda value: value in POOLINGS,
    "resampling_offset": _is_share,
    "drop_path": _is_share,
    "initialization": lambda value: value in get_args(Initialization),
}
"""Field of `EncoderConfig`, and which values it may have."""


def beside(config: EncoderConfig) -> dict[str, Any]:
    """The entry to write into another program's config.json."""
    return {KEY: {name: getattr(config, name) for name in FIELDS}}


def with_beside(config: EncoderConfig, settings: Mapping[str, Any], where: object) -> EncoderConfig:
    """`config` with what such an entry says. Raises Refusal for a value that a setting cannot have."""
    said = settings.get(KEY)
    if not isinstance(said, Mapping):
        return config
    known = {name: said[name] for name in FIELDS if name in said}
    for name, value in known.items():
        if not FIELDS[name](value):
            raise Refusal(f"{where} says {KEY}.{name} {value!r}, which it cannot be; export or download it again")
    return replace(config, **known)
