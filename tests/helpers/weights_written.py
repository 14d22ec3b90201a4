"""Small networks of every kind, and folders that they are written to."""

from dataclasses import replace
from pathlib import Path

import torch

from openjepa.models.predictor import build_predictor
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.settings.models import EncoderConfig, PredictorConfig
from openjepa.types import Export
from openjepa.weights import OUTPUTS
from openjepa.weights.contents import CHECKPOINT_FILE
from openjepa.weights.formats import Loaded, Networks, WeightsChoice, load_any
from openjepa.weights.native import save_network
from tests.helpers.example_run import write_run

CONFIG = EncoderConfig(width=24, depth=2, heads=3, mlp_ratio=2.0, patch_size=4, image_size=(16, 16))
PREDICTOR = PredictorConfig(encoder_width=24, width=12, depth=1, heads=3, grid=(4, 4))
TOKEN = replace(CONFIG, class_token=True, pooling="class_token")
CONFIGS = {
    "ijepa": CONFIG,
    "learned": replace(CONFIG, positions="learned", resampling_offset=0.1, pixel_mean=(0.5, 0.4, 0.3)),
    "class token": replace(TOKEN, pooling="average", initialization="xavier"),
    "dino": replace(TOKEN, positions="learned", resampling_offset=0.1, drop_path=0.2),
    "wide": replace(CONFIG, image_size=(16, 24)),
    "giant's ratio": replace(CONFIG, width=44, heads=4, mlp_ratio=48 / 11),
    "epsilon": replace(CONFIG, layer_norm_eps=1e-3),
    "layer scale": replace(TOKEN, layer_scale=0.1, positions="learned"),
    "data2vec": replace(TOKEN, layer_scale=0.1, positions="relative", pooling="average"),
}
HOLDING = {
    "safetensors": set(CONFIGS),
    "transformers": set(CONFIGS) - {"layer scale", "data2vec"},
    "timm": set(CONFIGS) - {"epsilon", "data2vec"},
    "official": {"ijepa", "giant's ratio"},
    "onnx": set(CONFIGS),
}
"""Which of them a format has a place for."""


def encoder(config: EncoderConfig, seed: int = 0) -> VisionTransformer:
    """With weights in which no mistake hides: norms and biases are not 1 and 0."""
    torch.manual_seed(seed)
    network = build_encoder(config).eval()
    with torch.no_grad():
        for value in network.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return network


def networks(config: EncoderConfig, seed: int = 0) -> Networks:
    """An encoder, a context encoder with other weights, and a predictor."""
    settings = replace(PREDICTOR, encoder_width=config.width, heads=config.heads, grid=config.grid())
    predictor = build_predictor(settings).eval()
    extra = {"mask_mode": "multiblock/unbiased"}
    training = {"epoch": 3, "loss": 0.25, "step": 7}
    return Networks(encoder(config, seed), config, predictor, settings, extra, encoder(config, seed + 1), training)


def written(folder: Path, to: str, given: Networks, dtype: str = "float32") -> Path:
    """What a reader takes: the folder, or the file in it."""
    folder.mkdir()
    OUTPUTS[to].load()(folder, given, dtype)
    return folder / CHECKPOINT_FILE if to == "official" else folder


def read(path: Path, config: EncoderConfig, which: str = "target") -> Loaded:
    return load_any(path, WeightsChoice(encoder=which, heads=config.heads))  # type: ignore[arg-type]


def assert_same(found: torch.nn.Module | None, expected: torch.nn.Module) -> None:
    """Every weight, bit for bit."""
    assert found is not None
    ours, theirs = expected.state_dict(), found.state_dict()
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def run_folder(folder: Path, context: bool = True) -> Path:
    """A run as training leaves it, with small networks."""
    write_run(folder)
    given = networks(CONFIG)
    assert given.predictor is not None and given.context is not None
    save_network(folder / "encoder", Export(CONFIG, given.encoder, {"step": 4400}))
    save_network(folder / "predictor", Export(PREDICTOR, given.predictor, {"mask_mode": "multiblock/unbiased"}))
    if context:
        save_network(folder / "context_encoder", Export(CONFIG, given.context, {"step": 4400}))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
