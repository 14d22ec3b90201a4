"""A run folder with two small encoders for the tests of evaluations, and settings that evaluate it quickly."""

from pathlib import Path

import pytest
import torch

from openjepa.config import save_yaml
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import FolderSettings
from openjepa.types import Export
from openjepa.weights.native import save_network
from tests.helpers.images import write_folder

CONFIG = EncoderConfig(width=24, depth=2, heads=2, mlp_ratio=2.0, patch_size=8, image_size=(32, 32))
SETTINGS = EvaluationSettings(device="cpu", workers=0, feature_batch_size=16)


def encoder(seed: int) -> VisionTransformer:
    torch.manual_seed(seed)
    return build_encoder(CONFIG)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 60)


@pytest.fixture
def run(images: Path, tmp_path: Path) -> Path:
    """A run folder as training leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_yaml(RunConfig(data=FolderSettings(path=str(images), image_size=32)), folder / "config.yaml")
    save_network(folder / "encoder", Export(CONFIG, encoder(1)))
    save_network(folder / "encoder_initial", Export(CONFIG, encoder(0)))
    (folder / "predictor").mkdir()
    (folder / "predictor" / "config.json").write_text('{"mask_mode": "multiblock/unbiased/random_subset"}')
    return folder
