"""Hugging Face's layouts of an encoder: `IJepaModel` without a class token, `ViTModel` and `Dinov2Model` with one.

They are the released networks under other names, with separate queries, keys and values. The weights of I-JEPA on the Hub were
converted from `encoder` of the released checkpoints. They are therefore the **context** encoder, which is not the one that the
paper evaluates. Their configs have a LayerNorm epsilon of 1e-6. A config without an epsilon means the library's 1e-12.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from openjepa.config import read_object
from openjepa.models.transformer import hidden_width
from openjepa.models.vit import build_encoder
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig
from openjepa.weights.contents import (
    AGAIN,
    CONFIG_FILE,
    WEIGHTS_FILE,
    Contents,
    FillPlan,
    WeightSource,
    fill_network,
    stacked_attention,
    weight_names,
)
from openjepa.weights.formats import (
    Loaded,
    Networks,
    Reader,
    WeightsChoice,
    mask_token_remark,
    position_table,
    refuse_context,
    size_words,
    stored,
)
from openjepa.weights.native import read_predictor, write_predictor
from openjepa.weights.shared_names import Pixels, beside, checked, described, is_sincos, with_beside, with_pixels
from openjepa.weights.state_dicts import Network

MODELS = {"ijepa": "IJepaModel", "vit": "ViTModel", "dinov2": "Dinov2Model"}
"""Values of `model_type` in config.json, and the library's classes. Only the first has no class token."""
LIBRARY_EPS = {"ijepa": 1e-12, "vit": 1e-12, "dinov2": 1e-6}
"""LayerNorm's epsilon if a config does not say it."""
NOT_READ_KEYS = ("pooler.", "embeddings.mask_token")
"""Beginnings of names that are not read: a head on the encoder, and the mask token, which whole images do not need."""
FIXED = {"hidden_act": "gelu", "qkv_bias": True, "num_channels": 3, "use_swiglu_ffn": False, "num_register_tokens": 0}
"""Entries of config.json for which our encoder supports only one value."""
TABLE = "embeddings.position_embeddings"
IN_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
IN_DINOV2_BLOCK = {
    **{name: name for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")},
    "attn.proj": "attention.output.dense",
    "gamma_1": "layer_scale1.lambda1",
    "gamma_2": "layer_scale2.lambda1",
}
OUTSIDE = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}
ALONE = {"cls_token": "embeddings.cls_token", "pos_embed": TABLE}
PIXELS_FILE = "preprocessor_config.json"
OUR_NAMES = {
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "layer_scale": "layerscale_value",
}
"""Names in config.json of those of our settings that have another name there."""
MARGIN = 256 / 224
"""Short side of the resized image as a multiple of the evaluation crop's short side."""


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """The entries that are read from every config.json, under the library's names."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int | tuple[int, int]
    patch_size: int
    layer_norm_eps: float


@dataclass(frozen=True, kw_only=True)
class _Vit(_Shape):
    """Entries of an IJepaModel or ViTModel."""

    intermediate_size: int


@dataclass(frozen=True, kw_only=True)
class _Dinov2(_Shape):
    """Entries of a Dinov2Model."""

    mlp_ratio: float
    layerscale_value: float = 1.0


def recognize(contents: Contents) -> bool:
    """True for a folder whose config.json names a `model_type`."""
    return contents.settings is not None and "model_type" in contents.settings


def read(contents: Contents, choice: WeightsChoice) -> Loaded:
    """Reads the encoder, and the predictor if openjepa stored one beside it.

    Raises Refusal if the model has another class, or if keys are missing or left over, and lists them.
    """
    refuse_context(contents, choice)
    settings = contents.settings or {}
    config = _with_pixels(_config(settings, contents), contents.path)
    config = with_beside(config, settings, contents.path / CONFIG_FILE)
    network = _encoder(contents.networks)
    table = network.tensors.get(TABLE)
    if table is not None and table.ndim == 3 and table.is_floating_point():
        is_fixed = is_sincos(table, config.grid(), config.class_token)
        config = replace(config, positions="sincos" if is_fixed else "learned")
    names = weight_names(lambda: build_encoder(config))
    checked = frozenset({TABLE}) if config.positions == "sincos" else frozenset()
    in_block = IN_DINOV2_BLOCK if settings["model_type"] == "dinov2" else IN_BLOCK
    plan = FillPlan({name: _source(name, in_block) for name in names}, checked)
    encoder = fill_network(lambda: build_encoder(config), plan, lambda: _encoder(contents.mapped()).tensors, str(contents.path))
    words = f"Hugging Face's {MODELS[settings['model_type']]}: {size_words(config)}"
    predictor, predictor_config, extra = read_predictor(contents.path, choice)
    notes = network.notes(usual=(f"{settings['model_type']}.",))  # the prefix of a model inside a classifier
    return Loaded(encoder, config, predictor, predictor_config, words, predictor_extra=extra, notes=notes)


def model_class(config: EncoderConfig) -> str:
    """The library's class for an encoder: `ViTModel` if it has a class token, else `IJepaModel`."""
    return MODELS[_model_type(config)]


