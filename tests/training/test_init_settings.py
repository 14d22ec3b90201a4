"""Which settings follow the weights of `--init`, and what the networks then start from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.commands.train import decided_by_file, parse_train
from openjepa.config import save_yaml
from openjepa.settings.derived import resolve
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import EncoderConfig, PredictorConfig
from openjepa.training.init import following, settled, start_method
from openjepa.training.startup import build_method, default_view
from openjepa.weights.formats import Choice, load_any
from tests.helpers.images import write_folder
from tests.helpers.small_methods import method_config
from tests.training.test_init import ODD, encoder_folder, from_file
from tests.training.test_init_methods import sampler
from tests.training.test_loop import small_config
from tests.weights.test_formats import official, weights, written


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 40)


def test_the_model_follows_the_weights_and_nothing_else_does(images: Path, tmp_path: Path) -> None:
    config = small_config(images, tmp_path)
    odd = replace(ODD, positions="learned", resampling_offset=0.1)
    folder = encoder_folder(tmp_path / "odd", replace(odd, drop_path=0.3, initialization="fan_in"))
    config = replace(config, run=replace(config.run, init=str(folder)))
    found, read = settled(config, (), fresh=False)
    assert read is not None
    made = found.model.encoder((32, 32), found.data.pixel_mean, found.data.pixel_std)
    assert made == replace(odd, image_size=(32, 32)), "drop path and how new weights are drawn are the run's own"
    back = replace(
        found, model=config.model, data=replace(found.data, pixel_mean=config.data.pixel_mean, pixel_std=config.data.pixel_std)
    )
    assert back == config


def test_named_shapes_are_called_by_their_names(images: Path, tmp_path: Path) -> None:
    nano = EncoderConfig(width=128, depth=4, heads=4, mlp_ratio=4.0, patch_size=4, image_size=(16, 16))
    config = from_file(small_config(images, tmp_path), encoder_folder(tmp_path / "nano", nano))
    config = replace(config, run=replace(config.run, init_heads=None), model=replace(config.model, width=24))
    model = settled(config, (), fresh=False)[0].model
    assert (model.size, model.width, model.mlp_ratio, model.words()) == ("nano", None, None, "nano/4")


def test_the_predictor_follows_too_unless_another_is_asked_for(images: Path, tmp_path: Path) -> None:
    config = from_file(small_config(images, tmp_path), written(tmp_path / "w.pth.tar", official()))
    followed, read = settled(config, (), fresh=False)
    assert isinstance(followed.method, IJepaSettings)
    sizes = (followed.method.predictor_width, followed.method.predictor_depth, followed.method.predictor_heads)
    assert sizes == (12, 1, None)
    method = build_method(followed, default_view(followed.data), sampler(followed))
    start = start_method(method, followed, read)
    assert start is not None and start.predictor and start.new == () and "predictor" in start.hashes
    own, theirs = method.exports()["predictor"].module, load_any(str(config.run.init), Choice(heads=3)).predictor
    assert theirs is not None
    assert all(torch.equal(own.state_dict()[key], value) for key, value in theirs.state_dict().items())
    asked, read = settled(config, {"method.predictor_width"}, fresh=False)
    start = start_method(build_method(asked, default_view(asked.data), sampler(asked)), asked, read)
    assert start is not None and not start.predictor and start.new == ("predictor",)
    assert "the predictor is new: width 24 was asked for, and the weights' has width 12" in start.notes[-1]


def test_a_run_with_a_predictor_of_its_own_is_repeated_with_it(images: Path, tmp_path: Path) -> None:
    config = from_file(small_config(images, tmp_path), written(tmp_path / "w.pth.tar", official()))
    asked, _ = settled(config, {"method.predictor_width"}, fresh=False)
    save_yaml(asked, tmp_path / "config.yaml")
    again, options = parse_train(["--config", str(tmp_path)], "openjepa train", "")
    repeated, _ = settled(again, decided_by_file(options.config, again.run.init), fresh=False)
    assert repeated == asked and isinstance(asked.method, IJepaSettings) and asked.method.predictor_width == 24
    # other weights than the file's decide anew
    assert decided_by_file(options.config, "other") == set() == decided_by_file(None, again.run.init)


def test_small_recipes_keep_their_predictor_at_half_the_width(tmp_path: Path) -> None:
    folder = encoder_folder(tmp_path / "odd", ODD)
    config, _ = parse_train(["cpu-64", "--init", str(folder), "--data.path", "x"], "openjepa train", "")
    method = resolve(settled(config, (), fresh=False)[0]).method
    assert isinstance(method, IJepaSettings) and method.predictor_width == 16


def test_both_encoders_or_one_for_all(images: Path, tmp_path: Path) -> None:
    config = from_file(small_config(images, tmp_path), written(tmp_path / "w.pth.tar", official()))
    seeds = {"both": (1, 2), "target": (2, 2), "context": (1, 1)}
    for which, (trained, averaged) in seeds.items():
        asked = replace(config, run=replace(config.run, init_encoder=which))  # type: ignore[arg-type]
        followed, read = settled(asked, (), fresh=False)
        method = build_method(followed, default_view(followed.data), sampler(followed))
        start_method(method, followed, read)
        encoders = method.encoders()
        assert encoders.averaged is not None
        for network, seed in ((encoders.trained, trained), (encoders.averaged, averaged)):
            assert torch.equal(network.state_dict()["blocks.0.attn.qkv.weight"], weights(seed=seed)["blocks.0.attn.qkv.weight"])


def test_heads_of_the_predictor_follow_where_they_are_others_than_the_encoders(images: Path, tmp_path: Path) -> None:
    predictor = PredictorConfig(encoder_width=32, width=16, depth=1, heads=2, grid=(4, 4))
    method = following(small_config(images, tmp_path), ODD, predictor, (), "x").method
    assert isinstance(method, IJepaSettings)
    assert (method.predictor_width, method.predictor_depth, method.predictor_heads) == (16, 1, 2)


def test_how_positions_are_resampled_may_be_said(images: Path, tmp_path: Path) -> None:
    config = small_config(images, tmp_path)
    config = replace(config, model=replace(config.model, resampling_offset=0.1))
    assert following(config, ODD, None, {"model.resampling_offset"}, "x").model.resampling_offset == 0.1
    assert following(config, ODD, None, (), "x").model.resampling_offset == 0.0


def test_what_is_not_used_and_what_is_pooled_otherwise_is_said(images: Path, tmp_path: Path) -> None:
    """I-JEPA from an encoder with a mask token that was evaluated by its class token; MAE from I-JEPA's file."""
    token = replace(ODD, mask_token=True, class_token=True, pooling="class_token")
    masked = from_file(small_config(images, tmp_path), encoder_folder(tmp_path / "masked", token))
    masked = replace(masked, run=replace(masked.run, init_heads=None))
    mae = method_config("mae", images, tmp_path, total_steps=2)
    released = from_file(mae, written(tmp_path / "w.pth.tar", official()))
    said = []
    for config in (masked, released):
        followed, read = settled(config, (), fresh=False)
        start = start_method(build_method(followed, default_view(followed.data), sampler(followed)), followed, read)
        assert start is not None
        said.append([note for note in start.notes if not note.startswith("positions")])
    assert said[0] == [
        "the mask token of the weights is not used: ijepa needs none",
        "features are pooled by average, as ijepa is evaluated; those of the weights by class token",
    ]
    assert said[1][-1] == "the predictor of the weights is not used: mae has none"
