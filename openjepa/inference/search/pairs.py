"""All pairs of images in one pass: those above a threshold, and how far each image is from its nearest ones.

Blocks of unit vectors are multiplied with each other, each pair of blocks once. In bf16 a product differs from the cosine by at
most 3/256: the rounding of both factors and of the result. So pairs are selected with that margin and compared again in fp64.
The result does not depend on the precision.

Near-duplicates form groups of similar images. Images of a group that are duplicates of a kept one are listed for removal.
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
"""Number of images in the two blocks of a product. OUTER is a multiple of INNER. Their cosines take 128 MB in fp32."""
MARGIN = {torch.bfloat16: 3 / 256 + 1e-3, torch.float32: 1e-5}
COMPARED = 1024
"""Number of pairs that are compared again at a time. They fit into the cache."""
SEARCHED = 512
"""Number of images of the outer block whose pairs are taken at a time. If all images were alike, a block would take 1 GB."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of images, the most alike first."""

    first: NDArray[np.int64]
    """Row of the first image in the table [m]."""
    second: NDArray[np.int64]
    """Row of the second image [m], always the larger number."""
    cosines: NDArray[np.float64]
    complete: bool = True
    """False if there were more pairs than the limit allows; these are then the most similar ones."""


@dataclass(frozen=True)
class _Block:
    """Consecutive images of a table."""

    first: int
    """Number of the first row."""
    units: Float[Tensor, "b D"]
    """Unit vectors, up to rounding in fp32."""
    squares: Float[Tensor, " b"]
    """Squared lengths of `units` in fp64."""

    def __len__(self) -> int:
        return len(self.squares)


@dataclass
class _Found:
    """The most similar pairs so far, at most twice the limit."""

    limit: int
    threshold: float
    complete: bool = True
    parts: list[tuple[Int[Tensor, " p"], Int[Tensor, " p"], Float[Tensor, " p"]]] = field(default_factory=list)

    def is_full(self) -> bool:
        """True if no further pair can be more similar than those already taken."""
        return not self.complete and self.threshold >= 1

    def add(self, first: Int[Tensor, " p"], second: Int[Tensor, " p"], values: Float[Tensor, " p"]) -> None:
        """Adds the pairs that reach the threshold. The threshold rises if there are too many."""
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
        """The pairs, the most similar first. Among equal cosines, smaller rows come first."""
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
    """Pairs with a cosine of at least `threshold`, and each image's mean cosine to its `neighbors` nearest images.

    `threshold`: None gives no pairs. `neighbors`: 0 gives None instead of means; more than there are other images means all of
    them. `max_pairs`: only this number of pairs is kept, the most similar. `advance`: called with the work done, in images.
    The result is exact, and the memory does not grow with the square of the number of images. Raises Refusal if a number is not
    finite.
    """
    place, number = device or torch.device("cpu"), min(neighbors, len(vectors) - 1)
    # Means of bf16 cosines would be wrong in the third digit. Pairs are compared again in fp64, so bf16 is enough for them.
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
    """A block of at most `number` images from row `start` on, on the device `place`."""
    stop, row, units, squares = min(start + number, len(vectors)), start, [], []
    while row < stop:
        first, block = next(vectors.table.blocks(min(stop - row, rows_per_block(vectors.table)), row))
        values, norms = vectors.of_block(first, tensor_of(block).to(torch.float32, copy=True))
        units.append(values.div_(norms[:, None]))
        squares.append(values.double().square().sum(dim=1))
        row = first + len(block)
    return _Block(start, torch.cat(units).to(place), torch.cat(squares))


def _part(block: _Block, start: int) -> _Block:
    """An inner block: INNER images of `block` from its image number `start` on."""
    stop = start + INNER
    return _Block(block.first + start, block.units[start:stop], block.squares[start:stop])


def _collect(found: _Found, scores: Float[Tensor, "a b"], outer: _Block, inner: _Block) -> None:
    """Adds the pairs of two blocks that reach the threshold."""
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
    """Cosines of pairs in fp64, on the CPU; exactly 1 for equal vectors."""
    place = torch.device("cpu") if rows.device.type == "mps" else rows.device  # MPS has no fp64
    products = (outer.units[rows].to(place).double() * inner.units[columns].to(place).double()).sum(dim=1).cpu()
    lengths = (outer.squares[rows.cpu()] * inner.squares[columns.cpu()]).sqrt()
    return products.div_(lengths.clamp(min=SMALLEST_NORM)).clamp_(-1, 1)


def _keep_best(best: Float[Tensor, "n k"], scores: Float[Tensor, "a b"], start: int, begin: int) -> None:
    """Merges the cosines of two blocks into the best of each row. Leaves out the cosine of an image to itself."""
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
    """Reports progress in images, as if each image took an equal share of the products."""

    def __init__(self, number: int, advance: Advance) -> None:
        self._number, self._advance = number, advance
        self._products, self._told = 0.0, 0

    def done(self, rows: int, columns: int, inside: bool) -> None:
        """Counts the product of two blocks. `inside`: on the diagonal, where a block computes each pair twice."""
        self._products += rows * columns * (1 if inside else 2)
        now = round(self._products / self._number)
        self._advance(now - self._told)
        self._told = now


@dataclass(frozen=True)
class File:
    """Facts about an image's file."""

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
    """The file of the image; None if it cannot be read."""
    duplicate_of: int | None = None
    """Row of the image that is kept instead; None for an image that is kept."""
    cosine: float | None = None
    """Cosine to that image; None for an image that is kept."""
    identical: bool | None = None
    """True if both files are equal, byte for byte; None for an image that is kept, or if a file cannot be read."""

    @property
    def keep(self) -> bool:
        """True if the image is kept."""
        return self.duplicate_of is None


@dataclass(frozen=True)
class Group:
    """Images that are connected by pairs above the threshold. The images to keep come first, then the others."""

    members: tuple[Member, ...]
    highest: float
    """Largest cosine of a pair in the group."""
    lowest: float
    """Smallest cosine of a removed image to the image that is kept instead."""


def groups_of(pairs: Pairs, file_of: Callable[[int], File | None]) -> list[Group]:
    """The groups of `pairs`, the group with the most similar pair first. `file_of`: the file of a row, None if it is gone.

    In each group, images are visited by number of pixels, then bytes of the file, both the largest first, then by row. An image
    that forms a pair with a kept image is its duplicate; any other image is kept. So no image is removed only because a chain
    of other images connects it to a kept one.
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
        for row in component:  # the list grows during the loop
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
    """Sort key: the image to keep comes first, images that cannot be read last."""
    return (-file.height * file.width, -file.bytes, row) if file is not None else (1, 0, row)
