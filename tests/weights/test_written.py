"""What is written is read back bit for bit, under names that other programs know; errors say what cannot be held."""

import json
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from openjepa.settings.models import SIZES, EncoderConfig
from openjepa.weights import FORMATS, OUTPUTS
from openjepa.weights.contents import open_contents
from openjepa.weights.formats import FILES, WeightsChoice, check_holds, load_any, stored
from openjepa.weights.native import save_network
from openjepa.weights.shared_names import file_name
from openjepa.weights.transformers import OUTSIDE
from tests.helpers.parity import DATA
from tests.helpers.weights_written import CONFIG, CONFIGS, HOLDING, TOKEN, assert_same, encoder, networks, read, written

KEYS = json.loads((Path(__file__).parents[1] / "weights_data" / "timm_keys.json").read_text())
"""Names and shapes of weights, as timm's own models list them."""
PAIRS = [(to, name) for to in OUTPUTS if to != "onnx" for name in CONFIGS if name in HOLDING[to]]


def shapes(path: Path) -> dict[str, list[int]]:
    with safe_open(path, "pt") as file:
        return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118


# ---------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(("to", "name"), PAIRS)
def test_what_is_written_is_read_back(to: str, name: str, tmp_path: Path) -> None:
    """All weights of encoder and predictor, and every setting but those that a layout without settings cannot say."""
    config = CONFIGS[name]
    given = networks(config)
    path = written(tmp_path / "out", to, given)
    loaded = read(path, config)
    assert_same(loaded.encoder, given.encoder)
    assert_same(loaded.predictor, given.predictor)
    assert loaded.config == config and loaded.predictor_config == given.predictor_config
    if to != "official":
        assert loaded.predictor_extra == given.predictor_extra
    images = torch.randn(2, 3, 24, 12)
    assert torch.equal(loaded.encoder(images).patches, given.encoder(images).patches)


@pytest.mark.parametrize("second", ["safetensors", "transformers", "timm", "official"])
@pytest.mark.parametrize("first", ["safetensors", "transformers", "timm", "official"])
def test_any_format_into_any_other(first: str, second: str, tmp_path: Path) -> None:
    given = networks(CONFIG)
    once = read(written(tmp_path / "once", first, given), CONFIG)
    again = replace(given, encoder=once.encoder, predictor=once.predictor, predictor_config=once.predictor_config)
    twice = read(written(tmp_path / "twice", second, again), CONFIG)
    assert_same(twice.encoder, given.encoder)
    assert_same(twice.predictor, given.predictor)
    assert twice.config == CONFIG


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("to", ["safetensors", "transformers", "timm", "official"])
def test_half_precision_rounds_and_nothing_else(to: str, dtype: str, tmp_path: Path) -> None:
    """Positions stay those of the formula, though their table is rounded too."""
    given = networks(CONFIG)
    path = written(tmp_path / "half", to, given, dtype)
    loaded = read(path, CONFIG)
    assert loaded.config == CONFIG
    for name, value in given.encoder.state_dict().items():
        assert torch.equal(loaded.encoder.state_dict()[name], value.to(getattr(torch, dtype)).float()), name
    whole = written(tmp_path / "whole", to, given)
    size = [sum(item.stat().st_size for item in ([p] if p.is_file() else p.rglob("*.safetensors"))) for p in (path, whole)]
    assert size[0] < 0.75 * size[1]


def test_a_tensor_is_stored_without_the_one_it_is_a_part_of(tmp_path: Path) -> None:
    whole = torch.arange(100.0)
    kept = stored({"a": whole[10:20], "b": whole.view(10, 10).T}, "float32")
    assert kept["a"].untyped_storage().nbytes() == 40 and kept["b"].is_contiguous()
    assert torch.equal(kept["a"], whole[10:20]) and torch.equal(kept["b"], whole.view(10, 10).T)


