"""Settings beside weights that no network can have: refused with the file, the setting and what would fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.models.transformer import hidden_width
from openjepa.refusals import Refusal
from openjepa.weights.contents import Contents
from openjepa.weights.formats import WeightsChoice, load_any
from openjepa.weights.native import load_predictor
from openjepa.weights.transformers import _config
from tests.helpers.foreign_weights import weights
from tests.helpers.weights_written import CONFIGS, networks, written

NUMBERS: list[object] = ["x", None, [1], {}, True, -1, 0, float("nan"), float("inf"), 10**400]
"""Values that no positive number of a network can be."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("written")
    made = {name: written(place / name, name, networks(CONFIGS["dino"])) for name in ("safetensors", "transformers", "timm")}
    return made | {"ijepa": written(place / "ijepa", "safetensors", networks(CONFIGS["ijepa"]))}


def refused(folder: Path, changes: dict[str, Any], inside: str | None = None, file: str = "config.json") -> str:
    """What is said of the folder with other entries in a file of it, or in an object of that."""
    entries = json.loads((folder / file).read_text())
    entries |= {inside: entries[inside] | changes} if inside else changes
    return refused_text(folder, json.dumps(entries), file)


def refused_text(folder: Path, text: str, file: str = "config.json") -> str:
    before = (folder / file).read_text()
    try:
        (folder / file).write_text(text)
        with pytest.raises(Refusal) as found:
            load_any(folder)
    finally:
        (folder / file).write_text(before)
    assert str(folder) in str(found.value)
    return str(found.value)


@pytest.mark.parametrize("value", [*NUMBERS, 2.5, 10**9])
@pytest.mark.parametrize("name", ["width", "depth", "heads", "patch_size"])
def test_sizes_of_ours(name: str, value: object, folders: dict[str, Path]) -> None:
    assert f"{name}=" in refused(folders["safetensors"], {name: value})


@pytest.mark.parametrize("value", NUMBERS)
@pytest.mark.parametrize("name", ["mlp_ratio", "layer_norm_eps"])
def test_numbers_of_ours(name: str, value: object, folders: dict[str, Path]) -> None:
    assert f"{name}=" in refused(folders["safetensors"], {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pooling", "x"),
        ("pooling", ["average"]),
        ("positions", "x"),
        ("positions", 1),
        ("initialization", "zeros"),
        ("class_token", "yes"),
        ("class_token", 1),
        ("mask_token", None),
        ("image_size", 16),
        ("image_size", [16]),
        ("image_size", [16, "16"]),
        ("image_size", [2, 2]),
        ("image_size", [2**40, 2**40]),
        ("pixel_mean", "x"),
        ("pixel_mean", [0, 0]),
        ("pixel_std", [0, 0, 0]),
        ("pixel_std", [0.1, float("nan"), 0.1]),
        ("drop_path", 1),
        ("resampling_offset", -1),
        ("layer_scale", "x"),
        ("heads", 5),
    ],
)
def test_settings_of_ours(name: str, value: object, folders: dict[str, Path]) -> None:
    assert name in refused(folders["safetensors"], {name: value}).split("config.json")[1]


def test_pooling_by_a_token_that_is_not_there(folders: dict[str, Path]) -> None:
    assert "pooling='class_token' needs a class token" in refused(folders["ijepa"], {"pooling": "class_token"})


def test_fixed_positions_that_no_memory_holds(folders: dict[str, Path]) -> None:
    sizes = {"image_size": [2**16, 2**16], "patch_size": 1}
    assert "image_size gives a grid of 65536x65536 patches, too large" in refused(folders["ijepa"], sizes)


@pytest.mark.parametrize(
    ("name", "value"),
    [("width", "24"), ("heads", 0), ("depth", -1), ("grid", [4]), ("grid", [10**9, 10**9]), ("mlp_ratio", [1])],
)
def test_settings_of_a_predictor(name: str, value: object, folders: dict[str, Path]) -> None:
    folder = folders["ijepa"] / "predictor"
    before = (folder / "config.json").read_text()
    try:
        (folder / "config.json").write_text(json.dumps(json.loads(before) | {name: value}))
        with pytest.raises(Refusal, match=rf"predictor/config\.json is damaged: {name}=.*; export the network again"):
            load_predictor(folder)
    finally:
        (folder / "config.json").write_text(before)


