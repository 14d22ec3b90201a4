"""`--init`: how it is given, what a run records of the weights, what its evaluation calls them, and which settings follow."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from openjepa.commands.evaluate import print_results
from openjepa.commands.parsing.arguments import given_settings
from openjepa.commands.train import decided_by_file, parse_train
from openjepa.config import load_run_config, save_yaml
from openjepa.data.source import data_set_name
from openjepa.engine.run_folder import run_path, weights_name
from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.models.transformer import resampled_positions
from openjepa.models.vit import build_encoder
from openjepa.report import write_report
from openjepa.report.headline import headline
from openjepa.report.probes import probe_table
from openjepa.report.reading import read_run
from openjepa.settings.derived import resolve
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.methods import IJepaSettings
from openjepa.settings.models import EncoderConfig, PredictorConfig
from openjepa.settings.run import MonitorSettings, RunSettings
from openjepa.training.init import following, settled, start_encoder, start_method
from openjepa.training.loop import train
from openjepa.training.startup import build_method, default_view
from openjepa.visualization.figures import visualize_run
from openjepa.weights.formats import WeightsChoice, load_any
from tests.helpers.foreign_weights import ODD, encoder_folder, official, weights, written
from tests.helpers.images import write_folder
from tests.helpers.small_runs import from_file, method_config, sampler, small_config


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 40)


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that has started from a released checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    config = from_file(small_config(images, folder), written(folder / "w.pth.tar", official()))
    finished = train(config)
    assert finished is not None
    return finished


def test_learned_and_relative_positions_are_resampled_for_rectangles() -> None:
    for positions, key in (("learned", "pos_embed"), ("relative", "rel_pos_bias.relative_position_bias_table")):
        torch.manual_seed(0)
        config = replace(ODD, positions=positions, class_token=True)  # type: ignore[arg-type]
        source, network = build_encoder(config), build_encoder(replace(config, image_size=(24, 40)))
        with torch.no_grad():
            source.state_dict()[key].normal_()
        assert start_encoder(network, source, "x") == ([], [])
        found = network.state_dict()[key]
        if positions == "learned":
            assert source.pos_embed is not None
            expected = resampled_positions(source.pos_embed[0, 1:], (4, 4), (6, 10))
            assert torch.equal(found[0, 1:], expected) and torch.equal(found[:, :1], source.pos_embed[:, :1])
        else:
            assert found.shape == (11 * 19 + 3, 4) and torch.equal(found[-3:], source.state_dict()[key][-3:])
        # what is seen of an image of this shape is what the source would make of it, up to how it is computed
        pixels = torch.randn(2, 3, 24, 40)
        with torch.no_grad():
            torch.testing.assert_close(network.eval()(pixels).patches, source.eval()(pixels).patches, rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------------------------- command line


def test_short_names_and_what_was_given() -> None:
    words = ["cpu-64", "--init", "w.pth", "--init-heads=3", "--init-encoder", "context", "--data.path", "x"]
    config, _ = parse_train(words, "openjepa train", "")
    assert (config.run.init, config.run.init_heads, config.run.init_encoder) == ("w.pth", 3, "context")
    same, _ = parse_train(["cpu-64", "--run.init", "w.pth", "--data.path", "x"], "openjepa train", "")
    assert same.run.init == "w.pth"
    given = given_settings(["cpu-64", "--run.init", "w", "--model.no-class-token", "--data.image-size=64", "--fresh"])
    assert given == {"run.init", "model.class_token", "data.image_size", "fresh"}


def test_without_a_recipe_the_run_that_is_named_is_repeated_in_a_folder_of_its_own(run: Path, tmp_path: Path) -> None:
    before = load_run_config(run)
    config, _ = parse_train(["--init", str(run), "--run.output", str(tmp_path)], "openjepa train", "")
    assert (config.method, config.optim, config.masks, config.data) == (
        before.method,
        before.optim,
        before.masks,
        before.data,
    )
    assert config.run.init == str(run) and config.run.name is None
    other = replace(before.run, seed=7, device="cuda", precision="fp32", compile=True)
    save_yaml(replace(before, run=other), tmp_path / "config.yaml")
    own = parse_train(["--init", str(tmp_path)], "openjepa train", "")[0].run
    assert own == RunSettings(init=str(tmp_path), seed=7, device="cuda", precision="fp32", compile=True)
    assert run_path(config) == tmp_path / f"{data_set_name(before.data)}-from-run"
    continued = train(config)
    assert continued is not None and continued != run
    record = json.loads((continued / "summary.json").read_text())["init"]
    assert record["what"].startswith("openjepa's run, target encoder") and record["predictor"] and record["new"] == []
    first, last = (load_file(folder / "model.safetensors") for folder in (continued / "encoder_initial", run / "encoder"))
    assert first.keys() == last.keys() and all(torch.equal(first[key], value) for key, value in last.items())


@pytest.mark.parametrize(
    ("init", "name"),
    [
        ("/x/IN1K-vit.h.14-300e.pth.tar", "IN1K-vit.h.14-300e"),
        ("/x/hf/model.safetensors", "hf-model"),
        ("/x/run/encoder", "run-encoder"),
        ("facebook/ijepa_vith14_1k", "ijepa_vith14_1k"),
        ("hf:facebook/ijepa_vith14_1k", "ijepa_vith14_1k"),
        ("hf:me/encoder", "me-encoder"),
        ("hf:encoder", "encoder"),
        ("/x/dino_deitsmall16_pretrain.pth", "dino_deitsmall16_pretrain"),
    ],
)
def test_runs_are_named_after_the_weights(init: str, name: str) -> None:
    assert weights_name(init) == name


@pytest.mark.parametrize("name", ["hf/theirs", "theirs/encoder"])
def test_a_run_is_found_again_when_folders_of_weights_are_gone(
    name: str, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though owner/name could mean the Hub, and an encoder is called after the run that held it."""
    monkeypatch.chdir(tmp_path)
    encoder_folder(tmp_path / name, ODD)
    (tmp_path / name.split("/")[0] / "config.yaml").touch()
    config = small_config(images, tmp_path / "runs")
    config = replace(config, run=replace(config.run, init=name, name=None), monitor=MonitorSettings(every=0))
    started = train(config)
    assert started is not None and started.name.endswith("from-theirs" if name == "hf/theirs" else "from-theirs-encoder")
    shutil.rmtree(tmp_path / name.split("/")[0])
    assert train(config) == started