def test_folders_are_claimed_by_one_format(tmp_path: Path) -> None:
    names = {"safetensors": "native", "transformers": "transformers", "timm": "timm", "official": "official"}
    for to, expected in names.items():
        contents = open_contents(written(tmp_path / to, to, networks(CONFIG)))
        assert [key for key, item in FORMATS.items() if item.load().recognize(contents)] == [expected]
    for place in (tmp_path / "model.onnx", tmp_path / "folder" / "model.onnx"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"\x08\x08")
        for path in {place, place.parent} - {tmp_path}:
            with pytest.raises(ValueError, match="is an ONNX graph, which runs in onnxruntime and cannot be loaded"):
                load_any(path)


# --------------------------------------------------------------------------------------------- the released I-JEPA layout


def test_a_released_checkpoint_is_written_as_it_was(tmp_path: Path) -> None:
    """Keys in their order, shapes and every bit of all three networks and of the numbers beside them."""
    original = DATA / "ijepa_checkpoint.pth.tar"
    config = replace(CONFIG, heads=2)
    target, context = read(original, config), read(original, config, "context")
    assert target.encoders == ("target", "context") and target.training["epoch"] == 1
    again = replace(
        networks(target.config),
        encoder=target.encoder,
        context=context.encoder,
        predictor=target.predictor,
        predictor_config=target.predictor_config,
        training=target.training,
    )
    path = written(tmp_path / "out", "official", again)
    ours, theirs = (torch.load(item, weights_only=True) for item in (path, original))
    assert list(ours) == [name for name in theirs if name not in ("opt", "scaler")]
    for group in ("encoder", "predictor", "target_encoder"):
        assert list(ours[group]) == list(theirs[group])
        for name, value in theirs[group].items():
            assert value.dtype == ours[group][name].dtype and value.shape == ours[group][name].shape
            if name.endswith("pos_embed"):  # the program takes the sines of its own table in other order
                torch.testing.assert_close(ours[group][name], value, rtol=0, atol=1e-6)
            else:
                assert torch.equal(ours[group][name], value), name
    for name in ("epoch", "loss", "batch_size", "world_size", "lr"):
        assert ours[name] == theirs[name]
    for which, expected in (("target", target), ("context", context)):
        assert_same(read(path, config, which).encoder, expected.encoder)


def test_a_predictor_the_layout_cannot_tell_is_left_out(tmp_path: Path) -> None:
    """It knows no heads but the encoder's, so another number would be read back as another network."""
    given = networks(CONFIG)
    assert given.predictor_config is not None
    for changed, reason in (
        ({"heads": 2}, "it has 2 heads"),
        ({"grid": (2, 2)}, "it is for a grid of 2x2"),
        ({"layer_norm_eps": 1e-5}, "its LayerNorm epsilon 1e-05"),
        ({"passes": "joint"}, "it predicts all blocks in one pass"),
    ):
        other = replace(given, predictor_config=replace(given.predictor_config, **changed))  # type: ignore[arg-type]
        folder = tmp_path / reason
        folder.mkdir()
        remarks = OUTPUTS["official"].load()(folder, replace(other, context=None), "float32")
        assert any(f"the predictor is left out: {reason}" in remark for remark in remarks)
        assert any("no context encoder" in remark for remark in remarks)
        loaded = read(folder / "checkpoint.pth.tar", CONFIG)
        assert loaded.predictor is None and loaded.encoders == ("target",)


# ------------------------------------------------------------------------------------------------------------------ timm


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("patches", replace(CONFIG, image_size=(16, 24))),
        ("class_token", replace(TOKEN, image_size=(16, 24))),
        ("layer_scale", replace(CONFIG, image_size=(16, 24), layer_scale=1e-5)),
    ],
)
def test_names_and_shapes_are_those_of_timm(name: str, config: EncoderConfig, tmp_path: Path) -> None:
    path = written(tmp_path / "out", "timm", networks(config))
    assert shapes(path / "model.safetensors") == KEYS[name]


