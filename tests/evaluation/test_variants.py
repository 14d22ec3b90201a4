"""What a result's file is called: every evaluation that is not the run's own has a file of its own."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openjepa.evaluation import PROTOCOLS
from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.evaluation.result_names import data_name, variant_name
from openjepa.settings.evaluation import DenseSettings, EvaluationSettings, FinetuneSettings, LogisticSettings
from openjepa.settings.sources import FolderSettings
from openjepa.types import Export
from openjepa.weights.native import save_network
from tests.evaluation.test_dataset_run import CONFIG, SETTINGS, encoder, images, run
from tests.helpers.images import write_folder

__all__ = ["images", "run"]


@pytest.mark.parametrize(
    ("changed", "variant"),
    [
        ({"selection": "paper"}, "paper"),
        ({"image_size": 24}, "24px"),
        ({"image_size": (32, 24)}, "32x24px"),
        ({"image_size": 32}, ""),
        ({"max_train_images": 20, "selection": "paper"}, "paper-max20"),
        ({"protocols": ("linear",)}, "linear-only"),
        ({"protocols": ("knn", "linear")}, ""),
        ({"baselines": ("pixels",)}, "no-untrained"),
        ({"encoder": "context"}, "context"),
        ({"neighbors": (1, 3), "seed": 7}, "seed-7-neighbors-1-3"),
        ({"finetune": FinetuneSettings(epochs=10)}, ""),  # no protocol heeds it
        ({"protocols": ("linear",), "weight_decays": (1.0,), "iterations": 2}, "linear-only-weight_decays-1.0-iterations-2"),
    ],
)
def test_an_evaluation_with_other_settings_has_its_own_file(run: Path, changed: dict[str, Any], variant: str) -> None:
    save_network(run / "context_encoder", Export(CONFIG, encoder(2)))
    own = run / "eval" / "classification.json"
    own.parent.mkdir()
    own.write_text('{"subjects": "the run\'s own"}')
    (result,) = evaluate_run(run, replace(SETTINGS, **changed))
    name = f"classification-{variant}.json" if variant else "classification.json"
    assert result.variant == variant and json.loads((run / "eval" / name).read_text())["variant"] == variant
    assert (own.read_text() == '{"subjects": "the run\'s own"}') == bool(variant)


def test_other_data_has_its_own_file(run: Path, images: Path, tmp_path: Path) -> None:
    own = FolderSettings(path=str(images), image_size=32)
    other = write_folder(tmp_path / "other", 40)
    for data, variant in (
        (own, ""),
        (replace(own, image_size=64, crop_scale=(0.1, 1.0), path=f"{images}/"), ""),  # how training saw the images
        (FolderSettings(path=str(other)), "other"),
        (replace(own, test_fraction=0.5), f"{images.name}-test_fraction-0.5"),
        (replace(own, path=str(tmp_path / "x" / images.name)), f"{images.name}-path-"),
    ):
        assert data_name(own, data).startswith(variant) and bool(data_name(own, data)) == bool(variant)
    evaluate_run(run, SETTINGS)
    before = (run / "eval" / "classification.json").read_bytes()
    evaluate_run(run, SETTINGS, FolderSettings(path=str(other)))
    assert (run / "eval" / "classification.json").read_bytes() == before
    assert json.loads((run / "eval" / "classification-other.json").read_text())["num_test"] == 8


def test_folders_of_one_name_have_results_of_their_own(run: Path, tmp_path: Path) -> None:
    for place, number in (("a", 24), ("b", 32), ("a", 24)):
        folder = (
            write_folder(tmp_path / place / "photos", number)
            if not (tmp_path / place).exists()
            else tmp_path / place / "photos"
        )
        evaluate_run(run, SETTINGS, FolderSettings(path=str(folder), test_fraction=0.5))
    found = {path.name: json.loads(path.read_text())["num_test"] for path in (run / "eval").glob("classification-photos*.json")}
    assert found == {"classification-photos.json": 12, "classification-photos-2.json": 16}


def test_names_of_files_end_somewhere() -> None:
    """Settings that make long words are a hash; two of them differ."""
    size = (32, 32)
    many, other = (
        EvaluationSettings(
            protocols=tuple(PROTOCOLS), logistic=LogisticSettings(penalties=tuple(first + i / 7 for i in range(20)))
        )
        for first in (1, 2)
    )
    names = [variant_name(settings, size, size, "x" * 300) for settings in (many, other)]
    assert names[0] != names[1] and all(len(name) < 200 for name in names)
    (words,) = re.findall(r"logistic\..*", variant_name(replace(many, protocols=("logistic",)), size, size))
    assert re.fullmatch(r"logistic\.settings-[0-9a-f]{8}", words)
    dense = EvaluationSettings(protocols=("dense-linear", "dense-knn"), dense=DenseSettings(max_patches=9))
    assert variant_name(dense, size, size) == "dense_linear-dense_knn-dense.max_patches-9"


def test_a_result_holds_every_setting(run: Path) -> None:
    evaluate_run(run, replace(SETTINGS, protocols=("knn",)))
    found = json.loads((run / "eval" / "classification-knn-only.json").read_text())["settings"]
    assert found["neighbors"] == [10, 20, 100] and found["finetune"]["epochs"] is None
