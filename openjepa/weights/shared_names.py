"""Vision Transformers under the names that I-JEPA, timm, MAE, DINO, iBOT and MSN share: what shapes and tables tell of them.

All of them are pre-norm, with a bias in every linear layer, the exact GELU and LayerNorm epsilon 1e-6 (released code of each).
"""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from openjepa.models.transformer import sincos_positions
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.refusals import Refusal, few
from openjepa.settings.models import SIZES, EncoderConfig, Size
from openjepa.weights.contents import MOST_NAMES, Contents, Plan, Source, fill, weight_names
from openjepa.weights.described import checked
from openjepa.weights.formats import WrongChoice
from openjepa.weights.state_dicts import OF_SEVERAL, PLACES, Network

PATCHES, TABLE, TOKEN = "patch_embed.proj.weight", "pos_embed", "cls_token"
NOT_READ = ("head.", "mask_token", "masked_embed")
"""Heads on an encoder, and iBOT's and DINOv2's token of masked patches, which an encoder of whole images does not need."""
MISFITS = {
    r"register_tokens|reg_token": "register tokens",
    r"blocks\.\d+\.mlp\.(w12|w3|fc1_g)\.": "SwiGLU in its MLPs",
    r"blocks\.\d+\.attn\.q_norm\.": "norms of queries and keys",
    r"fc_norm\.": "a norm after pooling (fc_norm)",
    r"norm_pre\.": "a norm before the blocks (norm_pre)",
    r"dist_token": "a distillation token",
}
"""Beginnings of names of what our encoder has no place for, and what that is."""
GAMMAS = {"gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
FIRST_GAMMA = "blocks.0.gamma_1"
LAYER_SCALE = 1e-5
"""First value of the factors if a file does not say it (timm's default). Only new weights depend on it."""
PUBLISHED_SIZES: tuple[Size, ...] = ("tiny", "small", "base", "large", "huge", "giant")
HEADS = {SIZES[name].width: SIZES[name].heads for name in PUBLISHED_SIZES}
"""Heads of the published models by width: shapes do not tell them."""
TABLE_TOLERANCE = 1e-5
"""How far a stored table may be from the formula: programs that take it in float32 differ in the last digits."""


@dataclass(frozen=True)
class Vit:
    """One encoder of a file, and how to map it anew."""

    contents: Contents
    select: Callable[[Mapping[str, Network]], Network]
    """The encoder among the networks of the file."""

    def tensors(self) -> dict[str, Tensor]:
        """The first mapping, for shapes and small tables."""
        return self.select(self.contents.networks).tensors

    def mapped(self) -> dict[str, Tensor]:
        """A new mapping, for copying."""
        return self.select(self.contents.mapped()).tensors

    def notes(self, usual: Collection[str] = ()) -> tuple[str, ...]:
        """As `Network.notes`."""
        return self.select(self.contents.networks).notes(usual)


def vits(networks: Mapping[str, Network]) -> dict[str, Network]:
    """The networks of a file that are a Vision Transformer under the shared names."""
    return {name: item for name, item in networks.items() if PATCHES in item.tensors and TABLE in item.tensors}


def only_place(networks: Mapping[str, Network]) -> str | None:
    """The dictionary with the only Vision Transformer of a file; None if there is none, or if it is one of several networks."""
    found = vits(networks)
    if any(name in networks for name in OF_SEVERAL):
        return None
    return next((name for name in PLACES if name in found), next(iter(found)) if len(found) == 1 else None)


def infer_config(
    tensors: Mapping[str, Tensor], heads: int | None, where: str, image_size: tuple[int, int] | None = None
) -> EncoderConfig:
    """The encoder's settings from the shapes of its tensors; pooled by the class token if there is one.

    `heads`: given by the user or by the file. `image_size`: (height, width) if a file says it; None: a square. Raises
    Refusal if the tensors are not such an encoder, or if nothing tells the heads.
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
    """Whether a stored table [1, (1 +) N, D] is the fixed one, with zeros for the class token."""
    rows = table[0].float()
    if table.shape[-1] % 4 or len(rows) != grid[0] * grid[1] + int(has_token):
        return False
    own = sincos_positions(table.shape[-1], grid)
    expected = torch.cat([own.new_zeros(int(has_token), own.shape[1]), own])
    tolerance = max(TABLE_TOLERANCE, torch.finfo(table.dtype).eps if table.dtype.itemsize < 4 else 0.0)
    return bool((rows - expected).abs().max() <= tolerance)


def has_sincos(tensors: Mapping[str, Tensor]) -> bool:
    """Whether an encoder under the shared names has the fixed positions."""
    table, has_token = tensors[TABLE], TOKEN in tensors
    if table.ndim != 3 or not table.is_floating_point():
        return False
    side = math.isqrt(max(0, table.shape[1] - int(has_token)))
    return is_sincos(table, (side, side), has_token)


def read_vit(vit: Vit, config: EncoderConfig, where: str) -> VisionTransformer:
    """The encoder of these settings with the weights of a file."""
    build = lambda: build_encoder(config)  # noqa: E731
    return fill(build, vit_plan(config, weight_names(build)), vit.mapped, where)


def vit_plan(config: EncoderConfig, names: list[str]) -> Plan:
    """Origin of the weights: the same names except for layer scale.

    A fixed table has been compared with the formula and is not needed.
    """
    return Plan(
        {name: Source((file_name(name),)) for name in names},
        frozenset({TABLE}) if config.positions == "sincos" else frozenset(),
    )


def file_name(name: str) -> str:
    """What a weight of ours is called in a file: `gamma_1` and `gamma_2` of a block as in timm, all others alike."""
    block, _, last = name.rpartition(".")
    return f"{block}.{GAMMAS[last]}" if last in GAMMAS else name


def _square_side(table: Tensor, width: int, has_token: bool, where: str) -> int:
    """Rows of the square grid that a table [1, (1 +) N, D] is for."""
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
