"""Block-wise masks: the rule one attempt at a time, seeds, limits on rectangles, impossible settings."""

import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openjepa.checks.grids import check_blockwise, min_block_of
from openjepa.masks.blockwise import Blockwise
from openjepa.seeds import derive_samples, uniforms
from openjepa.settings.masks import BlockwiseSettings


def seeds_of(num: int, seed: int = 0) -> np.ndarray:
    return derive_samples("mask", seed, np.zeros(1, np.int64), np.arange(num))


def one_mask(masks: BlockwiseSettings, grid: tuple[int, int], seed: int) -> np.ndarray:
    """The rule as it is told, with plain loops and the sample's own sequence of numbers."""
    rows, columns = grid
    numbers = iter(uniforms(np.array([seed]), 20_000)[0].tolist())
    entry = int(next(numbers) * len(masks.ratios))
    ratio = masks.ratios[entry] + masks.spreads[entry] * (2 * next(numbers) - 1)
    left, smallest = round(ratio * rows * columns, 6), min_block_of(masks, grid)
    masked = np.zeros(grid, dtype=bool)
    while left >= 1:
        attempts = [[next(numbers) for _ in range(4)] for _ in range(10)]
        taken = 0
        for area_number, aspect_number, row_number, column_number in attempts:
            largest = left if masks.max_block is None else min(left, masks.max_block)
            area = smallest + area_number * (largest - smallest)
            aspect = masks.aspect[0] * (masks.aspect[1] / masks.aspect[0]) ** aspect_number
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if height >= rows or width >= columns:
                continue
            top, first = int(row_number * (rows - height + 1)), int(column_number * (columns - width + 1))
            block = masked[top : top + height, first : first + width]
            if 1 <= int((~block).sum()) <= left:
                taken = int((~block).sum())
                block[:] = True
                break
        if not taken:
            break
        left -= taken
    return masked


@pytest.mark.parametrize(
    ("masks", "grid"),
    [
        (BlockwiseSettings(ratios=(120 / 196,)), (14, 14)),
        (BlockwiseSettings(ratios=(0.0, 0.3), spreads=(0.0, 0.2)), (8, 8)),
        (BlockwiseSettings(min_block=2, max_block=6, aspect=(0.5, 3.0)), (6, 10)),
        (BlockwiseSettings(ratios=(1.0,)), (5, 3)),
        (BlockwiseSettings(), (2, 2)),
    ],
)
def test_all_samples_at_once_are_one_after_another(masks: BlockwiseSettings, grid: tuple[int, int]) -> None:
    seeds = seeds_of(40)
    drawn = Blockwise(masks, grid)(seeds, 0, 0)
    assert drawn.grid == grid and drawn.num_masked is None
    for seed, masked in zip(seeds.tolist(), drawn.masked.numpy(), strict=True):
        np.testing.assert_array_equal(masked.reshape(grid), one_mask(masks, grid, seed))


def test_a_mask_depends_on_its_own_seed_alone() -> None:
    sampler, seeds = Blockwise(BlockwiseSettings(), (8, 8)), seeds_of(32)
    whole = sampler(seeds, 3, 2).masked
    again = pickle.loads(pickle.dumps(sampler))(seeds[::-1].copy(), 5, 7).masked
    assert np.array_equal(whole, again.flip(0))
    for part in (slice(0, 8), slice(8, 9), slice(9, 32)):
        assert np.array_equal(sampler(seeds[part], 3, 2).masked, whole[part])
    assert not np.array_equal(sampler(seeds_of(32, seed=1), 3, 2).masked, whole)
    assert len({tuple(row.tolist()) for row in whole}) == 32


@settings(max_examples=30, deadline=None)
@given(grid=st.tuples(st.integers(2, 16), st.integers(2, 16)), ratio=st.floats(0, 1), seed=st.integers(0, 2**40))
def test_never_more_than_wished_on_any_rectangle(grid: tuple[int, int], ratio: float, seed: int) -> None:
    drawn = Blockwise(BlockwiseSettings(ratios=(ratio,)), grid)(seeds_of(8, seed), 0, 0)
    assert (drawn.masked.sum(dim=1) <= ratio * grid[0] * grid[1] + 1e-6).all()


def test_an_image_may_have_no_mask_by_the_published_rule() -> None:
    """All of its first ten blocks were as high as the grid: one image of some thousands on a flat grid, none at 14x14.

    The losses of data2vec and iBOT give such an image no patch.
    """
    counts = Blockwise(BlockwiseSettings(ratios=(0.5,)), (4, 12))(seeds_of(8, 5839296976), 0, 0).masked.sum(dim=1)
    assert counts.tolist().count(0) == 1 and counts.max() <= 24
    assert (Blockwise(BlockwiseSettings(), (14, 14))(seeds_of(4000), 0, 0).masked.sum(dim=1) > 0).all()


@pytest.mark.parametrize("grid", [(6, 10), (14, 14)])
def test_every_patch_is_masked_sometimes_and_shown_sometimes(grid: tuple[int, int]) -> None:
    share = Blockwise(BlockwiseSettings(), grid)(seeds_of(2000), 0, 0).masked.float().mean(dim=0).view(grid)
    assert (share > 0.02).all() and (share < 0.99).all()
    assert (share - share.flip(0)).abs().max() < 0.06 and (share - share.flip(1)).abs().max() < 0.06  # no side is preferred


def test_token_counts_are_means() -> None:
    masks, grid = BlockwiseSettings(ratios=(0.0, 0.3), spreads=(0.0, 0.2)), (14, 14)
    (shape,) = Blockwise(masks, grid).shapes()
    counts = Blockwise(masks, grid)(seeds_of(4000, seed=9), 0, 0).masked.sum(dim=1)
    assert abs(shape.target - counts.float().mean().item()) < 5 * 33 * (1 / 1024 + 1 / 4000) ** 0.5
    assert shape.context + shape.target == 196
    assert (shape.probability, shape.num_targets) == (1.0, 1)


@pytest.mark.parametrize(
    ("masks", "grid", "message"),
    [
        (BlockwiseSettings(), (1, 8), r"at least 2x2 patches; this grid is 1x8: use a smaller model.patch_size"),
        (BlockwiseSettings(ratios=(0.1, 0.3)), (8, 8), r"masks.ratios=0.1 0.3 and masks.spreads=0 .* masks.spreads 0.0 0.0"),
        (BlockwiseSettings(ratios=()), (8, 8), r"masks.ratios=\(\) and masks.spreads=0 do not match"),
        (BlockwiseSettings(ratios=(0.3,), spreads=(0.4,)), (8, 8), r"masks.ratios=0.3 with masks.spreads=0.4 .* here is 0.3"),
        (BlockwiseSettings(ratios=(1.2,)), (8, 8), r"masks.ratios=1.2 with masks.spreads=0 must stay between 0 and 1"),
        (BlockwiseSettings(min_block=50), (8, 8), r"masks.min_block=50 does not fit into 8x8 patches: use at most 49"),
        (BlockwiseSettings(max_block=3), (8, 8), r"masks.max_block=3 is less than the smallest block, 4 patches"),
    ],
)
def test_impossible_settings(masks: BlockwiseSettings, grid: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_blockwise(masks, grid)
    with pytest.raises(ValueError, match=message):
        Blockwise(masks, grid)
