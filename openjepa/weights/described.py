"""What other programs write beside weights: one reader for all of it, which takes no value for another."""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

from openjepa.checks.encoders import check_encoder
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig
from openjepa.system.json_files import typed
from openjepa.weights.contents import AGAIN

Described = TypeVar("Described")
Channels = tuple[float, float, float] | float | None


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Mean and standard deviation of pixels, one for all channels or one for each."""

    mean: Channels = None
    std: Channels = None


def described(kind: type[Described], entries: dict[str, Any], where: object) -> Described:
    """Those of `entries` that the dataclass `kind` has. Raises Refusal if one is missing or of another type."""
    return typed(kind, entries, where, AGAIN)


def with_pixels(config: EncoderConfig, pixels: Pixels) -> EncoderConfig:
    """`config` with the mean and standard deviation that a file says."""
    mean, std = _three(pixels.mean), _three(pixels.std)
    return replace(config, pixel_mean=mean or config.pixel_mean, pixel_std=std or config.pixel_std)


def checked(config: EncoderConfig, where: object, names: dict[str, str] | None = None) -> EncoderConfig:
    """`config`, if an encoder can have these settings. `names`: what the file `where` calls them."""
    try:
        check_encoder(config, names)
    except Refusal as error:
        raise Refusal(f"{where} describes no encoder: {error}") from error
    return config


def _three(value: Channels) -> tuple[float, float, float] | None:
    return (value, value, value) if isinstance(value, float) else value
