"""Multinomial logistic regression with an L2 penalty, solved by Newton's method: one penalty at a time, to a gradient's norm.

Each step is found by conjugate gradients with products of the Hessian (Newton-CG; Nocedal and Wright, Numerical Optimization,
section 7.1). They are preconditioned by what the Hessian would be if a class's weight p (1 - p) were the same for all images:
in the axes of the principal components it is diagonal then, and with many classes it is close, where a bound that holds for
every p (solver.py) is hundreds of times too large. Products may be rounded to bf16, which only makes a step less good; the
gradient never is.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from openjepa.engine.device import supports_bf16
from openjepa.evaluation.probes.closed_sweep import ROUNDING, Heads, relative_gradients
from openjepa.evaluation.probes.lazy_matrix import Rows

CHUNK_LOGITS = 2**20
"""Probabilities that are worked on at a time on a processor, about what its cache holds; elsewhere 16 times as many."""
KEPT_PROBABILITIES = 2**28
"""Up to so many probabilities are kept between the gradient and the products; else they are computed anew for each product."""
SMALLEST = -40.0
"""Logarithm of the smallest probability: neither it nor its square is a subnormal number, which processors are slow with."""
WORTH_ROUNDING = 2**28
"""Multiplications of a product from which on bf16 pays."""
RESIDUAL = 0.1
"""A Newton step is solved until the preconditioned residual is this share of what it was."""
MAX_PRODUCTS = 50
"""Of one Newton step."""
MAX_HALVINGS = 20
SLOPE = 0.5
"""A step ends where the slope along it is at most this share of the slope at its start, uphill."""


@dataclass(frozen=True)
class Point:
    """The objective at some weights."""

    heads: Heads
    value: float
    gradient: Heads
    spread: Float[Tensor, " C"]
    """Mean over the images of p (1 - p)."""
    probabilities: tuple[Float[Tensor, "chunk C"], ...] | None
    """Chunk by chunk. None where they would be too many."""

    @cached_property
    def gradient_norm(self) -> float:
        """Of all weights and biases."""
        return float(self.gradient.dot(self.gradient).sqrt())

    def relative_gradient(self, penalty: float) -> float:
        """The gradient's norm as a share of penalty |W|."""
        return float(relative_gradients(self.gradient.dot(self.gradient).sqrt(), self.heads, [penalty]))


@dataclass(frozen=True)
class Solution:
    """Where the search has ended."""

    heads: Heads
    """One head."""
    value: float
    """Mean cross-entropy + penalty / 2 |W|^2."""
    gradient_norm: float
    relative_gradient: float
    """`gradient_norm` / (penalty |W|): see `relative_gradients`."""
    passes: int
    """Over the images: one for each gradient or product with the Hessian."""
    ran_out: bool
    """Whether the passes ended before the gradient was small enough."""


