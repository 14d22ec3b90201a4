"""The model card says what the run's files say, of just these weights, and nothing more."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from openjepa.records import read_evaluation
from openjepa.report.reading import read_run
from openjepa.settings.inference import ConvertSettings
from openjepa.types import Export
from openjepa.weights import OUTPUTS
from openjepa.weights.contents import weights_hash
from openjepa.weights.convert.card import CardFacts, card, loading
from openjepa.weights.convert.conversion import convert
from openjepa.weights.convert.origin import Origin, published
from openjepa.weights.formats import load_any
from openjepa.weights.native import save_network
from tests.helpers.example_run import write_evaluations, write_run, write_variant
from tests.helpers.weights_written import CONFIG, CONFIGS, run_folder

GOLDEN = Path(__file__).parents[2] / "golden" / "card.md"
FACTS = CardFacts(
    name="out",
    to="transformers",
    what="openjepa's run, target encoder: ViT-S/8 at 64",
    source="mine",
    config=asdict(CONFIG),
    model="IJepaModel",
    dtype="float32",
    has_predictor=True,
    license=None,
    is_ours=True,
)


def converted(run: Path, tmp_path: Path, **changed: Any) -> tuple[dict[str, Any], str]:
    """Front matter and text of a card."""
    settings = ConvertSettings(subject=run, to="timm", output=tmp_path / "out", overwrite=True)
    text = (convert(replace(settings, **changed)).folder / "README.md").read_text()
    _, head, body = text.split("---\n", maxsplit=2)
    return yaml.safe_load(head), body


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = run_folder(tmp_path / "woof")
    write_evaluations(folder)
    return folder


def test_a_whole_card_is_the_golden_one(tmp_path: Path) -> None:
    """Every chapter: a run with results, settings, checks, remarks and a predictor, in half precision."""
    folder = write_run(tmp_path / "woof")
    write_evaluations(folder)
    run = read_run(folder)
    results = [result for result in run.evaluations if not result.skipped]
    more = {"checks": ("features are equal",), "remarks": ("one remark",), "license": "mit", "dtype": "float16"}
    whole = replace(FACTS, run=run, results=results, has_settings=True, **more)
    assert card(whole) == GOLDEN.read_text()


@pytest.mark.parametrize("name", ["photos, summer", "a: b", "imagewoof128"])
def test_data_has_its_whole_name(run: Path, tmp_path: Path, name: str) -> None:
    """Not what stands before the first comma or colon of the line that describes it, but for results of before."""
    for file in (run / "eval").glob("*.json"):
        result = json.loads(file.read_text()) | {"data": f"{name}: 100 images to train", "data_name": name}
        file.write_text(json.dumps(result))
    head, _ = converted(run, tmp_path)
    assert {result["dataset"]["name"] for result in head["model-index"][0]["results"]} == {name}


def test_a_run_tells_its_data_recipe_and_results(run: Path, tmp_path: Path) -> None:
    head, body = converted(run, tmp_path)
    assert (
        head["license"] == "unknown" and head["library_name"] == "timm" and head["pipeline_tag"] == "image-feature-extraction"
    )
    assert {"openjepa", "ijepa", "timm"} <= set(head["tags"])
    (index,) = head["model-index"]
    numbers = {metric["name"]: metric["value"] for result in index["results"] for metric in result["metrics"]}
    assert numbers == {"linear (accuracy, %)": 61.2, "k-NN (accuracy, %)": 53.4}
    # beside the baselines, with sqrt(p (1 - p) / 3929)
    assert "| linear | 61.2 ± 0.8 | 45.1 ± 0.8 | 41.0 ± 0.8 | 3929 |" in body
    assert "| k-NN | 53.4 ± 0.8 | 30.2 ± 0.7 | 28.1 ± 0.7 | 3929 |" in body
    for said in (
        "| Method | I-JEPA |",
        "| Recipe | ijepa-vits16 (paper) |",
        "batch 128",
        "AMD EPYC",
        "| Seed | 0 |",
        "training.yaml",
    ):
        assert said in body
    assert "The license of these weights is not stated" in body and "No labels were used." in body
    assert "timm, read back by openjepa: weights, and features at 16x16 and 8x12 are equal" in body
    assert "`out` is this folder; on the Hub put `owner/out` there, and `hf-hub:` for `local-dir:`" in body


def test_no_folder_of_the_user_is_told(run: Path, tmp_path: Path) -> None:
    """Not where images and weights lay; also not through a second conversion, or from a run without a summary."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["data"]["path"], settings["run"] = (
        "/data/alice/secret/woof",
        {"output": "~/secret/runs", "init": "/mnt/alice/x.pth"},
    )
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    (run / "summary.json").unlink()
    (run / "environment.json").unlink()
    head, body = converted(run, tmp_path)
    again = convert(ConvertSettings(subject=tmp_path / "out", to="transformers", output=tmp_path / "again")).folder
    for folder in (tmp_path / "out", again):
        for path in folder.rglob("*"):
            data = path.read_bytes() if path.is_file() else b""
            assert not any(word in data for word in (b"alice", b"secret", str(tmp_path).encode())), path
        kept = yaml.safe_load((folder / "training.yaml").read_text())
        assert kept == settings | {
            "data": settings["data"] | {"path": "woof"},
            "run": {"output": "runs", "init": "x.pth"},
        }
    assert (
        "| Began from | x.pth |" in body
        and "began from the weights `x.pth`; their license" in body
        and "base_model" not in head
    )


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("/data/alice/photos/", "photos"),
        ("~/photos", "photos"),
        ("../alice/imagenet/train-*.tar", "imagenet/train-*.tar"),
        (r"C:\Users\alice\photos", "photos"),
        ("ILSVRC/imagenet-1k", "ILSVRC/imagenet-1k"),
        ("multiblock", "multiblock"),
    ],
)
def test_places_are_cut_and_names_are_not(said: str, kept: str) -> None:
    assert published({"a": {"b": [said, 1, None]}}) == {"a": {"b": [kept, 1, None]}}


