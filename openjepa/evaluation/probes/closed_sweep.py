"""Multinomial logistic regression without a learning rate: one head per weight decay, all at once.

Matrices of features are read some rows at a time, float32 and standardized only while they are used: a matrix of 1.28 M x 5120
in bf16 (13 GB) stays on disk or on the device as it is, and nothing of its size is made beside it.
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
"""Features that are converted at a time."""
LARGE_BYTES = 2**30
"""A matrix that would be larger than this in float32 is never copied as a whole."""


@dataclass(frozen=True)
class Rows:
    """Rows of (stored - mean) @ axes, computed when they are read; without mean and axes, the stored rows themselves."""

    stored: Shaped[Tensor, "n D"]
    """The matrix as it is kept: of any dtype, perhaps mapped from a file, perhaps on another device than the work."""
    mean: Float[Tensor, " D"] | None = None
    axes: Float[Tensor, "D R"] | None = None
    """The work is done on its device."""
    which: Int[Tensor, " m"] | None = None
    """Only these rows of `stored`. None: all."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.stored) if self.which is None else len(self.which)

    @property
    def width(self) -> int:
        """R, or D if there are no axes."""
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
        """Only these rows: copied if there are no axes, as in small matrices, else picked while reading."""
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

    Raises Refusal if features, or squares of them, are not finite: nothing that is computed from them would mean anything.
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


# ------------------------------------------------------------------------------------------------------------------- the solver


ROW_CHUNK = 4096
"""Images whose logits of all heads are held at a time; fewer if there would be more than LOGITS logits."""
LOGITS = 2**25
KEPT_VARIANCE = 1 - 1e-7
"""Share of the variance that the solver works on. (Leaving out 1e-5 was measured to cost half a point on CIFAR-10.)"""
ROUNDING = 8
"""Norm of a gradient that is nothing but rounding errors, in units of the last place of 1."""
FP32_NOISE = 1e-7
"""Eigenvalues below this share of the largest are rounding errors."""
MOST_SHARED = 16
"""Decompositions that are kept at a time: an encoder, its two baselines and the pixels have 14."""
ROWS_OF_A_KEY = 64
"""Features are taken for equal if shape, means, scales and about this many rows are."""


@dataclass(frozen=True)
class Heads:
    """L linear classifiers of C classes on the same R features."""

    weight: Float[Tensor, "R L C"]
    bias: Float[Tensor, "L C"]

    def predict(self, features: Float[Tensor, "n R"] | Rows) -> Int[Tensor, "L n"]:
        """Class of every image according to every head."""
        return torch.cat([logits.argmax(dim=2).T for logits in self.scores(features)], dim=1)

    def scores(self, features: Float[Tensor, "n R"] | Rows) -> "Iterator[Float[Tensor, 'chunk L C']]":
        """Logits of every head, some images at a time."""
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
        """self + factor x other, with a number or one factor per head [L, 1]."""
        return Heads(self.weight + factor * other.weight, self.bias + factor * other.bias)

    def select(self, which: Bool[Tensor, " L"]) -> "Heads":
        """Some of the heads."""
        return Heads(self.weight[:, which], self.bias[which])

    def dot(self, other: "Heads") -> Float[Tensor, " L"]:
        """Inner product per head."""
        return (self.weight * other.weight).sum(dim=(0, 2)) + (self.bias * other.bias).sum(dim=1)


@dataclass(frozen=True)
class Components:
    """Principal components of centered features: what is slow to find, and knows no labels."""

    variances: Float[Tensor, " R"]
    axes: Float[Tensor, "D R"]
    """Orthonormal columns."""


@dataclass(frozen=True)
class Rotated:
    """Standardized features in the axes of their principal components, in which their covariance is diagonal."""

    rows: Rows
    """[n, R]: a matrix of its own or, if that would be large, the stored features and what turns them as they are read."""
    components: Components


@dataclass(frozen=True)
class ScaledSplit:
    """The training split centered, scaled in every dimension, and turned into its principal components."""

    mean: Float[Tensor, " D"]
    scale: Float[Tensor, " D"]
    rotated: Rotated
    labels: Int[Tensor, " n"]
    num_classes: int

    def project(self, features: Shaped[Tensor, "m D"]) -> Rows:
        """Other images in the same axes, with the training split's statistics, turned while they are read."""
        return Rows(features, self.mean, self.scale[:, None] * self.rotated.components.axes)


