"""One vector per image of a table, ready for computation: fp32 blocks of a mapped file, and single rows."""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from openjepa.inference.embedding.table import FeatureTable, kept_mean
from openjepa.refusals import Refusal

BLOCK_VALUES = 2048 * 768
"""Values in one block. 6 MB as fp32 stay in the second-level cache. Larger blocks took up to 1.6 times as long."""
ROUND = 64
"""Number of blocks that several threads compute before the next ones start. Their results wait for each other."""
SMALLEST_NORM = 1e-12
"""Vectors shorter than this have no direction: their cosine to anything is 0."""
ROUNDED = 2e-7
"""Differences from a mean count as rounding below this share of its length. Real differences of fp32 features are larger."""
SUMMED = 2048
"""Number of rows that are added up in fp32. Sums of more rows are added in fp64."""

Result = TypeVar("Result")


def tensor_of(block: NDArray[Any]) -> Tensor:
    """A tensor that shares the memory of `block`. That of a mapped file must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(block)


def rows_per_block(table: FeatureTable) -> int:
    """Number of images in one block of computation."""
    return max(1, BLOCK_VALUES // prod(table.manifest.shape))


def raw_blocks(table: FeatureTable) -> Iterator[tuple[int, Float[Tensor, "b *shape"]]]:
    """Yields (number of the first row, features in fp32) of each block. Each block overwrites the previous one."""
    buffer = torch.empty(rows_per_block(table), *table.manifest.shape)
    for first, block in table.blocks(len(buffer)):
        values = buffer[: len(block)]
        values.copy_(tensor_of(block))
        yield first, values


def map_blocks(
    table: FeatureTable, work: Callable[[int, Float[Tensor, "b *shape"]], Result], threads: int | None = None
) -> Iterator[Result]:
    """Yields the results of `work(number of the first row, features in fp32)` for each block, in order.

    `work`: may overwrite its block. `threads`: None means as many as torch has. On a mapped file each thread works on a block
    of its own. Threads that shared every small product would mostly wait for each other, above all if other programs run.
    """
    number = threads or torch.get_num_threads()
    rows = rows_per_block(table)
    if number == 1 or table.path.suffix != ".npy" or len(table) <= rows:
        for first, features in raw_blocks(table):
            yield work(first, features)
        return
    stored = tensor_of(next(table.blocks(len(table)))[1])
    own = threading.local()

    def begin() -> None:
        own.buffer = torch.empty(rows, *table.manifest.shape)

    def one(first: int) -> Result:
        block = stored[first : first + rows]
        return work(first, own.buffer[: len(block)].copy_(block))

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(number, initializer=begin) as pool:
            firsts = range(0, len(table), rows)
            for start in range(0, len(firsts), ROUND):
                yield from pool.map(one, firsts[start : start + ROUND])
    finally:
        torch.set_num_threads(before)


def picked(table: FeatureTable, rows: Sequence[int]) -> Float[Tensor, "m *shape"]:
    """Features of some rows, in fp64. `rows`: in ascending order."""
    found = torch.empty(len(rows), *table.manifest.shape, dtype=torch.float64)
    first, block = 0, np.empty((0, *table.manifest.shape), np.float32)
    for place, row in enumerate(rows):
        if row >= first + len(block):
            # A view if the file is mapped. For Parquet it is the rest of a row group, which may hold the next rows too.
            first, block = next(table.blocks(rows_per_block(table), row))
        found[place] = tensor_of(block[row - first])
    return found


def pooled(features: Float[Tensor, "b *shape"]) -> Float[Tensor, "b D"]:
    """The features as one vector per image: stored vectors as they are, stored patches averaged."""
    return features if features.ndim == 2 else features.mean(dim=(1, 2))


class Vectors:
    """One vector [D] per image of a table. Patches are averaged. If a `mean` is given, it is subtracted."""

    def __init__(self, table: FeatureTable, mean: Float[Tensor, " D"] | None = None) -> None:
        """`mean`: from `table_mean`. It is rounded to fp32, so that differences from it are accurate relative to their size."""
        self.table, self.mean = table, None if mean is None else mean.float().double()
        self._noise = 0.0 if mean is None else ROUNDED * float(mean.norm())
        self.width = table.manifest.shape[-1]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.table)

    def blocks(self) -> Iterator[tuple[int, Float[Tensor, "b D"], Float[Tensor, " b"]]]:
        """Yields (number of the first row, vectors, norms) of each block. Each block overwrites the previous one.

        Raises Refusal if a row is not finite.
        """
        for first, features in raw_blocks(self.table):
            yield first, *self.of_block(first, features)

    def less_mean(self, vectors: Float[Tensor, "m D"]) -> Float[Tensor, "m D"]:
        """`vectors` in fp64 with the table's mean subtracted. A vector that equals the mean up to rounding becomes zero."""
        less = self._less(vectors.double())
        return less.masked_fill((less.norm(dim=1) < self._noise)[:, None], 0)

    def _less(self, vectors: Float[Tensor, "m D"]) -> Float[Tensor, "m D"]:
        return vectors if self.mean is None else vectors - self.mean

    def of_block(self, first: int, features: Float[Tensor, "b *shape"]) -> tuple[Float[Tensor, "b D"], Float[Tensor, " b"]]:
        """Vectors of one block and their norms. Overwrites `features`. Raises Refusal if a row is not finite."""
        if features.ndim > 2:  # in fp64: patches may be many times as long as their average without the mean
            vectors = self._less(features.mean(dim=(1, 2), dtype=torch.float64)).float()
        else:
            vectors = features if self.mean is None else features.sub_(self.mean.float())
        norms = torch.linalg.vector_norm(vectors, dim=1)
        check_finite(self.table, first, norms)
        if bool((equal := norms < self._noise).any()):
            vectors[equal] = 0
            norms[equal] = 0
        return vectors, norms.clamp_(min=SMALLEST_NORM)

    def rows(self, rows: Sequence[int]) -> Float[Tensor, "m D"]:
        """Vectors of some rows, in fp64. `rows`: in ascending order."""
        return self.less_mean(pooled(picked(self.table, rows)))


