"""Formats that encoders are read and written in. One file and one line of FORMATS each."""

from collections.abc import Callable
from typing import Any

from openjepa.registry import Entry
from openjepa.settings.models import EncoderConfig


def _native() -> Callable[..., Any]:
    from openjepa.weights.native import load_encoder

    return load_encoder


FORMATS: dict[str, Entry[EncoderConfig]] = {
    "native": Entry(EncoderConfig, _native),
}
"""`load` gives the function that reads an encoder of this format: path -> (encoder, its EncoderConfig)."""
