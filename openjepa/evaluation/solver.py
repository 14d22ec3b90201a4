"""Multinomial logistic regression without a learning rate: one head per weight decay, all solved at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

ROW_CHUNK = 4096
"""Images whose logits of all heads are held at a time."""


@dataclass(frozen=True)
class Heads:
    """L linear classifiers of C classes on the same D features."""

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

    def dot(self, other: "Heads") -> Float[Tensor, " L"]:
        """Inner product per head."""
        return (self.weight * other.weight).sum(dim=(0, 2)) + (self.bias * other.bias).sum(dim=1)


def solve(
    features: Float[Tensor, "n D"],
    labels: Int[Tensor, " n"],
    num_classes: int,
    weight_decays: Sequence[float],
    iterations: int = 100,
    tolerance: float = 1e-6,
) -> Heads:
    """Minimizes mean cross-entropy + weight decay / 2 |W|^2 for every weight decay; the bias is not decayed.

    `features` must be centered. The Hessian is nowhere larger than S / 2 + weight decay for each class, S = X'X / n
    (Boehning, 1992), so that a step by the inverse of that bound never overshoots: in this metric gradient descent needs no
    learning rate and does not suffer from ill-conditioned features. Nesterov's momentum, started anew in a head when it
    points uphill (O'Donoghue and Candes, 2015), makes it fast. Ends when gradient' bound^-1 gradient, which is of the size
    of what the objective can still fall, is below `tolerance` in every head.
    """
    decays = torch.tensor(weight_decays, device=features.device, dtype=features.dtype)[:, None]  # [L, 1]
    precondition = _inverse_bound(features, decays)
    shape = (len(weight_decays), num_classes)
    current = Heads(features.new_zeros(features.shape[1], *shape), features.new_zeros(shape))
    ahead = current  # where the gradient is taken
    age = torch.ones_like(decays)  # t_k of Nesterov's sequence
    for _ in range(iterations):
        gradient = ahead.gradient(features, labels)
        gradient = Heads(gradient.weight + decays * ahead.weight, gradient.bias)
        step = precondition(gradient)
        new = ahead.plus(step, -1.0)
        if bool((gradient.dot(step) < tolerance).all()):
            return new
        moved = new.plus(current, -1.0)
        age = torch.where(gradient.dot(moved)[:, None] > 0, 1.0, age)
        next_age = (1 + (1 + 4 * age.square()).sqrt()) / 2
        ahead = new.plus(moved, (age - 1) / next_age)
        current, age = new, next_age
    return current


def _inverse_bound(features: Float[Tensor, "n D"], decays: Float[Tensor, "L 1"]) -> Callable[[Heads], Heads]:
    """Multiplication by (S / 2 + weight decay)^-1, through the eigenvectors of S that all heads share."""
    values, vectors = torch.linalg.eigh(features.T @ features / len(features))
    floor = 1e-6 * values[-1].clamp(min=1e-30)  # fp32 knows smaller eigenvalues only as noise; a larger bound is still one
    bounds = values.clamp(min=0)[:, None, None] / 2 + decays + floor  # [D, L, 1]

    def apply(gradient: Heads) -> Heads:
        rotated = (vectors.T @ gradient.weight.flatten(1)).view_as(gradient.weight)
        return Heads((vectors @ (rotated / bounds).flatten(1)).view_as(rotated), 2 * gradient.bias)

    return apply