@dataclass(frozen=True)
class Objective:
    """Mean cross-entropy + penalty / 2 |W|^2 of rows whose covariance is about diagonal. The bias is not penalized."""

    rows: Rows
    labels: Int[Tensor, " n"]
    num_classes: int
    variances: Float[Tensor, " R"]
    """Of the columns of the rows; only the speed depends on them."""
    penalty: float
    rounded: Float[Tensor, "n R"] | None = None
    """The rows in bf16, where products are computed from them."""

    def zeros(self) -> Heads:
        """Where the first search starts."""
        weight = torch.zeros(self.rows.width, 1, self.num_classes, dtype=self.rows.dtype, device=self.rows.device)
        return Heads(weight, weight.new_zeros(1, self.num_classes))

    def at(self, heads: Heads) -> Point:
        """Value and gradient, in the precision of the rows whatever the products are computed in."""
        weight, bias = self.rows.into(heads.weight.flatten(1)), heads.bias[0]
        products, residuals, squares = torch.zeros_like(weight), torch.zeros_like(bias), torch.zeros_like(bias)
        losses: list[Tensor] = []
        kept: list[Tensor] = []
        size = self._chunk
        for chunk, answers in zip(self.rows.chunks(size), torch.split(self.labels, size), strict=True):
            logs = torch.log_softmax(torch.addmm(bias, chunk, weight), dim=1)
            losses.append(-logs.gather(1, answers[:, None]).sum())
            residual = logs.clamp_(min=SMALLEST).exp_()  # [chunk, C]: still the probabilities
            squares += residual.square().sum(dim=0)
            if self._keeps:
                kept.append(residual.clone())
            residuals += residual.sum(dim=0)
            residual[torch.arange(len(chunk), device=chunk.device), answers] -= 1
            products.addmm_(chunk.T, residual)
        num = len(self.rows)
        spread = (residuals - squares) / num  # mean of p - p^2
        residuals = residuals - torch.bincount(self.labels, minlength=self.num_classes)
        gradient = Heads(self.rows.back(products).view_as(heads.weight) / num, residuals[None] / num)
        gradient = Heads(gradient.weight + self.penalty * heads.weight, gradient.bias)
        value = float(torch.stack(losses).cpu().double().sum()) / num + self.penalty / 2 * float(heads.weight.square().sum())
        return Point(heads, value, gradient, spread.clamp(min=1e-12), tuple(kept) if self._keeps else None)

    def curvature(self, point: Point, direction: Heads) -> Heads:
        """The Hessian at a point times a direction: X' (p * (a - sum(p a))) / n with a = X d, and the penalty's part."""
        weight, bias = self.rows.into(direction.weight.flatten(1)), direction.bias[0]
        given = weight if self.rounded is None else weight.to(self.rounded.dtype)
        products, sums = torch.zeros_like(weight), torch.zeros_like(bias)
        for number, chunk in enumerate(self._product_chunks()):
            along = (chunk @ given).to(weight.dtype).add_(bias)
            p = self._probabilities(point, number, chunk)
            along.sub_(torch.linalg.vecdot(p, along)[:, None]).mul_(p)
            sums += along.sum(dim=0)
            products += chunk.T @ along.to(chunk.dtype)
        num = len(self.rows)
        products = self.rows.back(products).view_as(direction.weight) / num
        return Heads(products + self.penalty * direction.weight, sums[None] / num)

    def preconditioned(self, point: Point, residual: Heads) -> Heads:
        """The residual divided by the Hessian's approximation: spread of each class x variance of each column + penalty."""
        scale = self.variances[:, None] * point.spread + self.penalty
        return Heads(residual.weight / scale[:, None], residual.bias / point.spread)

    @property
    def _chunk(self) -> int:
        most = CHUNK_LOGITS if self.rows.device.type == "cpu" else 16 * CHUNK_LOGITS
        return max(64, most // self.num_classes)

    @property
    def _keeps(self) -> bool:
        return len(self.rows) * self.num_classes <= KEPT_PROBABILITIES

    def _product_chunks(self) -> "Iterator[Float[Tensor, 'chunk D']]":
        return self.rows.chunks(self._chunk) if self.rounded is None else iter(torch.split(self.rounded, self._chunk))

    def _probabilities(self, point: Point, number: int, chunk: Float[Tensor, "chunk D"]) -> Float[Tensor, "chunk C"]:
        if point.probabilities is not None:
            return point.probabilities[number]
        weight, bias = self.rows.into(point.heads.weight.flatten(1)), point.heads.bias[0]
        return torch.softmax(torch.addmm(bias, chunk.to(weight.dtype), weight), dim=1)


def minimize(
    objective: Objective, start: Heads | None, tolerance: float, most_passes: int, relative: float = math.inf
) -> Solution:
    """Newton steps from `start` (None: zeros) until the gradient is small enough, or `most_passes` are spent.

    Small enough: its norm is at most `tolerance`, and at most `relative` times penalty |W|. Where a whole step from rounded
    products does not halve the gradient, the next ones are computed without rounding.
    """

    rounding = ROUNDING * torch.finfo(objective.rows.dtype).eps

    def is_solved(point: Point) -> bool:
        is_near = point.gradient_norm <= rounding or point.relative_gradient(objective.penalty) <= relative
        return point.gradient_norm <= tolerance and is_near

    point = objective.at(objective.zeros() if start is None else start)
    passes = 1
    while not is_solved(point) and passes < most_passes:
        step, products = _newton_step(objective, point, min(MAX_PRODUCTS, most_passes - passes))
        found, gradients = _line_search(objective, point, step)
        passes += products + gradients
        is_poor = found is None or (gradients == 1 and found.gradient_norm > point.gradient_norm / 2)
        if found is None and objective.rounded is None:
            break  # no step leads down any more: the precision of the rows ends here
        point = point if found is None else found
        if is_poor:
            objective = replace(objective, rounded=None)
    ran_out = not is_solved(point) and passes >= most_passes
    share = point.relative_gradient(objective.penalty)
    return Solution(point.heads, point.value, point.gradient_norm, share, passes, ran_out)


def _newton_step(objective: Objective, point: Point, most_products: int) -> tuple[Heads, int]:
    """-gradient divided by the Hessian, about, by preconditioned conjugate gradients; and how many products that took."""
    step = point.heads.plus(point.heads, -1.0)
    residual = step.plus(point.gradient, -1.0)
    direction = divided = objective.preconditioned(point, residual)
    size = first = residual.dot(divided)
    for number in range(1, most_products + 1):
        product = objective.curvature(point, direction)
        bend = direction.dot(product)
        if float(bend) <= 0:  # never without rounding: the Hessian is positive
            return (direction, number) if number == 1 else (step, number)
        rate = (size / bend)[:, None]
        step, residual = step.plus(direction, rate), residual.plus(product, -rate)
        divided = objective.preconditioned(point, residual)
        before, size = size, residual.dot(divided)
        if float(size) <= RESIDUAL**2 * float(first):
            break
        direction = divided.plus(direction, (size / before)[:, None])
    return step, number


def _line_search(objective: Objective, point: Point, step: Heads) -> tuple[Point | None, int]:
    """The first of ever shorter steps that ends lower and not far beyond the lowest place; and how many were tried.

    A shorter step ends where a parabola with both slopes is lowest, but not below a tenth.
    """
    slope, length = float(point.gradient.dot(step)), 1.0
    noise = 8 * torch.finfo(objective.rows.dtype).eps * abs(point.value)
    for tried in range(1, MAX_HALVINGS + 1):
        found = objective.at(point.heads.plus(step, length))
        there = float(found.gradient.dot(step))
        if found.value <= point.value + noise and there <= -SLOPE * slope:
            return found, tried
        length *= min(0.5, max(0.1, slope / (slope - there))) if there > 0 else 0.5
    return None, MAX_HALVINGS


def rounded_rows(rows: Rows, num_classes: int) -> Float[Tensor, "n R"] | None:
    """The rows in bf16 where the device multiplies those faster and the products are large enough to gain; else None."""
    is_large = len(rows) * rows.width * num_classes >= WORTH_ROUNDING
    if rows.dtype != torch.float32 or rows.axes is not None or not is_large or not supports_bf16(rows.device):
        return None
    return rows.stored.to(torch.bfloat16)
