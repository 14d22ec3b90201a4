"""What is recognized, what is inferred from shapes and tables, and which errors say what does not fit."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import openjepa
from openjepa.models.predictor import build_predictor
from openjepa.models.vit import build_encoder
from openjepa.settings.models import PredictorConfig
from openjepa.types import Export
from openjepa.weights import FORMATS
from openjepa.weights import contents as weights_contents
from openjepa.weights.contents import open_contents
from openjepa.weights.formats import WeightsChoice, load_any, recognized
from openjepa.weights.native import save_network
from tests.helpers.foreign_weights import (
    DINO,
    HEADS,
    official,
    predictor_weights,
    prefixed,
    transformers_folder,
    weights,
    written,
)
from tests.helpers.weights_written import CONFIG

# --------------------------------------------------------------------------------------------------------- recognition

FILES: dict[str, tuple[str, Any]] = {
    "released": ("official", official()),
    "released without target": ("official", {name: part for name, part in official().items() if name != "target_encoder"}),
    "plain names, no class token": ("timm", weights()),
    "timm, learned": ("timm", {"state_dict": weights(positions="learned")}),
    "mae": ("mae", {"model": weights(True)}),
    "mae with decoder": ("mae", {"model": weights(True) | {"decoder_blocks.0.norm1.weight": torch.ones(8)}}),
    "mae with learned positions": (
        "mae",
        {"model": weights(True, "learned") | {"decoder_blocks.0.norm1.weight": torch.ones(8)}},
    ),
    "dino backbone": ("dino", weights(True, "learned")),
    "dino": ("dino", DINO | {"epoch": 3}),
    "msn": ("dino", {"target_encoder": prefixed(weights(True, "learned")), "prototypes": torch.ones(2, 2)}),
}


@pytest.mark.parametrize("name", FILES)
def test_every_layout_is_claimed_by_one_format(name: str, tmp_path: Path) -> None:
    expected, content = FILES[name]
    contents = open_contents(written(tmp_path / "weights.pth", content))
    assert [key for key, item in FORMATS.items() if item.load().recognize(contents)] == [expected]
    assert recognized(contents) == expected


def test_folders_are_claimed_by_one_format(tmp_path: Path) -> None:
    save_network(tmp_path / "run" / "encoder", Export(CONFIG, build_encoder(CONFIG)))
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "config.json").write_text('{"architecture": "vit_huge_patch14_gap_224"}')
    for folder, expected in (
        (tmp_path / "run", "native"),
        (tmp_path / "run" / "encoder", "native"),
        (tmp_path / "timm", "timm"),
        (transformers_folder(tmp_path / "hf"), "transformers"),
    ):
        contents = open_contents(folder)
        assert [key for key, item in FORMATS.items() if item.load().recognize(contents)] == [expected]


# ------------------------------------------------------------------------------------------------------------- reading


@torch.no_grad()
def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    """Every weight, from files by torch.save (new and old) and safetensors, names wrapped or not."""
    state = weights(seed=5)
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for path in (
        written(tmp_path / "a.pth", state),
        written(tmp_path / "b.pth", {"model": prefixed(state)}),
        tmp_path / "w.safetensors",
        tmp_path / "old.pth",
    ):
        before = torch.random.get_rng_state()
        loaded = load_any(path, HEADS)
        assert torch.equal(torch.random.get_rng_state(), before) and not loaded.encoder.training
        assert loaded.config == CONFIG
        for name, value in loaded.encoder.state_dict().items():
            assert torch.equal(value, state[name]), name
        own = build_encoder(CONFIG).eval()
        own.load_state_dict(loaded.encoder.state_dict())
        images = torch.randn(1, 3, 16, 16)
        assert torch.equal(own(images).patches, loaded.encoder(images).patches)


def test_networks_do_not_depend_on_the_file_any_more(tmp_path: Path) -> None:
    """Weights are copies: a training may write its next checkpoint over the file."""
    state = weights()
    path = written(tmp_path / "a.pth", state)
    loaded = load_any(path, HEADS)
    path.write_bytes(b"")
    assert all(torch.equal(value, state[name]) for name, value in loaded.encoder.state_dict().items())
    assert all(value.requires_grad and not value.is_meta for value in loaded.encoder.parameters())
    assert loaded.encoder.positions is not None and torch.equal(loaded.encoder.positions, state["pos_embed"][0])


def test_target_and_context_of_a_released_checkpoint(tmp_path: Path) -> None:
    path = written(tmp_path / "IN1K-vit.h.14-300e.pth.tar", official())
    for which, seed in (("target", 2), ("context", 1)):
        loaded = load_any(path, WeightsChoice(encoder=which, heads=3))  # type: ignore[arg-type]
        assert torch.equal(loaded.encoder.norm.weight, weights(seed=seed)["norm.weight"])
        assert torch.equal(loaded.encoder.blocks[1].mlp.fc1.weight, weights(seed=seed)["blocks.1.mlp.fc1.weight"])  # type: ignore[union-attr,operator]
        assert "epoch 7" in loaded.what and f"{which} encoder" in loaded.what
    assert loaded.predictor is not None
    assert torch.equal(loaded.predictor.embed.weight, predictor_weights()["predictor_embed.weight"])
    assert load_any(path, WeightsChoice(heads=3, predictor=False)).predictor is None
    assert torch.equal(openjepa.load(path, encoder="context", heads=3).network.norm.weight, loaded.encoder.norm.weight)


def test_learned_positions_keep_the_row_of_the_class_token(tmp_path: Path) -> None:
    state = weights(True, "learned")
    loaded = load_any(written(tmp_path / "a.pth", state), HEADS)
    assert loaded.config.positions == "learned" and loaded.config.pooling == "class_token"
    assert loaded.encoder.cls_token is not None and loaded.encoder.pos_embed is not None
    assert torch.equal(loaded.encoder.cls_token, state["cls_token"])
    assert torch.equal(loaded.encoder.pos_embed, state["pos_embed"])


@pytest.mark.parametrize("change", [1e-4, -1e-4])
def test_a_table_that_is_not_the_formula_is_learned(change: float, tmp_path: Path) -> None:
    state = weights()
    state["pos_embed"] = state["pos_embed"].clone()
    state["pos_embed"][0, 7, 3] += change
    loaded = load_any(written(tmp_path / "a.pth", state), HEADS)
    assert loaded.config.positions == "learned"
    assert loaded.encoder.pos_embed is not None and torch.equal(loaded.encoder.pos_embed, state["pos_embed"])


def test_half_precision_becomes_fp32(tmp_path: Path) -> None:
    state = {name: value.bfloat16() for name, value in weights().items()}
    loaded = load_any(written(tmp_path / "a.pth", state), HEADS)
    assert loaded.config.positions == "sincos"  # the table is the formula's, rounded
    for name, value in loaded.encoder.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, state[name].float())


@pytest.mark.parametrize(
    ("width", "heads"), [(192, 3), (384, 6), (768, 12), (1024, 16), (1280, 16), (1408, 16)], ids=lambda value: str(value)
)
def test_heads_of_published_widths(width: int, heads: int) -> None:
    """From Ti to g (I-JEPA's table of architectures); shapes alone do not tell."""
    from openjepa.weights.shared_names import HEADS as KNOWN

    assert KNOWN[width] == heads


def test_heads_are_asked_for_where_nothing_tells_them(tmp_path: Path) -> None:
    path = written(tmp_path / "a.pth", weights())
    with pytest.raises(ValueError, match=r"heads=None, but .*a\.pth has width 24.*--heads.*1280: 16"):
        load_any(path)
    with pytest.raises(ValueError, match=r"heads=5 does not divide width .24.; heads that do: 1, 2, 3"):
        load_any(path, WeightsChoice(heads=5))
    save_network(tmp_path / "encoder", Export(CONFIG, build_encoder(CONFIG)))
    with pytest.raises(ValueError, match=r"heads=4, but .* says itself that it has 3"):
        load_any(tmp_path / "encoder", WeightsChoice(heads=4))


def test_a_published_width_needs_no_heads(tmp_path: Path) -> None:
    loaded = load_any(written(tmp_path / "a.pth", weights(width=192)))
    assert loaded.config.heads == 3


def test_a_file_of_arguments_is_read(tmp_path: Path) -> None:
    """DINO and MAE keep argparse's Namespace beside the weights."""
    content = DINO | {"args": argparse.Namespace(arch="vit_small", lr=1e-3)}
    assert load_any(written(tmp_path / "a.pth", content), HEADS).config.class_token


def test_timm_folder(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "model.safetensors")
    said = {"architecture": "vit_tiny", "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    for path in (tmp_path, tmp_path / "model.safetensors"):
        config = load_any(path, HEADS).config
        assert (config.pixel_mean, config.pixel_std, config.pooling) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), "average")


