"""The official masks against draws and statistics recorded from the released program."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from openjepa.masks.blocks import covered
from openjepa.masks.multiblock import build_multiblock
from openjepa.masks.official_draws import OfficialMultiblock
from openjepa.settings.masks import MultiblockSettings

FILE = Path(__file__).parent / "data" / "masks_official.safetensors"
GRIDS = {"g14": (14, 14), "g16": (16, 16)}
STANDARD_ERRORS = 5


def recorded(prefix: str) -> dict[str, np.ndarray]:
    with safe_open(FILE, "np") as file:
        return {key.removeprefix(prefix): file.get_tensor(key) for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118


def recorded_statistics() -> dict[str, dict]:
    with safe_open(FILE, "np") as file:
        return json.loads(file.metadata()["json"])["statistics"]


def official(grid: tuple[int, int]) -> OfficialMultiblock:
    sampler = build_multiblock(MultiblockSettings(mode="official"), grid)
    assert isinstance(sampler, OfficialMultiblock)
    return sampler


@pytest.mark.parametrize("seed", (0, 1, 2))
@pytest.mark.parametrize("name", GRIDS)
def test_three_batches_are_equal_bit_by_bit(name: str, seed: int) -> None:
    sampler = official(GRIDS[name])
    generator, again = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed)
    for step in range(3):
        golden = recorded(f"{name}/seed{seed}/step{step}/")
        assert sampler.block_sizes(step) == (tuple(golden["pred_block"]), tuple(golden["enc_block"]))
        masks = sampler.draw(generator, step, num_samples=8)
        np.testing.assert_array_equal(masks.context.numpy(), golden["masks_enc"][0])
        np.testing.assert_array_equal(masks.targets.numpy(), golden["masks_pred"].transpose(1, 0, 2))
        _, contexts, _ = sampler.draw_uncut(again, step, num_samples=8)
        for context, padded in zip(contexts, golden["enc_uncut"][:, 0], strict=True):
            np.testing.assert_array_equal(context, padded[padded >= 0])


@pytest.mark.parametrize("name", GRIDS)
def test_block_sizes_of_the_first_64_steps(name: str) -> None:
    golden = recorded(f"{name}/block_sizes_first_64_steps")[""]
    sampler = official(GRIDS[name])
    np.testing.assert_array_equal([np.concatenate(sampler.block_sizes(step)) for step in range(64)], golden)


@pytest.mark.parametrize("name", GRIDS)
def test_frequencies_of_block_sizes(name: str) -> None:
    """The sizes follow from the step, so the first 2,000 of the recorded 20,000 steps only have to agree in distribution."""
    counts = recorded_statistics()[f"{name}_block_sizes_20000_steps"]["pred_block_hw"]
    sampler, num_steps = official(GRIDS[name]), 2000
    ours = Counter(str(sampler.block_sizes(step)[0]) for step in range(num_steps))
    assert set(ours) <= set(counts)
    for size, count in counts.items():
        share = count / sum(counts.values())
        assert abs(ours[size] / num_steps - share) < STANDARD_ERRORS * (share * (1 - share) / num_steps) ** 0.5


@pytest.mark.parametrize("batch", (8, 32, 128))
@pytest.mark.parametrize("name", GRIDS)
def test_ratios_and_maps_within_standard_errors(name: str, batch: int) -> None:
    """Same steps, hence the same block sizes; positions from another seed."""
    golden, maps = recorded_statistics()[f"{name}_batch{batch}"], recorded(f"{name}_batch{batch}/")
    sampler, grid, num_batches = official(GRIDS[name]), GRIDS[name], golden["batches"]
    generator = torch.Generator().manual_seed(4711)
    sizes: Counter[str] = Counter()
    uncut, cut, union, target_map, cut_map = [], [], [], np.zeros(grid), np.zeros(grid)
    for step in range(num_batches):
        targets, contexts, redrawn = sampler.draw_uncut(generator, step, batch)
        assert redrawn == 0
        shortest = min(map(len, contexts))
        sizes[str(sampler.block_sizes(step)[0])] += 1
        uncut += [len(context) / sampler.grid[0] / sampler.grid[1] for context in contexts]
        cut += [shortest / sampler.grid[0] / sampler.grid[1]]
        union += [len(np.unique(blocks)) / sampler.grid[0] / sampler.grid[1] for blocks in targets]
        np.add.at(target_map.reshape(-1), targets.reshape(-1), 1 / targets[..., 0].size / num_batches)
        np.add.at(cut_map.reshape(-1), np.concatenate([c[:shortest] for c in contexts]), 1 / batch / num_batches)
    assert dict(sizes) == golden["pred_block_hw"]
    _close(np.mean(uncut), golden["context_ratio_uncut"], golden["images"])
    _close(np.mean(union), golden["union_of_targets_ratio"], golden["images"])
    _close(np.mean(cut), golden["context_ratio_cut"], num_batches)
    _close_maps(target_map, maps.get("p_target"), golden["images"])
    _close_maps(cut_map, maps.get("p_context_cut"), golden["images"])
    for probability in (target_map, cut_map):
        assert probability[-1].sum() == 0
        assert probability[:, -1].sum() == 0


def _close(mean: float, golden: dict[str, float], samples: int) -> None:
    assert abs(mean - golden["mean"]) < STANDARD_ERRORS * golden["std"] * (2 / samples) ** 0.5


def _close_maps(ours: np.ndarray, golden: np.ndarray | None, samples: int) -> None:
    """Per patch; images of one batch share block sizes and cut, which at most doubles the error of independent draws."""
    if golden is not None:
        error = 2 * np.sqrt(2 * golden * (1 - golden) / samples) + 1e-6
        assert (np.abs(ours - golden) < STANDARD_ERRORS * error).all()


def test_covered_agrees_with_recorded_targets() -> None:
    golden = recorded("g14/seed0/step0/")
    corners = np.stack(np.divmod(golden["masks_pred"][..., 0].astype(np.int64), 14), axis=-1)
    inside = covered(corners, np.broadcast_to(golden["pred_block"], corners.shape), (14, 14))
    np.testing.assert_array_equal(np.flatnonzero(inside[2, 3]), golden["masks_pred"][2, 3])
