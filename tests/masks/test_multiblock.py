"""Multi-block masks against slow restatements and closed forms."""

import math
import random
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openjepa.masks.blocks import RAREST, block_sizes, covered, place_blocks
from openjepa.masks.multiblock import CUTS, UnbiasedMultiblock, angular_order, build_multiblock
from openjepa.masks.official_draws import OfficialMultiblock
from openjepa.seeds import derive_samples, uniforms
from openjepa.settings.masks import MultiblockSettings
from openjepa.visualization.mask_pictures import coverage

ONE_SIZE = MultiblockSettings(
    target_scale=(0.16, 0.16), target_aspect=(1.0, 1.0), context_scale=(0.85, 0.85), context_cut="none", min_keep=0
)
"""Blocks of 6x6 and 13x13 on 14x14 patches, so that every sample is drawn from the same distribution."""


def seeds_of(num: int, seed: int = 0) -> np.ndarray:
    return derive_samples("mask", seed, np.zeros(1, np.int64), np.arange(num))


def unbiased(options: MultiblockSettings, grid: tuple[int, int] = (14, 14)) -> UnbiasedMultiblock:
    sampler = build_multiblock(options, grid)
    assert isinstance(sampler, UnbiasedMultiblock)
    return sampler


def reach(block: int, side: int) -> np.ndarray:
    """Probability that a block of `block` patches at a uniform position covers each of `side` patches in a row."""
    starts = np.arange(side - block + 1)
    return np.array([((starts <= patch) & (patch < starts + block)).mean() for patch in range(side)])


# ------------------------------------------------------------------------------------------------------------ block sizes


@pytest.mark.parametrize("grid", ((8, 8), (14, 14), (6, 10), (28, 28)))
def test_sizes_are_those_of_separate_uniform_draws(grid: tuple[int, int]) -> None:
    """The table against 40,000 draws of scale and aspect, each on its own, as the paper says them."""
    rng, counts, num = random.Random(0), {}, 40_000
    for _ in range(num):
        area, aspect = rng.uniform(0.15, 0.2) * grid[0] * grid[1], rng.uniform(0.75, 1.5)
        size = (round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect)))
        counts[size] = counts.get(size, 0) + 1
    table = block_sizes(grid, (0.15, 0.2), (0.75, 1.5))
    kept = sum(counts[tuple(size)] for size in table.sizes.tolist())
    assert kept / num > 0.93
    assert all(count / num < RAREST + 0.002 for size, count in counts.items() if list(size) not in table.sizes.tolist())
    for size, probability in zip(table.sizes.tolist(), table.probabilities, strict=True):
        assert abs(counts[tuple(size)] / kept - probability) < 5 * math.sqrt(probability / num)


def test_scale_and_aspect_are_independent_unlike_the_official_draws() -> None:
    """6x5 and 5x6 have the same area: in the official mode the wide one comes with small scales only, here both occur."""
    table = {tuple(size): share for size, share in zip(*_table((14, 14)), strict=True)}
    assert table[6, 5] / table[5, 6] > 0.9
    sampler = build_multiblock(MultiblockSettings(mode="official"), (14, 14))
    assert isinstance(sampler, OfficialMultiblock)
    areas = {sampler.block_sizes(step)[0]: None for step in range(200)}
    assert (7, 6) not in areas and (7, 6) in table


def _table(grid: tuple[int, int]) -> tuple[list[list[int]], list[float]]:
    table = block_sizes(grid, (0.15, 0.2), (0.75, 1.5))
    return table.sizes.tolist(), table.probabilities.tolist()


def test_blocks_fill_the_whole_grid_and_keep_their_area_where_it_is_narrow() -> None:
    assert block_sizes((14, 14), (1.0, 1.0), (1.0, 1.0), relative=True).sizes.tolist() == [[14, 14]]
    assert block_sizes((14, 7), (1.0, 1.0), (1.0, 1.0), relative=True).sizes.tolist() == [[14, 7]]
    assert block_sizes((40, 2), (0.25, 0.25), (1.0, 1.0)).sizes.tolist() == [[10, 2]]
    assert block_sizes((2, 40), (0.25, 0.25), (1.0, 1.0)).sizes.tolist() == [[2, 10]]


# -------------------------------------------------------------------------------------------------------------- positions


