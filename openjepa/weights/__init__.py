"""Formats that encoders are read in. One file and one line of FORMATS each. Free of torch.

A format is a `Reader`: `recognize(contents)` says from what a file or folder holds whether it is of this format, and no two
formats claim the same; `read(contents, choice)` gives the networks. `openjepa.weights.loading.load_any` chooses among them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openjepa.weights.loaded import Reader


@dataclass(frozen=True)
class Format:
    """What the registry knows of one format."""

    load: Callable[[], "Reader"]
    """Imports its reader."""
    summary: str
    """What is recognized, in one line."""


def _native() -> "Reader":
    from openjepa.weights import native
    from openjepa.weights.loaded import Reader

    return Reader(native.recognize, native.read)


def _official() -> "Reader":
    from openjepa.weights import official
    from openjepa.weights.loaded import Reader

    return Reader(official.recognize, official.read)


def _transformers() -> "Reader":
    from openjepa.weights import transformers
    from openjepa.weights.loaded import Reader

    return Reader(transformers.recognize, transformers.read)


def _timm() -> "Reader":
    from openjepa.weights import timm
    from openjepa.weights.loaded import Reader

    return Reader(timm.recognize, timm.read)


def _mae() -> "Reader":
    from openjepa.weights import mae
    from openjepa.weights.loaded import Reader

    return Reader(mae.recognize, mae.read)


def _dino() -> "Reader":
    from openjepa.weights import dino
    from openjepa.weights.loaded import Reader

    return Reader(dino.recognize, dino.read)


FORMATS: dict[str, Format] = {
    "native": Format(_native, "openjepa's run folders and encoder folders: config.json and model.safetensors"),
    "official": Format(_official, "I-JEPA's released checkpoints: encoder, predictor and target_encoder in one file"),
    "transformers": Format(_transformers, "Hugging Face folders of an IJepaModel, or their names on the Hub"),
    "timm": Format(_timm, "timm's names without a class token (its I-JEPA models), a folder or a file of weights"),
    "mae": Format(_mae, "MAE's checkpoints: class token, fixed sin-cos positions, with or without the decoder"),
    "dino": Format(_dino, "DINO, iBOT and MSN checkpoints: class token, learned positions, whole or only the backbone"),
}
"""By name, in the order in which they are asked."""
