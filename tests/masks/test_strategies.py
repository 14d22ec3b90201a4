"""The strategies of the paper's Table 6 beside multi-block, and inverse blocks, against their definitions."""

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openjepa.masks import MASKS
from openjepa.masks.inverse_block import Room
from openjepa.masks.multiblock import mean_of_smallest
from openjepa.masks.sampler import MaskSampler
from openjepa.seeds import derive_samples, uniforms
from openjepa.settings.masks import (
    InverseBlockSettings,
    MaskSettings,
    MultiblockSettings,
    RandomTargetsSettings,
    RasterizedSettings,
    SingleBlockSettings,
)
from openjepa.types import BlockMasks
from openjepa.visualization.mask_pictures import coverage, statistics

GRIDS = st.tuples(st.integers(2, 17), st.integers(2, 17))
SEEDS = st.integers(0, 2**40)
TABLE_6 = (RasterizedSettings(), SingleBlockSettings(), RandomTargetsSettings())


def seeds_of(num: int, seed: int = 0) -> np.ndarray:
    return derive_samples("mask", seed, np.zeros(1, np.int64), np.arange(num))


def sampler(options: MaskSettings, grid: tuple[int, int] = (14, 14)) -> MaskSampler:
    made: MaskSampler = MASKS[options.strategy].load()(options, grid)
    return made


def drawn(options: MaskSettings, grid: tuple[int, int], num: int = 16, seed: int = 0) -> BlockMasks:
    masks = sampler(options, grid)(seeds_of(num, seed), seed, 0)
    assert isinstance(masks, BlockMasks) and masks.context_valid is None and masks.redrawn == masks.padded == 0
    return masks