def test_every_position_is_equally_likely() -> None:
    sizes = np.broadcast_to(np.array([5, 7]), (100_000, 2))
    corners = place_blocks(uniforms(seeds_of(100_000), 2), sizes, (14, 10))
    counts = np.zeros((10, 4))
    np.add.at(counts, tuple(corners.T), 1)  # an index out of range would raise
    expected = 100_000 / 40
    assert ((counts - expected) ** 2 / expected).sum() < 39 + 5 * math.sqrt(2 * 39)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_covered_restated(height: int, width: int, data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    top, left = data.draw(st.integers(0, height - rows)), data.draw(st.integers(0, width - columns))
    expected = np.zeros((height, width), dtype=bool)
    expected[top : top + rows, left : left + columns] = True
    np.testing.assert_array_equal(covered(np.array([top, left]), np.array([rows, columns]), (height, width)), expected)


def test_coverage_has_its_closed_form() -> None:
    """P(in one target) is a product of two reaches; P(context) = P(in the context block) (1 - P(in one target))^4."""
    num = 40_000
    maps = coverage(unbiased(ONE_SIZE), num_samples=num, microbatch=500)
    target, context = np.outer(reach(6, 14), reach(6, 14)), np.outer(reach(13, 14), reach(13, 14))
    expected = {"target": target, "union": 1 - (1 - target) ** 4, "context": context * (1 - target) ** 4}
    for name, probability in expected.items():
        samples = num * 4 if name == "target" else num
        error = np.sqrt(probability * (1 - probability) / samples)
        assert (np.abs(maps[name] - probability) < 5 * error).all(), name
    assert unbiased(ONE_SIZE).available_ratio == pytest.approx(expected["context"].mean(), abs=0.01)


# ------------------------------------------------------------------------------------------------------------------- cuts


@pytest.mark.parametrize("name", ("random_subset", "random_window"))
def test_cuts_keep_every_available_patch_equally_often(name: str) -> None:
    grid, keep, num = (6, 9), 15, 20_000
    available = np.random.default_rng(0).random(54) < 0.5
    chosen = CUTS[name](np.tile(available, (num, 1)), keep, seeds_of(num), grid)
    assert (chosen.sum(axis=1) == keep).all()
    share = keep / available.sum()
    error = math.sqrt(share * (1 - share) / num)
    assert (np.abs(chosen.mean(axis=0)[available] - share) < 5 * error).all()
    assert not chosen[:, ~available].any()


def test_random_subset_keeps_pairs_as_often_as_chance() -> None:
    keep, num = 5, 20_000
    chosen = CUTS["random_subset"](np.ones((num, 12), dtype=bool), keep, seeds_of(num), (3, 4))
    together = np.einsum("bi,bj->ij", chosen.astype(float), chosen) / num
    expected = keep * (keep - 1) / (12 * 11)
    assert np.abs(together[~np.eye(12, dtype=bool)] - expected).max() < 5 * math.sqrt(expected / num)


def test_random_window_is_one_sector() -> None:
    """Between the first and the last kept patch, by angle, lies no other available patch: exactly two changes in a circle."""
    grid, num = (14, 14), 500
    available = np.random.default_rng(1).random((num, 196)) < 0.45
    chosen = CUTS["random_window"](available, 49, seeds_of(num), grid)
    rows, columns = np.indices(grid)
    angles = np.arctan2(rows - 6.5, columns - 6.5).ravel()
    assert (np.diff(angles[angular_order(grid)]) >= 0).all()
    for sample in range(num):
        order = [patch for patch in angular_order(grid) if available[sample, patch]]
        kept = chosen[sample, order]
        assert (kept != np.roll(kept, 1)).sum() == 2


@pytest.mark.parametrize("name", tuple(CUTS))
def test_cuts_keep_all_where_there_are_fewer(name: str) -> None:
    available = np.zeros((4, 20), dtype=bool)
    available[1, 3] = available[2, 5:8] = available[3, [0, 19]] = True
    np.testing.assert_array_equal(CUTS[name](available, 4, seeds_of(4), (4, 5)), available)


# -------------------------------------------------------------------------------------------------- whole masks, restated


@pytest.mark.parametrize("grid", ((8, 8), (14, 7)))
def test_masks_restated_image_after_image(grid: tuple[int, int]) -> None:
    options = MultiblockSettings(context_ratio=0.42, max_redraws=6)
    sampler, seeds, keep = unbiased(options, grid), seeds_of(40), round(0.42 * grid[0] * grid[1])
    for group in range(4):
        masks = sampler(seeds, group, 0)
        context_size = _context_size(sampler, group)
        rows, columns = _sides(masks.targets[0, 0].tolist(), grid[1])
        tries = [_draw_one(int(seed), grid, (rows, columns), context_size, keep, options) for seed in seeds]
        for sample, (targets, context, _) in enumerate(tries):
            assert masks.targets[sample].tolist() == targets
            valid = slice(None) if masks.context_valid is None else masks.context_valid[sample]
            assert masks.context[sample][valid].tolist() == context
        assert masks.redrawn == sum(attempts > 1 for _, _, attempts in tries)
        assert masks.padded == sum(len(context) < keep for _, context, _ in tries)


def _context_size(sampler: UnbiasedMultiblock, group: int) -> tuple[int, int]:
    from openjepa.seeds import derive

    number = uniforms(np.array([derive("group", group, 0)]), 2)[0, 1]
    rows, columns = sampler.context_sizes.pick(np.array(number))
    return int(rows), int(columns)


def _sides(block: list[int], width: int) -> tuple[int, int]:
    return len({index // width for index in block}), len({index % width for index in block})


def _draw_one(
    seed: int,
    grid: tuple[int, int],
    target: tuple[int, int],
    context: tuple[int, int],
    keep: int,
    options: MultiblockSettings,
) -> tuple[list[list[int]], list[int], int]:
    def block(size: tuple[int, int], numbers: np.ndarray) -> list[int]:
        top, left = (int(number * (side - length + 1)) for number, side, length in zip(numbers, grid, size, strict=True))
        return [row * grid[1] + column for row in range(top, top + size[0]) for column in range(left, left + size[1])]

    best: tuple[list[list[int]], list[int]] = ([], [])
    for attempt in range(options.max_redraws + 1):
        numbers = uniforms(np.array([seed]), 10, start=10 * attempt).reshape(5, 2)
        targets = [block(target, pair) for pair in numbers[1:]]
        left = sorted(set(block(context, numbers[0])).difference(*targets))
        if len(left) > len(best[1]) or not best[0]:
            best = targets, left
        if len(left) >= keep:
            break
    keys = uniforms(np.array([seed]), grid[0] * grid[1], start=1 << 32)[0]
    return best[0], sorted(sorted(best[1], key=lambda patch: keys[patch])[:keep]), attempt + 1


@settings(max_examples=40, deadline=None)
@given(st.tuples(st.integers(5, 16), st.integers(5, 16)), st.integers(0, 2**30), st.integers(0, 1000), st.booleans())
def test_official_restated_with_targets_left_out(grid: tuple[int, int], seed: int, step: int, hard: bool) -> None:
    """Draw for draw with sets; `hard` makes contexts so small that positions are drawn again and targets left out."""
    options = MultiblockSettings(mode="official", min_keep=2, num_targets=12 if hard else 4)
    sampler = build_multiblock(options, grid)
    assert isinstance(sampler, OfficialMultiblock)
    masks = sampler.draw(torch.Generator().manual_seed(seed), step, 6)
    generator = torch.Generator().manual_seed(seed)
    target, context = sampler.block_sizes(step)

    def block(size: tuple[int, int]) -> set[int]:
        top = torch.randint(0, grid[0] - size[0], (1,), generator=generator).item()
        left = torch.randint(0, grid[1] - size[1], (1,), generator=generator).item()
        return {row * grid[1] + column for row in range(top, top + size[0]) for column in range(left, left + size[1])}

    contexts, redrawn = [], 0
    for sample in range(6):
        targets = [block(target) for _ in range(options.num_targets)]
        assert [sorted(indices) for indices in targets] == masks.targets[sample].tolist()
        failures = 0
        while len(found := block(context).difference(*targets[: max(0, len(targets) - failures // 20)])) <= 2:
            failures += 1
        contexts.append(sorted(found))
        redrawn += failures > 0
    shortest = min(map(len, contexts))
    assert masks.context.tolist() == [indices[:shortest] for indices in contexts]
    assert masks.redrawn == redrawn


# ------------------------------------------------------------------------------------------------- redraws and their limit


def test_redraws_touch_only_the_samples_that_need_them() -> None:
    options = MultiblockSettings(context_ratio=0.4, max_redraws=0)
    once, again = unbiased(options), unbiased(replace(options, max_redraws=20))
    first, second = once(seeds_of(200), 1, 1), again(seeds_of(200), 1, 1)
    assert first.redrawn == first.padded == second.redrawn > 0
    assert second.padded == 0
    assert second.context_valid is None
    assert first.context_valid is not None
    enough = first.context_valid.all(dim=1)
    assert int((~enough).sum()) == first.padded
    assert torch.equal(first.context[enough], second.context[enough])
    assert torch.equal(first.targets[enough], second.targets[enough])


@pytest.mark.parametrize("cut", tuple(CUTS))
def test_no_context_is_ever_empty(cut: str) -> None:
    sampler = unbiased(MultiblockSettings(context_cut=cut, max_redraws=0), (2, 2))  # type: ignore[arg-type]
    masks = sampler(seeds_of(300), 0, 0)
    share = math.factorial(4) / 4**4  # four targets of one patch cover all four patches
    assert abs(masks.padded / 300 - share) < 5 * math.sqrt(share * (1 - share) / 300)
    valid = torch.ones_like(masks.context, dtype=torch.bool) if masks.context_valid is None else masks.context_valid
    assert valid.any(dim=1).all()
    for sample in range(300):
        assert not set(masks.context[sample][valid[sample]].tolist()) & set(masks.targets[sample].flatten().tolist())


# ------------------------------------------------------------------------------------------------------ impossible settings


@pytest.mark.parametrize(
    ("options", "grid", "setting"),
    (
        (MultiblockSettings(mode="official"), (8, 8), "min_keep"),
        (MultiblockSettings(mode="official"), (6, 10), "min_keep"),
        (MultiblockSettings(mode="official", context_scale=(0.04, 0.3)), (14, 14), "min_keep"),
        (MultiblockSettings(context_ratio=0.9), (14, 14), "context_ratio"),
        (MultiblockSettings(context_ratio=0.6), (8, 8), "context_ratio"),
        (MultiblockSettings(context_cut="none", min_keep=150), (14, 14), "min_keep"),
        (MultiblockSettings(context_cut="none", min_keep=150), (8, 8), "min_keep"),
    ),
)
def test_impossible_settings_name_a_value_that_fits(options: MultiblockSettings, grid: tuple[int, int], setting: str) -> None:
    with pytest.raises(ValueError, match=rf"masks\.{setting}={getattr(options, setting)}") as caught:
        build_multiblock(options, grid)
    match = re.search(r"the largest value that fits is ([\d.]+)$", str(caught.value))
    assert match is not None
    fits = type(getattr(options, setting))(float(match[1]))
    build_multiblock(replace(options, **{setting: fits}), grid)
    step = 1 if setting == "min_keep" else 1.5 / (grid[0] * grid[1])
    for _ in range(4):  # on small grids several values of min_keep scale to the same one
        fits += step
    with pytest.raises(ValueError, match=f"masks.{setting}"):
        build_multiblock(replace(options, **{setting: fits}), grid)


@pytest.mark.parametrize(
    ("options", "message"),
    (
        (MultiblockSettings(target_scale=(0.2, 0.15)), "masks.target_scale"),
        (MultiblockSettings(context_scale=(0.0, 1.0)), "masks.context_scale"),
        (MultiblockSettings(target_aspect=(0.0, 1.0)), "masks.target_aspect"),
        (MultiblockSettings(num_targets=0), "masks.num_targets=0"),
        (MultiblockSettings(context_ratio=0.0), "masks.context_ratio"),
        (MultiblockSettings(max_redraws=-1), "masks.max_redraws"),
        (MultiblockSettings(num_targets=400), "masks.num_targets=400"),
        (MultiblockSettings(target_scale=(0.9, 1.0)), r"masks.target_scale=\(0.9, 1.0\) lets"),
    ),
)
def test_values_without_sense_are_refused(options: MultiblockSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_multiblock(options, (14, 14))


def test_settings_without_effect_warn() -> None:
    with pytest.warns(UserWarning, match=r"masks\.context_ratio=0\.3 has no effect"):
        build_multiblock(MultiblockSettings(mode="official", context_ratio=0.3), (14, 14))
    with pytest.warns(UserWarning, match=r"masks\.context_ratio=0\.3 has no effect"):
        build_multiblock(MultiblockSettings(context_cut="none", context_ratio=0.3), (14, 14))
    for cut in ("random_subset", "random_window"):
        with pytest.warns(UserWarning, match=rf"masks\.min_keep=3 has no effect with masks\.context_cut='{cut}'"):
            build_multiblock(MultiblockSettings(context_cut=cut, min_keep=3), (14, 14))  # type: ignore[arg-type]
    build_multiblock(MultiblockSettings(context_cut="none", min_keep=3), (14, 14))  # a warning would be an error


# -------------------------------------------------------------------------------------------------------------------- speed


@pytest.mark.parametrize("cut", tuple(CUTS))
def test_at_most_0_03_milliseconds_per_image(cut: str) -> None:
    sampler, seeds = unbiased(MultiblockSettings(context_cut=cut)), seeds_of(256)  # type: ignore[arg-type]
    times = []
    for step in range(20):
        start = time.process_time()
        sampler(seeds, step, step)
        times.append(time.process_time() - start)
    assert min(times) / 256 * 1000 < 0.03
