"""How contexts of different sizes are cut to one size. Every cut keeps each available patch with the same probability.

The released code keeps the first patches in raster order instead, so that the lower part of the image is rarely context.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int
from numpy.typing import NDArray

from openjepa.seeds import uniforms

_START = 1 << 32
"""Where the numbers of a cut start in a sample's sequence; those before belong to its positions."""

Cut = Callable[[Bool[np.ndarray, "B N"], int, NDArray[np.int64], tuple[int, int]], Bool[np.ndarray, "B N"]]
"""(available patches, patches to keep, sample seeds, grid) -> patches kept: `keep` of them, or all where there are fewer."""


def random_subset(
    available: Bool[np.ndarray, "B N"], keep: int, seeds: NDArray[np.int64], grid: tuple[int, int]
) -> Bool[np.ndarray, "B N"]:
    """A uniformly random subset of the available patches."""
    keys = uniforms(seeds, available.shape[1], start=_START)
    keys[~available] = 2.0
    chosen = np.zeros_like(available)
    np.put_along_axis(chosen, np.argpartition(keys, keep - 1, axis=1)[:, :keep], True, axis=1)
    chosen &= available
    return chosen


def random_window(
    available: Bool[np.ndarray, "B N"], keep: int, seeds: NDArray[np.int64], grid: tuple[int, int]
) -> Bool[np.ndarray, "B N"]:
    """A contiguous sector: of the available patches ordered by their angle around the grid's center, `keep` successive ones.

    The first is drawn uniformly and the order is cyclic, so each of n available patches is kept with probability keep / n
    exactly. Patches nearest to a random side or corner would favor the border.
    """
    order = angular_order(grid)
    turned = available[:, order]
    num = np.maximum(turned.sum(axis=1), 1)
    first = (uniforms(seeds, 1, start=_START)[:, 0] * num).astype(np.int64)
    rank = (np.cumsum(turned, axis=1) - 1 - first[:, None]) % num[:, None]
    chosen = np.empty_like(available)
    chosen[:, order] = turned & (rank < keep)
    return chosen


def none(
    available: Bool[np.ndarray, "B N"], keep: int, seeds: NDArray[np.int64], grid: tuple[int, int]
) -> Bool[np.ndarray, "B N"]:
    """All available patches; contexts differ in size and are padded."""
    return available


CUTS: dict[str, Cut] = {"random_subset": random_subset, "random_window": random_window, "none": none}
"""By the name in `masks.context_cut`."""


def angular_order(grid: tuple[int, int]) -> Int[np.ndarray, " N"]:
    """Raster indices of the patches by their angle around the grid's center; outer patches first among equal angles."""
    rows, columns = np.indices(grid)
    down, right = (rows - (grid[0] - 1) / 2).ravel(), (columns - (grid[1] - 1) / 2).ravel()
    order: Int[np.ndarray, " N"] = np.lexsort((-np.hypot(down, right), np.arctan2(down, right)))
    return order


def pack(chosen: Bool[np.ndarray, "B N"], num_tokens: int) -> tuple[Int[np.ndarray, "B K"], Bool[np.ndarray, "B K"] | None]:
    """Indices of the chosen patches, ascending, and which of them are real; rows that are too short are padded with 0.

    The second is None where nothing is padded.
    """
    num = chosen.sum(axis=1)
    if (num == num_tokens).all():
        return np.nonzero(chosen)[1].reshape(len(chosen), num_tokens), None
    indices = np.argsort(~chosen, axis=1, kind="stable")[:, :num_tokens]
    valid = np.arange(num_tokens) < num[:, None]
    return np.where(valid, indices, 0), valid