def check_finite(table: FeatureTable, first: int, numbers: Float[Tensor, "b ..."]) -> None:
    """Raises Refusal if a number is not finite, and names the first such image. `first`: number of the block's first row."""
    finite = numbers.isfinite().flatten(1).all(dim=1) if numbers.ndim > 1 else numbers.isfinite()
    if not bool(finite.all()):
        row = first + int((~finite).nonzero()[0])
        raise Refusal(
            f"{table.path}: the features of row {row} ({table.rows[row].path}) are not finite, so nothing can be compared with "
            "them; embed the images again with --precision fp32 --dtype float32, else look at the encoder's weights"
        )


def place_means(table: FeatureTable) -> Float[Tensor, " *shape"]:
    """Mean of the stored features over all images; for patches, a mean at each place on the grid. In fp64, rounded to fp32.

    Uses the mean that the table keeps, if any, else a pass over all rows. Raises Refusal if features are not finite.
    """
    kept = kept_mean(table)
    if kept is not None:
        return torch.from_numpy(kept.astype(np.float64))

    def total(first: int, features: Float[Tensor, "b *shape"]) -> Float[Tensor, " *shape"]:
        part = torch.stack([rows.sum(dim=0) for rows in torch.split(features, SUMMED)]).double().sum(dim=0)
        if not bool(part.isfinite().all()):
            check_finite(table, first, features)
        return part

    start = torch.zeros(table.manifest.shape, dtype=torch.float64)
    mean: Tensor = sum(map_blocks(table, total), start) / max(1, len(table))
    return mean.float().double()


def table_mean(table: FeatureTable) -> Float[Tensor, " D"]:
    """Mean of the vectors of all images, in fp64, rounded to fp32. Raises Refusal if features are not finite."""
    return pooled(place_means(table)[None])[0].float().double()


def cosines(vectors: Float[Tensor, "m D"], query: Float[Tensor, " D"]) -> Float[Tensor, " m"]:
    """Cosine of each vector to `query`, in fp64; 0 if either has no direction."""
    rows, other = vectors.double(), query.double()
    # Each row is summed on its own, so that equal rows have equal cosines wherever they stand. A product does not promise that.
    products: Tensor = (rows * other).sum(dim=1)
    norms = rows.square().sum(dim=1).sqrt().clamp(min=SMALLEST_NORM) * other.norm().clamp(min=SMALLEST_NORM)
    return products.div_(norms).clamp_(-1, 1)
