"""Labels of tables on their way to probes: catalogue numbers, and rows without a label."""

from pathlib import Path

import numpy as np
import pytest

from openjepa.data.check import CheckSummary, inspect
from openjepa.data.selection import low_shot_rows
from openjepa.data.source import ListSource
from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.settings.evaluation import EvaluationSettings, LowShotSettings
from openjepa.settings.sources import HuggingFaceSettings
from tests.helpers.tables import offline as offline
from tests.helpers.tables import opened, write_parquet
from tests.helpers.tiny_encoder import write_encoder

pytestmark = pytest.mark.usefixtures("offline")
CODES = [4006381333, 4006381334, 7]


def write_catalogue(folder: Path) -> None:
    """60 training and 20 test images of three products; every tenth has no label."""
    for name, seeds in (("train", range(60)), ("test", range(60, 80))):
        labels = [None if seed % 10 == 9 else CODES[seed % 3] for seed in seeds]
        write_parquet(folder / f"{name}.parquet", seeds, declared=False, labels=labels)


def test_probes_learn_three_classes_from_the_labeled_rows(tmp_path: Path) -> None:
    write_catalogue(tmp_path / "set")
    said: list[str] = []
    settings = EvaluationSettings(
        protocols=("knn", "linear", "logistic"), neighbors=(1, 5), weight_decays=(0.01,), baselines=(), workers=0
    )
    data = HuggingFaceSettings(path=str(tmp_path / "set"))
    (result,) = evaluate_run(write_encoder(tmp_path / "run") / "encoder", settings, data, said.append)
    assert (result.num_train, result.num_test, result.num_classes) == (54, 18, 3)
    assert result.chance == pytest.approx(6 / 18)
    assert set(result.subjects["encoder"].metrics) == {"k-NN", "linear", "logistic"}
    notes = [
        "note: 6 training images without a label, which probes leave out",
        "note: 2 test images without a label, which probes leave out",
    ]
    assert said[:2] == notes and all(note.removeprefix("note: ") in result.data for note in notes)


def test_low_shot_draws_from_classes_that_occur(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", range(30), declared=False, labels=[CODES[seed % 3] for seed in range(30)])
    train = opened(tmp_path, test_fraction=0.0).train
    assert isinstance(train, ListSource) and train.labels is not None
    rows = low_shot_rows(train, train.labels, LowShotSettings(images_per_class=2))
    assert np.bincount(train.labels[rows]).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match=r"\(7 has 10, 4006381333 has 10, 4006381334 has 10\)"):
        low_shot_rows(train, train.labels, LowShotSettings(images_per_class=11))


def test_data_check_counts_rows_without_a_label(tmp_path: Path) -> None:
    write_catalogue(tmp_path)
    settings, summary = HuggingFaceSettings(path=str(tmp_path)), CheckSummary()
    found = list(inspect(settings, opened(tmp_path), 1))
    for item in found:
        summary.add(item)
    assert [item.class_name for item in found[:10]] == [*(str(CODES[seed % 3]) for seed in range(9)), ""]
    assert "  3 classes with 18 to 18 images; 6 images without a label" in list(summary.lines())
    assert "  3 classes with 6 to 6 images; 2 images without a label" in list(summary.lines())
