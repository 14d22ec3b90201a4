"""Encoders with a classifier, and DINOv2's: what is dropped is said, and what our encoder has no place for is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from openjepa.models.vit import VisionTransformer
from openjepa.weights.formats import load_any
from tests.helpers.foreign_weights import HEADS, prefixed, transformers_folder, weights
from tests.helpers.weights_written import CONFIGS, assert_same, encoder, networks, written

CLASSIFIER = {"head.weight": torch.ones(10, 24), "head.bias": torch.ones(10)}
SAID = "not read: head.bias, head.weight (2 tensors beside the encoder)"

# ------------------------------------------------------------------------------------------------------------ classifiers


@pytest.mark.parametrize("name", ["ijepa", "learned", "dino", "layer scale"])
def test_a_timm_folder_with_its_classifier(name: str, tmp_path: Path) -> None:
    given = networks(CONFIGS[name])
    path = written(tmp_path / "timm", "timm", given)
    save_file(load_file(path / "model.safetensors") | CLASSIFIER, path / "model.safetensors")
    found = load_any(path, HEADS)
    assert found.notes == (SAID,)
    for key, value in found.encoder.state_dict().items():
        assert torch.equal(value, given.encoder.state_dict()[key]), key


@pytest.mark.parametrize("content", ["timm", "dino", "mae"])
def test_a_file_with_a_classifier(content: str, tmp_path: Path) -> None:
    """As DeiT's, and as probes are saved."""
    state = weights(content != "timm", "learned" if content == "dino" else "sincos")
    torch.save({"model": state | CLASSIFIER}, tmp_path / "a.pth")
    found = load_any(tmp_path / "a.pth", HEADS)
    assert found.notes == (SAID,)
    assert all(torch.equal(value, state[key]) for key, value in found.encoder.state_dict().items())


