"""Both vectors of an image are probed: class token and average, of every method's export, each with a file of its own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from openjepa.commands.evaluate import print_results
from openjepa.config import save_yaml
from openjepa.data.passes import evaluation_batches
from openjepa.data.source import Splits, open_splits
from openjepa.evaluation.evaluation_run import evaluate_run, pooled_configs, pooled_settings
from openjepa.evaluation.suite_run import evaluate_suite
from openjepa.evaluation.tasks import TASKS
from openjepa.measures.features import rankme
from openjepa.methods import METHODS
from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig
from openjepa.settings.protocols import PROTOCOLS, evaluation_remarks
from openjepa.settings.run import MonitorSettings, RunConfig
from openjepa.settings.sources import FolderSettings
from openjepa.training.loop import train
from openjepa.types import Export, normalize
from openjepa.weights.formats import load_any
from openjepa.weights.native import save_network
from tests.helpers.evaluated_run import CONFIG, SETTINGS
from tests.helpers.images import write_folder
from tests.helpers.small_runs import method_config

TOKEN = replace(CONFIG, class_token=True, pooling="class_token")
QUICK = replace(SETTINGS, protocols=("knn",), baselines=(), neighbors=(1, 3))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 60)


def run_of(config: EncoderConfig, images: Path, folder: Path) -> Path:
    """A run folder as training leaves it, without its predictor."""
    folder.mkdir()
    save_yaml(RunConfig(data=FolderSettings(path=str(images), image_size=32)), folder / "config.yaml")
    for seed, name in ((1, "encoder"), (0, "encoder_initial")):
        torch.manual_seed(seed)
        save_network(folder / name, Export(config, build_encoder(config)))
    return folder


def results_of(folder: Path) -> dict[str, dict[str, object]]:
    return {path.name: json.loads(path.read_text()) for path in sorted((folder / "eval").glob("*.json"))}


@torch.no_grad()
def effective_rank(splits: Splits, encoder: Path, pooling: str) -> float:
    """RankMe of the test images' vectors, pooled here."""
    loaded = load_any(encoder)
    batches = evaluation_batches(splits.test, (32, 32), 16, 0, unreadable=[])  # type: ignore[arg-type]
    pixels = torch.cat([batch.images for batch in batches])
    output = loaded.encoder(normalize(pixels, loaded.config.pixel_mean, loaded.config.pixel_std))
    return rankme(output.class_token if pooling == "class_token" else output.patches.mean(dim=1))


def test_both_are_evaluated_and_written_apart(images: Path, tmp_path: Path) -> None:
    """The encoder's own pooling is the run's own result, the other one a variant; each is of its own vectors."""
    run = run_of(TOKEN, images, tmp_path / "run")
    # fp32 as in `effective_rank`: with `auto` it is the processor that says whether features are rounded to bf16
    settings = replace(QUICK, pooling="both", neighbors=(1,), precision="fp32")
    own, other = evaluate_run(run, settings)
    rest = "knn-only-precision-fp32-neighbors-1-no-untrained-no-pixels"
    assert (own.variant, other.variant) == (rest, f"average-{rest}")
    assert set(results_of(run)) == {f"classification-{rest}.json", f"classification-average-{rest}.json"}
    assert [result.settings["pooling"] for result in (own, other)] == ["own", "average"]
    splits = open_splits(FolderSettings(path=str(images), image_size=32), 0)
    assert own.measures["encoder"]["RankMe"] != pytest.approx(other.measures["encoder"]["RankMe"], rel=0.1)
    for result, pooling in ((own, "class_token"), (other, "average")):
        expected = effective_rank(splits, run / "encoder", pooling)
        assert result.measures["encoder"]["RankMe"] == pytest.approx(expected, rel=1e-4), pooling
    console = Console(record=True, width=80)
    print_results([own, other], console)
    text = console.export_text()
    assert "Classification (12 images" in text and "Classification, average (12 images" in text
    (again,) = evaluate_run(run, replace(settings, pooling="average"))
    assert again.variant == other.variant and again.measures == other.measures
    (same,) = evaluate_run(run, replace(settings, pooling="class_token"))
    assert same.variant == own.variant and same.measures == own.measures


