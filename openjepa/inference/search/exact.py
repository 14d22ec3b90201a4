"""Exact search: compares every vector of the table with every query, block by block of the mapped file.

A region is compared with windows, which are averages of neighboring patches, at every place in every image.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from openjepa.inference.embedding.table import FeatureTable
from openjepa.inference.search.vectors import ROUNDED, SMALLEST_NORM, Vectors, check_finite, cosines, map_blocks, picked
from openjepa.refusals import Refusal


def window_cosines(
    features: Float[Tensor, "b H W D"],
    query: Float[Tensor, " D"],
    window: tuple[int, int],
    means: Float[Tensor, "H W D"] | None = None,
) -> Float[Tensor, "b H2 W2"]:
    """Cosine between `query` and the average of the patches in a window, for a window at every place on the grid.

    `window`: rows and columns of patches. `means`: one for each place on the grid, subtracted from the patches first. A window
    that equals its means up to rounding has the cosine 0. Computes in the type of the features. Raises Refusal if the window is
    larger than the grid.
    """
    rows, columns = window
    height, width = features.shape[1:3]
    if not (1 <= rows <= height and 1 <= columns <= width):
        raise Refusal(f"a window of {rows} x {columns} patches does not fit into the grid of {height} x {width} of this table")
    averages = features if means is None else features - means.to(features.dtype)
    if window != (1, 1):
        # One axis after the other: rows + columns additions for each place instead of rows x columns.
        planes = functional.avg_pool2d(averages.permute(0, 3, 1, 2), (rows, 1), stride=1)
        averages = functional.avg_pool2d(planes, (1, columns), stride=1).permute(0, 2, 3, 1)
    direction = query.to(averages.dtype) / query.norm().clamp(min=SMALLEST_NORM).to(averages.dtype)
    norms = torch.linalg.vector_norm(averages, dim=3)
    noise = 0.0 if means is None else ROUNDED * float(means.norm(dim=2).mean())
    products: Tensor = averages @ direction
    return products.div_(norms.clamp(min=SMALLEST_NORM)).clamp_(-1, 1).masked_fill_(norms < noise, 0)


SCORES = 64 * 2**20
"""Number of cosines kept at a time (256 MB). More queries need another pass over the table."""
ROUNDING = 2e-5
"""Margin larger than any error of a cosine in fp32. Candidates this close to the last place are compared again in fp64."""
CHUNK = 1024
COMPARED = 4096
"""Number of candidates that are compared again at a time."""

Advance = Callable[[int], None]
"""Called with the number of images done since the last call."""


@dataclass(frozen=True)
class Neighbors:
    """The nearest images of one query, the nearest first. Among equal cosines the smaller row number comes first."""

    rows: NDArray[np.int64]
    """Row numbers in the table [k]."""
    cosines: NDArray[np.float64]
    """Cosines to the query [k]."""
    places: NDArray[np.int64] | None = None
    """First row and column of the best window on the grid of patches [k, 2]; None if whole images were compared."""


def _ignore(_: int) -> None:
    pass


def nearest(
    vectors: Vectors,
    queries: Float[Tensor, "Q D"],
    top: int,
    skip: Sequence[int | None] | None = None,
    advance: Advance = _ignore,
) -> list[Neighbors]:
    """The exact `top` nearest images of each query by cosine, or all images if the table holds fewer.

    `queries`: with the same mean taken off as the vectors (`Vectors.less_mean`). `skip`: for each query, a row to leave out, or
    None. `advance`: called with the number of images done. Cosines are fp64, so neither the order nor the ties depend on
    blocks or threads. Raises Refusal if a number is not finite.
    """
    if top < 1:
        raise Refusal(f"top={top} must be at least 1")
    if queries.ndim != 2 or queries.shape[1] != vectors.width:
        raise Refusal(f"queries have the shape {list(queries.shape)}, but the table has vectors of width {vectors.width}")
    if not bool(queries.isfinite().all()):
        raise Refusal("the features of a query are not finite: look at the image and at the encoder's weights")
    skips = list(skip) if skip is not None else [None] * len(queries)
    at_once = max(1, SCORES // max(1, len(vectors)))
    found: list[Neighbors] = []
    for start in range(0, len(queries), at_once):
        part = queries[start : start + at_once]
        scores = _scores(vectors, part, advance)
        for number in range(len(part)):
            found.append(_best(vectors, part[number], scores[number], top, skips[start + number]))
    return found


def _scores(vectors: Vectors, queries: Float[Tensor, "Q D"], advance: Advance) -> Float[Tensor, "Q n"]:
    """Cosines of all images to all queries in fp32."""
    lengths = queries.double().norm(dim=1, keepdim=True).clamp(min=SMALLEST_NORM)
    directions = (queries.double() / lengths).float().T.contiguous()  # [D, Q]
    scores = torch.empty(len(queries), len(vectors))

    def compare(first: int, features: Float[Tensor, "b *shape"]) -> int:
        block, norms = vectors.of_block(first, features)
        scores[:, first : first + len(block)] = torch.mm(block, directions).div_(norms[:, None]).T
        return len(block)

    for number in map_blocks(vectors.table, compare):
        advance(number)
    return scores


def candidates(scores: Float[Tensor, " n"], top: int, skip: int | None) -> Int[Tensor, " c"]:
    """Rows, ascending, that may be among the `top` best if rounding is taken into account. `skip`: a row to leave out.

    Raises Refusal if a score is not finite, which differences of huge numbers can cause.
    """
    if not bool(scores.isfinite().all()):
        raise Refusal("cosines are not finite: the features are too large to compare; look at the encoder's weights")
    if skip is not None:
        scores[skip] = -torch.inf
    number = min(top, len(scores) - (skip is not None))
    if number < 1:
        return torch.empty(0, dtype=torch.int64)
    return (scores >= _kth_largest(scores, number) - ROUNDING).nonzero()[:, 0]


def _kth_largest(scores: Float[Tensor, " n"], k: int) -> float:
    """The k-th largest of many numbers. Faster than `topk` alone: few numbers reach the k-th largest maximum of chunks."""
    chunks = len(scores) // CHUNK
    if chunks >= max(k, 2):
        bound = scores[: chunks * CHUNK].view(chunks, CHUNK).amax(dim=1).topk(k).values[-1]
        scores = scores[scores >= bound]
    return float(scores.topk(k).values[-1])


def _best(vectors: Vectors, query: Float[Tensor, " D"], scores: Float[Tensor, " n"], top: int, skip: int | None) -> Neighbors:
    rows = candidates(scores, top, skip)
    return ranked(rows, [cosines(vectors.rows(part.tolist()), query) for part in torch.split(rows, COMPARED)], top)


def ranked(rows: Int[Tensor, " c"], parts: Sequence[Float[Tensor, " p"]], top: int) -> Neighbors:
    """The `top` best candidates. `rows`: the candidates, ascending. `parts`: their cosines, in consecutive parts."""
    values = torch.cat([torch.empty(0, dtype=torch.float64), *parts])
    order = values.argsort(descending=True, stable=True)[:top]
    return Neighbors(rows[order].numpy(), values[order].numpy())


def nearest_windows(
    table: FeatureTable,
    query: Float[Tensor, " D"],
    window: tuple[int, int],
    top: int,
    means: Float[Tensor, "H W D"] | None = None,
    skip: int | None = None,
    advance: Advance = _ignore,
) -> Neighbors:
    """The exact `top` images whose best window of patches is most similar to the query, and the places of these windows.

    `window`: rows and columns of patches. The vector of a window is the average of its patches. `means`: `place_means`,
    subtracted from the patches at their places; the query must be without them too. The table must hold features of patches.
    Among equal windows of an image the first in reading order counts. Otherwise as `nearest`.
    """
    if not bool(query.isfinite().all()):
        raise Refusal("the features of the query are not finite: look at the image and at the encoder's weights")
    scores = torch.empty(len(table))

    def compare(first: int, features: Float[Tensor, "b H W D"]) -> int:
        check_finite(table, first, features)
        maps = window_cosines(features, query.float(), window, means)
        scores[first : first + len(maps)] = maps.flatten(1).amax(dim=1)
        return len(maps)

    for number in map_blocks(table, compare):
        advance(number)
    rows = candidates(scores, top, skip)
    values, places = [], []
    for part in torch.split(rows, 64):
        maps = window_cosines(picked(table, part.tolist()), query.double(), window, means)
        best = (maps >= maps.amax(dim=(1, 2), keepdim=True) - 1e-12).flatten(1).int().argmax(dim=1)  # the first of equal ones
        values.append(maps.flatten(1).gather(1, best[:, None])[:, 0])
        places.append(torch.stack([best // maps.shape[2], best % maps.shape[2]], dim=1))
    found = ranked(rows, values, top)
    position = {int(row): number for number, row in enumerate(rows)}
    own = torch.cat([torch.empty(0, 2, dtype=torch.int64), *places])
    return Neighbors(found.rows, found.cosines, own[[position[int(row)] for row in found.rows]].numpy())
