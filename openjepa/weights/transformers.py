"""Hugging Face's layout of an I-JEPA encoder: config.json of an `IJepaModel`, and its weights as `save_pretrained` writes them.

The same network as the released one under other names, with queries, keys and values apart. The weights on the Hub were
converted from `encoder` of the released checkpoints, so that they are the **context** encoder, not the one that the paper
evaluates. Their configs say a LayerNorm epsilon of 1e-6; a config that says none means the library's 1e-12.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig
from openjepa.weights.contents import CONFIG_FILE, Contents, Groups, tensor_groups
from openjepa.weights.filling import Plan, Source, fill, stacked, weight_names
from openjepa.weights.loaded import Choice, Loaded, refuse_context, size_words
from openjepa.weights.vit_names import is_sincos

MODEL = "ijepa"
LIBRARY_EPS = 1e-12
OUTER = "ijepa."
"""Before every name where the model stands inside a classifier."""
NOT_READ = ("classifier.", "pooler.")
"""Heads on the encoder."""
TABLE = "embeddings.position_embeddings"
IN_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
OUTSIDE = {"patch_embed.proj": "embeddings.patch_embeddings.projection", "norm": "layernorm"}


def recognize(contents: Contents) -> bool:
    """A folder whose config.json names a `model_type`."""
    return contents.settings is not None and "model_type" in contents.settings


def read(contents: Contents, choice: Choice) -> Loaded:
    """The encoder. Raises ValueError for models other than I-JEPA, and lists what is missing or left over."""
    refuse_context(contents, choice)
    config = _config(contents.settings or {}, contents)
    table = _encoder(contents.groups).get(TABLE)
    if table is not None and table.ndim == 3 and table.is_floating_point():
        config = replace(config, positions="sincos" if is_sincos(table, config.grid(), False) else "learned")
    names = weight_names(lambda: build_encoder(config))
    checked = frozenset({TABLE}) if config.positions == "sincos" else frozenset()
    plan = Plan({name: _source(name) for name in names}, checked)
    encoder = fill(lambda: build_encoder(config), plan, lambda: _encoder(tensor_groups(contents.open())), str(contents.path))
    return Loaded(encoder, config, None, None, f"Hugging Face's IJepaModel: {size_words(config)}")


def _encoder(groups: Groups) -> dict[str, Tensor]:
    plain = {name.removeprefix(OUTER): value for name, value in groups.get("", {}).items()}
    return {name: value for name, value in plain.items() if not name.startswith(NOT_READ)}


def _source(name: str) -> Source:
    """Where a weight of ours lies in the file."""
    if name == "pos_embed":
        return Source((TABLE,))
    part, _, kind = name.rpartition(".")
    if not part.startswith("blocks."):
        return Source((f"{OUTSIDE[part]}.{kind}",))
    _, number, inner = part.split(".", maxsplit=2)
    block = f"encoder.layer.{number}"
    if inner == "attn.qkv":
        keys = tuple(f"{block}.attention.attention.{item}.{kind}" for item in ("query", "key", "value"))
        return Source(keys, stacked)
    return Source((f"{block}.{IN_BLOCK[inner]}.{kind}",))


def _config(settings: Mapping[str, Any], contents: Contents) -> EncoderConfig:
    path = contents.path / CONFIG_FILE
    if settings["model_type"] != MODEL:
        raise ValueError(
            f"{path} says model_type {settings['model_type']!r}; of Hugging Face's models only {MODEL!r} can be read"
        )
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
    if missing := [name for name in needed if name not in settings]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; download or export it again")
    _check_fixed(settings, path)
    sizes = {name: _whole(settings[name], name, path) for name in needed if name != "image_size"}
    size = settings["image_size"]
    height, width = (_whole(side, "image_size", path) for side in (size if isinstance(size, list) else [size, size]))
    return EncoderConfig(
        width=sizes["hidden_size"],
        depth=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        mlp_ratio=sizes["intermediate_size"] / sizes["hidden_size"],
        patch_size=sizes["patch_size"],
        image_size=(height, width),
        layer_norm_eps=float(settings.get("layer_norm_eps", LIBRARY_EPS)),
    )


def _check_fixed(settings: Mapping[str, Any], path: object) -> None:
    """ValueError for what our encoder does in one way only."""
    for name, usual in (("hidden_act", "gelu"), ("qkv_bias", True), ("num_channels", 3)):
        if settings.get(name, usual) != usual:
            raise ValueError(f"{path} says {name} {settings[name]!r}; only {usual!r} can be read")


def _whole(value: object, name: str, path: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{path} says {name} {value!r}, which is no whole number above 0; download or export it again")
    return value
