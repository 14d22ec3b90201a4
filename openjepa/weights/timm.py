"""timm's Vision Transformers without a class token, as its I-JEPA models are: a folder as on the Hub, or a file of weights.

timm names its weights as the released I-JEPA code does, and stores the positions as a weight; a table that equals the fixed
sin-cos one is not kept. A folder is known by `architecture` in its config.json.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from openjepa.settings.models import EncoderConfig
from openjepa.weights.contents import Contents, Groups
from openjepa.weights.loaded import Choice, Loaded, refuse_context, size_words
from openjepa.weights.vit_names import TOKEN, Vit, infer_config, read_vit, unwrapped, vit_groups

PLACES = ("", "model", "state_dict")
"""Where files keep the weights of their only network: directly, or in a dictionary of this name."""


def recognize(contents: Contents) -> bool:
    """A folder whose config.json names an `architecture` of timm, or a file with one network and no class token."""
    if contents.settings is not None:
        return "architecture" in contents.settings and "model_type" not in contents.settings
    if contents.path.is_dir():
        return False
    return any(TOKEN not in group for name, group in vit_groups(contents.groups).items() if name in PLACES)


def read(contents: Contents, choice: Choice) -> Loaded:
    """The encoder. Raises ValueError that lists what is missing or left over."""
    refuse_context(contents, choice)
    vit = Vit(contents, only_network)
    where = str(contents.path)
    config = _with_pixels(infer_config(vit.tensors(), choice.heads, where), contents.settings or {})
    encoder = read_vit(vit, config, where)
    name = (contents.settings or {}).get("architecture", "")
    words = f"timm's {name}" if name else "weights under timm's names"
    return Loaded(encoder, config, None, None, f"{words}: {size_words(config)}")


def only_network(groups: Groups) -> dict[str, Tensor]:
    """The tensors of a file's only network, unwrapped; empty where there is none."""
    return next((unwrapped(groups[name]) for name in PLACES if name in vit_groups(groups)), {})


def _with_pixels(config: EncoderConfig, settings: Mapping[str, Any]) -> EncoderConfig:
    """With the mean and standard deviation of pixels that a folder's config.json says."""
    said = settings.get("pretrained_cfg")
    if not isinstance(said, Mapping):
        return config
    mean, std = _three(said.get("mean")), _three(said.get("std"))
    return replace(config, pixel_mean=mean or config.pixel_mean, pixel_std=std or config.pixel_std)


def _three(value: object) -> tuple[float, float, float] | None:
    if isinstance(value, list) and len(value) == 3 and all(isinstance(item, int | float) for item in value):
        return float(value[0]), float(value[1]), float(value[2])
    return None
