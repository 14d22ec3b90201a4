"""Checkpoints of the released I-JEPA program: `encoder`, `predictor`, `target_encoder` and the optimizer in one file.

The optimizer is neither read nor written. Names start with `module.`, the prefix of DistributedDataParallel. The paper
evaluates the target encoder, average-pooled. It is read unless the context encoder is asked for.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openjepa.models.predictor import Predictor, build_predictor
from openjepa.models.transformer import sincos_positions
from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal, few
from openjepa.settings.methods.ijepa import OTHER_TARGETS
from openjepa.settings.models import EncoderConfig, PredictorConfig
from openjepa.weights.contents import CHECKPOINT_FILE, MOST_NAMES, Contents, FillPlan, WeightSource, fill_network, weight_names
from openjepa.weights.formats import (
    Loaded,
    Networks,
    Reader,
    WeightsChoice,
    WrongChoice,
    mask_token_remark,
    position_table,
    size_words,
    stored,
)
from openjepa.weights.shared_names import NOT_READ, TABLE, TOKEN, Vit, infer_config, is_sincos, read_vit

GROUPS = {"target": "target_encoder", "context": "encoder"}
PREDICTOR, PREDICTOR_TABLE = "predictor", "predictor_pos_embed"
WRAPPER = "module."
NUMBERS = ("epoch", "loss", "batch_size", "world_size", "lr")
"""Numbers in the file beside the networks, in this order."""


def recognize(contents: Contents) -> bool:
    """True for a predictor, or a target encoder without a class token (MSN's has one). No other format has these."""
    if contents.settings is not None or contents.path.is_dir():
        return False
    target = contents.networks.get(GROUPS["target"])
    return PREDICTOR in contents.networks or (target is not None and TOKEN not in target.tensors)


def read(contents: Contents, choice: WeightsChoice) -> Loaded:
    """Reads the target (or context) encoder and the predictor. Raises Refusal if keys are missing or left over."""
    name = GROUPS[choice.encoder]
    if name not in contents.networks:
        found = few([group or "(tensors without a dictionary)" for group in contents.networks], MOST_NAMES)
        raise WrongChoice(f"encoder={choice.encoder!r}: {contents.path} has no {name}, only {found}", "encoder")
    vit = Vit(contents, lambda networks: networks[name].without(NOT_READ))
    where = f"{contents.path}, {name}"
    config = infer_config(vit.tensors(), choice.heads, where)
    encoder = read_vit(vit, config, where)
    is_wanted = choice.predictor and PREDICTOR in contents.networks
    predictor, predictor_config = _read_predictor(contents, config) if is_wanted else (None, None)
    epoch = contents.tree.get("epoch")
    after = f" of epoch {epoch}" if isinstance(epoch, int) else ""
    words = f"I-JEPA's released checkpoint{after}, {choice.encoder} encoder: {size_words(config)}"
    there = tuple(which for which, group in GROUPS.items() if group in contents.networks)
    training = {name: contents.tree[name] for name in NUMBERS if isinstance(contents.tree.get(name), int | float)}
    return Loaded(encoder, config, predictor, predictor_config, words, there, training=training, notes=vit.notes((WRAPPER,)))


def write(folder: Path, networks: Networks, dtype: str) -> list[str]:
    """Writes `checkpoint.pth.tar` to `folder`, without optimizer. `networks.encoder` is the target encoder.

    A predictor is left out if the file would be read back as another one, e.g. with another number of heads. Returns remarks.
    """
    remarks = ["the optimizer is left out: the file holds networks, from which no program can go on exactly"]
    tree: dict[str, Any] = {}
    if networks.context is None:
        remarks.append("there is no context encoder: the file has no `encoder`")
    else:
        tree["encoder"] = _wrapped(_encoder_tensors(networks.context), dtype)
    if networks.predictor is not None and (reason := _predictor_misfit(networks)):
        remarks.append(f"the predictor is left out: {reason}")
    elif networks.predictor is not None:
        tree[PREDICTOR] = _wrapped(_written_predictor(networks.predictor), dtype)
    tree["target_encoder"] = _wrapped(_encoder_tensors(networks.encoder), dtype)
    tree |= {name: networks.training[name] for name in NUMBERS if name in networks.training}
    torch.save(tree, folder / CHECKPOINT_FILE)
    return remarks + mask_token_remark(networks)


def _wrapped(tensors: Mapping[str, Tensor], dtype: str) -> OrderedDict[str, Tensor]:
    return OrderedDict((f"{WRAPPER}{name}", value) for name, value in stored(tensors, dtype).items())


def _encoder_tensors(encoder: VisionTransformer) -> dict[str, Tensor]:
    weights = {name: value for name, value in encoder.state_dict().items() if name != "mask_token"}
    return {TABLE: position_table(encoder), **weights}


def _written_predictor(predictor: Predictor) -> dict[str, Tensor]:
    weights = {_file_name(name): value for name, value in predictor.state_dict().items()}
    table = sincos_positions(predictor.config.width, predictor.config.grid)[None]
    return {"mask_token": weights.pop("mask_token"), PREDICTOR_TABLE: table, **weights}


def _predictor_misfit(networks: Networks) -> str:
    """The reason why the predictor would be read back as another one; empty if it is read back unchanged."""
    config, encoder = networks.predictor_config, networks.config
    assert config is not None
    if others := [name for name in OTHER_TARGETS if name in networks.predictor_extra]:
        return f"it was trained for other targets ({', '.join(others)}), which the layout cannot say"
    if config.heads != encoder.heads:
        return f"it has {config.heads} heads, and the layout only knows as many as the encoder's {encoder.heads}"
    if config.grid != encoder.grid():
        return f"it is for a grid of {config.grid[0]}x{config.grid[1]} patches, and the encoder's is another"
    if config.layer_norm_eps != encoder.layer_norm_eps:
        return f"its LayerNorm epsilon {config.layer_norm_eps:g} is not the encoder's"
    if config.passes != "separate":
        return f"it predicts all blocks in one pass (passes={config.passes!r}), and the layout only knows separate ones"
    return ""


def _read_predictor(contents: Contents, encoder: EncoderConfig) -> tuple[Predictor, PredictorConfig]:
    where = f"{contents.path}, {PREDICTOR}"
    config = _predictor_config(contents.networks[PREDICTOR].tensors, encoder, where)
    names = weight_names(lambda: build_predictor(config))
    plan = FillPlan({name: WeightSource((_file_name(name),)) for name in names}, frozenset({PREDICTOR_TABLE}))
    predictor = fill_network(lambda: build_predictor(config), plan, lambda: contents.mapped()[PREDICTOR].tensors, where)
    return predictor, config


def _file_name(name: str) -> str:
    """A predictor's weight name in the file, where our `embed`, `blocks`, `norm` and `proj` begin with `predictor_`."""
    return name if name == "mask_token" else f"predictor_{name}"


def _predictor_config(tensors: Mapping[str, Tensor], encoder: EncoderConfig, where: str) -> PredictorConfig:
    """The predictor's settings from its shapes. As in the released code, it has as many heads as its encoder."""
    needed = ["predictor_embed.weight", PREDICTOR_TABLE, "predictor_blocks.0.mlp.fc1.weight"]
    if missing := [name for name in needed if name not in tensors]:
        raise Refusal(f"{where}: missing {few(missing, MOST_NAMES)}")
    embed, table, hidden = (tensors[name] for name in needed)
    grid, width = encoder.grid(), embed.shape[0]
    if table.ndim != 3 or not is_sincos(table, grid, False):
        raise Refusal(
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


READER = Reader(recognize, read)
