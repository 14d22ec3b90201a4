"""timm's Vision Transformers: a folder as on the Hub, with or without a class token, or a file of weights without one.

timm uses the names of the released I-JEPA code, and stores the positions as a weight. A table that equals the fixed sin-cos one
is not kept. A folder is recognized by `architecture` in its config.json. `model_args` there holds what shapes do not tell.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from openjepa.models.transformer import hidden_width
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig
from openjepa.weights.contents import AGAIN, CONFIG_FILE, WEIGHTS_FILE, Contents
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
from openjepa.weights.shared_names import (
    NOT_READ,
    TABLE,
    TOKEN,
    Pixels,
    Vit,
    beside,
    checked,
    described,
    file_name,
    infer_config,
    only_place,
    read_vit,
    with_beside,
    with_pixels,
)
from openjepa.weights.state_dicts import Network

POOLINGS = {"avg": "average", "token": "class_token"}
"""Values of timm's `global_pool`, and our names for them."""
ONE_WAY = ("act_layer", "norm_layer", "mlp_layer", "attn_layer", "block_fn", "embed_norm_layer")
"""Entries of `model_args` for which our encoder supports only timm's default."""
ARCHITECTURE = "vit_base_patch16_224"
"""timm's function that builds the network. `model_args` overrides all of its sizes."""
OUR_NAMES = {
    "heads": "num_heads",
    "image_size": "img_size",
    "layer_scale": "init_values",
    "pixel_mean": "mean",
    "pixel_std": "std",
}
"""Names in config.json of those of our settings that have another name there."""
CROP_SHARE = 0.875
"""Side of the evaluation crop as a share of the resized image's side: 224 / 256."""


@dataclass(frozen=True, kw_only=True)
class _ModelArgs:
    """The entries of `model_args` that are read."""

    num_heads: int | None = None
    img_size: int | tuple[int, int] | None = None
    init_values: float | None = None


def recognize(contents: Contents) -> bool:
    """True for a folder whose config.json names an `architecture` of timm, or a file with one network and no class token."""
    if contents.settings is not None:
        return "architecture" in contents.settings and "model_type" not in contents.settings
    if contents.path.is_dir():
        return False
    place = only_place(contents.networks)
    return place is not None and TOKEN not in contents.networks[place].tensors


def read(contents: Contents, choice: WeightsChoice) -> Loaded:
    """Reads the encoder, and the predictor if openjepa stored one beside it.

    Raises Refusal if keys are missing or left over, and lists them.
    """
    refuse_context(contents, choice)
    settings, where = contents.settings or {}, str(contents.path)
    args = _model_args(settings, where)
    vit = Vit(contents, only_network)
    size = (args.img_size, args.img_size) if isinstance(args.img_size, int) else args.img_size
    heads = choice.heads if args.num_heads is None else args.num_heads
    config = infer_config(vit.tensors(), heads, where, size)
    config = with_beside(_with_settings(config, settings, args, where), settings, where)
    encoder = read_vit(vit, config, where)
    name = settings.get("architecture", "")
    words = (f"timm's {name}" if name else "weights under timm's names") + f": {size_words(config)}"
    predictor, predictor_config, extra = read_predictor(contents.path, choice)
    return Loaded(encoder, config, predictor, predictor_config, words, predictor_extra=extra, notes=vit.notes())


def only_network(networks: Mapping[str, Network]) -> Network:
    """A file's only network, without the tensors that are not read; an empty network if there is none."""
    place = only_place(networks)
    return Network({}) if place is None else networks[place].without(NOT_READ)


def write(folder: Path, networks: Networks, dtype: str) -> list[str]:
    """Writes files from which `timm.create_model("local-dir:FOLDER", pretrained=True)` builds the encoder. Returns remarks."""
    encoder, config = networks.encoder, networks.config
    weights = {file_name(name): value for name, value in encoder.state_dict().items() if name != "mask_token"}
    save_file(stored(weights | {TABLE: position_table(encoder)}, dtype), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(_written_settings(config), indent=2) + "\n")
    write_predictor(folder, networks, dtype)
    return mask_token_remark(networks)


def _model_args(settings: Mapping[str, Any], where: str) -> _ModelArgs:
    args = settings.get("model_args")
    if args is None:
        return _ModelArgs()
    if not isinstance(args, dict):
        raise Refusal(f"{where} says model_args {args!r}, which are no settings; {AGAIN}")
    if found := [name for name in ONE_WAY if args.get(name) is not None]:
        raise Refusal(f"{where} says model_args.{found[0]} {args[found[0]]!r}; only timm's default can be read")
    return described(_ModelArgs, args, f"{where}, model_args,")


def _with_settings(config: EncoderConfig, settings: Mapping[str, Any], args: _ModelArgs, where: str) -> EncoderConfig:
    """`config` with the pooling, initial layer scale, and pixel mean and standard deviation of a folder's config.json."""
    pooling = POOLINGS.get(str(settings.get("global_pool")), config.pooling)
    if pooling == "average" or config.class_token:
        config = replace(config, pooling=pooling)  # type: ignore[arg-type]
    if config.layer_scale is not None and args.init_values is not None:
        config = replace(config, layer_scale=args.init_values)
    said = settings.get("pretrained_cfg")
    if isinstance(said, dict):
        config = with_pixels(config, described(Pixels, said, f"{where}, pretrained_cfg,"))
    return checked(config, where, OUR_NAMES)


def _written_settings(config: EncoderConfig) -> dict[str, Any]:
    pooling = next(name for name, ours in POOLINGS.items() if ours == config.pooling)
    args: dict[str, Any] = {
        "img_size": list(config.image_size),
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": _cut_ratio(config),
        "class_token": config.class_token,
        "global_pool": pooling,
        "fc_norm": False,  # otherwise timm applies the norm after pooling; our encoders apply it before
        "init_values": config.layer_scale,
        "drop_path_rate": 0.0,
    }
    pretrained = {
        "input_size": [3, *config.image_size],
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": CROP_SHARE,
        "crop_mode": "center",
        "mean": list(config.pixel_mean),
        "std": list(config.pixel_std),
        "num_classes": 0,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return {
        "architecture": ARCHITECTURE,
        "num_classes": 0,
        "num_features": config.width,
        "global_pool": pooling,
        "model_args": args,
        "pretrained_cfg": pretrained,
        **beside(config),
    }


def _cut_ratio(config: EncoderConfig) -> float:
    """A ratio that gives the hidden width even if the product is truncated, as in timm."""
    hidden = hidden_width(config.width, config.mlp_ratio)
    ratio = hidden / config.width
    return ratio if int(config.width * ratio) == hidden else math.nextafter(ratio, math.inf)


READER = Reader(recognize, read)
