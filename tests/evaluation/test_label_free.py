"""Quality without labels in evaluations: what is measured, on which rows, and LiDAR against slow restatements."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from openjepa.config import save_yaml
from openjepa.data.decode import decode_image
from openjepa.data.source import ListSource, open_splits
from openjepa.data.views import NUMBERS_PER_VIEW, crop_and_resize, crop_box, evaluation_view
from openjepa.evaluation import lidar as lidar_module
from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.evaluation.lidar import lidar_measures
from openjepa.masks import MASKS
from openjepa.measures import features as measuring
from openjepa.measures.features import alpha_req, feature_measures, lidar, rankme
from openjepa.models.predictor import build_predictor
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.seeds import derive, derive_samples, uniforms
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.masks import MultiblockSettings
from openjepa.settings.models import EncoderConfig, PredictorConfig
from openjepa.settings.protocols import check_evaluation
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import FolderSettings
from openjepa.types import Export, ViewSpec, normalize
from openjepa.weights.native import save_network
from tests.helpers.images import write_folder

CONFIG = EncoderConfig(width=24, depth=2, heads=2, mlp_ratio=2.0, patch_size=8, image_size=(32, 32))
PREDICTOR = PredictorConfig(encoder_width=24, width=12, depth=1, heads=1, grid=(4, 4))
MASKS_OF_RUN = MultiblockSettings(num_targets=2, context_ratio=0.4)
SETTINGS = EvaluationSettings(
    device="cpu", precision="fp32", workers=0, feature_batch_size=16, neighbors=(1, 3), lidar_images=9, lidar_views=3, seed=5
)


def encoder(seed: int) -> VisionTransformer:
    torch.manual_seed(seed)
    return build_encoder(CONFIG)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), 60, size=40)


@pytest.fixture(scope="module")
def source(images: Path) -> ListSource:
    found = open_splits(FolderSettings(path=str(images), image_size=32), 0).train
    assert isinstance(found, ListSource)
    return found


@pytest.fixture
def run(images: Path, tmp_path: Path) -> Path:
    """A run folder as training leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_yaml(RunConfig(data=FolderSettings(path=str(images), image_size=32), masks=MASKS_OF_RUN), folder / "config.yaml")
    save_network(folder / "encoder", Export(CONFIG, encoder(1)))
    save_network(folder / "encoder_initial", Export(CONFIG, encoder(0)))
    torch.manual_seed(7)
    save_network(folder / "predictor", Export(PREDICTOR, build_predictor(PREDICTOR)))
    return folder


def measured(source: ListSource, predictor: Path | None = None, **changes: object) -> dict[str, dict[str, float]]:
    networks = {"encoder": encoder(1), "untrained": encoder(0)}
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    return lidar_measures(source, "crop", networks, CONFIG, (32, 32), predictor, settings)


def chosen_images(source: ListSource, number: int) -> list[int]:
    keys = derive_samples("subset", 5, np.array([3]), np.arange(len(source)))
    return sorted(np.argsort(keys)[:number].tolist())


def slow_crops(source: ListSource, network: VisionTransformer, number: int, num_crops: int) -> Tensor:
    groups = []
    for index in chosen_images(source, number):
        pixels = torch.from_numpy(decode_image(source.read(index)))
        for crop in range(num_crops):
            seed = derive_samples("crop", 5, np.array([crop]), np.array([index]))
            box = crop_box(uniforms(seed, NUMBERS_PER_VIEW)[0].tolist(), 40, 40, ViewSpec((32, 32), scale=(0.3, 1.0)))
            view = normalize(crop_and_resize(pixels, box, (32, 32), "bilinear"), CONFIG.pixel_mean, CONFIG.pixel_std)
            with torch.no_grad():
                groups.append(network.eval()(view[None]).patches.mean(dim=1)[0])
    return torch.stack(groups).unflatten(0, (number, num_crops))  # type: ignore[no-untyped-call,no-any-return]


def slow_masks(source: ListSource, network: VisionTransformer, number: int, num_masks: int) -> Tensor:
    torch.manual_seed(7)
    predictor = build_predictor(PREDICTOR).eval()
    sampler = MASKS["multiblock"].load()(MASKS_OF_RUN, (4, 4))
    rows = []
    for index in chosen_images(source, number):
        pixels = evaluation_view(torch.from_numpy(decode_image(source.read(index))), (32, 32))
        view = normalize(pixels, CONFIG.pixel_mean, CONFIG.pixel_std)[None]
        for draw in range(num_masks):
            masks = sampler(derive_samples("mask", 5, np.array([draw]), np.array([index])), derive("group", 5, draw, 0), draw)
            with torch.no_grad():
                context = network.eval()(view, masks.context).patches
                rows.append(predictor(context, masks.context, masks.targets).flatten(0, 2).mean(dim=0))
    return torch.stack(rows).unflatten(0, (number, num_masks))  # type: ignore[no-untyped-call,no-any-return]


def test_lidar_with_crops_is_that_of_their_features(source: ListSource) -> None:
    found = measured(source)
    assert set(found) == {"encoder", "untrained"}
    for name, seed in (("encoder", 1), ("untrained", 0)):
        assert list(found[name]) == ["LiDAR (crops)"]
        expected = lidar(slow_crops(source, encoder(seed), 9, 3))
        assert found[name]["LiDAR (crops)"] == pytest.approx(expected, rel=1e-3)