def test_a_run_has_its_predictor(tmp_path: Path) -> None:
    settings = PredictorConfig(encoder_width=24, width=12, depth=1, heads=3, grid=(4, 4))
    save_network(tmp_path / "encoder", Export(CONFIG, build_encoder(CONFIG)))
    save_network(tmp_path / "predictor", Export(settings, build_predictor(settings)))
    loaded = load_any(tmp_path)
    assert loaded.predictor_config == settings and loaded.config == CONFIG
    with pytest.raises(ValueError, match="export_context_encoder"):
        load_any(tmp_path, WeightsChoice(encoder="context"))
    with pytest.raises(ValueError, match="holds one encoder only"):
        load_any(tmp_path / "encoder", WeightsChoice(encoder="context"))


# ------------------------------------------------------------------------------------------------- how often it is opened


@pytest.mark.parametrize("name", ["released.pth.tar", "a.safetensors", "old.pth"])
def test_a_small_file_is_opened_few_times(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for its first bytes at most twice, once for what it holds; a large one once for every sixteenth, too."""
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(weights(), path)
    else:
        torch.save(official(), path, _use_new_zipfile_serialization=name != "old.pth")
    counted = count_opens(monkeypatch)
    load_any(path, HEADS)
    assert counted == {"first bytes": 1 if name == "old.pth" else 2, "whole": 1}


def count_opens(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    counted = {"first bytes": 0, "whole": 0}
    start, load, safe = weights_contents._start, torch.load, weights_contents.safe_open

    def counting(kind: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            counted[kind] += 1
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(weights_contents, "_start", counting("first bytes", start))
    monkeypatch.setattr(torch, "load", counting("whole", load))
    monkeypatch.setattr(weights_contents, "safe_open", counting("whole", safe))
    return counted
