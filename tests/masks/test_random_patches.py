"""Random patches against their definition: counts, uniformity, what a mask group shares, and impossible ratios."""

import itertools
from collections import Counter
from math import comb

import numpy as np
import pytest
import torch

from openjepa.masks.random_patches import RandomPatches
from openjepa.seeds import derive, derive_samples, uniforms
from openjepa.settings.masks import RandomPatchesSettings


def seeds_of(num: int, seed: int = 0) -> np.ndarray:
    return derive_samples("mask", seed, np.zeros(1, np.int64), np.arange(num))


@pytest.mark.parametrize("grid", [(14, 14), (16, 16), (6, 10), (1, 2), (3, 5)], ids=str)
@pytest.mark.parametrize("ratio", [0.15, 0.3, 0.5, 0.7, 0.75, 0.9])
def test_as_many_stay_visible_as_in_the_released_code(grid: tuple[int, int], ratio: float) -> None:
    """int(L (1 - ratio)), also where floating-point numbers make it one less than on paper."""
    num_patches = grid[0] * grid[1]
    num_visible = int(num_patches * (1 - ratio))
    if num_visible == 0:
        with pytest.raises(ValueError, match="leaves none visible"):
            RandomPatches(RandomPatchesSettings(ratio=ratio), grid)
        return
    sampler = RandomPatches(RandomPatchesSettings(ratio=ratio), grid)
    mask = sampler(seeds_of(20), 0, 0)
    assert ((~mask.masked).sum(dim=1) == num_visible).all() and mask.num_masked == num_patches - num_visible
    (shape,) = sampler.shapes()
    assert (shape.context, shape.target, shape.num_targets) == (num_visible, num_patches - num_visible, 1)


def test_those_with_the_smallest_numbers_stay() -> None:
    seeds = seeds_of(50)
    mask = RandomPatches(RandomPatchesSettings(), (7, 7))(seeds, 0, 0)
    for row, numbers in zip(mask.visible().tolist(), uniforms(seeds, 49), strict=True):
        assert row == sorted(np.argsort(numbers)[: int(49 * 0.25)].tolist())


def test_every_subset_is_equally_likely() -> None:
    """Of 2 x 3 patches 2 stay: 15 pairs; chi-squared of 14 degrees of freedom is below 36.1 in 999 of 1000 cases."""
    draws = 15_000
    visible = RandomPatches(RandomPatchesSettings(ratio=0.6), (2, 3))(seeds_of(draws), 0, 0).visible()
    counts = Counter(map(tuple, visible.tolist()))
    assert set(counts) == set(itertools.combinations(range(6), 2)) and len(counts) == comb(6, 2)
    expected = draws / len(counts)
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 36.1


def test_a_group_shares_one_draw() -> None:
    sampler = RandomPatches(RandomPatchesSettings(ratio=0.3, shared=True), (14, 14))
    mask = sampler(seeds_of(8), 5, 7)
    assert mask.masked.shape == (8, 196) and (mask.masked == mask.masked[0]).all()
    assert torch.equal(sampler(seeds_of(3, seed=9), 5, 7).masked[0], mask.masked[0]), "samples do not matter"
    for group, step in ((5, 8), (6, 7)):
        assert not torch.equal(sampler(seeds_of(8), group, step).masked[0], mask.masked[0])
    alone = RandomPatches(RandomPatchesSettings(ratio=0.3), (14, 14))
    assert torch.equal(alone(np.array([derive("group", 5, 7)]), 0, 0).masked[0], mask.masked[0]), "drawn as for one image"
    assert len(alone(seeds_of(8), 5, 7).masked.unique(dim=0)) == 8
    assert (sampler.name, alone.name) == ("random_patches/0.3/shared", "random_patches/0.3")


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, 1.5, 1e-18, float("nan")])
def test_ratios_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"masks.ratio=.* must be above 0 and below 1, e.g. 0.75"):
        RandomPatches(RandomPatchesSettings(ratio=ratio), (4, 4))


@pytest.mark.parametrize("num_patches", [2, 3, 5, 10, 64, 196, 4096])
def test_the_largest_ratio_that_is_named_fits(num_patches: int) -> None:
    with pytest.raises(ValueError, match=r"leaves none visible: use masks\.ratio=") as error:
        RandomPatches(RandomPatchesSettings(ratio=0.99999), (1, num_patches))
    named = float(str(error.value).rpartition("masks.ratio=")[2].split()[0])
    assert RandomPatches(RandomPatchesSettings(ratio=named), (1, num_patches)).shapes()[0].context == 1


def test_a_grid_of_one_patch() -> None:
    with pytest.raises(ValueError, match=r"needs at least 2 patches; this grid is 1x1: use a smaller model.patch_size"):
        RandomPatches(RandomPatchesSettings(), (1, 1))
