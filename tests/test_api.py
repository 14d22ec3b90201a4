"""The public API: lazy, and equal to what its parts give."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import openjepa
from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig
from openjepa.types import Export
from openjepa.weights.native import save_network

CONFIG = EncoderConfig(width=48, depth=2, heads=3, mlp_ratio=4.0, patch_size=8, image_size=(32, 32))


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_network(tmp_path / "encoder", Export(config=CONFIG, module=build_encoder(CONFIG)))
    return tmp_path


def test_importing_openjepa_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, openjepa; sys.exit(bool({'torch', 'numpy', 'tyro'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_load_takes_the_run_or_its_encoder(run_folder: Path) -> None:
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        outputs = [openjepa.load(folder)(images).patches for folder in (run_folder, str(run_folder / "encoder"))]
    assert torch.equal(outputs[0], outputs[1])


def test_embed_is_the_pooled_output_of_the_normalized_center(run_folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 37, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(run_folder / "image.png")
    pictures = [picture, run_folder / "image.png", str(run_folder / "image.png")]
    features = openjepa.load(run_folder).embed(pictures, batch_size=2, precision="fp32")
    torch.testing.assert_close(openjepa.embed(run_folder, pictures), features, atol=0.02, rtol=0.02)  # bf16 where it is fast
    assert features.shape == (3, 48)
    assert torch.equal(features[1], features[2])
    torch.testing.assert_close(features[0], features[1])
    # 37 pixels are what covers 256/224 of 32: nothing is resized, the center 32 start at round(2.5) = 2
    center = torch.from_numpy(pixels[2:34, 2:34].copy()).permute(2, 0, 1).double() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CONFIG.pixel_mean, CONFIG.pixel_std))
    with torch.inference_mode():
        expected = openjepa.load(run_folder)(((center - mean) / std).float()[None]).patches.mean(dim=1)
    torch.testing.assert_close(features[:1], expected, atol=1e-5, rtol=1e-4)


def test_no_images_give_no_features(run_folder: Path) -> None:
    assert openjepa.embed(run_folder, []).shape == (0, 48)


def test_embed_names_the_file_that_is_no_image(run_folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "gen.py"
    text.write_text("print()")
    with pytest.raises(ValueError, match=r"gen\.py cannot be embedded: "):
        openjepa.embed(run_folder, [text])


def test_a_folder_without_an_encoder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json|encoder"):
        openjepa.load(tmp_path)


def test_a_suite_needs_its_data_root_and_nothing_else() -> None:
    with pytest.raises(ValueError, match="a suite needs suite and data_root"):
        openjepa.evaluate("runs/mine", suite="paper")
    with pytest.raises(ValueError, match="a suite needs suite and data_root"):
        openjepa.evaluate("runs/mine", data_root="datasets")


def test_public_names_are_imported_when_they_are_asked_for() -> None:
    """Also by `from openjepa import`; and nothing else is there by accident."""
    from openjepa.inference.encoder import Encoder
    from openjepa.recipes import load_recipe

    assert openjepa.Encoder is Encoder and openjepa.load_recipe is load_recipe
    assert isinstance(openjepa.load_recipe("cpu-64"), openjepa.RunConfig)
    assert all(getattr(openjepa, name) is not None for name in openjepa.__all__)
    assert set(openjepa.__all__) <= set(dir(openjepa))
    code = "from openjepa import EvaluationSettings, PatchBox, RunConfig, load_recipe; assert PatchBox(1, 2, 3, 4).width == 4"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
    with pytest.raises(AttributeError, match="module 'openjepa' has no attribute 'Encodr'"):
        openjepa.Encodr  # type: ignore[attr-defined]  # noqa: B018


def test_what_a_type_checker_knows_is_what_can_be_imported() -> None:
    """The imports for type checkers name the same places as those at run time."""
    tree = ast.parse(Path(openjepa.__file__).read_text())
    typed = {
        alias.name: node.module
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {name: typed[name] for name in openjepa._HOMES} == openjepa._HOMES
    assert set(openjepa.__all__) == {*openjepa._HOMES, "Refusal", "__version__", "embed", "evaluate", "load", "train"}


def test_load_says_what_it_cannot_choose(run_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder context_encoder; train with method.export_context_encoder"):
        openjepa.load(run_folder, encoder="context")
    with pytest.raises(ValueError, match="heads=7"):
        openjepa.load(run_folder, heads=7)
    with pytest.raises(ValueError, match="encoder='teacher' is not known: use 'target' or 'context'"):
        openjepa.load(run_folder, encoder="teacher")  # type: ignore[arg-type]