@pytest.mark.parametrize("value", [*NUMBERS, 10**9])
@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "intermediate_size"])
def test_sizes_of_hugging_face(name: str, value: object, folders: dict[str, Path]) -> None:
    assert name in refused(folders["transformers"], {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model_type", ["vit"]),
        ("model_type", {"a": 1}),
        ("image_size", [16]),
        ("image_size", {"height": 16}),
        ("image_size", "16"),
        ("image_size", None),
        ("layer_norm_eps", "x"),
        ("layer_norm_eps", None),
        ("layer_norm_eps", 0),
    ],
)
def test_settings_of_hugging_face(name: str, value: object, folders: dict[str, Path]) -> None:
    assert name in refused(folders["transformers"], {name: value})


@pytest.mark.parametrize("value", [None, "x", [1], float("nan")])
@pytest.mark.parametrize("name", ["layerscale_value", "mlp_ratio"])
def test_settings_of_dinov2(name: str, value: object, folders: dict[str, Path]) -> None:
    assert f"{name}=" in refused(folders["transformers"], {"model_type": "dinov2", "mlp_ratio": 2, name: value})


@pytest.mark.parametrize(("ratio", "hidden"), [(2, 48), (2.3, 55), (4.5, 108)])
def test_the_ratio_of_dinov2_is_cut_to_whole_neurons(ratio: float, hidden: int) -> None:
    """As older versions of the library write and read it: 24 x 2.3 are 55 neurons."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 16, "patch_size": 4}
    contents = Contents(Path("x"), None, dict)
    config = _config({"model_type": "dinov2", "mlp_ratio": ratio, **sizes}, contents)
    assert hidden_width(config.width, config.mlp_ratio) == hidden


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_mean": ["a", "b", "c"]}, "mean[0]='a' must be a number"),
        ({"image_std": [0, 0, 0]}, "image_std=0.0 must be above 0"),
        ({"image_std": [0.5, 0.5]}, "std=[0.5, 0.5] must"),
    ],
)
def test_pixels_of_hugging_face(changes: dict[str, Any], said: str, folders: dict[str, Path]) -> None:
    file = "preprocessor_config.json"
    assert f"{file} " in (found := refused(folders["transformers"], changes, file=file)) and said in found


def test_one_mean_for_all_channels(folders: dict[str, Path]) -> None:
    file = folders["transformers"] / "preprocessor_config.json"
    before = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(before) | {"image_mean": 0.5, "image_std": [1, 0.25, 0.5]}))
        config = load_any(folders["transformers"]).config
    finally:
        file.write_text(before)
    assert (config.pixel_mean, config.pixel_std) == ((0.5, 0.5, 0.5), (1.0, 0.25, 0.5))


@pytest.mark.parametrize(
    ("inside", "name", "value", "said"),
    [
        ("model_args", "num_heads", -3, "heads=-3 must be between"),
        ("model_args", "num_heads", 0, "heads=0 must be between"),
        ("model_args", "num_heads", True, "num_heads=True must be a whole number"),
        ("model_args", "num_heads", "x", "num_heads='x' must be a whole number"),
        ("model_args", "num_heads", 5, "heads=5 does not divide"),
        ("model_args", "img_size", [16, "a"], "img_size=[16, 'a'] must be"),
        ("model_args", "img_size", -16, "image_size=-16 must be"),
        ("model_args", "init_values", "x", "init_values='x' must be a number"),
        ("pretrained_cfg", "mean", ["a", "b", "c"], "mean[0]='a' must be a number"),
        ("pretrained_cfg", "std", [0, 0, 0], "std=0.0 must be above 0"),
        (None, "model_args", [1], "model_args [1], which are no settings"),
    ],
)
def test_settings_of_timm(inside: str | None, name: str, value: object, said: str, folders: dict[str, Path]) -> None:
    assert said in refused(folders["timm"], {name: value}, inside)


@pytest.mark.parametrize("heads", [0, -3, 5])
def test_heads_that_a_user_gives(heads: int, tmp_path: Path) -> None:
    torch.save(weights(), tmp_path / "a.pth")
    with pytest.raises(Refusal, match=rf"a\.pth.*heads={heads} "):
        load_any(tmp_path / "a.pth", WeightsChoice(heads=heads))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"architecture":' * 50_000, "\ufeff{}"])
@pytest.mark.parametrize("kind", ["safetensors", "transformers", "timm"])
def test_a_config_nested_without_end(text: str, kind: str, folders: dict[str, Path]) -> None:
    said = refused_text(folders[kind], text)
    assert "config.json is not valid JSON" in said and said.endswith("; export or download the network again")
    assert load_any(folders[kind]).config == CONFIGS["dino"]
