"""Folders that the installed transformers writes, against what it computes itself."""

from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.weights.formats import load_any

transformers = pytest.importorskip("transformers", reason="needs transformers (pip install transformers)")
pytestmark = pytest.mark.filterwarnings("default")  # of transformers' own imports

SHAPE = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}


def config(**changed: Any) -> Any:
    return transformers.IJepaConfig(**SHAPE, image_size=16, patch_size=4, **changed)


@torch.no_grad()
@pytest.mark.parametrize("eps", [None, 1e-3])
def test_a_model_that_it_saved(eps: float | None, tmp_path: Path) -> None:
    """Its LayerNorm epsilon too, whose default is not the released code's."""
    torch.manual_seed(0)
    model = transformers.IJepaModel(config() if eps is None else config(layer_norm_eps=eps)).eval()
    for value in model.parameters():  # biases and norms are 0 and 1 at first, and would hide mistakes
        value.add_(0.1 * torch.randn_like(value))
    model.save_pretrained(tmp_path)
    loaded = load_any(tmp_path)
    assert loaded.config.layer_norm_eps == (1e-12 if eps is None else eps) and loaded.config.positions == "learned"
    for size in ((16, 16), (24, 12)):
        images = torch.randn(2, 3, *size)
        expected = model(images, interpolate_pos_encoding=size != (16, 16)).last_hidden_state
        torch.testing.assert_close(loaded.encoder(images).patches, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_classifier_and_a_model_in_several_files(tmp_path: Path) -> None:
    """The encoder inside the first, its head left out; the second put together from its parts."""
    torch.manual_seed(0)
    model = transformers.IJepaForImageClassification(config()).eval()
    model.save_pretrained(tmp_path / "classifier")
    model.ijepa.save_pretrained(tmp_path / "parts", max_shard_size="10KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    images = torch.randn(2, 3, 16, 16)
    expected = model.ijepa(images).last_hidden_state
    for name in ("classifier", "parts"):
        torch.testing.assert_close(load_any(tmp_path / name).encoder(images).patches, expected, rtol=0, atol=2e-5)