def test_names_and_shapes_of_the_huge_one_are_those_of_timm() -> None:
    """Of the model that timm's own I-JEPA weights are for."""
    shape = SIZES["huge"]
    config = EncoderConfig(width=1280, depth=32, heads=shape.heads, mlp_ratio=4.0, patch_size=14, image_size=(224, 224))
    with torch.device("meta"):
        from openjepa.models.vit import build_encoder

        ours = {file_name(name): list(value.shape) for name, value in build_encoder(config).state_dict().items()}
    assert ours | {"pos_embed": [1, 256, 1280]} == KEYS["vit_huge_patch14_gap_224"]


def test_settings_for_timm(tmp_path: Path) -> None:
    config = CONFIGS["dino"]
    path = written(tmp_path / "out", "timm", networks(config))
    settings = json.loads((path / "config.json").read_text())
    assert (settings["architecture"], settings["num_classes"], settings["num_features"]) == ("vit_base_patch16_224", 0, 24)
    assert settings["pretrained_cfg"]["input_size"] == [3, 16, 16] and settings["pretrained_cfg"]["crop_pct"] == 224 / 256
    args = settings["model_args"]
    assert args["class_token"] is True and args["global_pool"] == "token" and args["fc_norm"] is False
    giant = EncoderConfig(width=1408, depth=1, heads=16, mlp_ratio=6144 / 1408, patch_size=14, image_size=(14, 14))
    from openjepa.weights.timm import _cut_ratio

    assert int(1408 * _cut_ratio(giant)) == 6144
    for width in range(4, 400, 4):  # timm cuts the product, which may fall below the whole number
        for hidden in (2 * width + 1, 3 * width + 2, 4 * width - 1):
            assert int(width * _cut_ratio(replace(giant, width=width, mlp_ratio=hidden / width))) == hidden


def test_foreign_settings_of_timm(tmp_path: Path) -> None:
    path = written(tmp_path / "out", "timm", networks(CONFIG))
    settings = json.loads((path / "config.json").read_text())
    settings["model_args"]["act_layer"] = "quick_gelu"
    (path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"model_args\.act_layer 'quick_gelu'; only timm's default"):
        load_any(path)


# ----------------------------------------------------------------------------------------------------- what cannot be held


@pytest.mark.parametrize("to", OUTPUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_format_holds_an_encoder_or_says_which_would(to: str, name: str) -> None:
    if name in HOLDING[to]:
        check_holds(to, CONFIGS[name], tuple(OUTPUTS))
        return
    with pytest.raises(ValueError, match=rf"to='{to}': the encoder has .*, which that format has no place for") as caught:
        check_holds(to, CONFIGS[name], tuple(OUTPUTS))
    named = {word for word in OUTPUTS if f"--to {word}" in str(caught.value)}
    assert named == {item for item in OUTPUTS if name in HOLDING[item]}


def test_a_mask_token_stays_with_openjepa(tmp_path: Path) -> None:
    config = replace(TOKEN, mask_token=True)
    given = replace(networks(config), context=None)
    assert_same(read(written(tmp_path / "own", "safetensors", given), config).encoder, given.encoder)
    for to in ("transformers", "timm"):
        (tmp_path / to).mkdir()
        remarks = OUTPUTS[to].load()(tmp_path / to, given, "float32")
        assert remarks == ["the mask token, which an encoder of whole images does not need, is left out"]
        assert load_any(tmp_path / to).config == replace(config, mask_token=False)


# ------------------------------------------------------------------------------------------------------- half of a folder


@pytest.mark.parametrize("to", ["safetensors", "transformers", "timm"])
def test_half_a_folder(to: str, tmp_path: Path) -> None:
    path = written(tmp_path / "out", to, networks(CONFIG))
    (path / "predictor" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"predictor.model\.safetensors does not hold the weights"):
        load_any(path)
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="is damaged or cut off"):
        load_any(path)
    (path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks its weights|it is not there"):
        load_any(path)


@pytest.mark.parametrize("to", ["safetensors", "transformers", "timm"])
def test_the_context_encoder_of_a_folder_with_one_encoder(to: str, tmp_path: Path) -> None:
    """Is refused, not given as what it is not."""
    with pytest.raises(ValueError, match=r"encoder='context': .* holds one encoder only"):
        load_any(written(tmp_path / "out", to, networks(CONFIG)), WeightsChoice(encoder="context"))


@pytest.mark.parametrize("to", ["safetensors", "transformers", "timm"])
def test_what_is_downloaded_of_the_hub_is_enough(to: str, tmp_path: Path) -> None:
    """Of a folder that was uploaded: encoder, pixels and predictor; not what else lies there."""
    given = networks(CONFIGS["learned"])
    path = written(tmp_path / "out", to, given)
    (path / "evil.py").write_text("")
    for file in path.rglob("*"):
        if file.is_file() and not any(fnmatch(file.relative_to(path).as_posix(), pattern) for pattern in FILES):
            file.unlink()
    assert not (path / "evil.py").exists()
    loaded = load_any(path)
    assert loaded.config == CONFIGS["learned"]
    assert_same(loaded.encoder, given.encoder)
    assert given.predictor is not None
    assert_same(loaded.predictor, given.predictor)


@pytest.mark.parametrize(
    "said", [{"pooling": "max"}, {"drop_path": 1.5}, {"resampling_offset": "x"}, {"initialization": "zeros"}]
)
def test_settings_of_ours_that_cannot_be(said: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path / "out", "transformers", networks(CONFIG))
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(settings | {"openjepa": said}))
    with pytest.raises(ValueError, match=rf"says openjepa\.{next(iter(said))} .*, which it cannot be"):
        load_any(path)


