"""Probes of patches: one pass over the images for both, and images that cannot be read."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openjepa.evaluation.probes import dense
from openjepa.evaluation.probes.dense import evaluate_dense
from openjepa.evaluation.protocol import ImageProbe
from openjepa.settings.evaluation import DenseSettings
from tests.helpers.colors import Broken
from tests.helpers.dense import PROBES, SETTINGS, evaluated, probe, scenes, side

BOTH = replace(SETTINGS, protocols=("dense-linear", "dense-knn"), selection="both", seed=2)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits over which a pass was made."""
    seen: list[str] = []
    own = dense.patch_batches

    def counted(probe: ImageProbe, side: Any, settings: Any, split: str, unreadable: Any) -> Any:
        seen.append(split)
        return own(probe, side, settings, split, unreadable)

    monkeypatch.setattr(dense, "patch_batches", counted)
    return seen


def noisy(number: int, seed: int) -> Any:
    return side(number, seed, informative=False)


def test_both_probes_share_a_pass_and_have_the_results_they_have_alone(passes: list[str]) -> None:
    together = evaluate_dense(probe(noisy(30, 1), noisy(20, 2)), BOTH)
    assert passes == ["training", "test"]
    assert [result.protocol for result in together] == ["dense-linear"] * 2 + ["dense-knn"] * 2
    alone = [result for name in BOTH.protocols for result in PROBES[name](probe(noisy(30, 1), noisy(20, 2)), BOTH)]
    assert list(together) == alone and together[0].heads != together[2].heads


def test_a_task_makes_one_pass_per_split_and_subject(passes: list[str], tmp_path: Path) -> None:
    whole = evaluated(scenes(12), tmp_path)
    assert all(len(subject.metrics) == 2 for subject in whole.subjects.values()) and len(whole.subjects) == 3
    assert sorted(passes) == ["test"] * 3 + ["training"] * 3


def broken_probe(train: Any, test: Any) -> ImageProbe:
    sides = [replace(one, source=Broken(one.source, lost)) for one, lost in ((side(12, 1), train), (side(6, 2), test))]
    return probe(*sides)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", PROBES)
def test_unreadable_images_are_named(name: str) -> None:
    (result,) = PROBES[name](broken_probe([3, 8], [5]), SETTINGS)
    assert result.unreadable == {"train": ("image 3", "image 8"), "test": ("image 5",)}
    assert result.extra["train_patches"] == 10 * 24 and result.accuracy == 1  # labels stay with their images


@pytest.mark.parametrize(("train", "test", "words"), [(range(12), (), "training split"), ((), range(6), "test split")])
def test_an_error_says_which_images_cannot_be_read(train: Any, test: Any, words: str) -> None:
    number = len(train) or len(test)
    with pytest.raises(
        ValueError, match=rf"no image of the {words} can be read; the first of {number} is image 0: .*data check"
    ):
        PROBES["dense-knn"](broken_probe(train, test), SETTINGS)


def test_images_of_which_no_patch_is_drawn_are_not_read() -> None:
    settings = replace(SETTINGS, dense=DenseSettings(max_patches=3))
    every = probe(side(12, 1), side(6, 2))
    drawn = np.unique(dense.training_patches(every, settings).images.numpy())
    others = [index for index in range(12) if index not in drawn]
    assert len(others) >= 9 and not dense.training_patches(broken_probe(others, ()), settings).unreadable
