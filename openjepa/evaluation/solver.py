"""Multinomial logistic regression without a learning rate: one head per weight decay, all solved at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

ROW_CHUNK = 4096
"""Images whose logits of all heads are held at a time."""
KEPT_VARIANCE = 1 - 1e-7
"""Share of the variance that the solver works on. (Leaving out 1e-5 was measured to cost half a point on CIFAR-10.)"""
FP32_NOISE = 1e-7
"""Eigenvalues below this share of the largest are rounding errors."""


@dataclass(frozen=True)
class Heads:
    """L linear classifiers of C classes on the same D (or R) features."""

    weight: Float[Tensor, "D L C"]
    bias: Float[Tensor, "L C"]

    def logits(self, features: Float[Tensor, "n D"]) -> Float[Tensor, "n L C"]:
        """Scores of every head."""
        return torch.addmm(self.bias.flatten(), features, self.weight.flatten(1)).view(-1, *self.bias.shape)

    def predict(self, features: Float[Tensor, "n D"]) -> Int[Tensor, "L n"]:
        """Class of every image according to every head."""
        return torch.cat([self.logits(rows).argmax(dim=2).T for rows in torch.split(features, ROW_CHUNK)], dim=1)

    def gradient(self, features: Float[Tensor, "n D"], labels: Int[Tensor, " n"]) -> "Heads":
        """Gradient of the mean cross-entropy of every head."""
        weight, bias = torch.zeros_like(self.weight).flatten(1), torch.zeros_like(self.bias)
        for rows, answers in zip(torch.split(features, ROW_CHUNK), torch.split(labels, ROW_CHUNK), strict=True):
            residual = functional.softmax(self.logits(rows), dim=2)  # [chunk, L, C]
            residual[torch.arange(len(rows), device=rows.device), :, answers] -= 1
            weight.addmm_(rows.T, residual.flatten(1))
            bias += residual.sum(dim=0)
        return Heads(weight.view_as(self.weight) / len(features), bias / len(features))

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
    """Centered features in the axes of their principal components, in which their covariance is diagonal."""

    rows: Float[Tensor, "n R"]
    variances: Float[Tensor, " R"]
    axes: Float[Tensor, "D R"]
    """Orthonormal columns: features = rows @ axes.T, but for what was left out."""

    @property
    def components(self) -> Components:
        """Without the rows."""
        return Components(self.variances, self.axes)


def rotate(
    features: Float[Tensor, "n D"], kept_variance: float = KEPT_VARIANCE, components: Components | None = None
) -> Rotated:
    """Centered features in the axes of their principal components; nothing is scaled.

    |W|^2 is the same in these axes, so that weight decay means the same, too. `components`: those of the same features, where
    they are known already.
    """
    found = components or _principal_components(features, kept_variance)
    return Rotated(features @ found.axes, found.variances, found.axes)


def _principal_components(features: Float[Tensor, "n D"], kept_variance: float) -> Components:
    """The components that together hold `kept_variance` of the variance of centered features."""
    num, width = features.shape
    if num < width:  # the components from the smaller of X'X and XX'
        values, left = _eigh(features @ features.T / num)
    else:
        values, left = _eigh(features.T @ features / num)
    values, left = values.flip(0).clamp(min=0), left.flip(1)
    missing = 1 - (values / values.sum().clamp(min=1e-30)).double().cumsum(0)  # after each component
    above_noise = int((values > FP32_NOISE * values[0]).sum())
    num_kept = max(1, min(above_noise, 1 + int((missing > 1 - kept_variance).sum())))
    values, left = values[:num_kept], left[:, :num_kept]
    axes = features.T @ (left * (num * values.clamp(min=1e-30)).rsqrt()) if num < width else left
    return Components(values, axes)


def _eigh(matrix: Float[Tensor, "m m"]) -> tuple[Float[Tensor, " m"], Float[Tensor, "m m"]]:
    """Eigenvalues, ascending, and eigenvectors; on the CPU where the device (mps) cannot."""
    values, vectors = torch.linalg.eigh(matrix.cpu() if matrix.device.type == "mps" else matrix)
    return values.to(matrix.device), vectors.to(matrix.device)


def solve(
    features: Float[Tensor, "n R"],
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
    is done when gradient^2 / bound, which is of the size of what its objective can still fall, is below `tolerance`.
    """
    decays = torch.tensor(weight_decays, device=features.device, dtype=features.dtype)[:, None]  # [L, 1]
    shape = (len(weight_decays), num_classes)
    solved = Heads(features.new_zeros(features.shape[1], *shape), features.new_zeros(shape))
    ahead = current = solved.plus(solved)  # the gradient is taken at `ahead`
    age = torch.ones_like(decays)  # t_k of Nesterov's sequence
    running = torch.arange(len(decays), device=features.device)
    for iteration in range(1, iterations + 1):
        gradient = ahead.gradient(features, labels)
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