def rotate(
    features: Shaped[Tensor, "n D"],
    mean: Float[Tensor, " D"] | None = None,
    scale: Float[Tensor, " D"] | None = None,
    kept_variance: float = KEPT_VARIANCE,
    in_place: bool | None = None,
) -> Rotated:
    """(features - mean) * scale in the axes of their principal components. None: their mean; 1.

    |W|^2 is the same in these axes, so that weight decay means the same, too. `in_place`: the features stay where they are and
    are turned whenever they are read; None: if they are large.
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
    """Within the block equal features are decomposed once: tasks and seeds often have the same images.

    The latest `MOST_SHARED` decompositions are kept, and none after the block. Also a decorator.
    """
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def _shared_components(
    features: Shaped[Tensor, "n D"], mean: Float[Tensor, " D"], scale: Float[Tensor, " D"], kept_variance: float
) -> Components:
    """`_principal_components`, or what a block of `shared_components` knows of them."""
    known = _SHARED.get()
    if known is None:
        return _principal_components(features, mean, scale, kept_variance)
    some = features[:: max(1, len(features) // ROWS_OF_A_KEY)]
    parts = [part.cpu().double().numpy().tobytes() for part in (mean, scale, some)]
    words = f"{features.shape} {features.dtype} {mean.device} {kept_variance}".encode()
    key = hashlib.sha256(b"".join([words, *parts])).digest()
    found = known.pop(key, None) or _principal_components(features, mean, scale, kept_variance)
    known[key] = found  # the latest stand last
    if len(known) > MOST_SHARED:
        del known[next(iter(known))]
    return found


def _principal_components(
    features: Shaped[Tensor, "n D"], mean: Float[Tensor, " D"], scale: Float[Tensor, " D"], kept_variance: float
) -> Components:
    """The components that together hold `kept_variance` of the variance of (features - mean) * scale."""
    num, width = features.shape
    if num < width:  # the components from the smaller of X'X and XX'; then the matrix is small
        rows = (features.to(mean.device) - mean) * scale
        values, left = _eigh(rows @ rows.T / num)
    else:
        values, left = _eigh(covariance(features, mean, scale))
    values, left = values.flip(0).clamp(min=0), left.flip(1)
    missing = 1 - (values / values.sum().clamp(min=1e-30)).double().cumsum(0)  # after each component
    above_noise = int((values > FP32_NOISE * values[0]).sum())
    num_kept = max(1, min(above_noise, 1 + int((missing > 1 - kept_variance).sum())))
    values, left = values[:num_kept], left[:, :num_kept]
    axes = rows.T @ (left * (num * values.clamp(min=1e-30)).rsqrt()) if num < width else left
    return Components(values, axes)


def whole_rotation(features: Shaped[Tensor, "n D"], mean: Float[Tensor, " D"], scale: Float[Tensor, " D"]) -> Rotated:
    """(features - mean) * scale in the axes of all its principal components: distances and inner products stay as they are."""
    num, width = features.shape
    if num < width:  # an orthonormal basis of what the rows span comes first
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
    """Eigenvalues, ascending, and eigenvectors; computed on the CPU if the device (mps) cannot."""
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
    """Minimizes mean cross-entropy + weight decay / 2 |W|^2 for every weight decay; the bias is not decayed.

    `features` are rows of `rotate`, and `variances` bounds S = X'X / n, which is diagonal or smaller than that. The Hessian
    is nowhere larger than S / 2 + weight decay for each class (Boehning, 1992), so that a step divided by that bound never
    overshoots: gradient descent in this metric needs no learning rate and does not suffer from ill-conditioned features.
    Nesterov's momentum, started anew in a head when it points uphill (O'Donoghue and Candes, 2015), makes it fast. A head
    is done when gradient^2 / bound is below `tolerance`.

    That is the optimum if the weight decay is strong or images are many. If classes are separable and the decay is weak,
    p (1 - p) is far below the bound's 1/4 and the search ends early, with a larger loss and smaller weights than the optimum's.
    `relative_gradients` tells which it was. On real data such heads are as accurate as those of the optimum, and they take a
    half to a tenth of the time; logistic.py solves to the end.
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
    """Norm of the gradient of what `solve` minimizes, at each of these heads: 0 at the optimum. One pass over the rows."""
    gradient = heads.gradient(features, labels)
    decays = gradient.bias.new_tensor(weight_decays)[:, None]
    gradient = Heads(gradient.weight + decays * heads.weight, gradient.bias)
    return gradient.dot(gradient).sqrt()


def relative_gradients(norms: Float[Tensor, " L"], heads: Heads, weight_decays: Sequence[float]) -> Float[Tensor, " L"]:
    """The gradients' norms as shares of weight decay x |W|: about how far W is from the optimum's, at most, as a share of |W|.

    For the objective, minimized over the bias, is bent by at least the weight decay in every direction, so that its gradient is
    at least that times the distance. Above 1 the bound says nothing: the search was stopped early. Where weight decay x |W| is
    below what rounding leaves of a gradient, the share is of that.
    """
    pull = norms.new_tensor(weight_decays) * heads.weight.square().sum(dim=(0, 2)).sqrt()
    return norms / pull.clamp(min=ROUNDING * torch.finfo(norms.dtype).eps)
