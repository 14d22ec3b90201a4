"""Multinomial logistic regression without a learning rate: one head per weight decay, all solved together.

Feature matrices are read a few rows at a time. Only the rows in use are converted to float32 and standardized. A matrix of
1.28 M x 5120 in bf16 (13 GB) stays on disk or on the device as it is, and no copy of its size is made.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional

from openjepa.refusals import Refusal

CHUNK_ELEMENTS = 2**23
"""Number of matrix elements that are converted at a time."""
LARGE_BYTES = 2**30
"""A matrix that would take more bytes than this in float32 is never copied as a whole."""


@dataclass(frozen=True)
class Rows:
    """The rows of (stored - mean) @ axes, computed when they are read. Without mean and axes, the stored rows themselves."""

    stored: Shaped[Tensor, "n D"]
    """The matrix as it is stored: of any dtype, on any device, possibly mapped from a file."""
    mean: Float[Tensor, " D"] | None = None
    axes: Float[Tensor, "D R"] | None = None
    """The chunks are computed on the device of `axes`."""
    which: Int[Tensor, " m"] | None = None
    """Indices of the rows of `stored` that are used; None for all."""

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.stored) if self.which is None else len(self.which)

    @property
    def width(self) -> int:
        """The number of columns: R, or D if there are no axes."""
        return self.stored.shape[1] if self.axes is None else self.axes.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the chunks."""
        return self.stored.device if self.axes is None else self.axes.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the chunks."""
        return working_dtype(self.stored)

    def select(self, which: Int[Tensor, " m"]) -> "Rows":
        """Only the rows `which`. They are copied if there are no axes, as in small matrices; otherwise picked while reading."""
        if self.axes is None:
            return replace(self, stored=self.stored[which.to(self.stored.device)])
        return replace(self, which=which if self.which is None else self.which[which])

    def chunks(self, size: int) -> "Iterator[Float[Tensor, 'chunk D']]":
        """Yields stored - mean, at most `size` rows at a time."""
        for first in range(0, len(self), size):
            if self.which is None:
                rows = self.stored[first : first + size]
            else:
                rows = self.stored[self.which[first : first + size].to(self.stored.device)]
            yield converted(rows, self.mean, self.device)

    def into(self, weight: Float[Tensor, "R K"]) -> Float[Tensor, "D K"]:
        """Converts weights for rows into weights for chunks: chunk @ into(weight) = rows @ weight."""
        return weight if self.axes is None else self.axes @ weight

    def back(self, products: Float[Tensor, "D K"]) -> Float[Tensor, "R K"]:
        """Applies the transpose of `into`: converts chunk.T @ residual into rows.T @ residual."""
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
    """The type to compute in: float64 for float64, float32 for everything else."""
    return torch.float64 if stored.dtype == torch.float64 else torch.float32


def converted(rows: Shaped[Tensor, "n D"], mean: Float[Tensor, " D"] | None, device: torch.device) -> Float[Tensor, "n D"]:
    """Returns rows - mean in the working dtype on `device`, in one pass over the memory."""
    there = rows.to(device)
    if mean is None:
        return there.to(working_dtype(rows))
    return torch.sub(there, mean)  # the mean is float32 or float64, and so is the difference


def is_large(features: Shaped[Tensor, "n D"]) -> bool:
    """True if the matrix is too large to be copied in float32."""
    return features.numel() * 4 > LARGE_BYTES


def moments(features: Shaped[Tensor, "n D"], device: torch.device) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Mean and variance (divided by n) of each dimension, computed in two passes. Chunks are summed in float64.

    Raises Refusal if features or their squares are not finite, because nothing computed from them would mean anything.
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
    """Mean of the features, or of their squared distance to `center` if it is given."""
    total = torch.zeros(features.shape[1], dtype=torch.float64)  # on the CPU: mps has no float64
    for rows in torch.split(features, max(1, CHUNK_ELEMENTS // features.shape[1])):
        chunk = converted(rows, center, device)
        total += (chunk if center is None else chunk.square_()).sum(dim=0).cpu()
    return (total / len(features)).to(device=device, dtype=working_dtype(features))


def covariance(features: Shaped[Tensor, "n D"], mean: Float[Tensor, " D"], scale: Float[Tensor, " D"]) -> Float[Tensor, "D D"]:
    """The covariance X'X / n of the rows X = (features - mean) * scale."""
    width = features.shape[1]
    product = torch.zeros(width, width, dtype=mean.dtype, device=mean.device)
    for rows in torch.split(features, max(width, CHUNK_ELEMENTS // width)):
        chunk = converted(rows, mean, mean.device).mul_(scale)
        product.addmm_(chunk.T, chunk)
    return product.div_(len(features))


# ------------------------------------------------------------------------------------------------------------------- the solver


ROW_CHUNK = 4096
"""Number of images whose logits are held in memory at a time; fewer if they would have more than LOGITS logits."""
LOGITS = 2**25
KEPT_VARIANCE = 1 - 1e-7
"""Share of the variance that the solver keeps. (Dropping 1e-5 of it was measured to cost half a point on CIFAR-10.)"""
ROUNDING = 8
"""A gradient whose norm is below this many units of the last place of 1 consists of rounding errors only."""
FP32_NOISE = 1e-7
"""Eigenvalues below this share of the largest are rounding errors."""
MOST_SHARED = 16
"""Largest number of decompositions kept at a time. An encoder, its two baselines and the pixels have 14."""
ROWS_OF_A_KEY = 64
"""Feature matrices count as equal if their shape, means, scales and about this many of their rows are equal."""


@dataclass(frozen=True)
class Heads:
    """L linear classifiers of C classes on the same R features."""

    weight: Float[Tensor, "R L C"]
    bias: Float[Tensor, "L C"]

    def predict(self, features: Float[Tensor, "n R"] | Rows) -> Int[Tensor, "L n"]:
        """The class that each head predicts for each image."""
        return torch.cat([logits.argmax(dim=2).T for logits in self.scores(features)], dim=1)

    def scores(self, features: Float[Tensor, "n R"] | Rows) -> "Iterator[Float[Tensor, 'chunk L C']]":
        """Yields the logits of every head, some images at a time."""
        rows = as_rows(features)
        weight = rows.into(self.weight.flatten(1))
        yield from (self._logits(chunk, weight) for chunk in rows.chunks(self._row_chunk))

    def gradient(self, features: Float[Tensor, "n R"] | Rows, labels: Int[Tensor, " n"]) -> "Heads":
        """Gradient of the mean cross-entropy of every head."""
        rows, size = as_rows(features), self._row_chunk
        weight, bias = rows.into(self.weight.flatten(1)), torch.zeros_like(self.bias)
        products = torch.zeros_like(weight)
        for chunk, answers in zip(rows.chunks(size), torch.split(labels, size), strict=True):
            residual = functional.softmax(self._logits(chunk, weight), dim=2)  # [chunk, L, C]
            residual[torch.arange(len(chunk), device=chunk.device), :, answers] -= 1
            products.addmm_(chunk.T, residual.flatten(1))
            bias += residual.sum(dim=0)
        return Heads(rows.back(products).view_as(self.weight) / len(rows), bias / len(rows))

    def _logits(self, chunk: Float[Tensor, "n D"], weight: Float[Tensor, "D LC"]) -> Float[Tensor, "n L C"]:
        return torch.addmm(self.bias.flatten(), chunk, weight).view(-1, *self.bias.shape)

    @property
    def _row_chunk(self) -> int:
        return max(64, min(ROW_CHUNK, LOGITS // self.bias.numel()))

    def plus(self, other: "Heads", factor: Tensor | float = 1.0) -> "Heads":
        """Returns self + factor x other. `factor` is one number, or one per head [L, 1]."""
        return Heads(self.weight + factor * other.weight, self.bias + factor * other.bias)

    def select(self, which: Bool[Tensor, " L"]) -> "Heads":
        """The heads that the mask `which` selects."""
        return Heads(self.weight[:, which], self.bias[which])

    def dot(self, other: "Heads") -> Float[Tensor, " L"]:
        """Inner product with `other`, per head."""
        return (self.weight * other.weight).sum(dim=(0, 2)) + (self.bias * other.bias).sum(dim=1)


@dataclass(frozen=True)
class Components:
    """Principal components of centered features. They are slow to compute and do not depend on labels."""

    variances: Float[Tensor, " R"]
    axes: Float[Tensor, "D R"]
    """Orthonormal columns."""


@dataclass(frozen=True)
class Rotated:
    """Standardized features in the axes of their principal components, in which their covariance is diagonal."""

    rows: Rows
    """[n, R]: a new matrix or, if that would be large, the stored features with the axes that rotate them as they are read."""
    components: Components


@dataclass(frozen=True)
class ScaledSplit:
    """The training split: centered, scaled in every dimension, and rotated into the axes of its principal components."""

    mean: Float[Tensor, " D"]
    scale: Float[Tensor, " D"]
    rotated: Rotated
    labels: Int[Tensor, " n"]
    num_classes: int

    def project(self, features: Shaped[Tensor, "m D"]) -> Rows:
        """Other images with the training split's statistics and axes, rotated while they are read."""
        return Rows(features, self.mean, self.scale[:, None] * self.rotated.components.axes)


def rotate(
    features: Shaped[Tensor, "n D"],
    mean: Float[Tensor, " D"] | None = None,
    scale: Float[Tensor, " D"] | None = None,
    kept_variance: float = KEPT_VARIANCE,
    in_place: bool | None = None,
) -> Rotated:
    """Rotates (features - mean) * scale into the axes of its principal components.

    If `mean` is None, the features' own mean is used; if `scale` is None, it is 1. |W|^2 is the same in these axes, so weight
    decay has the same meaning. If `in_place` is True, the features stay where they are and are rotated whenever they are read.
    If it is None, that is done for large features only.
    """
    device = features.device if mean is None else mean.device
    mean = moments(features, device)[0] if mean is None else mean
    scale = torch.ones_like(mean) if scale is None else scale
    found = _shared_components(features, mean, scale, kept_variance)
    turned = Rows(features, mean, scale[:, None] * found.axes)
    keep = is_large(features) if in_place is None else in_place
    return Rotated(turned if keep else Rows(turned.materialize()), found)


_SHARED: ContextVar[dict[bytes, Components] | None] = ContextVar("shared components", default=None)


@contextmanager
def shared_components() -> Iterator[None]:
    """Decomposes equal features only once within the block, because tasks and seeds often share images.

    The latest `MOST_SHARED` decompositions are kept until the block ends. Also works as a decorator.
    """
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def _shared_components(
    features: Shaped[Tensor, "n D"], mean: Float[Tensor, " D"], scale: Float[Tensor, " D"], kept_variance: float
) -> Components:
    """`_principal_components`, taken from the enclosing block of `shared_components` if they are known there."""
    known = _SHARED.get()
    if known is None:
        return _principal_components(features, mean, scale, kept_variance)
    some = features[:: max(1, len(features) // ROWS_OF_A_KEY)]
    parts = [part.cpu().double().numpy().tobytes() for part in (mean, scale, some)]
    words = f"{features.shape} {features.dtype} {mean.device} {kept_variance}".encode()
    key = hashlib.sha256(b"".join([words, *parts])).digest()
    found = known.pop(key, None) or _principal_components(features, mean, scale, kept_variance)
    known[key] = found  # the most recently used stands last
    if len(known) > MOST_SHARED:
        del known[next(iter(known))]
    return found


def _principal_components(
    features: Shaped[Tensor, "n D"], mean: Float[Tensor, " D"], scale: Float[Tensor, " D"], kept_variance: float
) -> Components:
    """The components that together explain the share `kept_variance` of the variance of (features - mean) * scale."""
    num, width = features.shape
    if num < width:  # XX' is smaller than X'X here and has the same components; rows are few, so copying them is cheap
        rows = (features.to(mean.device) - mean) * scale
        values, left = _eigh(rows @ rows.T / num)
    else:
        values, left = _eigh(covariance(features, mean, scale))
    values, left = values.flip(0).clamp(min=0), left.flip(1)
    missing = 1 - (values / values.sum().clamp(min=1e-30)).double().cumsum(0)  # share missing after each component
    above_noise = int((values > FP32_NOISE * values[0]).sum())
    num_kept = max(1, min(above_noise, 1 + int((missing > 1 - kept_variance).sum())))
    values, left = values[:num_kept], left[:, :num_kept]
    axes = rows.T @ (left * (num * values.clamp(min=1e-30)).rsqrt()) if num < width else left
    return Components(values, axes)


def whole_rotation(features: Shaped[Tensor, "n D"], mean: Float[Tensor, " D"], scale: Float[Tensor, " D"]) -> Rotated:
    """Rotates (features - mean) * scale into the axes of all its principal components, which keeps distances and products."""
    num, width = features.shape
    if num < width:  # first an orthonormal basis of the space that the rows span
        rows = (features.to(mean.device) - mean) * scale
        basis = torch.linalg.qr(rows.T.cpu() if rows.device.type == "mps" else rows.T)[0].to(rows.device)  # [D, n]
        inside = rows @ basis
        values, vectors = _eigh(inside.T @ inside / num)
        axes = basis @ vectors
    else:
        values, axes = _eigh(covariance(features, mean, scale))
    turned = Rows(features, mean, scale[:, None] * axes)
    return Rotated(turned if is_large(features) else Rows(turned.materialize()), Components(values.clamp(min=0), axes))


def _eigh(matrix: Float[Tensor, "m m"]) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
    """Eigenvalues in ascending order, and eigenvectors. Computed on the CPU if the device is mps, which has no eigh."""
    values, vectors = torch.linalg.eigh(matrix.cpu() if matrix.device.type == "mps" else matrix)
    return values.to(matrix.device), vectors.to(matrix.device)


def solve(
    features: Float[Tensor, "n R"] | Rows,
    labels: Int[Tensor, " n"],
    num_classes: int,
    variances: Float[Tensor, " R"],
    weight_decays: Sequence[float],
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> Heads:
    """Minimizes mean cross-entropy + weight decay / 2 |W|^2 for every weight decay. The bias has no weight decay.

    `features` are rows of `rotate`. `variances` is a diagonal upper bound of S = X'X / n. The Hessian is nowhere larger than
    S / 2 + weight decay for each class (Boehning, 1992), so a step divided by that bound never overshoots. Gradient descent in
    this metric therefore needs no learning rate and does not suffer from ill-conditioned features. Nesterov's momentum makes it
    fast; a head's momentum is restarted when it points uphill (O'Donoghue and Candes, 2015). A head is done when
    gradient^2 / bound is below `tolerance`, or after `iterations` steps.

    The result is the optimum if the weight decay is strong or there are many images. If classes are separable and the decay is
    weak, p (1 - p) is far below the bound's 1/4, and the search ends early, with a larger loss and smaller weights than at the
    optimum. `relative_gradients` tells the two cases apart. On real data, heads stopped early are as accurate as those at the
    optimum and take a half to a tenth of the time; logistic.py solves to the end.
    """
    rows, shape = as_rows(features), (len(weight_decays), num_classes)
    decays = torch.tensor(weight_decays, device=rows.device, dtype=rows.dtype)[:, None]  # [L, 1]
    solved = Heads(decays.new_zeros(rows.width, *shape), decays.new_zeros(shape))
    ahead = current = solved.plus(solved)  # the gradient is taken at `ahead`
    age = torch.ones_like(decays)  # t_k of Nesterov's sequence
    running = torch.arange(len(decays), device=features.device)
    for iteration in range(1, iterations + 1):
        gradient = ahead.gradient(rows, labels)
        gradient = Heads(gradient.weight + decays * ahead.weight, gradient.bias)
        step = Heads(gradient.weight / (variances[:, None, None] / 2 + decays), 2 * gradient.bias)
        new = ahead.plus(step, -1.0)
        moved = new.plus(current, -1.0)
        age = torch.where(gradient.dot(moved)[:, None] > 0, 1.0, age)
        next_age = (1 + (1 + 4 * age.square()).sqrt()) / 2
        ahead = new.plus(moved, (age - 1) / next_age)
        current, age = new, next_age
        done = (gradient.dot(step) < tolerance) | (iteration == iterations)
        if bool(done.any()):
            solved.weight[:, running[done]], solved.bias[running[done]] = current.select(done).weight, current.bias[done]
            ahead, current = ahead.select(~done), current.select(~done)
            age, decays, running = age[~done], decays[~done], running[~done]
        if len(running) == 0:
            break
    return solved


def gradient_norms(
    heads: Heads, features: Float[Tensor, "n R"] | Rows, labels: Int[Tensor, " n"], weight_decays: Sequence[float]
) -> Float[Tensor, " L"]:
    """Norm, at each head, of the gradient of the objective of `solve`; 0 at the optimum. Takes one pass over the rows."""
    gradient = heads.gradient(features, labels)
    decays = gradient.bias.new_tensor(weight_decays)[:, None]
    gradient = Heads(gradient.weight + decays * heads.weight, gradient.bias)
    return gradient.dot(gradient).sqrt()


def relative_gradients(norms: Float[Tensor, " L"], heads: Heads, weight_decays: Sequence[float]) -> Float[Tensor, " L"]:
    """The gradients' norms divided by weight decay x |W|: roughly an upper bound of the distance to the optimum over |W|.

    Minimized over the bias, the objective has a curvature of at least the weight decay in every direction. Its gradient is
    therefore at least the weight decay times the distance. Above 1 the bound says nothing: the search was stopped early. If
    weight decay x |W| is smaller than a gradient's rounding error, the norm is divided by the rounding error instead.
    """
    pull = norms.new_tensor(weight_decays) * heads.weight.square().sum(dim=(0, 2)).sqrt()
    return norms / pull.clamp(min=ROUNDING * torch.finfo(norms.dtype).eps)
