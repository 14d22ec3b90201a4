"""Vision Transformers under the names that I-JEPA, timm, MAE, DINO, iBOT and MSN share: settings from shapes, tables and files.

All are pre-norm, with a bias in every linear layer, the exact GELU, and LayerNorm epsilon 1e-6 (released code of each).
Settings that other programs store beside weights are read; values of the wrong type are refused. Settings of our encoder that
another program's config.json has no entry for are stored in it under a name of our own.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor

from openjepa.config import typed
from openjepa.models.transformer import sincos_positions
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.refusals import Refusal, few
from openjepa.settings.models import SIZES, EncoderConfig, Initialization, Size, check_encoder
from openjepa.weights.contents import AGAIN, MOST_NAMES, Contents, FillPlan, WeightSource, fill_network, weight_names
from openjepa.weights.formats import WrongChoice
from openjepa.weights.state_dicts import OF_SEVERAL, PLACES, Network

PATCHES, TABLE, TOKEN = "patch_embed.proj.weight", "pos_embed", "cls_token"
NOT_READ = ("head.", "mask_token", "masked_embed")
"""Beginnings of names that are not read: heads, and the mask tokens of iBOT and DINOv2, which whole images do not need."""
MISFITS = {
    r"register_tokens|reg_token": "register tokens",
    r"blocks\.\d+\.mlp\.(w12|w3|fc1_g)\.": "SwiGLU in its MLPs",
    r"blocks\.\d+\.attn\.q_norm\.": "norms of queries and keys",
    r"fc_norm\.": "a norm after pooling (fc_norm)",
    r"norm_pre\.": "a norm before the blocks (norm_pre)",
    r"dist_token": "a distillation token",
}
"""Beginnings of names of parts that our encoder does not have, and words for each part."""
GAMMAS = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
FIRST_GAMMA = "blocks.0.gamma_1"
LAYER_SCALE = 1e-5
"""Initial value of layer scale if a file does not say it (timm's default). Only new weights depend on it."""
PUBLISHED_SIZES: tuple[Size, ...] = ("tiny", "small", "base", "large", "huge", "giant")
HEADS = {SIZES[name].width: SIZES[name].heads for name in PUBLISHED_SIZES}
"""Number of heads of the published models by width, because shapes do not tell it."""
TABLE_TOLERANCE = 1e-5
"""Largest difference of a stored table from the formula. Programs that compute in float32 differ in the last digits."""


@dataclass(frozen=True)
class Vit:
    """One encoder of a file, with the functions that map it again."""

    contents: Contents
    select: Callable[[Mapping[str, Network]], Network]
    """Selects the encoder among the networks of the file."""

    def tensors(self) -> dict[str, Tensor]:
        """The tensors in the first mapping, to read shapes and small tables from."""
        return self.select(self.contents.networks).tensors

    def mapped(self) -> dict[str, Tensor]:
        """The tensors in a new mapping, to copy weights from."""
        return self.select(self.contents.mapped()).tensors

    def notes(self, usual: Collection[str] = ()) -> tuple[str, ...]:
        """The same as `Network.notes`."""
        return self.select(self.contents.networks).notes(usual)


def vits(networks: Mapping[str, Network]) -> dict[str, Network]:
    """Those networks of a file that are Vision Transformers under the shared names."""
    return {name: item for name, item in networks.items() if PATCHES in item.tensors and TABLE in item.tensors}


def only_place(networks: Mapping[str, Network]) -> str | None:
    """The dictionary with a file's only Vision Transformer; None if there is none, or if it is one of several networks."""
    found = vits(networks)
    if any(name in networks for name in OF_SEVERAL):
        return None
    return next((name for name in PLACES if name in found), next(iter(found)) if len(found) == 1 else None)


def infer_config(
    tensors: Mapping[str, Tensor], heads: int | None, where: str, image_size: tuple[int, int] | None = None
) -> EncoderConfig:
    """Infers an encoder's settings from the shapes of its tensors. It is pooled by its class token if it has one.

    `heads` is the number of heads from the user or the file. `image_size` is (height, width) if the file says it; None means a
    square. Raises Refusal if the tensors are not such an encoder, or if the number of heads is unknown.
    """
    needed = [PATCHES, TABLE, "blocks.0.mlp.fc1.weight"]
    if misfits := sorted({words for start, words in MISFITS.items() for name in tensors if re.match(start, name)}):
        raise Refusal(f"{where} has {' and '.join(misfits)}, which openjepa's encoder has no place for")
    if missing := [name for name in needed if name not in tensors]:
        raise Refusal(f"{where} is no Vision Transformer that can be read: missing {few(missing, MOST_NAMES)}")
    patches, table, hidden = (tensors[name] for name in needed)
    if patches.ndim != 4 or patches.shape[1] != 3 or patches.shape[2] != patches.shape[3]:
        raise Refusal(f"{where}: {PATCHES} {list(patches.shape)} does not embed square patches of 3 channels")
    width, patch = patches.shape[0], patches.shape[2]
    has_token = TOKEN in tensors
    if image_size is None:
        side = _square_side(table, width, has_token, where)
        image_size = (side * patch, side * patch)
    depth = 1 + max(int(found.group(1)) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name)))
    described = EncoderConfig(
        width=width,
        depth=depth,
        heads=_known_heads(width, where) if heads is None else heads,
        mlp_ratio=hidden.shape[0] / width,
        patch_size=patch,
        image_size=image_size,
        class_token=has_token,
        positions="learned",
        layer_scale=LAYER_SCALE if file_name(FIRST_GAMMA) in tensors else None,
        pooling="class_token" if has_token else "average",
    )
    config = checked(described, where)
    is_table = table.ndim == 3 and table.is_floating_point()
    is_fixed = is_table and is_sincos(table, config.grid(), has_token)
    return replace(config, positions="sincos") if is_fixed else config