def test_weights_of_the_hub_that_a_training_began_from(run: Path) -> None:
    folder = read_run(run)
    config = {**folder.config, "run": {"init": "facebook/ijepa_vith14_1k"}}
    assert "base_model: facebook/ijepa_vith14_1k\n" in card(replace(FACTS, run=replace(folder, config=config)))


def test_a_run_that_has_gone_on_says_so(run: Path, tmp_path: Path) -> None:
    network = load_any(run)
    save_network(run / "encoder", Export(network.config, network.encoder, {"step": 100}))
    _, body = converted(run, tmp_path)
    assert "The weights are of step 100; images seen, time and compute of the recipe are of step 4,400." in body


def test_results_of_a_converted_folder(run: Path, tmp_path: Path) -> None:
    """They are in the card of the next conversion, and are not overwritten."""
    converted(run, tmp_path)
    write_evaluations(tmp_path / "out")
    write_variant(tmp_path / "out", "classification", encoder="external", weights=weights_hash(load_any(run).encoder))
    again = convert(ConvertSettings(subject=tmp_path / "out", to="safetensors", output=tmp_path / "again")).folder
    assert "| linear | 61.2" in (again / "README.md").read_text()
    with pytest.raises(ValueError, match=r"holds eval/, results of `openjepa evaluate` that would be lost"):
        converted(run, tmp_path)


def test_results_of_other_weights_are_left_out(run: Path, tmp_path: Path) -> None:
    """Those of an earlier step, of other weights by their hash, and of the context encoder."""
    write_variant(run, "classification-early", shift=0.1, step=10)
    write_variant(run, "classification-other", shift=0.2, weights="0" * 64)
    write_variant(run, "classification-context", shift=0.3, encoder="context")
    head, body = converted(run, tmp_path)
    assert len(head["model-index"][0]["results"]) == 2
    assert "2 results in eval/ are of other weights and are left out." in body.replace("\n", " ")
    assert not any(number in body for number in ("71.2", "81.2", "91.2"))
    head, body = converted(run, tmp_path, encoder="context")
    assert "| linear | 91.2" in body and "61.2" not in body


def test_results_count_where_their_hash_is_that_of_the_weights() -> None:
    folder = read_run_of([{"encoder": "target", "weights": "abc", "step": 3}, {"encoder": "target", "weights": "abd"}])
    kept, remarks = Origin("x", True, "abc", folder, training={"step": 9}).results_of("target", True)
    assert [item.weights for item in kept] == ["abc"] and len(remarks) == 1
    _, remarks = Origin("x", True, "abc", folder).results_of("target", False)
    assert remarks[-1] == "results were measured before positions were made for another image size"


