"""Evaluation of published weights: every format runs through the probes, and results lie where they may be written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import openjepa
from openjepa.commands.evaluate import evaluate, parse_evaluate
from openjepa.commands.parsing.arguments import check_evaluated
from openjepa.evaluation import evaluation_run
from openjepa.evaluation.evaluation_run import evaluate_run, find_subject
from openjepa.evaluation.suite_run import evaluate_suite
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.sources import FolderSettings
from openjepa.types import Export
from openjepa.weights.formats import load_any
from openjepa.weights.native import save_network
from tests.helpers.foreign_weights import DINO, HEADS, official, transformers_folder, weights, written
from tests.helpers.images import write_folder

SETTINGS = EvaluationSettings(device="cpu", precision="fp32", workers=0, protocols=("knn",), baselines=("pixels",), heads=3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> FolderSettings:
    return FolderSettings(path=str(write_folder(tmp_path_factory.mktemp("images") / "shapes", 30, size=16)), image_size=16)


CONTENTS: dict[str, Any] = {
    "released.pth.tar": official(),
    "mae.pth": {"model": weights(True)},
    "dino.pth": DINO,
    "timm.bin": weights(positions="learned"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_gives_the_results_of_its_encoder(name: str, images: FolderSettings, tmp_path: Path) -> None:
    """Equal to those of the same encoder in openjepa's own format; written beside the file."""
    path = written(tmp_path / name, CONTENTS[name])
    (result,) = evaluate_run(path, SETTINGS, images)
    assert (result.given, result.encoder) == ("encoder", "external")
    kept = [item.name for item in (tmp_path / f"{name}.results" / "eval").glob("*.json")]
    assert kept == ["classification-shapes-knn-only-heads-3-precision-fp32-no-untrained.json"]
    loaded = load_any(path, HEADS)
    save_network(tmp_path / "own", Export(loaded.config, loaded.encoder))
    (own,) = evaluate_run(tmp_path / "own", SETTINGS, images)
    assert own.subjects == result.subjects and own.num_test == 6


def test_a_context_encoder_has_results_of_its_own(images: FolderSettings, tmp_path: Path) -> None:
    path = written(tmp_path / "released.pth.tar", official())
    (result,) = evaluate_run(path, replace(SETTINGS, encoder="context", baselines=("untrained", "pixels")), images)
    assert result.variant == "context-shapes-knn-only-heads-3-precision-fp32" and set(result.subjects) == {
        "encoder",
        "untrained",
        "pixels",
    }
    with pytest.raises(ValueError, match="holds one encoder only"):
        evaluate_run(written(tmp_path / "mae.pth", CONTENTS["mae.pth"]), replace(SETTINGS, encoder="context"), images)


def test_a_hugging_face_folder_keeps_its_results(images: FolderSettings, tmp_path: Path) -> None:
    from tests.helpers.parity import DATA

    folder = transformers_folder(tmp_path / "hf", hidden_size=48, num_hidden_layers=3, intermediate_size=192)
    (folder / "config.json").write_text((DATA / "hf_ijepa" / "config.json").read_text())
    (folder / "model.safetensors").write_bytes((DATA / "hf_ijepa" / "model.safetensors").read_bytes())
    (result,) = evaluate_run(folder, replace(SETTINGS, heads=None, image_size=32), images)
    assert (
        result.image_size == (32, 32)
        and (folder / "eval" / "classification-shapes-32px-knn-only-precision-fp32-no-untrained.json").is_file()
    )


def test_a_suite_takes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ImageNet in miniature, with the probes of the suite and their baselines; other rows are skipped."""
    path, root = written(tmp_path / "dino.pth", CONTENTS["dino.pth"]), tmp_path / "data"
    write_folder(root / "imagenet" / "train", 24, size=16)
    write_folder(root / "imagenet" / "val", 8, size=16)
    settings = replace(SETTINGS, protocols=(), baselines=("untrained", "pixels"), iterations=5, selection="paper")
    results = {result.row: result for result in evaluate_suite(path, "cached", root, settings)}
    assert set(results["imagenet1k"].subjects) == {"encoder", "untrained", "pixels"}
    assert set(results["imagenet1k"].subjects["encoder"].metrics) == {"linear", "k-NN"}
    assert results["cifar100"].skipped and results["imagenet1k"].published
    assert len(list((tmp_path / "dino.pth.results" / "eval").glob("suite-imagenet1k-paper*.json"))) == 1
    assert "target encoder (teacher): ViT of width 24" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"heads=None, but .* has width 24"):
        evaluate_suite(path, "cached", root, replace(SETTINGS, heads=None))


def test_nothing_is_written_into_the_cache_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    snapshot = tmp_path / "hub" / "models--facebook--ijepa_vith14_1k" / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text('{"model_type": "ijepa"}')
    file = written(tmp_path / "vit.pth", weights())
    for path, place in (
        (snapshot, Path("evaluations/facebook--ijepa_vith14_1k")),
        (Path("facebook/ijepa_vith14_1k"), Path("evaluations/facebook--ijepa_vith14_1k")),
        (file, tmp_path / "vit.pth.results"),
    ):
        assert find_subject(path, SETTINGS, None).output == place
    monkeypatch.setattr(evaluation_run.os, "access", lambda *_: False)
    assert find_subject(file, SETTINGS, None).output == Path("evaluations/vit.pth")


def test_the_command_takes_files_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "vit.pth", weights())
    for given in (path, Path("facebook/ijepa_vith14_1k")):
        check_evaluated(given)
        options, data = parse_evaluate([str(given), "--heads", "3", "--encoder", "context"], "openjepa evaluate", "")
        assert (options.subject, options.evaluation.heads, options.evaluation.encoder, data) == (given, 3, "context", None)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match=r"runs/mistyped does not exist"):
        evaluate(["runs/mistyped"], "openjepa evaluate")
    with pytest.raises(ValueError, match=r"the images must be named: give --data\.source"):
        evaluate([str(path), "--heads", "3"], "openjepa evaluate")


@torch.no_grad()
def test_embed_takes_a_file(tmp_path: Path) -> None:
    """A width of the published models, so that nothing must be said."""
    save_file(weights(width=192), tmp_path / "vit.safetensors")
    from tests.helpers.images import shape_image

    features = openjepa.embed(tmp_path / "vit.safetensors", [shape_image(0, 16)])
    assert features.shape == (1, 192) and features.isfinite().all()
    assert json.dumps(openjepa.load(tmp_path / "vit.safetensors").config.heads) == "3"
