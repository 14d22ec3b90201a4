"""The checkpoints of the released I-JEPA program: `encoder`, `predictor`, `target_encoder` and the optimizer in one file.

Names start with `module.`, as DistributedDataParallel leaves them. The paper evaluates the target encoder, average-pooled,
which is what is read unless the context encoder is asked for.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from openjepa.models.predictor import Predictor, build_predictor
from openjepa.settings.models import EncoderConfig, PredictorConfig
from openjepa.weights.contents import Contents, Groups, tensor_groups
from openjepa.weights.filling import Plan, Source, fill, listed, weight_names
from openjepa.weights.loaded import Choice, Loaded, size_words
from openjepa.weights.vit_names import TOKEN, Vit, infer_config, is_sincos, read_vit, unwrapped

GROUPS = {"target": "target_encoder", "context": "encoder"}
PREDICTOR, PREDICTOR_TABLE = "predictor", "predictor_pos_embed"


def recognize(contents: Contents) -> bool:
    """A predictor, or a target encoder without a class token (which MSN's has): no other format has these."""
    if contents.settings is not None or contents.path.is_dir():
        return False
    groups = contents.groups
    target = unwrapped(groups.get(GROUPS["target"], {}))
    return PREDICTOR in groups or (bool(target) and TOKEN not in target)


def read(contents: Contents, choice: Choice) -> Loaded:
    """The target (or context) encoder and the predictor. Raises ValueError that lists what is missing or left over."""
    name = GROUPS[choice.encoder]
    if name not in contents.groups:
        found = listed([group or "(tensors without a dictionary)" for group in contents.groups])
        raise ValueError(f"encoder={choice.encoder!r}: {contents.path} has no {name}, only {found}")
    vit = Vit(contents, lambda groups: unwrapped(groups[name]))
    where = f"{contents.path}, {name}"
    config = infer_config(vit.tensors(), choice.heads, where)
    encoder = read_vit(vit, config, where)
    is_wanted = choice.predictor and PREDICTOR in contents.groups
    predictor, predictor_config = _read_predictor(contents, config) if is_wanted else (None, None)
    epoch = contents.tree.get("epoch")
    after = f" of epoch {epoch}" if isinstance(epoch, int) else ""
    words = f"I-JEPA's released checkpoint{after}, {choice.encoder} encoder: {size_words(config)}"
    return Loaded(encoder, config, predictor, predictor_config, words)


def _read_predictor(contents: Contents, encoder: EncoderConfig) -> tuple[Predictor, PredictorConfig]:
    where = f"{contents.path}, {PREDICTOR}"
    config = _predictor_config(_predictor_tensors(contents.groups), encoder, where)
    names = weight_names(lambda: build_predictor(config))
    plan = Plan({name: Source((_file_name(name),)) for name in names}, frozenset({PREDICTOR_TABLE}))
    predictor = fill(lambda: build_predictor(config), plan, lambda: _predictor_tensors(tensor_groups(contents.open())), where)
    return predictor, config


def _predictor_tensors(groups: Groups) -> dict[str, Tensor]:
    return unwrapped(groups[PREDICTOR])


def _file_name(name: str) -> str:
    """Our `embed`, `blocks`, `norm` and `proj` carry `predictor_` before them there."""
    return name if name == "mask_token" else f"predictor_{name}"


def _predictor_config(tensors: Mapping[str, Tensor], encoder: EncoderConfig, where: str) -> PredictorConfig:
    """From the shapes; it has as many heads as its encoder in the released code."""
    needed = ["predictor_embed.weight", PREDICTOR_TABLE, "predictor_blocks.0.mlp.fc1.weight"]
    if missing := [name for name in needed if name not in tensors]:
        raise ValueError(f"{where}: missing {listed(missing)}")
    embed, table, hidden = (tensors[name] for name in needed)
    grid, width = encoder.grid(), embed.shape[0]
    if table.ndim != 3 or not is_sincos(table, grid, False):
        raise ValueError(
            f"{where}: {PREDICTOR_TABLE} {list(table.shape)} is not the fixed sin-cos table of the encoder's grid "
            f"of {grid[0]}x{grid[1]} patches, and only a predictor with that one can be read"
        )
    depth = 1 + max(int(found.group(1)) for name in tensors if (found := re.match(r"predictor_blocks\.(\d+)\.", name)))
    return PredictorConfig(
        encoder_width=encoder.width,
        width=width,
        depth=depth,
        heads=encoder.heads,
        grid=grid,
        mlp_ratio=hidden.shape[0] / width,
        layer_norm_eps=encoder.layer_norm_eps,
    )
