"""Reads the settings that other programs store beside weights, and refuses values of the wrong type.

Settings of our encoder that another program's config.json has no entry for are stored in it under a name of our own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

from openjepa.config import typed
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig, Initialization, check_encoder
from openjepa.weights.contents import AGAIN

Described = TypeVar("Described")
Channels = tuple[float, float, float] | float | None


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Mean and standard deviation of pixels: one value for all channels, or one per channel."""

    mean: Channels = None
    std: Channels = None


def described(kind: type[Described], entries: dict[str, Any], where: object) -> Described:
    """Makes the dataclass `kind` from those of `entries` that are its fields.

    Raises Refusal, which names `where`, if an entry is missing or has another type.
    """
    return typed(kind, entries, where, AGAIN)


def with_pixels(config: EncoderConfig, pixels: Pixels) -> EncoderConfig:
    """`config` with the mean and standard deviation of `pixels`."""
    mean, std = _three(pixels.mean), _three(pixels.std)
    return replace(config, pixel_mean=mean or config.pixel_mean, pixel_std=std or config.pixel_std)


def checked(config: EncoderConfig, where: object, names: dict[str, str] | None = None) -> EncoderConfig:
    """Returns `config` unchanged. Raises Refusal if no encoder can have these settings.

    `names` maps our names of settings to those in the file `where`.
    """
    try:
        check_encoder(config, names)
    except Refusal as error:
        raise Refusal(f"{where} describes no encoder: {error}") from error
    return config


def _three(value: Channels) -> tuple[float, float, float] | None:
    return (value, value, value) if isinstance(value, float) else value


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
"""Fields of `EncoderConfig`, and tests for the values that they may have."""


def beside(config: EncoderConfig) -> dict[str, Any]:
    """The entry with our own settings for another program's config.json."""
    return {KEY: {name: getattr(config, name) for name in FIELDS}}


def with_beside(config: EncoderConfig, settings: Mapping[str, Any], where: object) -> EncoderConfig:
    """`config` with the settings that `beside` wrote. Raises Refusal if a setting cannot have its value."""
    said = settings.get(KEY)
    if not isinstance(said, Mapping):
        return config
    known = {name: said[name] for name in FIELDS if name in said}
    for name, value in known.items():
        if not FIELDS[name](value):
            raise Refusal(f"{where} says {KEY}.{name} {value!r}, which it cannot be; export or download it again")
    return replace(config, **known)