def read_run_of(evaluations: list[dict[str, Any]]) -> Any:
    from types import SimpleNamespace

    return SimpleNamespace(evaluations=[read_evaluation(item, "x") for item in evaluations], is_encoder=True)


def test_nothing_is_claimed_where_nothing_is_known() -> None:
    text = card(replace(FACTS, is_ours=False, source="file.pth", what="DINO or alike: ViT-S/16 at 224"))
    assert "model-index" not in text and "datasets" not in text and "None recorded for these weights" in text
    assert "its data is not known here" in text and "converted from `file.pth`" in text
    assert "license: unknown" in text and "not stated" in text


def test_names_of_the_hub_are_data_sets(run: Path) -> None:
    """A local path of two parts is none."""
    folder = read_run(run)
    config = {**folder.config, "data": {"source": "huggingface", "path": "ILSVRC/imagenet-1k"}}
    assert "datasets:\n- ILSVRC/imagenet-1k\n" in card(replace(FACTS, run=replace(folder, config=config)))
    for source, path in (("folder", "ILSVRC/imagenet-1k"), ("huggingface", "~/data/x"), ("huggingface", "tests/parity")):
        changed = {**folder.config, "data": {"source": source, "path": path}}
        assert "\ndatasets:" not in card(replace(FACTS, run=replace(folder, config=changed)))


def test_text_of_a_file_cannot_break_the_table(run: Path, tmp_path: Path) -> None:
    write_variant(run, "classification-x", title="a | b\nc", data="d | e: 3 images")
    _, body = converted(run, tmp_path)
    assert "| a / b c, d / e | linear | 61.2" in body


def test_limits_of_positions() -> None:
    warning = "other programs stretch the fixed sin-cos positions"
    assert warning in card(FACTS) and warning not in card(replace(FACTS, config=asdict(CONFIGS["learned"])))
    assert warning not in card(replace(FACTS, to="onnx"))
    assert "timm smooths learned positions" in card(replace(FACTS, to="timm", config=asdict(CONFIGS["learned"])))
    assert "stored in float16" in card(replace(FACTS, dtype="float16"))


@pytest.mark.parametrize("to", OUTPUTS)
@pytest.mark.parametrize("name", ["ijepa", "class token", "dino"])
def test_code_of_a_card_is_code(to: str, name: str) -> None:
    """It parses, and names the folder; the pooling is the encoder's own."""
    config = asdict(CONFIGS[name])
    model = "ViTModel" if config["class_token"] else "IJepaModel"
    found = dict(loading(to, "some/where", config, model))
    assert len(found) == (1 if to in ("safetensors", "onnx") else 2)
    for code in found.values():
        compile(code, "card", "exec")
        assert '"some/where' in code or "local-dir:some/where" in code
    if to == "transformers":
        expected = {"ijepa": "tokens.mean(dim=1)", "class token": "tokens[:, 1:].mean(dim=1)", "dino": "tokens[:, 0]"}[name]
        assert f"features = {expected}" in found[to] and ("add_pooling_layer=False" in found[to]) is config["class_token"]


def test_a_card_needs_no_torch() -> None:
    code = "import sys, openjepa.weights.convert.card; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_snippet_of_transformers_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And that of openjepa: on a picture, with the same features but for rounding of the resampled pixels."""
    pytest.importorskip("transformers", reason="needs transformers (pip install transformers)")
    import torch
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    convert(ConvertSettings(subject=run_folder(tmp_path / "woof"), to="transformers"))
    for name, color in (("cat.jpg", (200, 30, 90)), ("dog.jpg", (20, 130, 30))):
        Image.new("RGB", (40, 30), color).save(name)
    values: dict[str, Any] = {}
    for library, code in loading("transformers", "woof-transformers", asdict(CONFIG), "IJepaModel"):
        exec(code, space := {})
        values[library] = space["features"]
    assert values["openjepa"].shape == (2, 24)
    assert torch.nn.functional.cosine_similarity(values["openjepa"][:1], values["transformers"]).item() > 0.999
