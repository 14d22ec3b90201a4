"""Views whose colors the loader changes: the same whatever workers, chunks, microbatches and caches."""

from dataclasses import replace
from pathlib import Path

import pytest

from openjepa.data.loading import loader as loader_module
from openjepa.data.loading.colors import change_colors, draw_colors
from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan
from openjepa.data.source import ListSource
from openjepa.settings.sources import FolderSettings
from openjepa.types import InputSpec, ViewSpec
from tests.data.loading.test_colors import DINO
from tests.helpers.images import write_folder
from tests.helpers.loading import CPU, SEED, VIEW, RecordingSampler, load, opened, rows, same, uneven_images

SMALL = ViewSpec((12, 16), count=3, scale=(0.05, 0.3), colors=(DINO,) * 3)
COLORED = InputSpec({"image": replace(VIEW, colors=(DINO,)), "small": SMALL}, ("image",))
PLAIN = InputSpec({"image": VIEW, "small": replace(SMALL, colors=())}, ("image",))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ListSource:
    return uneven_images(tmp_path_factory.mktemp("images"))


def test_the_loader_changes_the_crops_as_drawn_and_nothing_else(images: ListSource) -> None:
    for epoch_step in (0, 6):  # 45 samples: five steps of eight in an epoch
        colored = load(images, epoch_step + 1, inputs=COLORED)[epoch_step]
        plain = load(images, epoch_step + 1, inputs=PLAIN)[epoch_step]
        drawn = draw_colors(COLORED.views, plain.sample_ids.numpy(), SEED, epoch_step // 5)
        for name, view in plain.views.items():
            change_colors(view.flatten(0, 1), drawn[name])
        assert same([colored], [plain])


def test_colors_do_not_depend_on_workers_chunks_or_microbatches(images: ListSource, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(images, 3, plan=BatchPlan(16, 16), inputs=COLORED)
    assert rows(load(images, 3, plan=BatchPlan(16, 4, group_size=16), inputs=COLORED)) == rows(whole)
    monkeypatch.setattr(loader_module, "CHUNK_BYTES", 10_000)
    assert same(load(images, 3, plan=BatchPlan(16, 16), workers=2, inputs=COLORED), whole)


def test_colors_on_the_device_are_those_of_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the crops are the same: whole images of the size of their views."""
    inputs = InputSpec({"image": ViewSpec((16, 16), scale=(1.0, 1.0), aspect=(1.0, 1.0), colors=(DINO,))}, ("image",))
    source = opened(write_folder(tmp_path, 20, size=16))
    expected = load(source, 2, cache="memory", inputs=inputs)
    monkeypatch.setattr(loader_module, "HOST_DEVICES", ())
    assert same(load(source, 2, cache="device", inputs=inputs), expected)


def test_caches_keep_the_detail_of_small_crops(tmp_path: Path) -> None:
    write_folder(tmp_path, 4, size=90)
    settings = FolderSettings(path=str(tmp_path), image_size=16, cache="memory")
    for small, side in ((replace(SMALL, size=(12, 12), colors=()), 54), (replace(SMALL, scale=(0.5, 1.0), colors=()), 30)):
        inputs = InputSpec({"image": ViewSpec((16, 16)), "small": small}, ("image",))
        loader = TrainingLoader(opened(tmp_path), settings, inputs, RecordingSampler(), BatchPlan(2, 2), SEED, 0, CPU)
        assert loader._cache is not None and int(loader._cache.sizes[0, 0]) == side
