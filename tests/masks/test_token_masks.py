"""Facts that hold for every mask strategy of single patches, found by the registry, and for the one that draws nothing."""

import pickle

import numpy as np
import pytest
import torch

from openjepa.masks import MASKS
from openjepa.masks.coverage import coverage, examples, statistics
from openjepa.masks.sampler import MaskSampler
from openjepa.settings.masks import NoMaskSettings, RandomPatchesSettings
from openjepa.types import TokenMask
from tests.masks.test_sampler import GRIDS, seeds_of

NAMES = [name for name, entry in MASKS.items() if entry.settings.kind == "tokens"]
BY_NAME = pytest.mark.parametrize("name", NAMES)
BY_GRID = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")


def sampler_of(name: str, grid: tuple[int, int] = (14, 14)) -> MaskSampler:
    entry = MASKS[name]
    sampler: MaskSampler = entry.load()(entry.settings(), grid)  # type: ignore[call-arg]
    return sampler


def drawn(sampler: MaskSampler, seeds: np.ndarray, group: int = 3, step: int = 0) -> TokenMask:
    masks = sampler(seeds, group, step)
    assert isinstance(masks, TokenMask)
    return masks


def test_every_kind_of_mask_is_tested_somewhere() -> None:
    assert {entry.settings.kind for entry in MASKS.values()} == {"blocks", "tokens", "none"}
    assert len(NAMES) >= 2


@BY_NAME
@BY_GRID
def test_masks_are_well_formed(name: str, grid: tuple[int, int]) -> None:
    masks = drawn(sampler_of(name, grid), seeds_of(8))
    counts = masks.masked.sum(dim=1)
    assert masks.grid == grid and masks.masked.shape == (8, grid[0] * grid[1]) and masks.masked.dtype == torch.bool
    assert (counts >= 1).all() and (counts < grid[0] * grid[1]).all()
    if masks.num_masked is not None:
        assert (counts == masks.num_masked).all()
        visible = masks.visible()
        for row, kept in zip(masks.masked, visible, strict=True):
            assert kept.tolist() == (~row).nonzero().flatten().tolist(), "ascending, and exactly what is not masked"


@BY_NAME
def test_same_seeds_same_masks_and_others_differ(name: str) -> None:
    sampler = sampler_of(name)
    first = drawn(sampler, seeds_of(16)).masked
    assert torch.equal(first, drawn(pickle.loads(pickle.dumps(sampler)), seeds_of(16)).masked)
    assert not torch.equal(first, drawn(sampler, seeds_of(16, seed=1)).masked)
    assert len({tuple(row) for row in first.tolist()}) == 16, "every image has its own"


@BY_NAME
def test_a_sample_does_not_depend_on_its_neighbors(name: str) -> None:
    sampler, seeds = sampler_of(name), seeds_of(32)
    whole = drawn(sampler, seeds).masked
    for part in (slice(0, 8), slice(8, 9), slice(9, 32)):
        assert torch.equal(drawn(sampler, seeds[part]).masked, whole[part])
    assert torch.equal(drawn(sampler, seeds[::-1].copy()).masked.flip(0), whole)


def test_a_shared_draw_belongs_to_the_group() -> None:
    sampler = MASKS["random_patches"].load()(RandomPatchesSettings(shared=True), (14, 14))
    first = drawn(sampler, seeds_of(8), group=1).masked
    assert (first == first[:1]).all()
    assert torch.equal(first[:4], drawn(sampler, seeds_of(4, seed=9), group=1).masked)
    assert not torch.equal(first, drawn(sampler, seeds_of(8), group=2).masked)


@BY_NAME
@pytest.mark.parametrize("grid", ((8, 8), (14, 14)), ids=("8x8", "14x14"))
def test_the_announced_counts_are_the_drawn_ones(name: str, grid: tuple[int, int]) -> None:
    sampler = sampler_of(name, grid)
    shapes = sampler.shapes()
    counts = drawn(sampler, seeds_of(2000)).masked.sum(dim=1).double()
    assert sum(shape.probability for shape in shapes) == pytest.approx(1)
    assert all(shape.context + shape.target == grid[0] * grid[1] for shape in shapes)
    told = sum(shape.probability * shape.target for shape in shapes)
    assert float(counts.mean()) == pytest.approx(told, abs=0.5 + 5 * float(counts.std()) / 2000**0.5)
    assert int(counts.max()) <= max(shape.places for shape in shapes), "no image has more than the places that are kept for it"


@BY_NAME
@pytest.mark.parametrize("grid", ((6, 10), (14, 14)), ids=("6x10", "14x14"))
def test_every_patch_is_covered(name: str, grid: tuple[int, int]) -> None:
    maps = coverage(sampler_of(name, grid), num_samples=3000, microbatch=50)
    assert (maps["context"] > 0).all() and (maps["target"] > 0).all()
    assert maps["context"] + maps["target"] == pytest.approx(np.ones(grid))


@BY_NAME
def test_statistics_and_examples_agree_with_the_masks(name: str) -> None:
    sampler = sampler_of(name)
    numbers = statistics(sampler, num_samples=1000, microbatch=50)
    assert numbers.context_ratio == pytest.approx(coverage(sampler, num_samples=1000, microbatch=50)["context"].mean())
    assert numbers.context_ratio + numbers.union_ratio == pytest.approx(1)
    for example in examples(sampler, 5, microbatch=8):
        assert example.context.shape == (14, 14)
        assert (example.context ^ example.targets.any(axis=0)).all()


def test_no_masks_see_everything_and_refuse_to_be_drawn() -> None:
    sampler = MASKS["none"].load()(NoMaskSettings(), (4, 6))
    (shape,) = sampler.shapes()
    assert shape.context == 24 and shape.target == 0 and sampler.grid == (4, 6)
    with pytest.raises(ValueError, match=r"masks.strategy=none draws no masks.*choose another"):
        sampler(seeds_of(4), 0, 0)