def is_sincos(table: Tensor, grid: tuple[int, int], has_token: bool) -> bool:
    """True if a stored table [1, (1 +) N, D] is the fixed sin-cos one, with zeros for the class token."""
    rows = table[0].float()
    if table.shape[-1] % 4 or len(rows) != grid[0] * grid[1] + int(has_token):
        return False
    own = sincos_positions(table.shape[-1], grid)
    expected = torch.cat([own.new_zeros(int(has_token), own.shape[1]), own])
    tolerance = max(TABLE_TOLERANCE, torch.finfo(table.dtype).eps if table.dtype.itemsize < 4 else 0.0)
    return bool((rows - expected).abs().max() <= tolerance)


def has_sincos(tensors: Mapping[str, Tensor]) -> bool:
    """True if an encoder under the shared names has the fixed sin-cos positions."""
    table, has_token = tensors[TABLE], TOKEN in tensors
    if table.ndim != 3 or not table.is_floating_point():
        return False
    side = math.isqrt(max(0, table.shape[1] - int(has_token)))
    return is_sincos(table, (side, side), has_token)


def read_vit(vit: Vit, config: EncoderConfig, where: str) -> VisionTransformer:
    """Builds the encoder of the settings `config` with the weights of a file."""

    def build() -> VisionTransformer:
        return build_encoder(config)

    return fill_network(build, vit_plan(config, weight_names(build)), vit.mapped, where)


def vit_plan(config: EncoderConfig, names: list[str]) -> FillPlan:
    """The origin of each weight. Names are the same as ours, except for layer scale.

    A fixed table of positions is not copied, because it was compared with the formula.
    """
    return FillPlan(
        {name: WeightSource((file_name(name),)) for name in names},
        frozenset({TABLE}) if config.positions == "sincos" else frozenset(),
    )


def file_name(name: str) -> str:
    """The name in a file of one of our weights: `gamma_1` and `gamma_2` of a block as in timm, all others unchanged."""
    block, _, last = name.rpartition(".")
    return f"{block}.{GAMMAS[last]}" if last in GAMMAS else name


def _square_side(table: Tensor, width: int, has_token: bool, where: str) -> int:
    """Number of rows of the square grid that a table [1, (1 +) N, D] belongs to."""
    number = table.shape[1] - int(has_token) if table.ndim == 3 else 0
    side = math.isqrt(max(0, number))
    if number < 1 or side * side != number or table.shape[2] != width or not table.is_floating_point():
        raise Refusal(
            f"{where}: {TABLE} {list(table.shape)} is no table of positions for a square of patches"
            f"{' and a class token' if has_token else ''} at width {width}"
        )
    return side


def _known_heads(width: int, where: str) -> int:
    if width not in HEADS:
        known = ", ".join(f"{name}: {number}" for name, number in HEADS.items())
        raise WrongChoice(
            f"heads=None, but {where} has width {width}, which no published model has, and shapes do not tell the number of "
            f"attention heads: give it (heads=..., --heads; known by width: {known})",
            "heads",
        )
    return HEADS[width]


# ------------------------------------------------------------------------------------------------------ settings beside weights


Described = TypeVar("Described")
Channels = tuple[float, float, float] | float | None


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Mean and standard deviation of pixels: one value for all channels, or one per channel."""

    mean: Channels = None
    std: Channels = None


def described(kind: type[Described], entries: dict[str, Any], where: object) -> Described:
    """Makes the dataclass `kind` from those of `entries` that are its fields.

    Raises Refusal, which names `where`, if an entry is missing or has another type.
    """
    return typed(kind, entries, where, AGAIN)


def with_pixels(config: EncoderConfig, pixels: Pixels) -> EncoderConfig:
    """`config` with the mean and standard deviation of `pixels`."""
    mean, std = _three(pixels.mean), _three(pixels.std)
    return replace(config, pixel_mean=mean or config.pixel_mean, pixel_std=std or config.pixel_std)


def checked(config: EncoderConfig, where: object, names: dict[str, str] | None = None) -> EncoderConfig:
    """Returns `config` unchanged. Raises Refusal if no encoder can have these settings.

    `names` maps our names of settings to those in the file `where`.
    """
    try:
        check_encoder(config, names)
    except Refusal as error:
        raise Refusal(f"{where} describes no encoder: {error}") from error
    return config


def _three(value: Channels) -> tuple[float, float, float] | None:
    return (value, value, value) if isinstance(value, float) else value


KEY = "openjepa"
POOLINGS = ("average", "class_token")


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


FIELDS: dict[str, Callable[[object], bool]] = {
    "pooling": lambda value: value in POOLINGS,
    "resampling_offset": _is_share,
    "drop_path": _is_share,
    "initialization": lambda value: value in get_args(Initialization),
}
"""Fields of `EncoderConfig`, and tests for the values that they may have."""


def beside(config: EncoderConfig) -> dict[str, Any]:
    """The entry with our own settings for another program's config.json."""
    return {KEY: {name: getattr(config, name) for name in FIELDS}}


def with_beside(config: EncoderConfig, settings: Mapping[str, Any], where: object) -> EncoderConfig:
    """`config` with the settings that `beside` wrote. Raises Refusal if a setting cannot have its value."""
    said = settings.get(KEY)
    if not isinstance(said, Mapping):
        return config
    known = {name: said[name] for name in FIELDS if name in said}
    for name, value in known.items():
        if not FIELDS[name](value):
            raise Refusal(f"{where} says {KEY}.{name} {value!r}, which it cannot be; export or download it again")
    return replace(config, **known)
