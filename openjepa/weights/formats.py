"""Encoders in any format: `load_any`, which recognizes and reads them, and the types that readers and writers share.

Models are downloaded from the Hugging Face Hub by their names if huggingface_hub is installed.
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
from openjepa.system.console import hub_name
from openjepa.weights import FORMATS
from openjepa.weights.contents import MOST_NAMES, Contents, open_contents


@dataclass(frozen=True)
class WeightsChoice:
    """Choices between readings of a file that only the user can make."""

    encoder: Literal["target", "context"] = "target"
    """The encoder to read if a file holds both: `target` (the moving average, or teacher) or `context` (the student)."""
    heads: int | None = None
    """Number of attention heads, if neither the file nor the width tells it."""
    predictor: bool = True
    """True to read I-JEPA's predictor, too."""


class WrongChoice(Refusal):
    """A refusal that another `WeightsChoice` would resolve."""

    def __init__(self, message: str, setting: Literal["encoder", "heads"]) -> None:
        """`setting` is the field of `WeightsChoice` that has to change."""
        super().__init__(message)
        self.setting = setting


@dataclass(frozen=True)
class Loaded:
    """Networks read from a file, on the CPU, in fp32 and evaluation mode."""

    encoder: VisionTransformer
    config: EncoderConfig
    predictor: Predictor | None
    """I-JEPA's predictor, if the file holds one."""
    predictor_config: PredictorConfig | None
    what: str
    """A few words that say what was read, for printing."""
    encoders: tuple[str, ...] = ("target",)
    """The encoders that the file holds, as named by `WeightsChoice.encoder`."""
    predictor_extra: Mapping[str, Any] = field(default_factory=dict)
    """Entries beside the predictor's settings, which say how its masks were drawn."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the training that the file holds: step, epoch, loss, ..."""
    notes: tuple[str, ...] = ()
    """Notes for the user: prefixes removed from names, and tensors that were not read."""
    is_own: bool = False
    """True if it is in openjepa's own format."""


@dataclass(frozen=True)
class Reader:
    """One format."""

    recognize: Callable[[Contents], bool]
    """Returns True if the contents have this format, even if they are damaged."""
    read: Callable[[Contents, WeightsChoice], Loaded]
    """Returns the networks. Raises Refusal if keys are missing or left over, and lists them."""


def refuse_context(contents: Contents, choice: WeightsChoice) -> None:
    """Raises WrongChoice, a Refusal, if the context encoder is wanted but the contents hold only one encoder."""
    if choice.encoder == "context":
        raise WrongChoice(f"encoder='context': {contents.path} holds one encoder only; leave that setting out", "encoder")


def size_words(config: EncoderConfig) -> str:
    """Words such as `ViT-H/14 at 224`; width, depth and patch size if the shape has no name."""
    letters = {"tiny": "Ti", "small": "S", "base": "B", "large": "L", "huge": "H", "giant": "g"}
    names = [letters[name] for name, shape in SIZES.items() if name in letters and _is_shape(config, shape.width, shape.depth)]
    height, width = config.image_size
    size = f"{height}" if height == width else f"{height}x{width}"
    name = f"ViT-{names[0]}" if names else f"ViT of width {config.width} and depth {config.depth}, patch "
    return f"{name}/{config.patch_size} at {size}" if names else f"{name}{config.patch_size} at {size}"


def _is_shape(config: EncoderConfig, width: int, depth: int) -> bool:
    return (config.width, config.depth) == (width, depth)


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Types that weights may be stored in, by name."""


@dataclass(frozen=True)
class Networks:
    """The networks of one training, on the CPU."""

    encoder: VisionTransformer
    config: EncoderConfig
    predictor: Predictor | None = None
    predictor_config: PredictorConfig | None = None
    predictor_extra: Mapping[str, Any] = field(default_factory=dict)
    """Entries to write beside the predictor's settings, which say how its masks were drawn."""
    context: VisionTransformer | None = None
    """The context encoder, for formats that hold both; `encoder` is then the target encoder."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Numbers of the training: step, epoch, loss, batch_size, ..."""
    source: str = ""
    """Name of the original weights, for the user."""


