"""`--init`: how it is given, what a run records of the weights, and what its evaluation calls them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from openjepa.commands.parsing.arguments import given_settings
from openjepa.commands.train import parse_train
from openjepa.config import load_run_config, save_yaml
from openjepa.engine.run_folder import run_path, weights_name
from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.evaluation.tables import print_results
from openjepa.models.positions import resampled_positions
from openjepa.models.vit import build_encoder
from openjepa.report import write_report
from openjepa.report.headline import headline
from openjepa.report.probes import table
from openjepa.report.reading import read_run
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.settings.run import MonitorSettings, RunConfig, RunSettings
from openjepa.training.init import start_encoder
from openjepa.training.loop import train
from openjepa.types import Export
from openjepa.visualization.figures import visualize_run
from openjepa.weights.native import save_network
from tests.helpers.images import write_folder
from tests.training.test_loop import small_config
from tests.weights.test_formats import official, weights, written

ODD = EncoderConfig(
    width=32,
    depth=2,
    heads=4,
    mlp_ratio=3.0,
    patch_size=4,
    image_size=(16, 16),
    layer_scale=1e-4,
    layer_norm_eps=1e-5,
    pixel_mean=(0.5, 0.4, 0.3),
    pixel_std=(0.2, 0.3, 0.25),
)


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


def from_file(config: RunConfig, path: Path | str) -> RunConfig:
    run = replace(config.run, init=str(path), init_heads=3)
    return replace(config, run=run, monitor=MonitorSettings(every=0))


def encoder_folder(folder: Path, config: EncoderConfig) -> Path:
    torch.manual_seed(1)
    save_network(folder, Export(config, build_encoder(config)))
    return folder


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
    assert run_path(config) == tmp_path / f"{before.data.name()}-from-run"
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
    head = headline(table([read_run(run)]))
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
