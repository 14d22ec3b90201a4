"""Two processes evaluate like one: the same features, the same batches, the same classifiers and numbers."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openjepa.config import save_yaml
from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.evaluation.feature_store import FeatureLayout, RowWriter, read_rows
from openjepa.evaluation.probes import finetune, trained
from openjepa.evaluation.probes.trained import Candidates, Scores
from openjepa.settings.evaluation import AttentiveSettings, EvaluationSettings, FinetuneSettings, FullLinearSettings
from openjepa.settings.protocols import evaluation_settings
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import FolderSettings
from openjepa.types import Export
from openjepa.weights.native import save_network
from tests.helpers.evaluated_run import CONFIG, encoder
from tests.helpers.images import write_folder
from tests.helpers.ranks import on_ranks

NUM_TRAIN = 48
"""Training images among the 60, of which one cannot be read."""
FINETUNE = FinetuneSettings(recipe="paper", epochs=2, batch_size=15, warmup_epochs=1.0, learning_rates=(1e-2,), drop_path=0.4)
SETTINGS: EvaluationSettings = evaluation_settings()(
    device="cpu",
    workers=0,
    precision="fp32",
    feature_batch_size=7,  # no batch size divides a share: the last shares are uneven, and one is empty
    protocols=("knn", "linear", "linear-full", "attentive", "finetune"),
    baselines=("pixels",),
    selection="held_out",
    lidar_images=4,
    lidar_views=4,
    linear_full=FullLinearSettings(epochs=2, batch_size=18, learning_rates=(0.1,)),
    attentive=AttentiveSettings(epochs=2, batch_size=17, learning_rates=(1e-3,)),
    finetune=FINETUNE,
)


def write_run(folder: Path, images: Path) -> Path:
    folder.mkdir()
    save_yaml(RunConfig(data=FolderSettings(path=str(images), image_size=32)), folder / "config.yaml")
    save_network(folder / "encoder", Export(CONFIG, encoder(1)))
    return folder


def evaluated(run: Path) -> list[Tensor]:
    """Evaluates the run. Returns what the classifiers trained on images answer, whenever they are tested."""
    pixels = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    answers = []
    count = trained.count_right

    def counted(candidates: Candidates, *arguments: Any) -> Scores:
        with torch.no_grad():
            answers.append(candidates.answer(pixels))
        return count(candidates, *arguments)

    trained.count_right = finetune.count_right = counted  # type: ignore[attr-defined]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one image cannot be read
            evaluate_run(run, SETTINGS)
    finally:
        trained.count_right = finetune.count_right = count  # type: ignore[attr-defined]
    return answers


def result(run: Path) -> Any:
    """The written result, with a loss to seven digits and without what is measured in seconds."""
    (path,) = (run / "eval").glob("*.json")
    found = json.loads(path.read_text(), parse_float=lambda digits: float(f"{float(digits):.6g}"))
    del found["seconds"]
    for subject in found["subjects"].values():
        for metric in subject["metrics"].values():
            metric["extra"] = {name: value for name, value in metric["extra"].items() if "seconds" not in name}
    return found


def features(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "eval" / "features").iterdir()}


def begin(run: Path, finished: Path) -> None:
    """Leaves the first 20 rows of a file of features as an interrupted pass does."""
    whole = read_rows(finished)
    assert whole is not None
    place = run / "eval" / "features" / finished.name
    with RowWriter(place, FeatureLayout(NUM_TRAIN, whole.rows.shape[1], whole.rows.dtype)) as writer:
        writer.append(whole.rows[:20], whole.indices[:20])


def test_two_processes_give_the_features_classifiers_and_numbers_of_one(tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", 60)
    sorted(images.rglob("*.png"))[17].write_bytes(b"no image")
    alone, shared = write_run(tmp_path / "alone", images), write_run(tmp_path / "shared", images)
    expected = evaluated(alone)
    begin(shared, next((alone / "eval" / "features").glob("encoder-train-*")))  # one process began what two go on with
    both = on_ranks(2, tmp_path / "ranks", evaluated, shared)
    assert len(features(alone)) == 4 and features(shared) == features(alone)
    assert result(shared) == result(alone)
    assert (result(alone)["num_train"], result(alone)["dropped"]["train"]) == (NUM_TRAIN - 1, 1)
    for full, _, attentive, _, tuned in both:
        assert torch.equal(full, expected[0])  # the heads take the same steps on the same features
        torch.testing.assert_close(attentive, expected[2], atol=1e-5, rtol=0)
        torch.testing.assert_close(tuned, expected[4], atol=1e-5, rtol=0)
    said = [(tmp_path / "ranks" / f"rank{rank}.txt").read_text() for rank in range(2)]
    assert "step 6/6" in said[0] and said[1] == ""