def test_pixels_of_a_hugging_face_folder(tmp_path: Path) -> None:
    """Mean and deviation stand beside config.json there; a folder without that file means ImageNet's."""
    config = replace(CONFIG, pixel_mean=(0.5, 0.4, 0.3), pixel_std=(0.1, 0.2, 0.3))
    path = written(tmp_path / "out", "transformers", networks(config))
    assert load_any(path).config == config
    (path / "preprocessor_config.json").unlink()
    assert load_any(path).config == CONFIG


def test_the_step_travels_with_a_run(tmp_path: Path) -> None:
    from openjepa.types import Export

    save_network(tmp_path / "encoder", Export(CONFIG, encoder(CONFIG), {"step": 7}))
    assert load_any(tmp_path).training == {"step": 7} == load_any(tmp_path / "encoder").training
    assert load_any(written(tmp_path / "out", "safetensors", networks(CONFIG))).training == {"step": 7}


def test_the_published_layout_of_dino_on_the_hub(tmp_path: Path) -> None:
    """Names as in facebook/dino-vits16: a ViTModel with a pooler, which is not read; its outputs are those of its weights."""
    given = networks(replace(TOKEN, positions="learned"))
    path = written(tmp_path / "out", "transformers", given)
    names = set(shapes(path / "model.safetensors"))
    assert {"embeddings.cls_token", "embeddings.position_embeddings", "layernorm.weight"} < names
    assert "encoder.layer.0.attention.attention.query.weight" in names
    assert all(f"{prefix}.weight" in names for prefix in OUTSIDE.values())
    with safe_open(path / "model.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in names}
    from safetensors.torch import save_file

    head = {"pooler.dense.weight": torch.ones(24, 24), "pooler.dense.bias": torch.ones(24)}
    classifier = {f"vit.{key}": value for key, value in tensors.items()} | {"classifier.weight": torch.ones(2, 24)}
    for content in (tensors | head, classifier):
        save_file(content, path / "model.safetensors")
        assert_same(load_any(path).encoder, given.encoder)
    images = torch.randn(1, 3, 16, 16)
    pooled = load_any(path).encoder(images).pooled("class_token")
    assert F.cosine_similarity(pooled, given.encoder(images).pooled("class_token")).item() == pytest.approx(1)
