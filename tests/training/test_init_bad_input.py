"""Weights that a run cannot start from, and options that contradict them, are one clear error before anything is written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.cli import main
from openjepa.config import save_yaml
from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig
from openjepa.settings.run import RunConfig
from openjepa.training.init import settled, start_encoder
from openjepa.training.loop import train
from tests.helpers.foreign_weights import ODD, encoder_folder, official, prefixed, weights, written
from tests.helpers.images import write_folder
from tests.helpers.small_runs import small_config


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 24)


@pytest.fixture
def config(images: Path, tmp_path: Path) -> RunConfig:
    """A run that starts from a released checkpoint."""
    config = small_config(images, tmp_path / "runs")
    return starting(config, written(tmp_path / "w.pth.tar", official()))


def starting(config: RunConfig, path: Path | str, **changed: Any) -> RunConfig:
    return replace(config, run=replace(config.run, **{"init": str(path), "init_heads": 3, **changed}))


def refused(config: RunConfig, match: str, given: set[str] | None = None) -> None:
    """Refused with a message, and nothing is left."""
    with pytest.raises(ValueError, match=match):
        train(config, given=given or set())
    assert not Path(config.run.output).exists()


# ---------------------------------------------------------------------------------------------------------- the weights


def test_files_that_cannot_be_read(config: RunConfig, tmp_path: Path) -> None:
    refused(starting(config, ""), "run.init is empty")
    refused(starting(config, tmp_path / "absent.pth"), r"run\.init: .*absent\.pth does not exist; .*name a run folder")
    data = (tmp_path / "w.pth.tar").read_bytes()
    (tmp_path / "cut.pth.tar").write_bytes(data[: len(data) // 2])
    refused(starting(config, tmp_path / "cut.pth.tar"), r"run\.init: .*cut\.pth\.tar is damaged")
    resnet = written(tmp_path / "resnet.pth", {"conv1.weight": torch.ones(64, 3, 7, 7)})
    refused(starting(config, resnet), r"run\.init: .* is of no known format\. It holds conv1\.weight")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pickled.pth")
    refused(starting(config, tmp_path / "pickled.pth"), "openjepa executes nothing")
    short = official()
    short["target_encoder"].pop("module.norm.weight")
    path = written(tmp_path / "short.pth.tar", short)
    refused(starting(config, path), r"target_encoder: missing norm\.weight")


def test_heads_that_nothing_tells(config: RunConfig, tmp_path: Path) -> None:
    refused(
        starting(config, tmp_path / "w.pth.tar", init_heads=None), r"has width 24, .*attention heads.*\(here --init-heads\)"
    )
    refused(starting(config, encoder_folder(tmp_path / "odd", ODD)), r"heads=3, but .*odd says itself that it has 4")
    refused(starting(config, tmp_path / "w.pth.tar", init_heads=5), "5.*24")


def test_an_encoder_that_is_not_there(config: RunConfig, tmp_path: Path) -> None:
    alone = written(tmp_path / "teacher.pth", {"teacher": prefixed(weights(True, "learned"), "backbone.")})
    wanted = starting(config, alone, init_encoder="context")
    refused(wanted, r"encoder='context': .* has no student or encoder, only teacher.*\(here --init-encoder\)")
    refused(starting(config, written(tmp_path / "one.pth", weights()), init_encoder="context"), "holds one encoder only")
    half = written(tmp_path / "half.pth.tar", {key: part for key, part in official().items() if key != "target_encoder"})
    refused(starting(config, half), r"encoder='target': .* has no target_encoder.*\(here --init-encoder\)")
    assert settled(starting(config, half, init_encoder="context"), (), fresh=False)[1] is not None


def test_names_on_the_hub(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs huggingface_hub")
    monkeypatch.chdir(tmp_path)

    def unreachable(name: str, allow_patterns: list[str]) -> str:
        raise OSError(f"no network for {name}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    wanted = r"run\.init: facebook/ijepa_vith14_1k .*Hugging Face Hub: no network for facebook/ijepa_vith14_1k"
    refused(starting(config, "facebook/ijepa_vith14_1k", init_heads=None), wanted)


@torch.no_grad()
def test_an_encoder_of_another_shape_is_listed() -> None:
    """Settings follow the weights, so only a mistake of ours could lead here: nothing is copied in part."""
    torch.manual_seed(0)
    config = replace(ODD, layer_scale=None)
    network = build_encoder(config)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    deeper: EncoderConfig = replace(config, depth=3)
    with pytest.raises(ValueError, match=r"run\.init=x .*left over blocks\.2\.norm1\.weight, .*blocks\.2\.mlp\.fc2\.bias$"):
        start_encoder(network, build_encoder(deeper), "x")
    with pytest.raises(ValueError, match=r"missing blocks\.0\.gamma_1, .*"):
        start_encoder(build_encoder(ODD), network, "x")
    with pytest.raises(ValueError, match=r"of another shape .*mlp\.fc1\.weight \[64, 32\] instead of \[96, 32\]"):
        start_encoder(network, build_encoder(replace(config, mlp_ratio=2.0)), "x")
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


# ---------------------------------------------------------------------------------------------------------- the options


@pytest.mark.parametrize(
    ("changed", "given", "message"),
    [
        (
            {"size": "base", "patch_size": 4},
            {"model.size"},
            r"model\.size=base \(width 768, depth 12, 12 heads, MLP ratio 4\), but the weights have width 24, depth 2, 3 heads",
        ),
        ({"width": 48}, {"model.width"}, r"model\.width=48, but the weights have 24: leave it out"),
        ({"patch_size": 8}, {"model.patch_size"}, r"model\.patch_size=8, but the weights have 4"),
        ({"class_token": True}, {"model.class_token"}, r"model\.class_token=True, but the weights have False"),
        ({"positions": "learned"}, {"model.positions"}, r"model\.positions=learned, but the weights have sincos"),
        (
            {"depth": 4, "heads": 6},
            {"model.depth", "model.heads"},
            r"model\.depth=4, but the weights have 2; model\.heads=6, but the weights have 3",
        ),
    ],
)
def test_options_that_contradict_the_weights(config: RunConfig, changed: dict[str, Any], given: set[str], message: str) -> None:
    contradicting = replace(config, model=replace(config.model, **changed))
    refused(contradicting, rf"run\.init=.*w\.pth\.tar contradicts {message}", given)
    followed, _ = settled(contradicting, (), fresh=False)
    assert followed.model.shape().width == 24, "what a recipe says gives way"


def test_pixels_that_contradict_the_weights(config: RunConfig, tmp_path: Path) -> None:
    pixels = {"data.pixel_mean"}
    other = replace(config, data=replace(config.data, pixel_mean=(0.5, 0.5, 0.5)))
    folder = replace(other, run=replace(other.run, init=str(encoder_folder(tmp_path / "odd", ODD)), init_heads=None))
    refused(folder, r"data\.pixel_mean=0\.5 0\.5 0\.5, but the weights have 0\.5 0\.4 0\.3", pixels)
    # a file of tensors alone says nothing of them
    found = settled(other, pixels, fresh=False)[0].data
    assert found.pixel_mean == (0.5, 0.5, 0.5) and found.pixel_std == EncoderConfig.pixel_std
    assert settled(other, (), fresh=False)[0].data.pixel_mean == EncoderConfig.pixel_mean, "ImageNet's, where nobody says"


def test_images_that_are_no_whole_number_of_patches(config: RunConfig) -> None:
    other = replace(config, data=replace(config.data, image_size=30))
    refused(other, r"the patch size 4 of run\.init=.* \(trained at 16\) does not divide data\.image_size=30x30: use .*=32$")


def test_what_the_method_needs_of_the_model_is_checked_with_the_weights(config: RunConfig) -> None:
    narrow = replace(config, method=replace(config.method, predictor_width=10))  # type: ignore[call-arg]
    refused(narrow, r"method\.predictor_heads=3 does not divide method\.predictor_width \(10\)", {"method.predictor_width"})


def test_weights_for_a_run_that_has_begun_without_them(config: RunConfig, tmp_path: Path) -> None:
    """`openjepa train --config runs/old --init X`: not that run any more."""
    plain = replace(config, run=replace(config.run, init=None, init_heads=None))
    run = train(plain)
    assert run is not None
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"(?s)run\.init: None -> .*--fresh or --run\.name"):
        train(config)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    fresh = train(config, fresh=True)
    assert fresh is not None and fresh != run


# ------------------------------------------------------------------------------------------------------ the command line


def test_the_command_line_says_it_in_one_message(
    config: RunConfig, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_yaml(config, tmp_path / "config.yaml")
    for words, message in (
        (["cpu-32", "--init", "absent.pth", "--data.path", str(images)], "absent.pth does not exist"),
        (["--config", "config.yaml", "--model.size", "base"], "contradicts model.size=base"),
        (
            ["--init", "w.pth.tar", "--data.path", str(images)],
            "--init w.pth.tar is no run that says its settings: give a recipe with it",
        ),
        (["cpu-32", "--init", "w.pth.tar", "--init-heads", "0", "--data.path", str(images)], "run.init_heads=0"),
        (["cpu-32", "--init", "w.pth.tar", "--data.path", str(images), "--optim.lr", "-1"], "optim.lr=-1.0"),
        (["cpu-32", "--init-haeds", "3", "--data.path", str(images)], "did you mean '--run.init-heads'"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(["train", *words])
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and message in said and len(said.strip().splitlines()) == 1, said
    assert not (tmp_path / "runs").exists()


def test_options_without_weights_are_remarked(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--init-heads", "3", "--init-encoder", "target", "--run.output", str(tmp_path), "--dry-run"]
    main(["train", "cpu-32", "--data.path", str(images), "--optim.batch-size", "8", *words])
    said = capsys.readouterr().err
    assert "run.init_heads=3 has no effect without run.init" in said and "run.init_encoder=target has no effect" in said
