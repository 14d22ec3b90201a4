"""All pairs of images in one pass: those above a threshold, and how far each image is from its nearest ones.

Blocks of unit vectors are multiplied with each other, each pair of blocks once. In bf16 a product misses a cosine by at most
3/256, twice the rounding of a factor and once that of the result, so pairs are taken with that margin and compared again in
fp64: what is found does not depend on the precision.

Near-duplicates become groups of images that are alike, and one image of each group is kept.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from openjepa.engine.device import supports_bf16
from openjepa.inference.search.exact import Advance
from openjepa.inference.search.vectors import SMALLEST_NORM, Vectors, rows_per_block, tensor_of

OUTER, INNER = 8192, 4096
"""Images of the two blocks that are multiplied; the first is a multiple of the second. Their cosines take 128 MB in fp32."""
MARGIN = {torch.bfloat16: 3 / 256 + 1e-3, torch.float32: 1e-5}
COMPARED = 1024
"""Pairs that are compared again at a time: what they need stays in the cache."""
SEARCHED = 512
"""Images of the first block whose pairs are taken at a time: if all were alike, those of a block would take a gigabyte."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, the most alike first."""

    first: NDArray[np.int64]
    """Row of the table [m]."""
    second: NDArray[np.int64]
    """Another, larger one."""
    cosines: NDArray[np.float64]
    complete: bool = True
    """False if there were more pairs than were wanted; these are the most alike."""


@dataclass(frozen=True)
class _Block:
    """Consecutive images of a table."""

    first: int
    """Number of the first row."""
    units: Float[Tensor, "b D"]
    """Unit vectors, as far as fp32 can say."""
    squares: Float[Tensor, " b"]
    """Squares of their lengths in fp64."""

    def __len__(self) -> int:
        return len(self.squares)


@dataclass
class _Found:
    """The most alike pairs so far, at most twice as many as are wanted."""

    limit: int
    threshold: float
    complete: bool = True
    parts: list[tuple[Int[Tensor, " p"], Int[Tensor, " p"], Float[Tensor, " p"]]] = field(default_factory=list)

    def is_full(self) -> bool:
        """Whether no other pair can be more alike than those that are taken already."""
        return not self.complete and self.threshold >= 1

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
    """Pairs with a cosine of at least `threshold` (None: no pairs), and each image's mean cosine to its nearest `neighbors`.

    Exact, in memory that does not grow with the square of the number of images. `neighbors`: 0 gives no means (None), and a
    number above that of the images means all others. Only the most alike `max_pairs` are kept. `advance`: told the work done,
    in images. Raises
    Refusal if a number is not finite.
    """
    place, number = device or torch.device("cpu"), min(neighbors, len(vectors) - 1)
    # Means of bf16 cosines would be wrong in the third digit; pairs are compared again anyway.
    kind = torch.bfloat16 if number < 1 and supports_bf16(place) else torch.float32
    found = _Found(max_pairs, 2.0 if threshold is None else threshold)
    best = torch.full((len(vectors), max(number, 0)), -torch.inf, device=place)
    meter = _Meter(len(vectors), advance)
    for start in range(0, len(vectors), OUTER):
        outer = _block(vectors, start, OUTER, place)
        for begin in range(start, len(vectors), INNER):
            inside = begin < start + OUTER
            inner = _part(outer, begin - start) if inside else _block(vectors, begin, INNER, place)
            scores = outer.units.to(kind) @ inner.units.to(kind).T
            if threshold is not None:
                _collect(found, scores, outer, inner)
            if number > 0:
                _keep_best(best, scores, start, begin)
            meter.done(len(outer), len(inner), inside)
    means = best.mean(dim=1).cpu().double().numpy() if number > 0 else None
    return found.sorted(), means


def _block(vectors: Vectors, start: int, number: int, place: torch.device) -> _Block:
    """At most `number` images from a row on."""
    stop, row, units, squares = min(start + number, len(vectors)), start, [], []
    while row < stop:
        first, block = next(vectors.table.blocks(min(stop - row, rows_per_block(vectors.table)), row))
        values, norms = vectors.of_block(first, tensor_of(block).to(torch.float32, copy=True))
        units.append(values.div_(norms[:, None]))
        squares.append(values.double().square().sum(dim=1))
        row = first + len(block)
    return _Block(start, torch.cat(units).to(place), torch.cat(squares))


def _part(block: _Block, start: int) -> _Block:
    """The images of a block from one of them on that make an inner block."""
    stop = start + INNER
    return _Block(block.first + start, block.units[start:stop], block.squares[start:stop])