Write = Callable[[Path, Networks, str], list[str]]
"""Writes one format into an existing, empty folder. The last argument is a key of DTYPES. Returns remarks on omitted parts."""


@dataclass(frozen=True)
class Trait:
    """A property of encoders that not every format can store."""

    words: Callable[[EncoderConfig], str]
    """Returns the trait in words; empty if the encoder does not have it."""
    formats: tuple[str, ...]
    """The formats that can store it."""


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
    """Raises Refusal if the format `name` cannot store a trait of the encoder, and names those of `formats` that can."""
    has = [(trait.words(config), trait.formats) for trait in TRAITS if trait.words(config)]
    lost = [words for words, holding in has if name not in holding]
    if lost:
        fitting = [item for item in formats if all(item in holding for _, holding in has)]
        raise Refusal(
            f"to={name!r}: the encoder has {' and '.join(lost)}, which that format has no place for; "
            f"use {' or '.join(f'--to {item}' for item in fitting)}"
        )


def position_table(encoder: VisionTransformer) -> Float[Tensor, "1 S D"]:
    """Positions at the training size as other programs store them. A class token's comes first; it is zero if fixed."""
    if encoder.pos_embed is not None:
        table: Tensor = encoder.pos_embed.detach()
        return table
    config = encoder.config
    table = sincos_positions(config.width, config.grid())
    return torch.cat([table.new_zeros(int(config.class_token), config.width), table])[None]


def stored(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Tensors ready to be written: on the CPU, contiguous, floats in `dtype`."""
    plain = {name: value.detach().cpu() for name, value in tensors.items()}
    return {name: _alone(value.to(DTYPES[dtype]) if value.is_floating_point() else value) for name, value in plain.items()}


def _alone(value: Tensor) -> Tensor:
    """`value`, contiguous. Copied if it is part of a larger tensor, all of which would otherwise be written with it."""
    value = value.contiguous()
    return value if value.untyped_storage().nbytes() == value.numel() * value.itemsize else value.clone()


def mask_token_remark(networks: Networks) -> list[str]:
    """A remark that the mask token is left out; empty if the encoder has none."""
    if networks.encoder.mask_token is None:
        return []
    return ["the mask token, which an encoder of whole images does not need, is left out"]


FILES = ["config.json", "preprocessor_config.json", "predictor/config.json", "*.safetensors", "*.safetensors.index.json"]
"""Files that are downloaded: settings and weights, nothing that could be executed."""
OLDER = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]
"""Pickle files, which are downloaded if a model has no safetensors. Nothing in them is executed."""


def download(name: str) -> Path:
    """The folder of the Hub's model `name` in the local cache. The model is downloaded if it is not there yet.

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
    except Exception as error:  # errors of the Hub, of HTTP and of the network have no common class
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Refusal(f"{name} does not exist here, and it could not be had from the Hugging Face Hub: {reason}") from error


__all__ = ["Loaded", "WeightsChoice", "load_any", "recognized"]


def load_any(path: Path | str, choice: WeightsChoice | None = None) -> Loaded:
    """Reads the encoder, and the predictor if there is one, from a run folder, a folder of weights, a file, or the Hub.

    `path` may be a name on the Hub. Nothing in the file is executed. Raises Refusal if nothing is there, if the format is
    unknown or the file damaged, if keys are missing or left over (which it lists), or if `choice` does not fit.
    """
    name, choice = hub_name(path), choice or WeightsChoice()
    contents = open_contents(Path(path).expanduser() if name is None else download(name))
    loaded: Loaded = FORMATS[recognized(contents)].load().read(contents, choice)
    if choice.heads not in (None, loaded.config.heads):
        raise Refusal(f"heads={choice.heads}, but {path} says itself that it has {loaded.config.heads}: leave heads out")
    return loaded


def recognized(contents: Contents) -> str:
    """The name of the contents' format. Raises Refusal if it is unknown."""
    name = next((name for name, item in FORMATS.items() if item.load().recognize(contents)), None)
    if name is None:
        raise Refusal(f"{contents.path} {_seen(contents)}")
    return name


def _seen(contents: Contents) -> str:
    """The reason why the contents have no known format."""
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
