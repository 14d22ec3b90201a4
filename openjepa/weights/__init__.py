"""Formats that encoders are read from and written to. Each is one file and one line of FORMATS. Does not import torch.

A format is a `Reader`. `recognize(contents)` returns True if a file or folder has this format; no two formats claim the same
one. `read(contents, choice)` returns the networks. `openjepa.weights.formats.load_any` chooses the format. `openjepa convert`
calls the functions in OUTPUTS to write.
"""

from dataclasses import dataclass

from openjepa.settings.fields import Line


@dataclass(frozen=True)
class Format(Line):
    """The code that reads or writes a format."""

    home: str
    """The format's `Reader`, or the function that writes it, as `package.module:name`."""
    summary: str
    """One line that says what is recognized or written."""


FORMATS: dict[str, Format] = {
    "native": Format(
        "openjepa.weights.native:READER", "openjepa's run folders and encoder folders: config.json and model.safetensors"
    ),
    "official": Format(
        "openjepa.weights.official:READER", "I-JEPA's released checkpoints: encoder, predictor and target_encoder in one file"
    ),
    "transformers": Format(
        "openjepa.weights.transformers:READER",
        "Hugging Face folders of an IJepaModel, ViTModel or Dinov2Model, or names on the Hub",
    ),
    "timm": Format(
        "openjepa.weights.timm:READER", "timm's folders, or a file under its names without a class token (its I-JEPA models)"
    ),
    "mae": Format(
        "openjepa.weights.vit_checkpoints:MAE",
        "MAE's checkpoints: class token, fixed sin-cos positions, with or without the decoder",
    ),
    "dino": Format(
        "openjepa.weights.vit_checkpoints:DINO",
        "DINO, iBOT, DINOv2 and MSN checkpoints: class token, learned positions, whole or only the backbone",
    ),
    "onnx": Format("openjepa.weights.onnx:READER", "written only: a graph for other runtimes"),
}
"""Formats by name, in the order in which they are tried."""

OUTPUTS: dict[str, Format] = {
    "safetensors": Format("openjepa.weights.native:write", "openjepa's own encoder folder, with the predictor inside"),
    "transformers": Format(
        "openjepa.weights.transformers:write", "a folder for IJepaModel.from_pretrained (with a class token: ViTModel)"
    ),
    "timm": Format("openjepa.weights.timm:write", "a folder for timm.create_model('local-dir:FOLDER', pretrained=True)"),
    "onnx": Format(
        "openjepa.weights.onnx:write", "one graph for onnxruntime: uint8 images of any number and size, normalization inside"
    ),
    "official": Format("openjepa.weights.official:write", "a checkpoint.pth.tar as the released I-JEPA program writes it"),
}
"""Formats by the name that `openjepa convert --to` takes. `safetensors` is the format `native` of FORMATS."""
