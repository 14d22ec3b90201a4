"""A matrix of features as the solvers read it: some rows at a time, float32 and standardized only while they are used.

So a matrix of 1.28 M x 5120 in bf16 (13 GB) stays on disk or on the device as it is, and nothing of its size is made beside it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from openjepa.refusals import Refusal

CHUNK_ELEMENTS = 2**23
"""Features that are converted at a time."""
LARGE_BYTES = 2**30
"""A matrix that would be larger than this in float32 is never copied as a whole."""


@dataclass(frozen=True)
class Rows:
    """Rows of (stored - mean) @ axes, computed when they are read; without mean and axes, the stored rows themselves."""

    stored: Shaped[Tensor, "n D"]
    """Of any dtype, perhaps mapped from a file, perhaps on another device than the work."""
    mean: Float[Tensor, " D"] | None = None
    axes: Float[Tensor, "D R"] | None = None
    """Its device is where the work is done."""
    which: Int[Tensor, " m"] | None = None
    """Only these rows of `stored`. None: all."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.stored) if self.which is None else len(self.which)

    @property
    def width(self) -> int:
        """R, or D where there are no axes."""
        return self.stored.shape[1] if self.axes is None else self.axes.shape[1]

    @property
    def device(self) -> torch.device:
        """Where chunks are."""
        return self.stored.device if self.axes is None else self.axes.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the chunks."""
        return working_dtype(self.stored)

    def select(self, which: Int[Tensor, " m"]) -> "Rows":
        """Only these rows. Copied where they are stored as they are read (small matrices), else picked while reading."""
        if self.axes is None:
            return replace(self, stored=self.stored[which.to(self.stored.device)])
        return replace(self, which=which if self.which is None else self.which[which])

    def chunks(self, size: int) -> "Iterator[Float[Tensor, 'chunk D']]":
        """stored - mean, at most `size` rows at a time."""
        for first in range(0, len(self), size):
            if self.which is None:
                rows = self.stored[first : first + size]
            else:
                rows = self.stored[self.which[first : first + size].to(self.stored.device)]
            yield converted(rows, self.mean, self.device)

    def into(self, weight: Float[Tensor, "R K"]) -> Float[Tensor, "D K"]:
        """The weights that a chunk is multiplied by: chunk @ into(weight) = rows @ weight."""
        return weight if self.axes is None else self.axes @ weight

    def back(self, products: Float[Tensor, "D K"]) -> Float[Tensor, "R K"]:
        """The transpose of `into`: rows.T @ residual from chunk.T @ residual."""
        return products if self.axes is None else self.axes.T @ products

    def materialize(self) -> Float[Tensor, "n R"]:
        """All rows as one matrix."""
        size = max(1, CHUNK_ELEMENTS // max(1, self.stored.shape[1]))
        made = torch.empty(len(self), self.width, dtype=self.dtype, device=self.device)
        for chunk, place in zip(self.chunks(size), torch.split(made, size), strict=True):
            if self.axes is None:
                place.copy_(chunk)
            else:
                torch.mm(chunk, self.axes, out=place)
        return made


def as_rows(features: "Float[Tensor, 'n D'] | Rows") -> Rows:
    """A matrix as Rows."""
    return features if isinstance(features, Rows) else Rows(features)


def working_dtype(stored: Shaped[Tensor, "..."]) -> torch.dtype:
    """float64 stays float64; everything else is computed in float32."""
    return torch.float64 if stored.dtype == torch.float64 else torch.float32


def converted(rows: Shaped[Tensor, "n D"], mean: Float[Tensor, " D"] | None, device: torch.device) -> Float[Tensor, "n D"]:
    """rows - mean in the working dtype on `device`, in one pass over the memory."""
    there = rows.to(device)
    if mean is None:
        return there.to(working_dtype(rows))
    return torch.sub(there, mean)  # the mean is float32 or float64, and so is the difference


def is_large(features: Shaped[Tensor, "n D"]) -> bool:
    """Whether the matrix is too large to be copied in float32."""
    return features.numel() * 4 > LARGE_BYTES


def moments(features: Shaped[Tensor, "n D"], device: torch.device) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and variance (divided by n) of each dimension, in two passes, summed over chunks in float64.

    Raises Refusal where features, or squares of them, are not finite: what is computed of them would mean nothing.
    """
    mean = _mean_of(features, None, device)
    variance = _mean_of(features, mean, device)
    if not bool(torch.isfinite(variance).all()):
        raise Refusal(
            f"{int((~torch.isfinite(variance)).sum())} of {features.shape[1]} dimensions of the features hold numbers that are "
            "not finite, or too large to be squared: try --precision fp32; where that does not help, look at the weights"
        )
    return mean, variance


def _mean_of(features: Shaped[Tensor, "n D"], center: Float[Tensor, " D"] | None, device: torch.device) -> Float[Tensor, " D"]:
    """Mean of the features, or of their squared distance to `center`."""
    total = torch.zeros(features.shape[1], dtype=torch.float64)  # on the CPU: mps has no float64
    for rows in torch.split(features, max(1, CHUNK_ELEMENTS // features.shape[1])):
        chunk = converted(rows, center, device)
        total += (chunk if center is None else chunk.square_()).sum(dim=0).cpu()
    return (total / len(features)).to(device=device, dtype=working_dtype(features))


def covariance(features: Shaped[Tensor, "n D"], mean: Float[Tensor, " D"], scale: Float[Tensor, " D"]) -> Float[Tensor, "D D"]:
    """X'X / n of the rows X = (features - mean) * scale."""
    width = features.shape[1]
    product = torch.zeros(width, width, dtype=mean.dtype, device=mean.device)
    for rows in torch.split(features, max(width, CHUNK_ELEMENTS // width)):
        chunk = converted(rows, mean, mean.device).mul_(scale)
        product.addmm_(chunk.T, chunk)
    return product.div_(len(features))
