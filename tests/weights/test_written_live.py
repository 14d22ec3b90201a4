"""What is written, loaded by the libraries it is written for: equal outputs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from openjepa.data.views import evaluation_view
from openjepa.settings.models import EncoderConfig
from openjepa.types import normalize
from tests.helpers.weights_written import CONFIG, CONFIGS, networks, written

FORWARD = 2e-5
pytestmark = pytest.mark.filterwarnings("default")  # of the libraries' own imports
SQUARE = [name for name in ("ijepa", "learned", "class token", "dino", "giant's ratio", "epsilon")]


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=FORWARD)


def from_transformers(folder: Path, config: EncoderConfig) -> Any:
    """The model, into which every weight must have gone."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install transformers)")
    cls = transformers.ViTModel if config.class_token else transformers.IJepaModel
    given = {"add_pooling_layer": False} if config.class_token else {}
    model, info = cls.from_pretrained(folder, output_loading_info=True, **given)
    assert not any(info.values()), info
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", [*SQUARE, "wide"])
def test_transformers_at_the_training_size(name: str, tmp_path: Path) -> None:
    config = CONFIGS[name]
    given = networks(config)
    model = from_transformers(written(tmp_path / "out", "transformers", given), config)
    images = torch.randn(2, 3, *config.image_size)
    tokens = model(images).last_hidden_state
    output = given.encoder(images)
    close(output.patches, tokens[:, int(config.class_token) :])
    if output.class_token is not None:
        close(output.class_token, tokens[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["learned", "dino"])
@pytest.mark.parametrize("size", [(24, 24), (16, 32)])
def test_transformers_at_other_sizes(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    """Learned positions are resampled alike, but for the tenth of a cell that DINO's own code adds."""
    config = replace(CONFIGS[name], resampling_offset=0.0)
    given = networks(config)
    model = from_transformers(written(tmp_path / "out", "transformers", given), config)
    images = torch.randn(2, 3, *size)
    tokens = model(images, interpolate_pos_encoding=True).last_hidden_state
    close(given.encoder(images).patches, tokens[:, int(config.class_token) :])


@torch.no_grad()
def test_transformers_stretches_fixed_positions_and_we_continue_them(tmp_path: Path) -> None:
    """What docs/weights.md and the card warn of; `--image-size` is the way out."""
    given = networks(CONFIG)
    images = torch.randn(2, 3, 24, 24)
    model = from_transformers(written(tmp_path / "out", "transformers", given), CONFIG)
    theirs = model(images, interpolate_pos_encoding=True).last_hidden_state
    assert (theirs - given.encoder(images).patches).abs().max() > 0.1
    large = replace(CONFIG, image_size=(24, 24))
    again = networks(large)
    again.encoder.load_state_dict(given.encoder.state_dict())
    model = from_transformers(written(tmp_path / "large", "transformers", again), large)
    close(given.encoder(images).patches, model(images).last_hidden_state)


@torch.no_grad()
def test_half_precision_is_loaded_as_such(tmp_path: Path) -> None:
    given = networks(CONFIG)
    model = from_transformers(written(tmp_path / "out", "transformers", given, "bfloat16"), CONFIG)
    assert model.dtype == torch.bfloat16
    images = torch.randn(2, 3, 16, 16)
    theirs = model(images.bfloat16()).last_hidden_state.float()
    assert torch.nn.functional.cosine_similarity(theirs, given.encoder(images).patches, dim=-1).min() > 0.999


def test_its_processor_makes_the_evaluation_view(tmp_path: Path) -> None:
    """The same crop of a real shape, pixels equal to a level or two: resampling rounds elsewhere."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install transformers)")
    config = replace(CONFIG, image_size=(64, 64), pixel_mean=(0.5, 0.4, 0.3), pixel_std=(0.1, 0.2, 0.3))
    folder = written(tmp_path / "out", "transformers", networks(config))
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    picture = small.resize((200, 130), Image.Resampling.BICUBIC)  # smooth, as photographs are
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    theirs = processor(picture, return_tensors="pt")["pixel_values"][0]
    pixels = evaluation_view(torch.from_numpy(np.array(picture)), (64, 64))
    ours = normalize(pixels, config.pixel_mean, config.pixel_std)
    levels = (ours - theirs).abs() * 255 * torch.tensor(config.pixel_std).view(3, 1, 1)
    assert levels.max() < 2.5 and levels.mean() < 0.5


@torch.no_grad()
@pytest.mark.parametrize("name", ["ijepa", "learned", "class token", "dino", "wide", "giant's ratio", "layer scale"])
def test_timm(name: str, tmp_path: Path) -> None:
    """Features of patches and pooled, and what its transforms are told."""
    try:
        import timm  # type: ignore[import-not-found]
    except (ImportError, RuntimeError):  # torchvision, which it needs, may not fit this torch
        pytest.skip("needs timm (pip install timm)")
    config = CONFIGS[name]
    given = networks(config)
    model = timm.create_model(f"local-dir:{written(tmp_path / 'out', 'timm', given)}", pretrained=True).eval()
    images = torch.randn(2, 3, *config.image_size)
    output = given.encoder(images)
    close(output.patches, model.forward_features(images)[:, int(config.class_token) :])
    close(output.pooled(config.pooling), model(images))
    told = timm.data.resolve_model_data_config(model)
    assert tuple(told["mean"]) == config.pixel_mean and told["input_size"] == (3, *config.image_size)
    assert told["interpolation"] == "bicubic" and told["crop_pct"] == 0.875