def _collect(found: _Found, scores: Float[Tensor, "a b"], outer: _Block, inner: _Block) -> None:
    """Adds the pairs of two blocks that are alike enough."""
    for start in range(0, len(outer), SEARCHED):
        if found.is_full():
            return
        alike = scores[start : start + SEARCHED] >= found.threshold - MARGIN[scores.dtype]
        rows, columns = alike.nonzero(as_tuple=True)
        rows = rows + start
        once = columns + inner.first > rows + outer.first
        rows, columns = rows[once], columns[once]
        parts = zip(torch.split(rows, COMPARED), torch.split(columns, COMPARED), strict=True)
        values = torch.cat([_cosines(outer, inner, some, others) for some, others in parts])
        found.add(rows.cpu() + outer.first, columns.cpu() + inner.first, values)


def _cosines(outer: _Block, inner: _Block, rows: Int[Tensor, " p"], columns: Int[Tensor, " p"]) -> Float[Tensor, " p"]:
    """Cosines of pairs in fp64, on the CPU; of equal vectors exactly 1."""
    place = torch.device("cpu") if rows.device.type == "mps" else rows.device  # MPS has no fp64
    products = (outer.units[rows].to(place).double() * inner.units[columns].to(place).double()).sum(dim=1).cpu()
    lengths = (outer.squares[rows.cpu()] * inner.squares[columns.cpu()]).sqrt()
    return products.div_(lengths.clamp(min=SMALLEST_NORM)).clamp_(-1, 1)


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
        """A block on the diagonal computes each pair twice."""
        self._products += rows * columns * (1 if inside else 2)
        now = round(self._products / self._number)
        self._advance(now - self._told)
        self._told = now


@dataclass(frozen=True)
class File:
    """What is known of an image's file."""

    height: int
    width: int
    bytes: int
    digest: str
    """Equal for equal files."""


@dataclass(frozen=True)
class Member:
    """One image of a group."""

    row: int
    file: File | None
    """The file of an image; None if it is gone."""
    duplicate_of: int | None = None
    """Row of the image that is kept instead; None for an image that is kept."""
    cosine: float | None = None
    """To that one."""
    identical: bool | None = None
    """Whether both files are the same, byte for byte; None for an image that is kept, or if a file cannot be read."""

    @property
    def keep(self) -> bool:
        """Whether the image is kept."""
        return self.duplicate_of is None


@dataclass(frozen=True)
class Group:
    """Images that hang together by pairs that are alike enough; first those to keep, then the others."""

    members: tuple[Member, ...]
    highest: float
    """Largest cosine of a pair in the group."""
    lowest: float
    """Smallest cosine of a removed image to the one that is kept for it."""


def groups_of(pairs: Pairs, file_of: Callable[[int], File | None]) -> list[Group]:
    """The groups, those with the most alike pair first.

    In each group the images are gone through by pixels, then bytes of the file, the largest first, then rows: one that is alike
    enough to an image that is kept already is its duplicate, any other is kept. So no image goes because of a chain of others
    between it and the one that stays.
    """
    alike: dict[int, dict[int, float]] = defaultdict(dict)
    for one, other, cosine in zip(pairs.first.tolist(), pairs.second.tolist(), pairs.cosines.tolist(), strict=True):
        alike[one][other] = alike[other][one] = cosine
    groups = [_group(rows, alike, {row: file_of(row) for row in rows}) for rows in _connected(alike)]
    return sorted(groups, key=lambda group: (-group.highest, min(member.row for member in group.members)))


def _connected(alike: dict[int, dict[int, float]]) -> list[list[int]]:
    """Rows of each connected component, ascending."""
    seen: set[int] = set()
    components = []
    for start in sorted(alike):
        if start in seen:
            continue
        seen.add(start)
        component = [start]
        for row in component:  # grows while it is gone through
            new = [other for other in alike[row] if other not in seen]
            seen.update(new)
            component.extend(new)
        components.append(sorted(component))
    return components


def _group(rows: Sequence[int], alike: dict[int, dict[int, float]], files: dict[int, File | None]) -> Group:
    kept: list[Member] = []
    removed: list[Member] = []
    for row in sorted(rows, key=lambda row: _preference(row, files[row])):
        near = [(alike[row][member.row], -member.row) for member in kept if member.row in alike[row]]
        if not near:
            kept.append(Member(row, files[row]))
            continue
        cosine, negative = max(near)
        own, other = files[row], files[-negative]
        identical = None if own is None or other is None else own.digest == other.digest
        removed.append(Member(row, own, -negative, cosine, identical))
    highest = max(cosine for row in rows for cosine in alike[row].values())
    lowest = min(member.cosine for member in removed if member.cosine is not None)
    return Group((*kept, *removed), highest, lowest)


def _preference(row: int, file: File | None) -> tuple[int, int, int]:
    """Sorts the image to keep first; those that cannot be read come last."""
    return (-file.height * file.width, -file.bytes, row) if file is not None else (1, 0, row)
