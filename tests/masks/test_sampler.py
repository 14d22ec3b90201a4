"""Facts that hold for every mask strategy, found by the registry: those that draw blocks, and those of single patches."""

import itertools
import pickle
import typing
from collections import Counter
from dataclasses import fields
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openjepa.masks import MASKS
from openjepa.masks.official_draws import OfficialMultiblock
from openjepa.masks.sampler import MaskSampler
from openjepa.seeds import derive_samples
from openjepa.settings.masks import NoMaskSettings, RandomPatchesSettings
from openjepa.types import BlockMasks, TokenMask
from openjepa.visualization.mask_pictures import coverage, example_masks, statistics

GRIDS = ((4, 4), (8, 8), (6, 10), (14, 7), (14, 14), (16, 16), (28, 28))


def variants() -> list[tuple[str, dict[str, Any]]]:
    """Every registry line with every combination of its settings that have named options, without those that have no effect."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, entry in MASKS.items():
        if entry.settings.kind != "blocks":
            continue
        hints = typing.get_type_hints(entry.settings)
        options: dict[str, tuple[Any, ...]] = {
            item.name: (False, True) if hints[item.name] is bool else typing.get_args(hints[item.name])
            for item in fields(entry.settings)
            if (typing.get_origin(hints[item.name]) is Literal or hints[item.name] is bool) and item.name != "strategy"
        }
        for values in itertools.product(*options.values()):
            chosen = dict(zip(options, values, strict=True))
            if chosen.get("mode") != "official" or chosen["context_cut"] == "random_subset":
                found[str((name, chosen))] = (name, chosen)
    return list(found.values())


VARIANTS = variants()
IDS = ["/".join([name, *map(str, chosen.values())]) for name, chosen in VARIANTS]
SCATTERED = ("random_targets", "block/True")
"""Variants whose targets are not rectangles."""
FIXED = ("rasterized", "random_targets")
"""Variants without a size that changes from step to step on an even grid."""
TARGET_RATIOS = {
    "rasterized": (0.249, 0.251),
    "block": (0.56, 0.62),
    "random_targets": (0.6, 0.604),
    "inverse_block": (0.1, 0.15),
}
BY_VARIANT = pytest.mark.parametrize("variant", VARIANTS, ids=IDS)
_SAMPLERS: dict[str, MaskSampler] = {}


def sampler_of(variant: tuple[str, dict[str, Any]], grid: tuple[int, int]) -> MaskSampler:
    """Built once per test session; the official masks refuse small grids without a grid's share of `min_keep`."""
    name, chosen = variant
    key = f"{name} {chosen} {grid}"
    if key not in _SAMPLERS:
        entry = MASKS[name]
        if chosen.get("mode") == "official":
            chosen = {**chosen, "min_keep": min(10, 10 * grid[0] * grid[1] // 196)}
        _SAMPLERS[key] = entry.load()(entry.settings(**chosen), grid)
    return _SAMPLERS[key]


def id_of(variant: tuple[str, dict[str, Any]]) -> str:
    return IDS[VARIANTS.index(variant)]


def seeds_of(num: int, seed: int = 0) -> np.ndarray:
    return derive_samples("mask", seed, np.zeros(1, np.int64), np.arange(num))


def context_of(masks: BlockMasks, sample: int) -> list[int]:
    """The context without its padding."""
    if masks.context_valid is None:
        return masks.context[sample].tolist()
    return masks.context[sample][masks.context_valid[sample]].tolist()


def assert_well_formed(masks: BlockMasks, grid: tuple[int, int], num_samples: int, rectangles: bool = True) -> None:
    assert masks.grid == grid
    assert masks.context.dtype == masks.targets.dtype == torch.int64
    assert len(masks.context) == len(masks.targets) == num_samples
    assert 0 <= masks.padded <= masks.redrawn <= num_samples or masks.padded == 0
    if masks.context_valid is not None:
        assert masks.context[~masks.context_valid].eq(0).all()
        assert (masks.context_valid[:, :-1] | ~masks.context_valid[:, 1:]).all(), "padding stands at the end"
    for sample in range(num_samples):
        context, targets = context_of(masks, sample), masks.targets[sample]
        assert len(context) >= 1
        assert context == sorted(set(context)), "ascending and unique"
        assert context[0] >= 0 and context[-1] < grid[0] * grid[1]
        for block in targets.tolist():
            assert block == sorted(set(block)) and block[0] >= 0 and block[-1] < grid[0] * grid[1]
            if rectangles:
                assert_rectangle(block, grid)
        if masks.redrawn == 0:  # the official program lets targets overlap a context that is hard to draw
            assert not set(context) & set(targets.flatten().tolist())


def assert_rectangle(block: list[int], grid: tuple[int, int]) -> None:
    rows, columns = {index // grid[1] for index in block}, {index % grid[1] for index in block}
    inside = itertools.product(range(min(rows), max(rows) + 1), range(min(columns), max(columns) + 1))
    assert block == [row * grid[1] + column for row, column in inside]
    assert block[0] >= 0 and block[-1] < grid[0] * grid[1]


@BY_VARIANT
@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")
def test_masks_are_well_formed(variant: tuple[str, dict[str, Any]], grid: tuple[int, int]) -> None:
    sampler = sampler_of(variant, grid)
    for step in range(3):
        masks = sampler(seeds_of(8, step), step, step)
        assert_well_formed(masks, grid, 8, id_of(variant) not in SCATTERED)
        if not isinstance(sampler, OfficialMultiblock):
            in_context = [set(context_of(masks, sample)) for sample in range(8)]
            assert not any(in_context[sample] & set(masks.targets[sample].flatten().tolist()) for sample in range(8))


@BY_VARIANT
@settings(max_examples=15, deadline=None)
@given(grid=st.tuples(st.integers(3, 20), st.integers(3, 20)), seed=st.integers(0, 2**40))
def test_masks_are_well_formed_on_any_rectangle(variant: tuple[str, dict[str, Any]], grid: tuple[int, int], seed: int) -> None:
    try:
        sampler = sampler_of(variant, grid)
    except ValueError as error:
        assert variant[1].get("mode") == "official" and min(grid) < 5, f"only narrow grids may be refused: {error}"
        return
    assert_well_formed(sampler(seeds_of(4, seed), seed, 0), grid, 4, id_of(variant) not in SCATTERED)


@BY_VARIANT
def test_same_seeds_same_masks_and_others_differ(variant: tuple[str, dict[str, Any]]) -> None:
    sampler = sampler_of(variant, (14, 14))
    first, again = sampler(seeds_of(16), 5, 7), pickle.loads(pickle.dumps(sampler))(seeds_of(16), 5, 7)
    assert torch.equal(first.context, again.context)
    assert torch.equal(first.targets, again.targets)
    other = sampler(seeds_of(16, seed=1), 5, 7)
    assert not torch.equal(first.targets[..., 0], other.targets[..., 0])
    sizes = {sampler(seeds_of(2), 5, step).targets.shape[2] for step in range(40)}
    assert (len(sizes) == 1) == (variant[0] in FIXED), "block sizes change with the step"


@BY_VARIANT
def test_a_sample_does_not_depend_on_its_neighbors(variant: tuple[str, dict[str, Any]]) -> None:
    sampler, seeds = sampler_of(variant, (14, 14)), seeds_of(32)
    if isinstance(sampler, OfficialMultiblock):
        pytest.skip("imitates a sequential program, whose samples depend on one another")
    whole = sampler(seeds, 3, 2)
    for part in (slice(0, 8), slice(8, 16), slice(16, 17), slice(17, 32)):
        masks = sampler(seeds[part], 3, 2)
        assert torch.equal(masks.targets, whole.targets[part])
        for sample in range(len(masks.context)):
            assert context_of(masks, sample) == context_of(whole, part.start + sample)
    reversed_masks = sampler(seeds[::-1].copy(), 3, 2)
    assert torch.equal(reversed_masks.targets.flip(0), whole.targets)


@BY_VARIANT
@pytest.mark.parametrize("grid", ((8, 8), (14, 14)), ids=("8x8", "14x14"))
def test_shapes_are_listed_few_and_as_frequent_as_told(variant: tuple[str, dict[str, Any]], grid: tuple[int, int]) -> None:
    sampler, num_groups = sampler_of(variant, grid), 400
    shapes = sampler.shapes()
    assert sum(shape.probability for shape in shapes) == pytest.approx(1)
    assert [shape.probability for shape in shapes] == sorted((shape.probability for shape in shapes), reverse=True)
    drawn = [sampler(seeds_of(4, group), group, group) for group in range(num_groups)]
    for size in {shape.target for shape in shapes}:
        told = sum(shape.probability for shape in shapes if shape.target == size)
        share = sum(masks.targets.shape[2] == size for masks in drawn) / num_groups
        assert abs(share - told) < 5 * (2 * told * (1 - told) / num_groups) ** 0.5 + 0.01
    if not (variant[1].get("mode") == "official" or variant[1].get("context_cut") == "none"):
        told = {(shape.context, shape.target): shape.probability for shape in shapes}
        found = Counter((masks.context.shape[1], masks.targets.shape[2]) for masks in drawn)
        for tokens, number in found.items():
            assert abs(number / num_groups - told[tokens]) < 5 * (2 * told[tokens] / num_groups) ** 0.5 + 0.01
        assert len(shapes) <= (4 if variant[1].get("context_cut", "").startswith("random") else 16)
        assert {shape.num_targets for shape in shapes} == {masks.targets.shape[1] for masks in drawn}


@BY_VARIANT
@pytest.mark.parametrize("grid", ((6, 10), (14, 14)), ids=("6x10", "14x14"))
def test_every_patch_is_covered(variant: tuple[str, dict[str, Any]], grid: tuple[int, int]) -> None:
    maps = coverage(sampler_of(variant, grid), num_samples=3000, microbatch=50)
    official = variant[1].get("mode") == "official"
    for name in ("context", "target", "union"):
        reached = maps[name][:-1, :-1] if official else maps[name]
        if name == "context" and id_of(variant) == "block/False":  # a block of 0.6 covers the middle at every position
            assert (reached[0] > 0).all() and (reached[:, 0] > 0).all() and reached[grid[0] // 2, grid[1] // 2] == 0
            continue
        assert (reached > 0).all()
        if official:  # the known bias: the last row and column are never drawn
            assert maps[name][-1].sum() == maps[name][:, -1].sum() == 0


@BY_VARIANT
def test_statistics_and_examples_agree_with_the_masks(variant: tuple[str, dict[str, Any]]) -> None:
    sampler = sampler_of(variant, (14, 14))
    numbers = statistics(sampler, num_samples=1000, microbatch=50)
    maps = coverage(sampler, num_samples=1000, microbatch=50)
    assert numbers.context_ratio == pytest.approx(maps["context"].mean())
    low, high = TARGET_RATIOS.get(variant[0], (0.15, 0.19))
    assert low < numbers.target_ratio < high
    assert numbers.target_ratio <= numbers.union_ratio < 1 - numbers.context_ratio + 1e-9
    for example in example_masks(sampler, 5, microbatch=8):
        assert example.context.shape == (14, 14)
        assert not (example.context & example.targets.any(axis=0)).any()


# ---- single patches


NAMES = [name for name, entry in MASKS.items() if entry.settings.kind == "tokens"]
BY_NAME = pytest.mark.parametrize("name", NAMES)
BY_GRID = pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid[0]}x{grid[1]}")


def token_sampler(name: str, grid: tuple[int, int] = (14, 14)) -> MaskSampler:
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
def test_tokens_masks_are_well_formed(name: str, grid: tuple[int, int]) -> None:
    masks = drawn(token_sampler(name, grid), seeds_of(8))
    counts = masks.masked.sum(dim=1)
    assert masks.grid == grid and masks.masked.shape == (8, grid[0] * grid[1]) and masks.masked.dtype == torch.bool
    assert (counts >= 1).all() and (counts < grid[0] * grid[1]).all()
    if masks.num_masked is not None:
        assert (counts == masks.num_masked).all()
        visible = masks.visible()
        for row, kept in zip(masks.masked, visible, strict=True):
            assert kept.tolist() == (~row).nonzero().flatten().tolist(), "ascending, and exactly what is not masked"


@BY_NAME
def test_tokens_same_seeds_same_masks_and_others_differ(name: str) -> None:
    sampler = token_sampler(name)
    first = drawn(sampler, seeds_of(16)).masked
    assert torch.equal(first, drawn(pickle.loads(pickle.dumps(sampler)), seeds_of(16)).masked)
    assert not torch.equal(first, drawn(sampler, seeds_of(16, seed=1)).masked)
    assert len({tuple(row) for row in first.tolist()}) == 16, "every image has its own"


@BY_NAME
def test_tokens_a_sample_does_not_depend_on_its_neighbors(name: str) -> None:
    sampler, seeds = token_sampler(name), seeds_of(32)
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
    sampler = token_sampler(name, grid)
    shapes = sampler.shapes()
    counts = drawn(sampler, seeds_of(2000)).masked.sum(dim=1).double()
    assert sum(shape.probability for shape in shapes) == pytest.approx(1)
    assert all(shape.context + shape.target == grid[0] * grid[1] for shape in shapes)
    told = sum(shape.probability * shape.target for shape in shapes)
    assert float(counts.mean()) == pytest.approx(told, abs=0.5 + 5 * float(counts.std()) / 2000**0.5)
    assert int(counts.max()) <= max(shape.places for shape in shapes), "no image has more than the places that are kept for it"


@BY_NAME
@pytest.mark.parametrize("grid", ((6, 10), (14, 14)), ids=("6x10", "14x14"))
def test_tokens_every_patch_is_covered(name: str, grid: tuple[int, int]) -> None:
    maps = coverage(token_sampler(name, grid), num_samples=3000, microbatch=50)
    assert (maps["context"] > 0).all() and (maps["target"] > 0).all()
    assert maps["context"] + maps["target"] == pytest.approx(np.ones(grid))


@BY_NAME
def test_tokens_statistics_and_examples_agree_with_the_masks(name: str) -> None:
    sampler = token_sampler(name)
    numbers = statistics(sampler, num_samples=1000, microbatch=50)
    assert numbers.context_ratio == pytest.approx(coverage(sampler, num_samples=1000, microbatch=50)["context"].mean())
    assert numbers.context_ratio + numbers.union_ratio == pytest.approx(1)
    for example in example_masks(sampler, 5, microbatch=8):
        assert example.context.shape == (14, 14)
        assert (example.context ^ example.targets.any(axis=0)).all()


def test_no_masks_see_everything_and_refuse_to_be_drawn() -> None:
    sampler = MASKS["none"].load()(NoMaskSettings(), (4, 6))
    (shape,) = sampler.shapes()
    assert shape.context == 24 and shape.target == 0 and sampler.grid == (4, 6)
    with pytest.raises(ValueError, match=r"masks.strategy=none draws no masks.*choose another"):
        sampler(seeds_of(4), 0, 0)
