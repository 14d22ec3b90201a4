"""The native format: equal outputs after a round trip, nothing half-written, clear errors."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.models.predictor import build_predictor
from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig, PredictorConfig
from openjepa.system.shared_files import machine_place
from openjepa.types import TRAINED, Export
from openjepa.weights import contents
from openjepa.weights.formats import WeightsChoice, load_any, position_table
from openjepa.weights.native import load_encoder, load_predictor, save_network

ENCODER = EncoderConfig(
    width=24,
    depth=1,
    heads=2,
    mlp_ratio=48 / 11,
    patch_size=4,
    image_size=(16, 12),
    class_token=True,
    pixel_mean=(0.1, 0.2, 0.3),
)
PREDICTOR = PredictorConfig(encoder_width=24, width=12, depth=1, heads=2, grid=(4, 3))


def test_encoder_round_trip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(ENCODER)
    save_network(tmp_path / "run" / "encoder", Export(ENCODER, encoder))
    state = torch.random.get_rng_state()
    loaded, config = load_encoder(tmp_path / "run" / "encoder")
    assert torch.equal(torch.random.get_rng_state(), state)  # loading draws nothing
    assert config == ENCODER and not loaded.training
    images = torch.randn(2, 3, 16, 12)
    ours, theirs = encoder.eval()(images), loaded(images)
    assert torch.equal(ours.patches, theirs.patches) and torch.equal(ours.class_token, theirs.class_token)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["encoder"]


def test_predictor_round_trip_with_extras(tmp_path: Path) -> None:
    predictor = build_predictor(PREDICTOR)
    extra = {"masks": {"strategy": "multiblock", "num_targets": 4}}
    save_network(tmp_path / "predictor", Export(PREDICTOR, predictor, extra))
    loaded, config, found = load_predictor(tmp_path / "predictor")
    assert config == PREDICTOR and found == extra
    arguments = (torch.randn(1, 2, 24), torch.tensor([[0, 1]]), torch.tensor([[[5, 6]]]))
    assert torch.equal(predictor(*arguments), loaded(*arguments))


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    (tmp_path / f".encoder.{machine_place()}.999999999.unfinished").mkdir()  # left by a run that was killed
    for seed in (0, 1):
        torch.manual_seed(seed)
        encoder = build_encoder(ENCODER)
        save_network(folder, Export(ENCODER, encoder))
    loaded, _ = load_encoder(folder)
    assert torch.equal(loaded.norm.weight, encoder.norm.weight)
    assert torch.equal(loaded.patch_embed.proj.weight, encoder.patch_embed.proj.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def replace_while_reading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """Writes an encoder and has another take its place after a part of it was copied; returns the weights of the first."""
    config = replace(ENCODER, image_size=(16, 16))
    older, newer = build_encoder(config), build_encoder(config)
    save_network(folder / "encoder", Export(config, older))
    torch.save(older.state_dict() | {"pos_embed": position_table(older)}, folder / "a.pth")
    parts = contents._parts

    def replacing(wanted: Any) -> Iterator[list[str]]:
        for number, part in enumerate(parts(wanted)):
            if number == 3:
                save_network(folder / "encoder", Export(config, newer))
                torch.save(newer.state_dict() | {"pos_embed": position_table(newer)}, folder / "b.pth")
                (folder / "b.pth").replace(folder / "a.pth")
            yield part

    monkeypatch.setattr(contents, "_parts", replacing)
    return older.state_dict()


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_weights_that_a_training_replaces_while_they_are_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error for a large file, which is mapped anew; not a network of which one part is older than the other."""
    monkeypatch.setattr(contents, "SMALL", 0)
    replace_while_reading(tmp_path, monkeypatch)
    path = tmp_path / ("encoder" if kind == "folder" else "a.pth")
    with pytest.raises(ValueError, match="was written anew while it was read, as a training does"):
        load_any(path, WeightsChoice(heads=ENCODER.heads))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_small_weights_that_a_training_replaces_while_they_are_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were read once, so that all of them are the older ones."""
    older = replace_while_reading(tmp_path, monkeypatch)
    path = tmp_path / ("encoder" if kind == "folder" else "a.pth")
    found = load_any(path, WeightsChoice(heads=ENCODER.heads)).encoder.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in older.items())
    newer = load_any(path, WeightsChoice(heads=ENCODER.heads)).encoder.state_dict()
    assert not torch.equal(newer["patch_embed.proj.weight"], older["patch_embed.proj.weight"])


def test_weights_are_stored_in_fp32(tmp_path: Path) -> None:
    save_network(tmp_path / "encoder", Export(ENCODER, build_encoder(ENCODER).bfloat16()))
    loaded, _ = load_encoder(tmp_path / "encoder")
    assert all(value.dtype == torch.float32 for value in loaded.parameters())


def test_errors_say_what_is_wrong(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    with pytest.raises(ValueError, match=r"holds no openjepa-encoder: config.json cannot be read"):
        load_encoder(folder)
    save_network(folder, Export(ENCODER, build_encoder(ENCODER)))
    with pytest.raises(ValueError, match=r"says format 'openjepa-encoder', but 'openjepa-predictor' is needed"):
        load_predictor(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == "openjepa-encoder" and config["version"] == 1
    for change, message in (
        ({"version": 2}, "has version 2; this openjepa reads version 1"),
        ({"width": 36}, "does not hold the weights"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            load_encoder(folder)
    (folder / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name != "depth"}))
    with pytest.raises(ValueError, match=r"lacks depth; export"):
        load_encoder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_encoder(folder)


def test_truncated_weights(tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    save_network(folder, Export(ENCODER, build_encoder(ENCODER)))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="does not hold the weights"):
        load_encoder(folder)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot save a network with dict"):
        save_network(tmp_path / "x", Export({}, build_encoder(ENCODER)))
    with pytest.raises(ValueError, match=r"extra entries \['width'\]"):
        save_network(tmp_path / "x", Export(ENCODER, build_encoder(ENCODER), {"width": 3}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("extra", "role"), [({}, "target"), (TRAINED, "trained")])
def test_an_encoder_that_is_no_moving_average_is_not_called_one(tmp_path: Path, extra: dict[str, object], role: str) -> None:
    save_network(tmp_path / "run" / "encoder", Export(ENCODER, build_encoder(ENCODER), extra))
    loaded = load_any(tmp_path / "run", WeightsChoice())
    assert loaded.what.startswith(f"openjepa's run, {role} encoder: ") and loaded.training == extra
