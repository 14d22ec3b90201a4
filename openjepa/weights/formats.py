"""Encoders in any format: `load_any` recognizes and reads it; what readers and writers of a format give and take.

Names on the Hugging Face Hub are downloaded if huggingface_hub is installed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from openjepa.models.predictor import Predictor
from openjepa.models.transformer import sincos_positions
from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal, examples, few, needed_for
from openjepa.settings.models import SIZES, EncoderConfig, PredictorConfig
from openjepa.system.shell import hub_name
from openjepa.weights import FORMATS
from openjepa.weights.contents import MOST_NAMES, Contents, open_contents


@dataclass(frozen=True)
class Choice:
    """Choices that only the user can make."""

    encoder: Literal["target", "context"] = "target"
    """Which encoder of a file that holds both: `target` (the moving average, or teacher) or `context` (the student)."""
    heads: int | None = None
    """Attention heads, if neither the file nor its width tells them."""
    predictor: bool = True
    """Whether I-JEPA's predictor is read too."""


class WrongChoice(Refusal):
    """A refusal that another `Choice` would answer."""

    def __init__(self, message: str, setting: Literal["encoder", "heads"]) -> None:
        """`setting`: the field of `Choice` that has to change."""
        super().__init__(message)
        self.setting = setting


@dataclass(frozen=True)
class Loaded:
    """Networks that were read, on the CPU, in fp32 and evaluation mode."""

    encoder: VisionTransformer
    config: EncoderConfig
    predictor: Predictor | None
    """I-JEPA's predictor, if the file holds one."""
    predictor_config: PredictorConfig | None
    what: str
    """What it is, in a few words, to be printed."""
    encoders: tuple[str, ...] = ("target",)
    """Which encoders the file holds, as `Choice.encoder` names them."""
    predictor_extra: Mapping[str, Any] = field(default_factory=dict)
    """What stands beside the predictor's settings: how masks were drawn for it."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """What the file itself says of the training: step, epoch, loss, ..."""
    notes: tuple[str, ...] = ()
    """For people: what was cut off the names in the file, and what of it was not read."""
    is_own: bool = False
    """Whether it is in openjepa's own format."""


@dataclass(frozen=True)
class Reader:
    """One format."""

    recognize: Callable[[Contents], bool]
    """Whether it is this format's, whole or damaged."""
    read: Callable[[Contents, Choice], Loaded]
    """The networks. Raises Refusal that lists what is missing or left over."""


def refuse_context(contents: Contents, choice: Choice) -> None:
    """Raises Refusal if the context encoder is wanted and there is only one encoder."""
    if choice.encoder == "context":
        raise WrongChoice(f"encoder='context': {contents.path} holds one encoder only; leave that setting out", "encoder")


def size_words(config: EncoderConfig) -> str:
    """`ViT-H/14 at 224`, or width, depth and patch if the shape has no name."""
    letters = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}
    names = [letters[name] for name, shape in SIZES.items() if name in letters and _is_shape(config, shape.width, shape.depth)]
    height, width = config.image_size
    size = f"{height}" if height == width else f"{height}x{width}"
    name = f"ViT-{names[0]}" if names else f"ViT of width {config.width} and depth {config.depth}, patch "
    return f"{name}/{config.patch_size} at {size}" if names else f"{name}{config.patch_size} at {size}"


def _is_shape(config: EncoderConfig, width: int, depth: int) -> bool:
    return (config.width, config.depth) == (width, depth)


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""How weights may be stored, by name."""


@dataclass(frozen=True)
class Networks:
    """The networks of one training, on the CPU."""

    encoder: VisionTransformer
    config: EncoderConfig
    predictor: Predictor | None = None
    predictor_config: PredictorConfig | None = None
    predictor_extra: Mapping[str, Any] = field(default_factory=dict)
    """What is written beside the predictor's settings: how masks were drawn for it."""
    context: VisionTransformer | None = None
    """The context encoder, if the format holds both and `encoder` is the target encoder."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """What is known of the training in single numbers: step, epoch, loss, batch_size, ..."""
    source: str = ""
    """What it was made from, for people to read."""


Write = Callable[[Path, Networks, str], list[str]]
"""Writes one format into a folder that is there and empty; the last argument is a name of DTYPES. Returns what is left out."""


@dataclass(frozen=True)
class Trait:
    """Something that not every format has a place for."""

    words: Callable[[EncoderConfig], str]
    """The trait in words; empty if the encoder does not have it."""
    formats: tuple[str, ...]
    """The formats that hold it."""


TRAITS = (
    Trait(lambda config: "relative positions" if config.positions == "relative" else "", ("safetensors", "onnx")),
    Trait(lambda config: "layer scale" if config.layer_scale is not None else "", ("safetensors", "timm", "onnx")),
    Trait(lambda config: "a class token" if config.class_token else "", ("safetensors", "transformers", "timm", "onnx")),
    Trait(
        lambda config: "learned positions" if config.positions == "learned" else "",
        ("safetensors", "transformers", "timm", "onnx"),
    ),
    Trait(
        lambda config: f"a LayerNorm epsilon of {config.layer_norm_eps:g}" if config.layer_norm_eps != 1e-6 else "",
        ("safetensors", "transformers", "onnx"),
    ),
    Trait(
        lambda config: "a training size that is not square" if config.image_size[0] != config.image_size[1] else "",
        ("safetensors", "transformers", "timm", "onnx"),
    ),
)


def check_holds(name: str, config: EncoderConfig, formats: tuple[str, ...]) -> None:
    """Raises Refusal, which names those of `formats` that fit, if the format `name` has no place for what the encoder has."""
    has = [(trait.words(config), trait.formats) for trait in TRAITS if trait.words(config)]
    lost = [words for words, holding in has if name not in holding]
    if lost:
        fitting = [item for item in formats if all(item in holding for _, holding in has)]
        raise Refusal(
            f"to={name!r}: the encoder has {' and '.join(lost)}, which that format has no place for; "
            f"use {' or '.join(f'--to {item}' for item in fitting)}"
        )


def position_table(encoder: VisionTransformer) -> Float[Tensor, "1 S D"]:
    """Positions of the training size as other programs store them: first the class token's, zeros if they are fixed."""
    if encoder.pos_embed is not None:
        table: Tensor = encoder.pos_embed.detach()
        return table
    config = encoder.config
    table = sincos_positions(config.width, config.grid())
    return torch.cat([table.new_zeros(int(config.class_token), config.width), table])[None]