@pytest.mark.parametrize("outer", ["ijepa.", "module.ijepa."])
def test_a_classifier_of_transformers(outer: str, tmp_path: Path) -> None:
    given = networks(CONFIGS["ijepa"])
    path = written(tmp_path / "hf", "transformers", given)
    tensors = prefixed(load_file(path / "model.safetensors"), outer)
    save_file(tensors | {"classifier.weight": torch.ones(2, 24), "classifier.bias": torch.ones(2)}, path / "model.safetensors")
    found = load_any(path)
    assert_same(found.encoder, given.encoder)
    cut = () if outer == "ijepa." else ("the names in the file begin with 'module.ijepa.', which was cut",)
    assert found.notes == (*cut, "not read: classifier.bias, classifier.weight (2 tensors beside the encoder)")


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ("fc_norm.weight", r"a norm after pooling \(fc_norm\)"),
        ("norm_pre.weight", r"a norm before the blocks \(norm_pre\)"),
        ("dist_token", "a distillation token"),
        ("blocks.0.attn.q_norm.weight", "norms of queries and keys"),
        ("blocks.1.mlp.w12.weight", "SwiGLU in its MLPs"),
        ("blocks.1.mlp.fc1_g.weight", "SwiGLU in its MLPs"),
        ("register_tokens", "register tokens"),
        ("reg_token", "register tokens"),
    ],
)
@pytest.mark.parametrize("has_token", [False, True])
def test_what_has_no_place_is_refused_with_the_reason(extra: str, reason: str, has_token: bool, tmp_path: Path) -> None:
    torch.save(weights(has_token, "learned") | {extra: torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=rf"a\.pth has {reason}, which openjepa's encoder has no place for$"):
        load_any(tmp_path / "a.pth", HEADS)


# ----------------------------------------------------------------------------------------------------------------- DINOv2


def dinov2() -> tuple[VisionTransformer, dict[str, Tensor]]:
    """An encoder, and the names that facebook's files have."""
    network = encoder(CONFIGS["layer scale"])
    names = {name: name.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma") for name in network.state_dict()}
    return network, {names[name]: value for name, value in network.state_dict().items()} | {"mask_token": torch.ones(1, 24)}


def chunked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Blocks in two chunks, as they are trained: blocks.CHUNK.BLOCK."""
    return {
        name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1."): value for name, value in state.items()
    }


@pytest.mark.parametrize("layout", ["file", "teacher", "chunks", "teacher and student"])
def test_dinov2_files(layout: str, tmp_path: Path) -> None:
    network, state = dinov2()
    other = prefixed({name: torch.zeros_like(value) for name, value in state.items()}, "student.backbone.")
    head = {"teacher.dino_head.mlp.0.weight": torch.ones(2)}
    content: dict[str, Any] = {
        "file": state,
        "teacher": {"teacher": prefixed(state, "backbone.")},
        "chunks": {"teacher": prefixed(chunked(state), "backbone.")},
        "teacher and student": {"model": other | prefixed(state, "teacher.backbone.") | head},
    }[layout]
    torch.save(content, tmp_path / "dinov2.pth")
    found = load_any(tmp_path / "dinov2.pth", HEADS)
    assert_same(found.encoder, network)
    assert found.config.layer_scale is not None and found.config.pooling == "class_token"
    assert found.what.startswith("DINOv2")
    assert any("mask_token" in note for note in found.notes)


def test_a_dinov2_with_registers(tmp_path: Path) -> None:
    """`_reg4`: the table has no row for the registers."""
    torch.save(dinov2()[1] | {"register_tokens": torch.ones(1, 4, 24)}, tmp_path / "reg4.pth")
    with pytest.raises(ValueError, match=r"reg4\.pth has register tokens, which openjepa's encoder has no place for$"):
        load_any(tmp_path / "reg4.pth", HEADS)
    timm = tmp_path / "timm"
    timm.mkdir()
    state = weights(True, "learned")
    save_file(
        state | {"pos_embed": state["pos_embed"][:, 1:].clone(), "reg_token": torch.ones(1, 4, 24)}, timm / "model.safetensors"
    )
    (timm / "config.json").write_text(json.dumps({"architecture": "vit_small_patch14_reg4_dinov2"}))
    with pytest.raises(ValueError, match="has register tokens, which"):
        load_any(timm, HEADS)


def test_dinov2_of_hugging_face_by_its_names(tmp_path: Path) -> None:
    network, state = dinov2()
    inside = {
        "attn.proj": "attention.output.dense",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "blocks.": "encoder.layer.",
    }
    outside = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
        "pos_embed": "embeddings.position_embeddings",
    }
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        for ours, theirs in (inside | outside).items():
            name = name.replace(ours, theirs)
        name = name if name.split(".")[0] != "norm" else name.replace("norm", "layernorm", 1)
        for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=False):
            if "attn.qkv" in name:
                tensors[name.replace("attn.qkv", f"attention.attention.{part}")] = piece.clone()
        if "attn.qkv" not in name:
            tensors[name] = value
    settings = {"intermediate_size": None, "model_type": "dinov2", "mlp_ratio": 2, "layerscale_value": 0.1}
    folder = transformers_folder(tmp_path / "hf", **settings)
    save_file(tensors, folder / "model.safetensors")
    found = load_any(folder)
    assert_same(found.encoder, network)
    assert found.config == CONFIGS["layer scale"] and found.notes == (
        "not read: embeddings.mask_token (1 tensor beside the encoder)",
    )


@torch.no_grad()
@pytest.mark.filterwarnings("default")  # of transformers' own imports
@pytest.mark.parametrize("is_classifier", [False, True])
def test_dinov2_of_transformers(is_classifier: bool, tmp_path: Path) -> None:
    """Against the library's own output, at the training size and at another."""
    transformers = pytest.importorskip("transformers", reason="needs transformers (pip install transformers)")
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "mlp_ratio": 2, "image_size": 16}
    config = transformers.Dinov2Config(**sizes, patch_size=4)
    model = transformers.Dinov2ForImageClassification(config) if is_classifier else transformers.Dinov2Model(config)
    for value in model.parameters():
        value.add_(0.1 * torch.randn_like(value))
    model.eval().save_pretrained(tmp_path)
    found = load_any(tmp_path)
    own = model.dinov2 if is_classifier else model
    for size in ((16, 16), (24, 12)):
        images = torch.randn(2, 3, *size)
        expected = own(images).last_hidden_state
        output = found.encoder(images)
        torch.testing.assert_close(output.patches, expected[:, 1:], rtol=0, atol=2e-5)
        torch.testing.assert_close(output.class_token, expected[:, 0], rtol=0, atol=2e-5)
