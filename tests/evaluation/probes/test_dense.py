"""Patches as units: their labels, the mean IoU and its error against slow restatements, and probes with known answers."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from openjepa.data.views import evaluation_view
from openjepa.evaluation.probes.dense import (
    held_out_patches,
    label_view,
    patch_batches,
    patch_features,
    patch_histograms,
    patch_labels,
    training_patches,
)
from openjepa.evaluation.protocol import ProtocolResult
from openjepa.evaluation.tasks import TASKS, chosen_tasks
from openjepa.measures.features import hit_rate, mean_iou, mean_iou_error, overlap_counts
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import DenseSettings
from openjepa.types import normalize
from tests.helpers.dense import CONFIG, PROBES, SETTINGS, ListOfMaps, evaluated, probe, scenes, side

# ---- labels of patches


@pytest.mark.parametrize("shape", [(16, 24), (33, 47), (11, 40), (64, 20)])
@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_labels_follow_the_geometry_of_the_view(shape: tuple[int, int], fit: str) -> None:
    labels = np.arange(shape[0] * shape[1]).reshape(shape)
    view = label_view(labels, (16, 24), fit)
    height, width, size = *shape, (16, 24)
    factor = max(18 / height, 27 / width)  # 256 / 224 of the size, covered
    full = (max(16, math.floor(height * factor)), max(24, math.floor(width * factor))) if fit == "crop" else size
    for row in range(16):
        for column in range(24):
            y = (row + round((full[0] - 16) / 2) + 0.5) / full[0] * height
            x = (column + round((full[1] - 24) / 2) + 0.5) / full[1] * width
            assert view[row, column] == labels[math.floor(y), math.floor(x)]


@pytest.mark.parametrize("fit", ["squash", "crop"])
def test_image_and_labels_stay_in_register(fit: str) -> None:
    """A picture that is bright where its labels are 1 is bright there in the view, but for the pixels at the edge."""
    labels = np.zeros((60, 100), np.uint8)
    labels[20:45, 30:80] = 1
    pixels = torch.from_numpy(np.repeat(labels[:, :, None] * 200, 3, axis=2))
    seen = evaluation_view(pixels, (48, 64), fit)[0].numpy() > 100
    assert (seen == label_view(labels, (48, 64), fit)).mean() > 0.98
    assert (seen[:, ::-1] == label_view(labels, (48, 64), fit)).mean() < 0.95


def test_patches_have_the_class_of_most_of_their_pixels() -> None:
    rng = np.random.default_rng(0)
    view = rng.choice([0, 1, 2, 255], (16, 24), p=[0.3, 0.2, 0.1, 0.4]).astype(np.uint8)
    view[:4, :4], view[4:8, :4] = 255, np.repeat([[1], [2], [2], [1]], 4, axis=1)  # nothing labeled; a tie
    histograms = patch_histograms(view, 4, 3)
    for patch in range(24):
        row, column = divmod(patch, 6)
        inside = view[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert histograms[patch].tolist() == [(inside == label).sum() for label in range(3)]
        best = max(range(3), key=lambda label: (inside == label).sum())  # the first of equal ones
        assert patch_labels(histograms)[patch] == (best if (inside != 255).any() else 255)
    assert patch_labels(histograms)[0] == 255 and patch_labels(histograms)[6] == 1
    with pytest.raises(ValueError, match="holds class 3"):
        patch_histograms(np.full((4, 4), 3, np.uint8), 4, 3)


# ---- mean IoU


def slow_mean_iou(predicted: NDArray[Any], true: NDArray[Any]) -> float:
    values = []
    for label in range(5):
        if (true == label).any():
            values.append(((predicted == label) & (true == label)).sum() / ((predicted == label) | (true == label)).sum())
    return float(np.mean(values))


def test_mean_iou_agrees_with_sets_of_pixels() -> None:
    rng = np.random.default_rng(1)
    true = rng.choice([0, 1, 3, 4], (6, 10))  # no image has class 2, which is predicted
    predicted = np.where(rng.random((6, 10)) < 0.4, true, rng.integers(0, 5, (6, 10)))
    ones = torch.nn.functional.one_hot(torch.from_numpy(true), 5)
    counts = overlap_counts(torch.from_numpy(predicted), ones)
    assert float(mean_iou(counts.sum(0))) == pytest.approx(slow_mean_iou(predicted, true))
    for image in range(6):
        assert float(mean_iou(counts)[image]) == pytest.approx(slow_mean_iou(predicted[image], true[image]))
    assert hit_rate(counts.sum(0)) == pytest.approx((predicted == true).mean())


def test_mean_iou_of_pixels_is_that_of_upsampled_patches() -> None:
    rng = np.random.default_rng(2)
    views = rng.choice([0, 1, 2, 255], (3, 16, 24)).astype(np.uint8)
    predicted = rng.integers(0, 3, (3, 24))
    histograms = np.stack([patch_histograms(view, 4, 3) for view in views])
    large = np.repeat(np.repeat(predicted.reshape(3, 4, 6), 4, axis=1), 4, axis=2)
    counts = overlap_counts(torch.from_numpy(predicted), torch.from_numpy(histograms)).sum(0)
    labeled = views != 255
    assert float(mean_iou(counts)) == pytest.approx(slow_mean_iou(large[labeled], views[labeled]))


def test_error_of_one_class_is_binomial() -> None:
    """With one class and one patch per image, the IoU is the share of hits, whose error is sqrt(p (1 - p) / n)."""
    hits = torch.arange(400) < 120
    counts = overlap_counts((~hits).long()[:, None], torch.tensor([1, 0]).expand(400, 1, 2))
    expected = math.sqrt(0.3 * 0.7 / 400)
    assert mean_iou_error(counts, seed=0) == pytest.approx(expected, rel=0.15)  # 200 draws: 5 % of noise
    assert mean_iou_error(counts, seed=0) == mean_iou_error(counts, seed=0) != mean_iou_error(counts, seed=1)
    # images that are all alike leave nothing uncertain, whatever the patches of each are
    alike = overlap_counts(torch.tensor([[0, 1, 0]]).expand(50, 3), torch.eye(3, dtype=torch.long).expand(50, 3, 3))
    assert mean_iou_error(alike, seed=0) == pytest.approx(0, abs=1e-12)


# ---- features and draw


def test_features_are_the_patches_after_the_final_norm() -> None:
    own = probe(side(5, 1), side(9, 2), raw_pixels=False)
    images = torch.from_numpy(own.test.source.images).permute(0, 3, 1, 2)  # type: ignore[attr-defined]
    expected = own.encoder(normalize(images, CONFIG.pixel_mean, CONFIG.pixel_std)).patches
    batches = list(patch_batches(own, own.test, SETTINGS, "test", []))
    torch.testing.assert_close(torch.cat([batch.features for batch in batches]), expected)
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(9))
    labels = torch.from_numpy(own.test.maps.maps[:, ::4, ::4].astype(np.int64)).flatten(1)  # type: ignore[union-attr]
    assert torch.equal(torch.cat([batch.labels for batch in batches]), labels)


def test_raw_pixels_are_those_of_each_patch() -> None:
    own = probe(side(2, 1), side(2, 2))
    images = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found = patch_features(own, images)
    for patch in range(24):
        row, column = divmod(patch, 6)
        inside = images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        torch.testing.assert_close(found[:, patch], inside.flatten(1) / 255)


def test_training_patches_are_drawn_with_the_seed() -> None:
    own = probe(side(40, 1), side(2, 2))
    every = training_patches(own, SETTINGS)
    assert len(every.labels) == 40 * 24 and torch.equal(every.images, torch.arange(40).repeat_interleave(24))
    rows = {(int(image), *row.tolist()) for image, row in zip(every.images, every.features, strict=True)}
    few = replace(SETTINGS, dense=DenseSettings(max_patches=30))
    some = training_patches(own, few)
    assert len(some.labels) == 30 and len(some.images.unique()) > 15
    assert {(int(image), *row.tolist()) for image, row in zip(some.images, some.features, strict=True)} <= rows
    assert torch.equal(some.features.view(30, 3, 16).mean(dim=2).argmax(dim=1), some.labels)  # still its own label
    assert torch.equal(training_patches(own, few).features, some.features)
    assert not torch.equal(training_patches(own, replace(few, seed=1)).images, some.images)


def test_unlabeled_patches_are_left_out() -> None:
    train, test = side(12, 1), side(6, 2)
    assert isinstance(train.maps, ListOfMaps) and isinstance(test.maps, ListOfMaps)
    train.maps.maps[:, :4, :4] = 255
    train.maps.maps[3] = 255
    found = training_patches(probe(train, test), SETTINGS)
    assert len(found.labels) == 11 * 23 and 3 not in found.images and int(found.labels.max()) == 2
    test.maps.maps[:] = 255
    with pytest.raises(
        ValueError, match=r"no patch of the 6 test images has .* hold classes and not only 255, or evaluate other --tasks"
    ):
        PROBES["dense-linear"](probe(train, test), SETTINGS)
    train.maps.maps[:] = 255
    with pytest.raises(ValueError, match=r"dense\.max_patches=50000: none of the 288 training patches .*--dense\.max-patches"):
        PROBES["dense-linear"](probe(train, test), SETTINGS)


def test_held_out_patches_share_no_image_with_the_others() -> None:
    patches = training_patches(probe(side(40, 1), side(2, 2)), replace(SETTINGS, dense=DenseSettings(max_patches=600)))
    kept, held = held_out_patches(patches, seed=0)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(600))
    assert not set(patches.images[kept].tolist()) & set(patches.images[held].tolist())
    assert len(patches.images[held].unique()) == 4


@pytest.mark.parametrize("name", PROBES)
def test_patches_of_one_image_cannot_be_held_out_and_no_class_is_blamed(name: str) -> None:
    one = probe(side(1, 1), side(2, 2))
    with pytest.raises(
        Refusal, match=r"selection='held_out': all training patches are of one image.*--selection paper"
    ) as told:
        PROBES[name](one, SETTINGS)
    assert "class" not in str(told.value)
    (result,) = PROBES[name](one, replace(SETTINGS, selection="paper"))
    assert 0 < result.accuracy <= 1 and result.extra["train_patches"] == 24


# ---- probes


@pytest.mark.parametrize("name", PROBES)
def test_colors_that_are_the_classes_are_all_found(name: str) -> None:
    results = PROBES[name](probe(side(30, 1), side(20, 2)), replace(SETTINGS, selection="both"))
    assert [result.selection for result in results] == ["held_out", "paper"]
    for result in results:
        assert result.accuracy == 1 and result.standard_error == pytest.approx(0, abs=1e-12)
        assert (result.extra["patch_accuracy"], result.extra["pixel_miou"]) == (1, 1)
        assert all(head.features == "pixels" for head in result.heads)
    held_out, paper = results
    assert all(head.held_out_accuracy == 1 for head in held_out.heads)
    assert all(head.held_out_accuracy is None for head in paper.heads)


def test_colors_that_say_nothing_give_the_most_frequent_class() -> None:
    train, test = side(60, 1, informative=False), side(60, 2, informative=False)
    (result,) = PROBES["dense-linear"](probe(train, test), replace(SETTINGS, weight_decays=(1.0,)))
    assert isinstance(test.maps, ListOfMaps)
    share = (test.maps.maps == 0).mean()
    assert result.extra["majority"] == pytest.approx(share / 3)
    assert result.accuracy == pytest.approx(share / 3, abs=0.02)


def test_an_encoder_has_its_own_numbers() -> None:
    train, test = side(30, 1), side(20, 2)
    (result,) = PROBES["dense-linear"](probe(train, test, raw_pixels=False), SETTINGS)
    assert result.accuracy > 0.9  # random weights keep the color of a patch
    assert {head.features for head in result.heads} == {"last"} and result.extra["train_patches"] == 720


def numbers(result: ProtocolResult) -> list[Any]:
    return [(head.head, head.setting, head.held_out_accuracy, head.chosen) for head in result.heads]


@pytest.mark.parametrize("name", PROBES)
def test_held_out_selection_does_not_see_the_test_labels(name: str) -> None:
    noisy = side(40, 1, informative=False)
    honest = PROBES[name](probe(noisy, side(30, 2, informative=False)), SETTINGS)[0]
    wrong = PROBES[name](probe(noisy, side(30, 2, weights=(0.2, 0.2, 0.6))), SETTINGS)[0]
    best = max(honest.heads, key=lambda head: head.held_out_accuracy or 0)
    assert best.chosen and honest.accuracy == best.test_accuracy
    assert numbers(honest) == numbers(wrong) and honest.accuracy != wrong.accuracy


@pytest.mark.parametrize("name", PROBES)
def test_paper_selection_is_the_best_on_test(name: str) -> None:
    noisy = side(40, 1, informative=False), side(40, 2, informative=False)
    (result,) = PROBES[name](probe(*noisy), replace(SETTINGS, selection="paper", weight_decays=(1e-6, 1e-4, 1.0)))
    assert result.accuracy == max(head.test_accuracy for head in result.heads)
    assert sum(head.chosen for head in result.heads) == 1
    assert result.standard_error > 0


# ---- tasks


def test_a_task_on_maps_has_numbers_of_encoders_and_pixels(tmp_path: Path) -> None:
    splits = scenes(30)
    whole = evaluated(splits, tmp_path)
    assert list(whole.subjects) == ["encoder", "untrained", "pixels"]
    assert all(list(subject.metrics) == ["dense linear mIoU", "dense k-NN mIoU"] for subject in whole.subjects.values())
    share = np.mean([splits.label_maps["shape"][1].read(index) == 0 for index in range(20)])
    assert whole.chance == pytest.approx(share / 3) and whole.num_classes == 3
    # the maps of other images would say nothing of the colors of these
    few = evaluated(splits, tmp_path, max_train_images=12)
    assert few.num_train == 12
    for metric in few.subjects["pixels"].metrics.values():
        assert metric.value == 1 and metric.extra["train_patches"] == 12 * 24


def test_protocols_that_need_no_maps_are_skipped_with_the_reason(tmp_path: Path) -> None:
    skipped = evaluated(scenes(4), tmp_path, protocols=("knn", "linear"))
    assert skipped.skipped == "none of the protocols knn, linear works on labels of pixels"


def test_maps_are_a_task_only_where_it_is_named() -> None:
    splits = scenes(3)
    assert chosen_tasks((), splits) == ("classification",)
    assert chosen_tasks(("scene_shapes",), splits) == ("scene_shapes",)
    labels = TASKS["scene_shapes"].labels(splits)
    assert not isinstance(labels, str) and [len(answers) for answers in labels] == [3, 20]
    assert "no maps of `color`" in str(TASKS["scene_colors"].labels(splits))
