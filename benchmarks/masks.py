"""Time to draw masks, beside a plain loop over images: `python benchmarks/masks.py`.

The reference draws the same unbiased masks in the obvious way: image after image, with sets of patches. Figures are ms per
image in processor time of one core (other programs on the machine do not count), as the median of seven interleaved rounds.
"""

import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from openjepa.masks import MASKS
from openjepa.seeds import derive_samples
from openjepa.settings.masks import (
    BlockwiseSettings,
    InverseBlockSettings,
    MultiblockSettings,
    RandomPatchesSettings,
    RandomTargetsSettings,
    RasterizedSettings,
    SingleBlockSettings,
)

GROUP = 256
ROUNDS = 7


def plain_loop(grid: tuple[int, int], settings: MultiblockSettings, num_samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unbiased masks with a random subset, one image after the other."""
    height, width = grid
    keep = round(settings.context_ratio * height * width)

    def size(scale: tuple[float, float], aspect: tuple[float, float]) -> tuple[int, int]:
        area, ratio = random.uniform(*scale) * height * width, random.uniform(*aspect)
        return min(round((area * ratio) ** 0.5), height), min(round((area / ratio) ** 0.5), width)

    def block(rows: int, columns: int) -> list[int]:
        top, left = random.randint(0, height - rows), random.randint(0, width - columns)
        return [row * width + column for row in range(top, top + rows) for column in range(left, left + columns)]

    target, context = size(settings.target_scale, settings.target_aspect), size(settings.context_scale, settings.context_aspect)
    contexts: list[list[int]] = []
    targets: list[list[list[int]]] = []
    while len(contexts) < num_samples:
        blocks = [block(*target) for _ in range(settings.num_targets)]
        available = set(block(*context)).difference(*blocks)
        if len(available) >= keep:
            contexts.append(sorted(random.sample(sorted(available), keep)))
            targets.append(blocks)
    return torch.tensor(contexts), torch.tensor(targets)


def measure(grid: tuple[int, int]) -> dict[str, float]:
    """Milliseconds per image of each mode and of the plain loop."""
    seeds = derive_samples("mask", 0, np.zeros(1, np.int64), np.arange(GROUP))
    modes = [MultiblockSettings(context_cut=cut) for cut in ("random_subset", "random_window", "smallest", "none")]
    min_keep = min(10, 10 * grid[0] * grid[1] // 196)
    candidates: dict[str, Callable[[int], object]] = {"plain loop": lambda _: plain_loop(grid, modes[0], GROUP)}
    others = [SingleBlockSettings(), SingleBlockSettings(rolled=True), RasterizedSettings(), RandomTargetsSettings()]
    single = [RandomPatchesSettings(), BlockwiseSettings()]
    for settings in [*modes, MultiblockSettings(mode="official", min_keep=min_keep), *others, InverseBlockSettings(), *single]:
        sampler = MASKS[settings.strategy].load()(settings, grid)
        candidates[sampler.name] = partial(sampler, seeds, 0)
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for step in range(ROUNDS):
        for name, draw in candidates.items():
            start = time.process_time()
            draw(step)
            times[name].append((time.process_time() - start) / GROUP * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Prints a table for several grids."""
    torch.set_num_threads(1)
    for grid in ((8, 8), (14, 14), (16, 16), (28, 28)):
        results = measure(grid)
        print(f"grid {grid[0]}x{grid[1]}, group of {GROUP}, one core")
        for name, milliseconds in results.items():
            ratio = results["plain loop"] / milliseconds
            print(f"  {name:36s} {milliseconds:8.4f} ms/image  {ratio:6.1f}x the plain loop's rate")


if __name__ == "__main__":
    main()
