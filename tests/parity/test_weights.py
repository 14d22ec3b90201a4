"""Encoders read from the layouts of other programs give what those programs computed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from openjepa.models.transformer import resampled_positions
from openjepa.weights.formats import Loaded, WeightsChoice, load_any
from tests.helpers.parity import DATA, part, read

FORWARD = 2e-5


def heads(name: str) -> int:
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        header: dict[str, Any] = json.loads(file.metadata()["json"])
    return int(header.get("vit", header)["num_heads"])


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=FORWARD)


def from_file(path: Path, content: dict[str, Any], number: int, encoder: str = "target") -> Loaded:
    """What is read from a file as torch.save writes it."""
    torch.save(content, path)
    return load_any(path, WeightsChoice(encoder=encoder, heads=number))  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize(("choice", "name"), [("target", "target_encoder"), ("context", "encoder")])
def test_released_ijepa_checkpoint(choice: Any, name: str) -> None:
    expected = read("ijepa_checkpoint_expected")
    loaded = load_any(DATA / "ijepa_checkpoint.pth.tar", WeightsChoice(encoder=choice, heads=2))
    assert_close(loaded.encoder(expected["images"]).patches, expected[f"out/{name}"])
    other = {"target": "out/encoder", "context": "out/target_encoder"}[choice]
    assert (expected[f"out/{name}"] - expected[other]).abs().max() > 100 * FORWARD  # the data tells the two apart
    config = loaded.config
    assert (config.positions, config.pooling, config.layer_norm_eps, config.image_size) == ("sincos", "average", 1e-6, (48, 48))
    assert (config.width, config.depth, config.patch_size, config.mlp_ratio) == (32, 2, 8, 4.0)


@torch.no_grad()
def test_released_ijepa_predictor() -> None:
    """Predictions of the file's predictor from its context encoder."""
    expected = read("ijepa_checkpoint_expected")
    loaded = load_any(DATA / "ijepa_checkpoint.pth.tar", WeightsChoice(encoder="context", heads=2))
    assert loaded.predictor is not None and loaded.predictor_config is not None
    context = loaded.encoder(expected["images"], expected["masks_enc"]).patches
    predicted = loaded.predictor(context, expected["masks_enc"], expected["masks_pred"][:, None])
    assert_close(predicted[:, 0], expected["out/predictions"])
    assert (loaded.predictor_config.width, loaded.predictor_config.depth, loaded.predictor_config.grid) == (16, 2, (6, 6))


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "interp_96x96/", "interp_48x80/"])
def test_transformers_folder(prefix: str) -> None:
    """At its own size and, its learned positions resampled, at others."""
    expected = read("hf_ijepa_expected")
    loaded = load_any(DATA / "hf_ijepa")
    assert (loaded.config.positions, loaded.config.heads, loaded.config.layer_norm_eps) == ("learned", 3, 1e-6)
    images = expected[f"{prefix}images"]
    assert_close(loaded.encoder(images).patches, expected[f"{prefix}last_hidden_state"])
    if prefix:
        assert loaded.encoder.pos_embed is not None
        grid = (images.shape[2] // 8, images.shape[3] // 8)
        table = resampled_positions(loaded.encoder.pos_embed[0], (8, 8), grid)
        assert_close(table, expected[f"{prefix}position_embeddings"][0])


@torch.no_grad()
def test_mae(tmp_path: Path) -> None:
    """Its latent of the kept patches: the class token, then the patches in ascending order of their noise."""
    golden = read("mae_encoder")
    loaded = from_file(tmp_path / "mae.pth", {"model": part(golden, "model/")}, heads("mae_encoder"))
    assert (loaded.config.positions, loaded.config.pooling, loaded.what[:3]) == ("sincos", "class_token", "MAE")
    keep = golden["noise"].argsort(dim=1)[:, :16]
    output = loaded.encoder(golden["images"], keep)
    assert_close(output.patches, golden["out/latent"][:, 1:])
    assert_close(output.pooled("class_token"), golden["out/latent"][:, 0])


def with_head(backbone: dict[str, Tensor], wrapper: str = "module.") -> dict[str, Tensor]:
    """A backbone in DINO's wrapper of several crops, with some of a projection head."""
    named = {f"{wrapper}backbone.{name}": value for name, value in backbone.items()}
    head = {"head.mlp.0.weight": torch.ones(32, 24), "head.last_layer.weight_g": torch.ones(48, 1)}
    return named | {f"{wrapper}{name}": value for name, value in head.items()}


@torch.no_grad()
@pytest.mark.parametrize("layout", ["backbone", "teacher", "student"])
def test_dino(layout: str, tmp_path: Path) -> None:
    golden = read("dino_encoder")
    weights = part(golden, "params/")
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    content: dict[str, Any] = {
        "backbone": weights,
        "teacher": {"teacher": with_head(weights), "student": with_head(zeros), "epoch": 3},
        "student": {"teacher": with_head(zeros, ""), "student": with_head(weights), "epoch": 3},
    }[layout]
    loaded = from_file(tmp_path / "d.pth", content, heads("dino_encoder"), "context" if layout == "student" else "target")
    assert (loaded.config.positions, loaded.config.pooling) == ("learned", "class_token")
    output = loaded.encoder(golden["48x48/images"])
    assert_close(output.pooled(loaded.config.pooling), golden["48x48/cls"])
    assert_close(output.patches, golden["48x48/tokens"][:, 1:])


@torch.no_grad()
def test_dino_at_another_size_with_its_own_table(tmp_path: Path) -> None:
    """Of its other sizes only the table of positions differs from ours."""
    golden = read("dino_encoder")
    weights = part(golden, "params/") | {"pos_embed": golden["24x24/pos"]}
    loaded = from_file(tmp_path / "d.pth", weights, heads("dino_encoder"))
    assert loaded.config.image_size == (24, 24)
    output = loaded.encoder(golden["24x24/images"])
    assert_close(output.pooled("class_token"), golden["24x24/cls"])
    assert_close(output.patches, golden["24x24/tokens"][:, 1:])


@pytest.mark.parametrize("size", ["24x24", "40x24"])
def test_dino_resamples_by_a_tenth_of_a_cell_more(size: str) -> None:
    """Its scale is (n' + 0.1) / n where ours is n' / n; nothing else differs."""
    golden = read("dino_encoder")
    grid = tuple(int(side) // 8 for side in size.split("x"))
    table = golden["params/pos_embed"][:, 1:]
    picture = table.reshape(1, 6, 6, -1).permute(0, 3, 1, 2)
    scale = [(side + 0.1) / 6 for side in grid]
    theirs = F.interpolate(picture, scale_factor=scale, mode="bicubic", recompute_scale_factor=False)
    assert_close(theirs[0].flatten(1).T, golden[f"{size}/pos"][0, 1:])
    ours = resampled_positions(table[0], (6, 6), (grid[0], grid[1]))
    assert (ours - golden[f"{size}/pos"][0, 1:]).abs().max() > 100 * FORWARD


@torch.no_grad()
def test_ibot(tmp_path: Path) -> None:
    golden = read("ibot_encoder")
    loaded = from_file(tmp_path / "ibot.pth", {"state_dict": part(golden, "params/")}, heads("ibot_encoder"))
    assert loaded.what.startswith("iBOT")
    output = loaded.encoder(golden["images"])
    assert_close(output.pooled("class_token"), golden["tokens_plain"][:, 0])
    assert_close(output.patches, golden["tokens_plain"][:, 1:])


@torch.no_grad()
def test_msn(tmp_path: Path) -> None:
    """Also for its small crops, whose positions it resamples as we do, and with patches left out."""
    golden = read("msn_encoder")
    weights = {f"module.{name}": value for name, value in part(golden, "params/").items()}
    head = {"module.fc.fc1.weight": torch.ones(16, 24), "module.fc.bn1.running_mean": torch.ones(16)}
    content = {"encoder": {}, "target_encoder": weights | head, "prototypes": torch.ones(3, 4)}
    loaded = from_file(tmp_path / "msn.pth.tar", content, heads("msn_encoder"))
    assert loaded.what.startswith("MSN")
    assert_close(loaded.encoder(golden["images"]).pooled("class_token"), golden["cls"])
    assert_close(loaded.encoder(golden["images_focal"]).pooled("class_token"), golden["cls_focal"])
    kept = golden["perm"][: int(36 * 0.7)].expand(2, -1)
    assert_close(loaded.encoder(golden["images"], kept).pooled("class_token"), golden["cls_drop0.3"])