def stored(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Tensors as they are written: on the CPU, in one piece each, floats in `dtype`."""
    plain = {name: value.detach().cpu() for name, value in tensors.items()}
    return {name: _alone(value.to(DTYPES[dtype]) if value.is_floating_point() else value) for name, value in plain.items()}


def _alone(value: Tensor) -> Tensor:
    """In one piece, and without the rest of a larger tensor that it is a part of, which would be written with it."""
    value = value.contiguous()
    return value if value.untyped_storage().nbytes() == value.numel() * value.itemsize else value.clone()


def mask_token_remark(networks: Networks) -> list[str]:
    """A remark that the mask token is left out, if the encoder has one."""
    if networks.encoder.mask_token is None:
        return []
    return ["the mask token, which an encoder of whole images does not need, is left out"]


FILES = ["config.json", "preprocessor_config.json", "predictor/config.json", "*.safetensors", "*.safetensors.index.json"]
"""What is downloaded: settings and weights, nothing that could be executed."""
OLDER = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]
"""Pickles, which are downloaded if a model has no safetensors and are read without executing anything."""


def download(name: str) -> Path:
    """The folder of a model of the Hub in the local cache. It is downloaded if it is not there yet.

    Raises Refusal if huggingface_hub is missing or the model cannot be downloaded.
    """
    download_it = "download its config.json and model.safetensors into a folder"
    with needed_for(f"{name} does not exist here; a name on the Hugging Face Hub", download_it):
        from huggingface_hub import snapshot_download
    try:
        folder = Path(snapshot_download(name, allow_patterns=FILES))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*FILES, *OLDER]))
        return folder
    except Exception as error:  # of the Hub's, of HTTP and of the network: there is no common class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Refusal(f"{name} does not exist here, and it could not be had from the Hugging Face Hub: {reason}") from error


__all__ = ["Choice", "Loaded", "load_any", "recognized"]


def load_any(path: Path | str, choice: Choice | None = None) -> Loaded:
    """The encoder, and the predictor if there is one, of a run folder, a folder of weights, a file, or a name on the Hub.

    Raises Refusal if nothing is there, if the format is unknown or the file damaged, if keys are missing or left over (which it
    lists), and if `choice` does not fit. Nothing in the file is executed.
    """
    name, choice = hub_name(path), choice or Choice()
    contents = open_contents(Path(path).expanduser() if name is None else download(name))
    loaded: Loaded = FORMATS[recognized(contents)].load().read(contents, choice)
    if choice.heads not in (None, loaded.config.heads):
        raise Refusal(f"heads={choice.heads}, but {path} says itself that it has {loaded.config.heads}: leave heads out")
    return loaded


def recognized(contents: Contents) -> str:
    """The name of the format. Raises Refusal if it is unknown."""
    name = next((name for name, item in FORMATS.items() if item.load().recognize(contents)), None)
    if name is None:
        raise Refusal(f"{contents.path} {_seen(contents)}")
    return name


def _seen(contents: Contents) -> str:
    """Why it is of no format, from what it holds."""
    if contents.path.is_dir() and contents.settings is None:
        return (
            "is neither a run folder (config.yaml, encoder/) nor an encoder folder (config.json, model.safetensors): "
            "it has no config.json"
        )
    if contents.settings is not None:
        return f"has a config.json of no known format: it has {few(sorted(contents.settings), MOST_NAMES)}"
    shown = [(f"{name}: " if name else "") + examples(sorted(item.tensors), 5) for name, item in contents.networks.items()]
    known = "; ".join(f"{name}: {item.summary}" for name, item in FORMATS.items())
    return f"is of no known format. It holds {'; '.join(shown) or 'no tensors'}. Known: {known}"
