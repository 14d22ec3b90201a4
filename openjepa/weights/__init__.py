"""Formats that encoders are read and written in. One file and one line of FORMATS each. Free of torch.

A format is a `Reader`: `recognize(contents)` says from what a file or folder holds whether it is of this format, and no two
formats claim the same; `read(contents, choice)` gives the networks. `openjepa.weights.formats.load_any` chooses among them.
`openjepa convert` calls what writes those of OUTPUTS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openjepa.weights.formats import Reader, Write


@dataclass(frozen=True)
class Output:
    """How a format is written."""

    load: Callable[[], "Write"]
    """Imports the function that writes it."""
    summary: str
    """What is written, in one line."""


@dataclass(frozen=True)
class Format:
    """What the registry knows of one format."""

    load: Callable[[], "Reader"]
    """Imports its reader."""
    summary: str
    """What is recognized, in one line."""


def _native() -> "Reader":
    from openjepa.weights import native
    from openjepa.weights.formats import Reader

    return Reader(native.recognize, native.read)


def _official() -> "Reader":
    from openjepa.weights import official
    from openjepa.weights.formats import Reader

    return Reader(official.recognize, official.read)


def _transformers() -> "Reader":
    from openjepa.weights import transformers
    from openjepa.weights.formats import Reader

    return Reader(transformers.recognize, transformers.read)


def _timm() -> "Reader":
    from openjepa.weights import timm
    from openjepa.weights.formats import Reader

    return Reader(timm.recognize, timm.read)


def _mae() -> "Reader":
    from openjepa.weights import vit_checkpoints
    from openjepa.weights.formats import Reader

    return Reader(vit_checkpoints.recognize_mae, vit_checkpoints.read_mae)


def _dino() -> "Reader":
    from openjepa.weights import vit_checkpoints
    from openjepa.weights.formats import Reader

    return Reader(vit_checkpoints.recognize_dino, vit_checkpoints.read_dino)


def _onnx() -> "Reader":
    from openjepa.weights import onnx
    from openjepa.weights.formats import Reader

    return Reader(onnx.recognize, onnx.read)


FORMATS: dict[str, Format] = {
    "native": Format(_native, "openjepa's run folders and encoder folders: config.json and model.safetensors"),
    "official": Format(_official, "I-JEPA's released checkpoints: encoder, predictor and target_encoder in one file"),
    "transformers": Format(
        _transformers, "Hugging Face folders of an IJepaModel, ViTModel or Dinov2Model, or names on the Hub"
    ),
    "timm": Format(_timm, "timm's folders, or a file under its names without a class token (its I-JEPA models)"),
    "mae": Format(_mae, "MAE's checkpoints: class token, fixed sin-cos positions, with or without the decoder"),
    "dino": Format(_dino, "DINO, iBOT, DINOv2 and MSN checkpoints: class token, learned positions, whole or only the backbone"),
    "onnx": Format(_onnx, "written only: a graph for other runtimes"),
}
"""By name, in the order in which they are asked."""


def _write_safetensors() -> "Write":
    from openjepa.weights import native

    return native.write


def _write_transformers() -> "Write":
    from openjepa.weights import transformers

    return transformers.write


def _write_timm() -> "Write":
    from openjepa.weights import timm

    return timm.write


def _write_official() -> "Write":
    from openjepa.weights import official

    return official.write


def _write_onnx() -> "Write":
    from openjepa.weights import onnx

    return onnx.write


OUTPUTS: dict[str, Output] = {
    "safetensors": Output(_write_safetensors, "openjepa's own encoder folder, with the predictor inside"),
    "transformers": Output(_write_transformers, "a folder for IJepaModel.from_pretrained (with a class token: ViTModel)"),
    "timm": Output(_write_timm, "a folder for timm.create_model('local-dir:FOLDER', pretrained=True)"),
    "onnx": Output(_write_onnx, "one graph for onnxruntime: uint8 images of any number and size, normalization inside"),
    "official": Output(_write_official, "a checkpoint.pth.tar as the released I-JEPA program writes it"),
}
"""By the name that `openjepa convert --to` takes. `safetensors` is the format `native` of FORMATS."""
