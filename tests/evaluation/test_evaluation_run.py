"""Evaluation of run folders and encoder folders: what is cached, what stands beside, and what is said where labels lack."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openjepa.config import load_run_config, save_yaml
from openjepa.data.decode import decode_image
from openjepa.data.passes import evaluation_batches
from openjepa.data.selection import balanced_rows, ranks_in_class
from openjepa.data.source import Splits, open_splits, source_hash
from openjepa.evaluation.evaluation_run import evaluate_run, find_subject
from openjepa.evaluation.feature_store import EncoderFeatures, PixelFeatures, SplitView, extract_features
from openjepa.evaluation.tasks import TASKS, chosen_tasks
from openjepa.models.vit import VisionTransformer
from openjepa.records import Result
from openjepa.settings.sources import FolderSettings
from openjepa.types import Export, normalize
from openjepa.weights.native import save_network
from tests.helpers.evaluated_run import CONFIG, SETTINGS, encoder
from tests.helpers.images import write_folder

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------------------------------- features


@dataclass
class Passes:
    """A view of the training split that counts how often it is read."""

    splits: Splits
    number: int = 0

    def view(self, size: int = 32) -> SplitView:
        def batches(first: int = 0) -> Iterator[object]:
            self.number += 1
            return evaluation_batches(self.splits.train, (size, size), 16, 0, first=first, unreadable=[])  # type: ignore[arg-type]

        return SplitView(self.splits.train, "train", {"image_size": size}, batches)  # type: ignore[arg-type]


@pytest.fixture
def passes(images: Path) -> Passes:
    return Passes(open_splits(FolderSettings(path=str(images), image_size=32), 0))


def test_features_are_the_pooled_last_four_layers(passes: Passes) -> None:
    network = encoder(1).eval()
    extractor = EncoderFeatures(network, CONFIG, CPU, "fp32")
    pixels = torch.cat([batch.images for batch in passes.view().batches()])
    with torch.no_grad():
        layers = network.last_layers(normalize(pixels, CONFIG.pixel_mean, CONFIG.pixel_std), 2)
        final = network(normalize(pixels, CONFIG.pixel_mean, CONFIG.pixel_std)).patches.mean(dim=1)
    kinds = extractor.kinds(extract_features(passes.view(), {"encoder": extractor}, None)["encoder"].rows)
    assert list(kinds) == ["last", "last_four"]
    torch.testing.assert_close(kinds["last"], final)
    torch.testing.assert_close(kinds["last_four"], torch.cat([layer.patches.mean(dim=1) for layer in layers], dim=1))


def test_cached_features_are_the_same_and_are_not_computed_again(passes: Passes, tmp_path: Path) -> None:
    extractors = {"encoder": EncoderFeatures(encoder(1), CONFIG, CPU, "fp32"), "pixels": PixelFeatures()}
    first = extract_features(passes.view(), extractors, tmp_path)
    second = extract_features(passes.view(), extractors, tmp_path)
    assert passes.number == 1  # one pass for both extractors, none for the second call
    for name in extractors:
        assert torch.equal(first[name].rows, second[name].rows) and torch.equal(first[name].indices, second[name].indices)


def test_the_cache_is_left_when_weights_size_or_data_change(passes: Passes, images: Path, tmp_path: Path) -> None:
    original = encoder(1)
    before = extract_features(passes.view(), {"encoder": EncoderFeatures(original, CONFIG, CPU, "fp32")}, tmp_path)
    changed = encoder(1)
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1e-3
    after = extract_features(passes.view(), {"encoder": EncoderFeatures(changed, CONFIG, CPU, "fp32")}, tmp_path)
    assert passes.number == 2 and not torch.equal(before["encoder"].rows, after["encoder"].rows)
    extract_features(passes.view(24), {"encoder": EncoderFeatures(original, CONFIG, CPU, "fp32")}, tmp_path)
    assert passes.number == 3
    other_split = open_splits(FolderSettings(path=str(images), image_size=32), 1).train
    assert source_hash(other_split) != source_hash(passes.splits.train)  # type: ignore[arg-type]


def test_a_damaged_cache_file_is_computed_again(passes: Passes, tmp_path: Path) -> None:
    extractors = {"pixels": PixelFeatures()}
    first = extract_features(passes.view(), extractors, tmp_path)
    next(tmp_path.iterdir()).write_bytes(b"half a file")
    assert torch.equal(extract_features(passes.view(), extractors, tmp_path)["pixels"].rows, first["pixels"].rows)
    assert passes.number == 2


def test_bf16_features_are_close() -> None:
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    network = encoder(1)
    exact = EncoderFeatures(network, CONFIG, CPU, "fp32").extract(images)
    rounded = EncoderFeatures(network, CONFIG, CPU, "bf16").extract(images)
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)


def test_pixels_of_32_are_untouched() -> None:
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    pixels = PixelFeatures()
    assert torch.equal(pixels.kinds(pixels.extract(images))["pixels"], images.flatten(1).float() / 255)
    uniform = torch.full((1, 3, 48, 80), 51, dtype=torch.uint8)
    torch.testing.assert_close(pixels.kinds(pixels.extract(uniform))["pixels"], torch.full((1, 3072), 0.2))


# ---------------------------------------------------------------------------------------------------------------- suite


def test_a_run_is_evaluated_beside_its_baselines(run: Path) -> None:
    (result,) = evaluate_run(run, SETTINGS)
    written = json.loads((run / "eval" / "classification.json").read_text())
    assert written == json.loads(json.dumps({"format": "openjepa-evaluation", "version": 2, **asdict(result)}))
    assert (result.num_train, result.num_test, result.num_classes, result.chance) == (48, 12, 2, 0.5)
    assert result.masks_mode == "multiblock/unbiased/random_subset" and result.given == "run" and result.encoder == "target"
    assert set(written["subjects"]) == {"encoder", "untrained", "pixels"}
    for subject in written["subjects"].values():
        assert set(subject["metrics"]) == {"linear", "k-NN"}
        for metric in subject["metrics"].values():
            p = metric["value"]
            assert metric["standard_error"] == pytest.approx((p * (1 - p) / 12) ** 0.5)
            assert (metric["selection"], metric["direction"]) == ("held_out", "higher")


def test_the_untrained_encoder_is_the_one_of_the_run(run: Path, tmp_path: Path) -> None:
    kept = evaluate_run(run, SETTINGS)[0].subjects["untrained"]
    (swapped,) = evaluate_run_of(run, tmp_path / "swapped", encoder(0))
    assert swapped.subjects["encoder"] == kept


def evaluate_run_of(run: Path, folder: Path, network: VisionTransformer) -> list[Result]:
    folder.mkdir()
    (folder / "config.yaml").write_text((run / "config.yaml").read_text())
    save_network(folder / "encoder", Export(CONFIG, network))
    return evaluate_run(folder, SETTINGS)


def test_an_encoder_folder_needs_data(run: Path, images: Path) -> None:
    with pytest.raises(ValueError, match="--data"):
        evaluate_run(run / "encoder", SETTINGS)
    (result,) = evaluate_run(run / "encoder", SETTINGS, FolderSettings(path=str(images), image_size=32))
    assert (result.given, result.encoder, result.masks_mode) == ("encoder", "external", None)
    assert result.subjects["encoder"] == evaluate_run(run, SETTINGS)[0].subjects["encoder"]
    # the next export replaces the folder inside the run, so that nothing is written there
    assert not (run / "encoder" / "eval").exists()
    assert (run / "eval" / f"classification-encoder-{images.name}.json").is_file()


def test_an_encoder_outside_a_run_keeps_its_results(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "alone"
    save_network(folder, Export(CONFIG, encoder(1), {"step": 7}))
    (result,) = evaluate_run(folder, SETTINGS, FolderSettings(path=str(images), image_size=32))
    assert result.step == 7
    assert [path.name for path in (folder / "eval").glob("*.json")] == [f"classification-{images.name}.json"]


def test_what_is_missing_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="export_context_encoder"):
        evaluate_run(run, replace(SETTINGS, encoder="context"))
    with pytest.raises(ValueError, match="neither a run folder"):
        evaluate_run(tmp_path, SETTINGS)
    with pytest.raises(ValueError, match="patch size 8"):
        evaluate_run(run, replace(SETTINGS, image_size=36))
    with pytest.raises(ValueError, match="classification, clevr_count"):
        evaluate_run(run, replace(SETTINGS, tasks=("clasification",)))


def test_data_without_labels_is_skipped_with_the_reason(run: Path, tmp_path: Path) -> None:
    flat = write_folder(tmp_path / "flat", 6, classes=False)
    (result,) = evaluate_run(run, SETTINGS, FolderSettings(path=str(flat), image_size=32))
    assert result.skipped is not None and "no labels" in result.skipped and not result.subjects
    assert json.loads((run / "eval" / "classification-flat.json").read_text())["skipped"] == result.skipped


def test_tasks_that_were_asked_for_and_cannot_be_done_are_an_error(run: Path) -> None:
    with pytest.raises(ValueError, match=r"tasks=clevr_count: the data has no `count` labels.*use classification"):
        evaluate_run(run, replace(SETTINGS, tasks=("clevr_count",)))
    done, skipped = evaluate_run(run, replace(SETTINGS, tasks=("classification", "clevr_count")))
    assert done.skipped is None and skipped.skipped is not None and "count" in skipped.skipped


def test_unreadable_images_are_left_out_and_named(run: Path, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "broken", 60)
    (folder / "disk" / "0031.png").write_bytes(b"not an image")
    data = FolderSettings(path=str(folder), image_size=32)
    for _ in range(2):  # computed, then from the cache
        (result,) = evaluate_run(run, SETTINGS, data)
        assert sum(result.dropped.values()) == 1 and list(result.dropped_names) == ["disk/0031.png"]
        assert result.num_train + result.num_test == 59


@pytest.mark.parametrize("broken", [("disk/0031.png",), ("disk/0001.png", "square/0000.png", "square/0058.png")])
def test_unreadable_images_do_not_switch_off_the_cache(
    run: Path, tmp_path: Path, broken: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "photos", 60)
    whole = {name: (folder / name).read_bytes() for name in broken}
    for name in broken:
        (folder / name).write_bytes(b"not an image")
    decoded: list[bytes] = []

    def counted(data: bytes, *options: Any) -> Any:
        decoded.append(data)
        return decode_image(data, *options)

    monkeypatch.setattr("openjepa.data.passes.decode_image", counted)
    settings, data = replace(SETTINGS, max_skipped=0.2), FolderSettings(path=str(folder), image_size=32)
    (first,) = evaluate_run(run, settings, data)
    assert len(decoded) == 60 and sum(first.dropped.values()) == len(broken)
    (second,) = evaluate_run(run, settings, data)
    assert len(decoded) == 60, "nothing is decoded again"
    assert (second.heads, second.dropped, second.dropped_names) == (first.heads, first.dropped, first.dropped_names)
    for name, content in whole.items():
        (folder / name).write_bytes(content)
    (mended,) = evaluate_run(run, settings, data)
    assert sum(mended.dropped.values()) == 0 and mended.num_train + mended.num_test == 60


def test_tasks_on_the_same_images_share_their_components(run: Path, passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    count, distance = ((generator.integers(0, 3, 48), generator.integers(0, 3, 12)) for _ in range(2))
    scenes = replace(passes.splits, extra_labels={"count": count, "distance": distance})
    monkeypatch.setattr("openjepa.evaluation.evaluation_run.open_splits", lambda *_: scenes)
    shapes: list[int] = []
    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: shapes.append(len(matrix)) or eigh(matrix))
    both = evaluate_run(run, SETTINGS)
    assert len(shapes) == 2 * (2 + 2 + 1), "two kinds of head on last and last_four of two encoders, and on pixels"
    for name, result in zip(("clevr_count", "clevr_dist"), both, strict=True):
        (alone,) = evaluate_run(run, replace(SETTINGS, tasks=(name,)))
        assert (alone.subjects, alone.heads) == (result.subjects, result.heads)


def test_scenes_have_two_tasks(passes: Passes) -> None:
    labels = (np.zeros(48, dtype=np.int64), np.zeros(12, dtype=np.int64))
    scenes = replace(passes.splits, extra_labels={"count": labels, "distance": labels})
    assert chosen_tasks((), scenes) == ("clevr_count", "clevr_dist")
    assert chosen_tasks((), passes.splits) == ("classification",)
    assert chosen_tasks(("classification",), scenes) == ("classification",)
    assert TASKS["clevr_dist"].labels(scenes) == labels


def test_a_subset_is_balanced_and_drawn_with_the_seed() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 4])
    rows = balanced_rows(labels, 24, seed=0)
    assert np.bincount(labels[rows]).tolist() == [10, 10, 4] and np.array_equal(rows, np.unique(rows))
    assert not np.array_equal(rows, balanced_rows(labels, 24, seed=1))
    assert np.array_equal(balanced_rows(labels, None, 0), np.arange(84))


def test_max_train_images_limits_the_probe(run: Path) -> None:
    (result,) = evaluate_run(run, replace(SETTINGS, max_train_images=20))
    assert (result.num_train, result.num_test) == (20, 12)


def test_ranks_in_class_against_a_count() -> None:
    generator = np.random.default_rng(0)
    labels, order = generator.integers(0, 5, 60) * 3, generator.permutation(60)
    slow = np.array([sum(labels[other] == labels[i] for other in order[: list(order).index(i)]) for i in range(60)])
    assert (ranks_in_class(labels, order) == slow).all()


def test_an_encoder_of_a_run_is_tested_on_the_images_that_its_run_held_out(run: Path, images: Path) -> None:
    """The split is drawn with the seed of the run, also where only its encoder is given."""
    config = load_run_config(run)
    save_yaml(replace(config, run=replace(config.run, seed=5)), run / "config.yaml")
    assert find_subject(run / "encoder", SETTINGS, FolderSettings(path=str(images))).seed == 5