def test_rows_of_a_suite_are_evaluated_by_both(tmp_path: Path) -> None:
    """The other pooling is no published protocol; a row whose data is missing is said once."""
    torch.manual_seed(0)
    save_network(tmp_path / "mine", Export(TOKEN, build_encoder(TOKEN)))
    for split, number in (("train", 24), ("val", 16)):
        write_folder(tmp_path / "data" / "imagenet" / split, number)
    settings = replace(QUICK, pooling="both", tasks=("imagenet1k", "cifar100"), neighbors=(1,))
    own, other, missing = evaluate_suite(tmp_path / "mine", "paper", tmp_path / "data", settings)
    assert (own.row, other.row, missing.row) == ("imagenet1k", "imagenet1k", "cifar100")
    assert missing.skipped is not None and "no folder" in missing.skipped
    assert "average" not in own.file_name and "-average-" in other.file_name
    assert "pooled by average" in other.departures and "pooled by average" not in own.departures
    assert own.settings["pooling"] == "own" and other.settings["pooling"] == "average"
    said: list[str] = []
    evaluate_suite(tmp_path / "mine", "paper", tmp_path / "data", replace(settings, pooling="average"), said.append)
    assert any("done before" in line and other.file_name in line for line in said)


def test_an_encoder_without_class_token_has_one_vector(images: Path, tmp_path: Path) -> None:
    run = run_of(CONFIG, images, tmp_path / "run")
    (result,) = evaluate_run(run, replace(QUICK, pooling="both"))
    assert result.variant.startswith("knn-only") and result.settings["pooling"] == "own"
    with pytest.raises(ValueError, match=r"evaluation.pooling='class_token': .* no class token; use --pooling average"):
        evaluate_run(run, replace(QUICK, pooling="class_token"))


def test_where_only_patches_matter_pooling_does_not() -> None:
    both = replace(SETTINGS, pooling="both")
    classes, patches = TASKS["classification"], TASKS["scene_shapes"]
    assert [config.pooling for config in pooled_configs(classes, both, TOKEN)] == ["class_token", "average"]
    averaged = replace(TOKEN, pooling="average")
    assert [config.pooling for config in pooled_configs(classes, both, averaged)] == ["average", "class_token"]
    assert pooled_configs(patches, both, TOKEN) == (TOKEN,)
    assert pooled_settings(both, TOKEN, TOKEN).pooling == "own"
    only = replace(both, protocols=("attentive", "dense-knn"))
    unpooled = [name for name, entry in PROTOCOLS.items() if not entry.pools]
    reads = {name: entry.reads for name, entry in PROTOCOLS.items()}
    assert pooled_configs(classes, only, TOKEN) == (TOKEN,)
    assert any("pooling has no effect" in remark for remark in evaluation_remarks(only, only.protocols, reads, unpooled))
    assert not evaluation_remarks(both, ("linear", "attentive"), reads, unpooled)


@pytest.mark.parametrize("name", METHODS)
def test_what_a_run_of_each_method_leaves_is_evaluated_by_both(name: str, images: Path, tmp_path: Path) -> None:
    """Beside the untrained encoder; and its encoder folder alone."""
    config = method_config(name, images, tmp_path, total_steps=1)
    run = train(replace(config, monitor=MonitorSettings(every=0)))
    assert run is not None
    loaded = load_any(run / "encoder")
    assert loaded.config.class_token == (name != "ijepa")
    results = evaluate_run(run, replace(QUICK, pooling="both", baselines=("untrained",)))
    assert len(results) == (1 if name == "ijepa" else 2)
    assert all(set(result.subjects) == {"encoder", "untrained"} and result.skipped is None for result in results)
    alone = evaluate_run(run / "encoder", replace(QUICK, pooling="both"), config.data)
    for one, other in zip(results, alone, strict=True):
        assert one.subjects["encoder"] == other.subjects["encoder"]
        assert one.measures["encoder"] == other.measures["encoder"]