# -------------------------------------------------------------------------------------------------------------- records


def test_a_run_says_what_it_has_started_from(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = str(run.parent / "w.pth.tar")
    record = json.loads((run / "summary.json").read_text())["init"]
    assert record == json.loads((run / "environment.json").read_text())["init"]
    assert record["path"] == expected == load_run_config(run).run.init
    assert record["what"].startswith("I-JEPA's released checkpoint of epoch 7, target encoder")
    assert record["context"].startswith("I-JEPA's released checkpoint of epoch 7, context encoder")
    assert set(record["hashes"]) == {"encoder", "context_encoder", "predictor"}
    assert record["notes"] == ["positions are computed for the grid of this run, 8x8 patches; the weights have seen 4x4"]
    initial = load_file(run / "encoder_initial" / "model.safetensors")
    assert torch.equal(initial["norm.weight"], weights(seed=2)["norm.weight"])
    assert all(torch.equal(value, weights(seed=2)[key]) for key, value in initial.items())
    trained = load_file(run / "encoder" / "model.safetensors")
    assert not torch.equal(trained["blocks.0.attn.qkv.weight"], initial["blocks.0.attn.qkv.weight"])
    train(load_run_config(run), dry_run=True)
    said = capsys.readouterr().out
    assert "width 24, 2 blocks, 3 heads, patch 4 from w; " in said and "start  " not in said, "it has begun"


def test_a_dry_run_reads_the_weights_and_writes_nothing(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = from_file(small_config(images, tmp_path / "runs"), written(tmp_path / "w.pth.tar", official()))
    assert train(config, dry_run=True) is None and not (tmp_path / "runs").exists()
    said = capsys.readouterr().out
    assert "I-JEPA's released checkpoint of epoch 7" in said and "with its predictor" in said


def test_weights_that_are_named_otherwise_make_another_run(run: Path, tmp_path: Path) -> None:
    config = load_run_config(run)
    other = written(tmp_path / "other.pth.tar", official())
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(ValueError, match=rf"(?s)run\.init: .* -> '{other}'.*--fresh"):
        train(replace(config, run=replace(config.run, init=str(other))))
    with pytest.raises(ValueError, match=r"run\.init: .* -> None"):
        train(replace(config, run=replace(config.run, init=None, init_heads=None)))
    with pytest.raises(ValueError, match=r"run\.init_encoder: 'both' -> 'target'"):
        train(replace(config, run=replace(config.run, init_encoder="target")))
    assert (run / "config.yaml").read_bytes() == before


def test_a_shape_may_be_spelled_otherwise_when_a_run_goes_on(run: Path) -> None:
    """As on the command line of before, where an option said what the weights say."""
    config = load_run_config(run)
    asked = replace(config, model=replace(config.model, size="small", width=24, depth=2, heads=3, mlp_ratio=2.0))
    assert train(asked, given={"model.width"}) == run
    with pytest.raises(ValueError, match=r"model\.width: 24 -> 48"):
        train(replace(config, model=replace(config.model, width=48)), given={"model.width"})


def test_a_run_without_a_usable_checkpoint_starts_from_the_weights_again(images: Path, tmp_path: Path) -> None:
    config = from_file(small_config(images, tmp_path), written(tmp_path / "w.pth.tar", official()))
    first = train(config)
    assert first is not None
    expected = (first / "encoder" / "model.safetensors").read_bytes()
    for path in (
        first / "checkpoints"
    ).iterdir():  # as a kill between the first checkpoint and its export leaves it, but broken
        (path / "trainer.json").write_text("{}")
    shutil.rmtree(first / "encoder")
    assert train(config) == first
    assert (first / "encoder" / "model.safetensors").read_bytes() == expected


# ----------------------------------------------------------------------------------------------------------- evaluation


def test_the_weights_of_the_start_stand_beside_random_ones(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = EvaluationSettings(device="cpu", precision="fp32", workers=0, neighbors=(3,), iterations=5)
    results = evaluate_run(run, settings)
    (result,) = (item for item in results if item.task == "classification")
    assert list(result.subjects) == ["encoder", "start", "untrained", "pixels"]
    assert result.variant == "precision-fp32-iterations-5-neighbors-3", "more baselines are no variant"
    measures = result.measures
    alone = shutil.copytree(run / "encoder_initial", tmp_path / "alone")
    initial = evaluate_run(alone, settings, load_run_config(run).data)[0]
    assert measures["start"]["RankMe"] == pytest.approx(initial.measures["encoder"]["RankMe"], rel=1e-4)
    assert measures["untrained"]["RankMe"] != pytest.approx(measures["start"]["RankMe"], rel=1e-3)

    print_results([result], Console(width=80))
    printed = capsys.readouterr().out
    assert "start: the weights that the run began from; untrained: random ones" in printed
    assert all(len(line) <= 80 for line in printed.splitlines() if "kept as eval/" not in line)
    head = headline(probe_table([read_run(run)]))
    assert head is not None and [bar.word for bar in head.bars] == ["trained", "start", "untrained", "pixels"]
    assert " vs start " in head.sentence and "best baseline" in head.gain
    page = write_report([run]).read_text()
    assert "of the weights that the run began from (start), of an untrained encoder" in page
    assert "Began from" in page and f"trained further from {run.parent.name}/w.pth.tar" in page
    assert "ViT test" not in page and "width 24, 2 blocks, 3 heads" in page, "of another shape than the size it is set over"


def test_without_baselines_there_is_no_start_either(run: Path) -> None:
    settings = EvaluationSettings(device="cpu", precision="fp32", workers=0, neighbors=(3,), baselines=("pixels",))
    result = evaluate_run(run, replace(settings, protocols=("knn",)))[0]
    assert list(result.subjects) == ["encoder", "pixels"]


def test_pictures_say_start(run: Path) -> None:
    pytest.importorskip("matplotlib")
    visualize_run(run, num_images=2, device="cpu")
    captions = json.loads((run / "figures" / "figures.json").read_text())["figures"]
    (features,) = (item for item in captions if item["title"] == "Patch features")
    assert "Start: the weights that the run began from." in features["caption"]


# ---- settings that follow the weights


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
    own, theirs = method.exports()["predictor"].module, load_any(str(config.run.init), WeightsChoice(heads=3)).predictor
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


def test_a_joint_pass_of_the_weights_is_kept_unless_another_is_given(images: Path, tmp_path: Path) -> None:
    predictor = PredictorConfig(encoder_width=32, width=16, depth=1, heads=2, grid=(4, 4), passes="joint")
    for given, expected in (((), "joint"), (("method.predictor_pass",), "separate")):
        method = following(small_config(images, tmp_path), ODD, predictor, given, "x").method
        assert isinstance(method, IJepaSettings) and method.predictor_pass == expected


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