def write(folder: Path, networks: Networks, dtype: str) -> list[str]:
    """Writes files that `from_pretrained` of the class of `model_class` loads. Returns remarks."""
    encoder = networks.encoder
    weights = {name: value for name, value in encoder.state_dict().items() if name != "mask_token"}
    tensors: dict[str, Tensor] = {}
    for name, value in (weights | {"pos_embed": position_table(encoder)}).items():
        keys = _source(name, IN_BLOCK).keys
        tensors |= zip(keys, value.chunk(len(keys)), strict=True)
    save_file(stored(tensors, dtype), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    for name, entries in ((CONFIG_FILE, _written_config(networks.config, dtype)), (PIXELS_FILE, _pixels(networks.config))):
        (folder / name).write_text(json.dumps(entries, indent=2) + "\n")
    write_predictor(folder, networks, dtype)
    return mask_token_remark(networks)


def _encoder(networks: Mapping[str, Network]) -> Network:
    return networks.get("", Network({})).without(NOT_READ_KEYS)


def _source(name: str, in_block: Mapping[str, str]) -> WeightSource:
    """The origin in the file of our weight `name`. `in_block` maps parts of a block to their names in the file."""
    if name in ALONE:
        return WeightSource((ALONE[name],))
    part, _, kind = name.rpartition(".")
    if not part.startswith("blocks."):
        return WeightSource((f"{OUTSIDE[part]}.{kind}",))
    number, _, inner = part.removeprefix("blocks.").partition(".")
    block = f"encoder.layer.{number}"
    if not inner:  # a factor of layer scale
        return WeightSource((f"{block}.{in_block[kind]}",))
    if inner == "attn.qkv":
        keys = tuple(f"{block}.attention.attention.{item}.{kind}" for item in ("query", "key", "value"))
        return WeightSource(keys, stacked_attention)
    return WeightSource((f"{block}.{in_block[inner]}.{kind}",))


def _config(settings: Mapping[str, Any], contents: Contents) -> EncoderConfig:
    path, kind = contents.path / CONFIG_FILE, settings["model_type"]
    if not isinstance(kind, str) or kind not in MODELS:
        known = ", ".join(map(repr, MODELS))
        why = "; openjepa's encoder has no place for register tokens" if "register" in str(kind) else ""
        raise Refusal(f"{path} says model_type {kind!r}; of Hugging Face's models only {known} can be read{why}")
    entries = {"layer_norm_eps": LIBRARY_EPS[kind], **settings}
    said = described(_Dinov2, entries, path) if kind == "dinov2" else described(_Vit, entries, path)
    _check_fixed(settings, path)
    has_token, size = kind != "ijepa", said.image_size
    config = EncoderConfig(
        width=said.hidden_size,
        depth=said.num_hidden_layers,
        heads=said.num_attention_heads,
        mlp_ratio=_mlp_ratio(said),
        patch_size=said.patch_size,
        image_size=(size, size) if isinstance(size, int) else size,
        class_token=has_token,
        layer_norm_eps=said.layer_norm_eps,
        layer_scale=said.layerscale_value if isinstance(said, _Dinov2) else None,
        pooling="class_token" if has_token else "average",
    )
    names = {"mlp_ratio": "mlp_ratio" if kind == "dinov2" else "intermediate_size / hidden_size"}
    return checked(config, path, OUR_NAMES | names)


def _mlp_ratio(said: "_Vit | _Dinov2") -> float:
    """Hidden width / width; nan if the sizes are invalid, which is refused afterwards."""
    width = said.hidden_size
    try:  # the library truncates the product
        return (int(width * said.mlp_ratio) if isinstance(said, _Dinov2) else said.intermediate_size) / width
    except (ArithmeticError, ValueError):
        return math.nan


def _with_pixels(config: EncoderConfig, folder: Path) -> EncoderConfig:
    """`config` with the pixel mean and standard deviation from the folder's files."""
    path = folder / PIXELS_FILE
    said = read_object(path, AGAIN) or {}
    names = {"image_mean": "mean", "image_std": "std"}
    pixels = described(Pixels, {ours: said[name] for name, ours in names.items() if name in said}, path)
    return checked(with_pixels(config, pixels), path, {"pixel_mean": "image_mean", "pixel_std": "image_std"})


def _check_fixed(settings: Mapping[str, Any], path: object) -> None:
    """Raises Refusal if an entry differs from the only value that our encoder supports."""
    for name, usual in FIXED.items():
        if settings.get(name, usual) != usual:
            raise Refusal(f"{path} says {name} {settings[name]!r}; only {usual!r} can be read")


def _model_type(config: EncoderConfig) -> str:
    return "vit" if config.class_token else "ijepa"


def _written_config(config: EncoderConfig, dtype: str) -> dict[str, Any]:
    height, width = config.image_size
    return {
        "architectures": [model_class(config)],
        "model_type": _model_type(config),
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": hidden_width(config.width, config.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": config.layer_norm_eps,
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": True,
        "dtype": dtype,
        **beside(config),
    }


def _pixels(config: EncoderConfig) -> dict[str, Any]:
    """The entries for the evaluation view: resize the short side to 256/224 of the crop (bicubic), center crop, normalize.

    The library cannot resize an image so that it just covers a crop that is not square. In that case the short side is computed
    from the crop's longer side.
    """
    height, width = config.image_size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": round(max(height, width) * MARGIN)},
        "resample": 3,  # bicubic in Pillow
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.pixel_mean),
        "image_std": list(config.pixel_std),
    }


READER = Reader(recognize, read)
