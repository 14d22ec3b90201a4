"""Labeled training views in epochs: order, crops, mirrors, and what cannot be read."""

from pathlib import Path

import numpy as np
import pytest
import torch

from openjepa.data.folders.folder import open_folder
from openjepa.data.passes import LabeledViews, augmented_batches, evaluation_batches, rebatched
from openjepa.data.source import ListSource
from openjepa.settings.sources import FolderSettings
from openjepa.types import Skipped, ViewSpec
from tests.helpers.images import write_folder

VIEW = ViewSpec((16, 16), scale=(0.3, 1.0), horizontal_flip=True)


@pytest.fixture
def source(tmp_path: Path) -> ListSource:
    write_folder(tmp_path / "images", 40)
    train = open_folder(FolderSettings(path=str(tmp_path / "images"), test_fraction=0.0), 0).train
    assert isinstance(train, ListSource)
    return train


def views(source: ListSource, view: ViewSpec = VIEW, fit: str = "random_crop") -> LabeledViews:
    assert source.labels is not None
    return LabeledViews(source, source.labels, view, fit)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_has_every_image_once_whatever_the_number_of_workers(source: ListSource, workers: int) -> None:
    batches = list(augmented_batches(views(source), 16, 0, 3, workers, drop_last=False))
    alone = list(augmented_batches(views(source), 16, 0, 3, 0, drop_last=False))
    assert [len(batch.labels) for batch in batches] == [16, 16, 8]
    assert sorted(torch.cat([batch.indices for batch in batches]).tolist()) == list(range(40))
    for batch, other in zip(batches, alone, strict=True):
        assert torch.equal(batch.images, other.images) and torch.equal(batch.indices, other.indices)
        assert source.labels is not None and batch.labels.tolist() == source.labels[batch.indices.numpy()].tolist()


def test_a_last_batch_that_is_not_full_is_dropped_unless_it_is_the_only_one(source: ListSource) -> None:
    assert [len(batch.labels) for batch in augmented_batches(views(source), 16, 0, 0, 0)] == [16, 16]
    assert [len(batch.labels) for batch in augmented_batches(views(source), 64, 0, 0, 0)] == [40]


def test_epochs_and_seeds_draw_other_orders_and_crops(source: ListSource) -> None:
    first, again, later, other = (
        next(iter(augmented_batches(views(source), 40, epoch, seed, 0))) for epoch, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    assert torch.equal(first.images, again.images)
    for batch in (later, other):
        assert first.indices.tolist() != batch.indices.tolist()
        same_order = torch.argsort(first.indices), torch.argsort(batch.indices)
        assert (first.images[same_order[0]] != batch.images[same_order[1]]).flatten(1).any(dim=1).float().mean() > 0.9


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_views_without_a_random_crop_are_the_test_view_or_its_mirror(source: ListSource, fit: str) -> None:
    batch = next(
        iter(
            augmented_batches(
                views(source, ViewSpec((16, 16), interpolation="bicubic", horizontal_flip=True), fit), 40, 0, 0, 0
            )
        )
    )
    plain = next(evaluation_batches(source, (16, 16), 40, fit=fit)).images[batch.indices]
    straight = (batch.images == plain).flatten(1).all(dim=1)
    mirrored = (batch.images == plain.flip(-1)).flatten(1).all(dim=1)
    assert bool((straight | mirrored).all())
    assert 5 < int((mirrored & ~straight).sum()) < 35


def test_some_rows_and_an_augmentation_with_seeds_of_its_own(source: ListSource) -> None:
    seeds: list[int] = []

    def blacken(view: torch.Tensor, seed: int) -> torch.Tensor:
        seeds.append(seed)
        return torch.zeros_like(view)

    assert source.labels is not None
    rows = np.array([3, 5, 8])
    (batch,) = augmented_batches(LabeledViews(source, source.labels, VIEW, augment=blacken), 3, 0, 0, 0, rows)
    assert sorted(batch.indices.tolist()) == [3, 5, 8] and not batch.images.any() and len(set(seeds)) == 3


def test_unreadable_images_are_left_out_and_counted(source: ListSource, tmp_path: Path) -> None:
    (tmp_path / "images" / source.name(7)).write_bytes(b"no image")
    with pytest.warns(UserWarning, match="1 of 40 images to train on cannot be read"):
        batches = list(augmented_batches(views(source), 8, 0, 0, 0, drop_last=False))
    found = torch.cat([batch.indices for batch in batches]).tolist()
    assert sorted(found) == [index for index in range(40) if index != 7]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_named_with_the_reason_instead_of_a_warning(
    source: ListSource, tmp_path: Path, workers: int
) -> None:
    """In every epoch, also those that would have been in the last batch, which is left out."""
    broken = {source.name(index) for index in (7, 11, 39)}
    for name in broken:
        (tmp_path / "images" / name).write_bytes(b"no image")
    for epoch in range(3):
        lost: list[Skipped] = []
        batches = list(augmented_batches(views(source), 30, epoch, 0, workers, unreadable=lost))
        assert [len(batch.labels) for batch in batches] == [30]
        assert {skipped.name for skipped in lost} == broken and len(lost) == 3 and all(skipped.reason for skipped in lost)


@pytest.mark.parametrize("lengths", [[10], [1] * 10, [0, 3, 0, 7], [4, 4, 2], [9, 1], []])
@pytest.mark.parametrize("size", [1, 3, 5, 10, 11])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_the_rows_in_their_order_however_they_come(lengths: list[int], size: int, drop_last: bool) -> None:
    numbers, doubled = torch.arange(sum(lengths)), 2 * torch.arange(sum(lengths)).float()
    batches = list(rebatched(zip(numbers.split(lengths), doubled.split(lengths), strict=True), size, drop_last))
    expected = list(numbers.split(size)) if len(numbers) else []
    if drop_last and len(expected) > 1 and len(expected[-1]) < size:
        expected.pop()
    assert [batch[0].tolist() for batch in batches] == [part.tolist() for part in expected]
    assert all(torch.equal(batch[1], 2 * batch[0].float()) for batch in batches)