def places(indices: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    return indices // grid[1], indices % grid[1]


# ------------------------------------------------------------------------------------------------------------- rasterized


@settings(max_examples=60, deadline=None)
@given(grid=GRIDS, seed=SEEDS)
def test_quadrants_share_no_patch_with_the_context_and_leave_out_only_what_the_docstring_says(
    grid: tuple[int, int], seed: int
) -> None:
    masks = drawn(RasterizedSettings(), grid, seed=seed)
    rows, columns = places(masks.context, grid)
    height, width = len(rows[0].unique()), len(columns[0].unique())
    assert height in (grid[0] // 2, grid[0] - grid[0] // 2) and width in (grid[1] // 2, grid[1] - grid[1] // 2)
    assert masks.targets.shape[1:] == (3, (grid[0] - height) * (grid[1] - width))
    middle = [side // 2 if side % 2 and taken > side // 2 else None for side, taken in zip(grid, (height, width), strict=True)]
    for context, targets in zip(masks.context.tolist(), masks.targets.tolist(), strict=True):
        seen, hidden = set(context), {patch for block in targets for patch in block}
        assert not seen & hidden
        for patch in set(range(grid[0] * grid[1])) - seen - hidden:
            assert middle[0] == patch // grid[1] or middle[1] == patch % grid[1], "only beside a context with the middle line"
        corners = {(min(block) // grid[1] > 0, min(block) % grid[1] > 0) for block in [context, *targets]}
        assert len(corners) == 4, "one block in each corner"


def test_each_quadrant_is_context_equally_often() -> None:
    for grid in ((14, 14), (7, 7), (6, 9)):
        maps = coverage(sampler(RasterizedSettings(), grid), num_samples=20_000, microbatch=10)
        assert np.abs(maps["context"] - 0.25).max() < 5 * np.sqrt(10 * 0.25 * 0.75 / 20_000)
        told = maps["union"] + maps["context"]  # of odd grids, only the middle row and column are ever left out
        for axis, side in enumerate(grid):
            told = np.delete(told, side // 2, axis) if side % 2 else told
        assert told == pytest.approx(np.ones(told.shape))


# ----------------------------------------------------------------------------------------------------------- single target


@pytest.mark.parametrize("options", [SingleBlockSettings(), SingleBlockSettings(rolled=True), RandomTargetsSettings()], ids=str)
@settings(max_examples=40, deadline=None)
@given(grid=st.tuples(st.integers(3, 17), st.integers(3, 17)), seed=SEEDS)
def test_the_context_is_all_that_is_not_the_target(options: MaskSettings, grid: tuple[int, int], seed: int) -> None:
    masks = drawn(options, grid, seed=seed)
    assert masks.targets.shape[1] == 1
    both = torch.cat([masks.context, masks.targets[:, 0]], dim=1).sort(dim=1).values
    assert (both == torch.arange(grid[0] * grid[1])).all()
    share = masks.targets.shape[2] / (grid[0] * grid[1])
    assert abs(share - 0.6) < 0.5 / min(grid) + 0.5 / max(grid) + 0.05


def test_a_block_of_0_6_hides_the_middle_and_a_rolled_one_treats_all_positions_alike() -> None:
    straight, rolled = (coverage(sampler(SingleBlockSettings(rolled=on)), 20_000, microbatch=10) for on in (False, True))
    assert (straight["target"][5:9, 5:9] == 1).all() and straight["context"][0, 0] > 0.8
    assert np.abs(rolled["target"] - rolled["target"].mean()).max() < 0.05


def test_a_rolled_block_is_the_straight_one_moved_around() -> None:
    grid, masks = (9, 12), drawn(SingleBlockSettings(rolled=True), (9, 12), num=200)
    rows, columns = (
        torch.stack([torch.bincount(line, minlength=side) for line in lines])
        for lines, side in zip(places(masks.targets[:, 0], grid), grid, strict=True)
    )
    for counts in (rows, columns):
        inside = counts > 0
        assert ((inside != inside.roll(1, dims=1)).sum(dim=1) == 2).all(), "one run of lines, which may pass the border"
        assert (inside[:, 0] & inside[:, -1]).any() and (counts[inside] == counts.max()).all()


def test_every_set_of_patches_is_equally_likely_as_random_target() -> None:
    masks = drawn(RandomTargetsSettings(target_ratio=0.5), (2, 2), num=6000)
    _, counts = masks.targets[:, 0].unique(dim=0, return_counts=True)
    assert len(counts) == 6 and (counts - 1000).abs().max() < 5 * 1000**0.5


# ----------------------------------------------------------------------------------------------------------- inverse block


@settings(max_examples=60, deadline=None)
@given(grid=st.tuples(st.integers(4, 17), st.integers(4, 17)), seed=SEEDS)
def test_inverse_blocks_are_a_rolled_context_and_whole_targets_beside_it(grid: tuple[int, int], seed: int) -> None:
    masks = drawn(InverseBlockSettings(), grid, seed=seed)
    assert masks.targets.shape[1] == 4
    for context, targets in zip(masks.context.tolist(), masks.targets.tolist(), strict=True):
        rows, columns = {patch // grid[1] for patch in context}, {patch % grid[1] for patch in context}
        assert len(context) == len(rows) * len(columns)
        for lines, side in zip((rows, columns), grid, strict=True):  # 0.2 to 0.4 of the patches, sides rounded
            assert 0.2**0.5 * side - 0.51 < len(lines) < 0.4**0.5 * side + 0.51
        assert not set(context) & {patch for block in targets for patch in block}


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(2, 8), st.integers(2, 8)), st.data())
def test_room_restated_position_by_position(grid: tuple[int, int], data: st.DataObject) -> None:
    """Contexts and targets over all positions, against sets; equidistant numbers must give each position equally often."""
    context, target = (np.array([data.draw(st.integers(1, side)) for side in grid]) for _ in range(2))

    def block(top: int, left: int, size: np.ndarray) -> set[tuple[int, int]]:
        return {((top + row) % grid[0], (left + column) % grid[1]) for row in range(size[0]) for column in range(size[1])}

    inside = [(top, left) for top in range(grid[0] - target[0] + 1) for left in range(grid[1] - target[1] + 1)]
    beside = {
        (top, left): [corner for corner in inside if not block(*corner, target) & block(top, left, context)]
        for top in range(grid[0])
        for left in range(grid[1])
    }
    room, allowed = Room(grid, context, target), [place for place, free in beside.items() if free]
    assert [tuple(place) for place in np.argwhere(room.allowed).tolist()] == allowed
    if not allowed:
        return
    assert [tuple(place) for place in room.contexts(_middles(len(allowed))).tolist()] == allowed
    for place, free in beside.items():
        if free:
            corners = room.targets(np.array([place]), _middles(len(free))[None])[0]
            assert [tuple(corner) for corner in corners.tolist()] == free
    reached = [set().union(*(block(*place, context) for place in allowed))]
    reached.append(set().union(*(block(*corner, target) for free in beside.values() for corner in free)))
    for found, expected in zip(room.reached(), reached, strict=True):
        assert {tuple(patch) for patch in np.argwhere(found).tolist()} == expected


def _middles(num: int) -> np.ndarray:
    return (np.arange(num) + 0.5) / num


def test_a_target_that_fits_beside_no_context_is_not_drawn() -> None:
    """Beside 9x9 of 14x14 patches 5 rows or columns are free: 5x7 fits, 6x6 does not."""
    made = sampler(InverseBlockSettings(target_scale=(0.15, 0.2)))
    shapes = {(shape.context, shape.target) for shape in made.shapes()}
    assert (64, 36) in shapes and (81, 35) in shapes and (81, 36) not in shapes


def test_inverse_blocks_cover_the_middle_about_as_often_as_the_border() -> None:
    maps = coverage(sampler(InverseBlockSettings()), num_samples=20_000, microbatch=20)
    assert maps["context"].min() > 0.2 and maps["context"].max() < 0.4


# -------------------------------------------------------------------------------------------- the paper's cut, without bias


def test_mean_of_smallest_restated() -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(20, 100, 300)
    for number in (1, 2, 40, 300):
        smallest = [generator.choice(values, number, replace=False).min() for _ in range(2000)]
        assert abs(mean_of_smallest(values, number) - np.mean(smallest)) < 5 * np.std(smallest) / 2000**0.5 + 1e-9


def test_the_smallest_context_follows_scales_and_number_of_targets() -> None:
    """Tables 8 to 10 change how much the context has left; `context_ratio` would keep a quarter in every row of them."""

    def ratio(**changes: object) -> float:
        made = sampler(MultiblockSettings(context_cut="smallest", **changes))  # type: ignore[arg-type]
        return sum(shape.probability * shape.context for shape in made.shapes()) / 196

    usual = ratio()
    assert 0.25 < usual < 0.32
    by_context = [ratio(context_scale=(low, 1.0)) for low in (0.4, 0.65, 0.75)]
    assert by_context == sorted(by_context) and by_context[0] < 0.18 and by_context[-1] < usual
    by_number = [ratio(num_targets=number) for number in (1, 2, 3)]
    assert by_number == sorted(by_number, reverse=True) and by_number[0] > 0.7 and by_number[-1] > usual
    assert ratio(target_scale=(0.2, 0.3)) < 0.2 < ratio(target_scale=(0.1, 0.2))
    assert ratio(cut_images=16) > usual > ratio(cut_images=512)


def test_the_smallest_context_is_that_of_batches_of_as_many_images() -> None:
    """With one size of each block, K is the mean of the smallest of 128 uncut contexts, and few samples are drawn again."""
    one = {"target_scale": (0.16, 0.16), "target_aspect": (1.0, 1.0), "context_scale": (0.85, 0.85), "min_keep": 0}
    uncut, cut = (sampler(MultiblockSettings(context_cut=how, **one)) for how in ("none", "smallest"))  # type: ignore[arg-type]
    smallest = [uncut(seeds_of(128, group), group, 0).context_valid.sum(dim=1).min() for group in range(60)]  # type: ignore[union-attr]
    (shape,) = cut.shapes()
    assert abs(shape.context - np.mean(smallest)) < 0.5 + 5 * np.std(smallest) / 60**0.5
    assert statistics(cut, 6400).redrawn < 0.02


# ----------------------------------------------------------------------------------------------------- refusals and speed


@pytest.mark.parametrize(
    ("options", "grid", "words"),
    [
        (
            RasterizedSettings(),
            (1, 9),
            r"masks\.strategy=rasterized needs at least 2x2 patches; this grid is 1x9: use a smaller",
        ),
        (SingleBlockSettings(), (2, 2), r"masks\.target_scale=\(0\.6, 0\.6\) lets one target cover all of 2x2 patches: lower"),
        (SingleBlockSettings(target_aspect=(2.0, 1.0)), (8, 8), r"masks\.target_aspect=2\.0 1\.0: smallest first"),
        (RandomTargetsSettings(), (1, 1), r"masks\.strategy=random_targets needs at least 2 patches"),
        (RandomTargetsSettings(target_ratio=1.0), (8, 8), r"masks\.target_ratio=1\.0 must be above 0 and below 1"),
        (InverseBlockSettings(), (1, 1), r"1x1 patches: no target has room beside a context of 1x1 patches: lower"),
        (InverseBlockSettings(context_scale=(0.2, 0.95)), (8, 8), r"context_scale=\(0\.2, 0\.95\).*lower the second value"),
        (InverseBlockSettings(context_scale=(0.01, 0.01), target_scale=(0.9, 0.9)), (8, 8), r"would never be context: lower"),
        (MultiblockSettings(context_cut="smallest", min_keep=150), (14, 14), r"masks\.min_keep=150 is too many"),
    ],
    ids=str,
)
def test_impossible_masks_are_refused(options: MaskSettings, grid: tuple[int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sampler(options, grid)


@pytest.mark.parametrize(("ratio", "fits"), [(0.01, 0.0625), (0.99, 0.9375)])
def test_a_refused_share_of_targets_names_one_that_fits(ratio: float, fits: float) -> None:
    with pytest.raises(ValueError, match=rf"masks\.target_ratio={ratio} of 4x4 patches .*: use masks\.target_ratio={fits} or"):
        sampler(RandomTargetsSettings(target_ratio=ratio), (4, 4))
    sampler(RandomTargetsSettings(target_ratio=fits), (4, 4))


SPEED = (*TABLE_6, SingleBlockSettings(rolled=True), InverseBlockSettings(), MultiblockSettings(context_cut="smallest"))


@pytest.mark.parametrize("options", SPEED, ids=str)
def test_strategies_take_at_most_0_03_milliseconds_per_image(options: MaskSettings) -> None:
    made, seeds, times = sampler(options), seeds_of(256), []
    for step in range(10):
        start = time.process_time()
        made(seeds, step, step)
        times.append(time.process_time() - start)
    assert min(times) / 256 * 1000 < 0.03


def test_samples_share_sizes_and_nothing_else() -> None:
    """The numbers of a sample come from its own seed: the first is the same whatever the group draws."""
    first = uniforms(seeds_of(8), 1)[:, 0]
    corners = drawn(RasterizedSettings(), (4, 4), num=8).context[:, 0]
    assert corners.tolist() == [[0, 2, 8, 10][int(4 * number)] for number in first]
