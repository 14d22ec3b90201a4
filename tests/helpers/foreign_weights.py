"""Weights under the names of other programs, and the files and folders that those write."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openjepa.models.predictor import build_predictor
from openjepa.models.transformer import sincos_positions
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.settings.models import EncoderConfig, PredictorConfig
from openjepa.types import Export
from openjepa.weights.formats import WeightsChoice, load_any
from openjepa.weights.native import save_network

HEADS = WeightsChoice(heads=3)


def weights(class_token: bool = False, positions: str = "sincos", seed: int = 0, width: int = 24) -> dict[str, Tensor]:
    """An encoder under the names of the released programs, table of positions included."""
    torch.manual_seed(seed)
    config = EncoderConfig(
        width=width, depth=2, heads=3, mlp_ratio=2.0, patch_size=4, image_size=(16, 16), class_token=class_token
    )
    state = dict(build_encoder(config).state_dict())
    table = sincos_positions(width, (4, 4)) if positions == "sincos" else torch.randn(16, width)
    first = torch.zeros(1, width) if positions == "sincos" else torch.randn(1, width)
    return state | {"pos_embed": (torch.cat([first, table]) if class_token else table)[None]}


def predictor_weights() -> dict[str, Tensor]:
    """A predictor under the names of the released program."""
    torch.manual_seed(3)
    network = build_predictor(PredictorConfig(encoder_width=24, width=12, depth=1, heads=3, grid=(4, 4)))
    named = {name if name == "mask_token" else f"predictor_{name}": value for name, value in network.state_dict().items()}
    return named | {"predictor_pos_embed": sincos_positions(12, (4, 4))[None]}


def prefixed(tensors: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def official() -> dict[str, Any]:
    return {
        "encoder": prefixed(weights(seed=1)),
        "predictor": prefixed(predictor_weights()),
        "target_encoder": prefixed(weights(seed=2)),
        "opt": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-3}]},
        "epoch": 7,
    }


def written(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def transformers_folder(folder: Path, **changed: Any) -> Path:
    """The smallest folder that says what it is; its weights do not fit."""
    folder.mkdir()
    settings = {
        "model_type": "ijepa",
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 48,
        "image_size": 16,
        "patch_size": 4,
    }
    kept = {name: value for name, value in (settings | changed).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


DINO = {
    "teacher": prefixed(weights(True, "learned"), "backbone."),
    "student": prefixed(weights(True, "learned"), "module.backbone."),
}


class Malicious:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def encoder_of(path: Path, which: str) -> VisionTransformer:
    return load_any(path, WeightsChoice(encoder=which, heads=3)).encoder  # type: ignore[arg-type]


ODD = EncoderConfig(
    width=32,
    depth=2,
    heads=4,
    mlp_ratio=3.0,
    patch_size=4,
    image_size=(16, 16),
    layer_scale=1e-4,
    layer_norm_eps=1e-5,
    pixel_mean=(0.5, 0.4, 0.3),
    pixel_std=(0.2, 0.3, 0.25),
)


def encoder_folder(folder: Path, config: EncoderConfig) -> Path:
    torch.manual_seed(1)
    save_network(folder, Export(config, build_encoder(config)))
    return folder