def test_lidar_with_masks_is_that_of_the_predictions_of_the_run(source: ListSource, run: Path) -> None:
    found = measured(source, run / "predictor")
    assert "LiDAR (masks)" not in found["untrained"]
    assert found["encoder"]["LiDAR (masks)"] == pytest.approx(lidar(slow_masks(source, encoder(1), 9, 3)), rel=1e-3)
    save_network(run / "context_encoder", Export(CONFIG, encoder(4)))
    found = measured(source, run / "predictor")
    assert found["encoder"]["LiDAR (masks)"] == pytest.approx(lidar(slow_masks(source, encoder(4), 9, 3)), rel=1e-3)
    (run / "config.yaml").unlink()  # nobody knows how masks are drawn
    assert list(measured(source, run / "predictor")["encoder"]) == ["LiDAR (crops)"]


def test_chunks_and_workers_change_nothing(source: ListSource, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measured(source, run / "predictor")
    monkeypatch.setattr(lidar_module, "CHUNK", 4)
    for workers in (0, 1):
        split = measured(source, run / "predictor", workers=workers)
        for name, numbers in whole.items():
            assert split[name] == pytest.approx(numbers, rel=1e-4)


class Damaged(ListSource):
    """A source that has some images which cannot be read."""

    def __init__(self, source: ListSource, readable: set[int]) -> None:
        self._source, self._readable = source, readable
        self.labels = source.labels

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> bytes:
        return self._source.read(index) if index in self._readable else b"no image"

    def name(self, index: int) -> str:
        return self._source.name(index)


def test_unreadable_images_are_left_out(source: ListSource) -> None:
    kept = chosen_images(source, 9)[2:]
    groups = slow_crops(source, encoder(1), 9, 3)[2:]
    found = measured(Damaged(source, set(kept)))
    assert found["encoder"]["LiDAR (crops)"] == pytest.approx(lidar(groups), rel=1e-3)
    assert measured(Damaged(source, {kept[0]})) == {}


def test_an_encoder_that_answers_always_the_same_has_none(source: ListSource) -> None:
    network = encoder(1)
    torch.nn.init.zeros_(network.norm.weight)
    found = lidar_measures(source, "crop", {"encoder": network}, CONFIG, (32, 32), None, SETTINGS)
    assert found == {"encoder": {"LiDAR (crops)": 0.0}}


def test_features_are_measured_on_rows_spread_over_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MAX_IMAGES", 40)
    features = torch.randn(100, 12, generator=torch.Generator().manual_seed(0))
    found = feature_measures({"last": features, "last_four": features[:, :3]})
    rows = [100 * row // 40 for row in range(40)]
    assert found == {"RankMe": rankme(features[rows]), "alpha-ReQ": alpha_req(features[rows])}
    assert feature_measures({"last": features[:40]})["RankMe"] == rankme(features[:40])


def test_pixels_may_be_bytes_and_features_bf16() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (60, 20), generator=generator, dtype=torch.uint8)
    assert feature_measures({"pixels": pixels}) == pytest.approx(feature_measures({"pixels": pixels.float() / 255}), rel=1e-5)
    features = torch.randn(300, 120, generator=generator) * torch.arange(1, 121) ** -0.5 + 0.1
    found, kept = feature_measures({"last": features}), feature_measures({"last": features.bfloat16()})
    assert kept["alpha-ReQ"] == pytest.approx(found["alpha-ReQ"], rel=1e-3)
    assert kept["RankMe"] == pytest.approx(found["RankMe"], rel=0.013) and kept != found


def test_what_is_not_defined_is_left_out() -> None:
    assert list(feature_measures({"last": torch.eye(4)})) == ["RankMe"]
    assert feature_measures({"last": torch.full((9, 9), math.nan)}) == {}


def test_an_evaluation_writes_them_beside_its_probes(run: Path) -> None:
    evaluate_run(run, replace(SETTINGS, protocols=("knn",)))
    (file,) = (run / "eval").glob("classification*.json")
    measures = json.loads(file.read_text())["measures"]
    always = {"RankMe", "alpha-ReQ"}
    assert set(measures["encoder"]) >= {"RankMe", "LiDAR (crops)", "LiDAR (masks)"}
    assert set(measures["untrained"]) >= {"RankMe", "LiDAR (crops)"} and "LiDAR (masks)" not in measures["untrained"]
    assert set(measures) == {"encoder", "untrained"}, "pixels are not measured"
    evaluate_run(run, replace(SETTINGS, protocols=("knn",), lidar_images=None))
    (other,) = set((run / "eval").glob("classification*.json")) - {file}
    assert set(json.loads(other.read_text())["measures"]["encoder"]) <= always, "a file of its own: LiDAR takes minutes"


@pytest.mark.parametrize(("name", "value"), [("lidar_images", 1), ("lidar_images", 0), ("lidar_views", 1)])
def test_too_few_images_or_views_are_refused(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"evaluation.{name}={value} must be at least 2"):
        check_evaluation(replace(SETTINGS, **{name: value}))  # type: ignore[arg-type]
