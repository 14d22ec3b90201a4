"""All pairs of images in one pass: those above a threshold, and how far each image is from its nearest ones.

Blocks of unit vectors are multiplied with each other, each pair of blocks once. In bf16 a product misses a cosine by at most
3/256, twice the rounding of a factor and once that of the result, so pairs are taken with that margin and compared again in
fp64: what is found does not depend on the precision.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from openjepa.engine.device import supports_bf16
from openjepa.search.exact import Advance
from openjepa.search.vectors import Vectors, rows_per_block, tensor_of

OUTER, INNER = 8192, 4096
"""Images of the two blocks that are multiplied; the first is a multiple of the second. Their cosines take 128 MB in fp32."""
MARGIN = {torch.bfloat16: 3 / 256 + 1e-3, torch.float32: 1e-5}
COMPARED = 65_536
"""Pairs that are compared again at a time."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, the most alike first."""

    first: NDArray[np.int64]
    """Row of the table [m]."""
    second: NDArray[np.int64]
    """Another, larger one."""
    cosines: NDArray[np.float64]
    complete: bool = True
    """False where there were more than were wanted: the most alike of them are here."""


@dataclass
class _Found:
    """The most alike pairs so far, at most twice as many as are wanted."""

    limit: int
    threshold: float
    complete: bool = True
    parts: list[tuple[Int[Tensor, " p"], Int[Tensor, " p"], Float[Tensor, " p"]]] = field(default_factory=list)

    def add(self, first: Int[Tensor, " p"], second: Int[Tensor, " p"], values: Float[Tensor, " p"]) -> None:
        """Takes those above the threshold, which rises when there are too many."""
        kept = values >= self.threshold
        self.parts.append((first[kept], second[kept], values[kept]))
        if sum(len(part[0]) for part in self.parts) > 2 * self.limit:
            self._cut()

    def _cut(self) -> None:
        pairs = self.sorted()
        self.complete = False
        self.threshold = max(self.threshold, float(pairs.cosines[-1]))
        self.parts = [(torch.from_numpy(pairs.first), torch.from_numpy(pairs.second), torch.from_numpy(pairs.cosines))]

    def sorted(self) -> Pairs:
        """The pairs in order; of equal ones those of smaller rows first."""
        empty = torch.empty(0, dtype=torch.int64)
        first, second, values = (
            torch.cat(list(items)).numpy() for items in zip((empty, empty, empty.double()), *self.parts, strict=True)
        )
        order = np.lexsort((second, first, -values))
        complete = self.complete and len(order) <= self.limit
        order = order[: self.limit]
        return Pairs(first[order], second[order], values[order], complete)


def compare_all(
    vectors: Vectors,
    *,
    threshold: float | None = None,
    neighbors: int = 0,
    max_pairs: int = 1_000_000,
    device: torch.device | None = None,
    advance: Advance = lambda _: None,
) -> tuple[Pairs, Float[np.ndarray, " n"] | None]:
    """Pairs with a cosine of `threshold` at least (None: none), and for each image the mean cosine to its nearest `neighbors`.

    Exact, in memory that does not grow with the square of the number of images. `neighbors` 0: no means (None); more than there
    are images: all others. Only the most alike `max_pairs` are kept. `advance` is told shares of the work in images. Raises
    ValueError where a number is not finite.
    """
    place, number = device or torch.device("cpu"), min(neighbors, len(vectors) - 1)
    # Means of bf16 cosines would be wrong in the third digit; pairs are compared again anyway.
    kind = torch.bfloat16 if number < 1 and supports_bf16(place) else torch.float32
    found = _Found(max_pairs, 2.0 if threshold is None else threshold)
    best = torch.full((len(vectors), max(number, 0)), -torch.inf, device=place)
    meter = _Meter(len(vectors), advance)
    for start in range(0, len(vectors), OUTER):
        outer = _units(vectors, start, OUTER).to(place)
        for begin in range(start, len(vectors), INNER):
            inner = (
                outer[begin - start : begin - start + INNER]
                if begin < start + OUTER
                else _units(vectors, begin, INNER).to(place)
            )
            scores = outer.to(kind) @ inner.to(kind).T
            if threshold is not None:
                _collect(found, scores, (outer, start), (inner, begin))
            if number > 0:
                _keep_best(best, scores, start, begin)
            meter.done(len(outer), len(inner), begin < start + OUTER)
    means = best.mean(dim=1).double().cpu().numpy() if number > 0 else None
    return found.sorted(), means


def _units(vectors: Vectors, start: int, number: int) -> Float[Tensor, "b D"]:
    """Unit vectors of consecutive rows in fp32."""
    stop, parts = min(start + number, len(vectors)), []
    while start < stop:
        first, block = next(vectors.table.blocks(min(stop - start, rows_per_block(vectors.table)), start))
        values, norms = vectors.of_block(first, tensor_of(block).to(torch.float32, copy=True))
        parts.append(values.div_(norms[:, None]))
        start = first + len(block)
    return torch.cat(parts)


def _collect(
    found: _Found, scores: Tensor, outer: tuple[Float[Tensor, "a D"], int], inner: tuple[Float[Tensor, "b D"], int]
) -> None:
    """Adds the pairs of two blocks, each given with the number of its first row, that are alike enough."""
    rows, columns = (scores >= found.threshold - MARGIN[scores.dtype]).nonzero(as_tuple=True)
    once = columns + inner[1] > rows + outer[1]
    rows, columns = rows[once], columns[once]
    for some, others in zip(torch.split(rows, COMPARED), torch.split(columns, COMPARED), strict=True):
        values = (outer[0][some].double() * inner[0][others].double()).sum(dim=1).clamp(-1, 1)
        found.add((some + outer[1]).cpu(), (others + inner[1]).cpu(), values.cpu())


def _keep_best(best: Float[Tensor, "n k"], scores: Float[Tensor, "a b"], start: int, begin: int) -> None:
    """Takes the cosines of two blocks into the best of each row; of an image to itself none."""
    num_outer, num_inner = scores.shape
    inside = begin < start + num_outer
    if inside:
        own = torch.arange(num_inner, device=scores.device)
        scores[own + begin - start, own] = -torch.inf
    _merge(best[start : start + num_outer], scores)
    if not inside:
        _merge(best[begin : begin + num_inner], scores.T)


def _merge(best: Float[Tensor, "r k"], scores: Float[Tensor, "r b"]) -> None:
    number = best.shape[1]
    top = scores.topk(min(number, scores.shape[1]), dim=1).values
    best.copy_(torch.cat([best, top], dim=1).topk(number, dim=1).values)


class _Meter:
    """Tells of products as if each image took the same share of them."""

    def __init__(self, number: int, advance: Advance) -> None:
        self._number, self._advance = number, advance
        self._products, self._told = 0.0, 0

    def done(self, rows: int, columns: int, inside: bool) -> None:
        """Of a block on the diagonal each pair is computed twice."""
        self._products += rows * columns * (1 if inside else 2)
        now = round(self._products / self._number)
        self._advance(now - self._told)
        self._told = now
