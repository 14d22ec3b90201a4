"""L2-regularized multinomial logistic regression on the last layer's features, for few labeled images (low-shot).

This is the protocol of MSN's low-shot evaluation. (I-JEPA compares with it in sec. 6, by fine-tuning or a linear head,
whichever is better.) Features of the test view are standardized with the training split's mean and standard deviation. The
objective is mean cross-entropy + lambda / 2 |W|^2. MSN's lambda is 0.00025 by default, and 0.0025 in its example with five
images per class. Here lambda is swept.

Known differences from MSN's program (read in public copies of it; not run): it centers each image's vector and can scale it to
length 1 instead of standardizing dimensions. It divides lambda by the number of images, and it has no intercept. Its values of
lambda therefore do not mean the same as ours: 0.00025 there, for vectors of length 1, is about 0.00025 D / n here. The
intercept here is not penalized, as in scikit-learn, whose C is 1 / (n lambda).

Newton's method solves one lambda at a time until the gradient's norm is small. Each step is found by conjugate gradients with
products of the Hessian (Newton-CG; Nocedal and Wright, Numerical Optimization, section 7.1). The preconditioner is the Hessian
as it would be if a class's weight p (1 - p) were equal for all images. In the axes of the principal components it is diagonal.
With many classes it is close to the true Hessian, while a bound that holds for every p (closed_sweep.py) is hundreds of times
too large. Products may be rounded to bf16, which only makes a step less good. The gradient is never rounded. On 12,811 images
of width 1280 in 1,000 classes this took half the time of torch's L-BFGS (measured on a processor that multiplies bf16).
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from openjepa.engine.device import supports_bf16
from openjepa.evaluation.probes.closed_sweep import (
    GRADIENT_ROUNDING,
    LazyRows,
    LinearHeads,
    ScaledSplit,
    moments,
    relative_gradients,
    whole_rotation,
)
from openjepa.evaluation.protocol import (
    FeatureProbe,
    HeadResult,
    ProtocolResult,
    chosen_first,
    held_out_rows,
    selections,
    strongest_first,
    with_choice,
)
from openjepa.measures.features import TOP, Accuracy, top1
from openjepa.settings.evaluation import EvaluationSettings, LogisticSettings

CHUNK_LOGITS = 2**20
"""Number of probabilities in a chunk on a CPU, about what its cache holds. Other devices take 16 times this number."""
KEPT_PROBABILITIES = 2**28
"""Largest number of probabilities kept for the Hessian products. If there are more, each product computes them again."""
SMALLEST = -40.0
"""Logarithm of the smallest probability. Neither it nor its square is a subnormal number, which slows processors down."""
WORTH_ROUNDING = 2**28
"""Smallest number of multiplications in a product for which bf16 is faster."""
RESIDUAL = 0.1
"""A Newton step is solved until the preconditioned residual is this share of the initial one."""
MAX_PRODUCTS = 50
"""Largest number of Hessian products in one Newton step."""
MAX_HALVINGS = 20
SLOPE = 0.5
"""A step is short enough if the slope uphill at its end is at most this share of the slope downhill at its start."""


@dataclass(frozen=True)
class Point:
    """The objective, its gradient and the probabilities at some weights."""

    heads: LinearHeads
    value: float
    gradient: LinearHeads
    spread: Float[Tensor, " C"]
    """Mean of p (1 - p) over the images, for each class."""
    probabilities: tuple[Float[Tensor, "chunk C"], ...] | None
    """Probabilities of the classes, chunk by chunk; None if there are too many to keep."""

    @cached_property
    def gradient_norm(self) -> float:
        """Norm of the gradient over all weights and biases."""
        return float(self.gradient.dot(self.gradient).sqrt())

    def relative_gradient(self, penalty: float) -> float:
        """The gradient's norm divided by penalty |W|."""
        return float(relative_gradients(self.gradient.dot(self.gradient).sqrt(), self.heads, [penalty]))


@dataclass(frozen=True)
class Solution:
    """The end point of a search."""

    heads: LinearHeads
    """One head."""
    value: float
    """Mean cross-entropy + penalty / 2 |W|^2."""
    gradient_norm: float
    relative_gradient: float
    """`gradient_norm` / (penalty |W|); see `relative_gradients`."""
    passes: int
    """Passes over the images: one for each gradient and one for each product with the Hessian."""
    ran_out: bool
    """True if the passes were used up before the gradient was small enough."""


@dataclass(frozen=True)
class Objective:
    """Mean cross-entropy + penalty / 2 |W|^2 on rows with a nearly diagonal covariance. The bias is not penalized."""

    rows: LazyRows
    labels: Int[Tensor, " n"]
    num_classes: int
    variances: Float[Tensor, " R"]
    """Variance of each column of the rows. Only the speed depends on it."""
    penalty: float
    rounded: Float[Tensor, "n R"] | None = None
    """The rows in bf16, if the products are computed in bf16."""

    def zeros(self) -> LinearHeads:
        """Zero weights and biases, the start of the first search."""
        weight = torch.zeros(self.rows.width, 1, self.num_classes, dtype=self.rows.dtype, device=self.rows.device)
        return LinearHeads(weight, weight.new_zeros(1, self.num_classes))

    def at(self, heads: LinearHeads) -> Point:
        """Value and gradient at `heads`, in the precision of the rows even if products are computed in bf16."""
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
        gradient = LinearHeads(self.rows.back(products).view_as(heads.weight) / num, residuals[None] / num)
        gradient = LinearHeads(gradient.weight + self.penalty * heads.weight, gradient.bias)
        value = float(torch.stack(losses).cpu().double().sum()) / num + self.penalty / 2 * float(heads.weight.square().sum())
        return Point(heads, value, gradient, spread.clamp(min=1e-12), tuple(kept) if self._keeps else None)

    def curvature(self, point: Point, direction: LinearHeads) -> LinearHeads:
        """The Hessian at `point` times `direction` d: X' (p * (a - sum(p a))) / n + penalty d, with a = X d."""
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
        return LinearHeads(products + self.penalty * direction.weight, sums[None] / num)

    def preconditioned(self, point: Point, residual: LinearHeads) -> LinearHeads:
        """`residual` divided by the approximate Hessian: spread of each class x variance of each column + penalty."""
        scale = self.variances[:, None] * point.spread + self.penalty
        return LinearHeads(residual.weight / scale[:, None], residual.bias / point.spread)

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
    objective: Objective, start: LinearHeads | None, tolerance: float, most_passes: int, relative: float = math.inf
) -> Solution:
    """Takes Newton steps from `start` (zeros if None) until the gradient is small enough or `most_passes` are used up.

    The gradient is small enough if its norm is at most `tolerance` and at most `relative` times penalty |W|. If a full step
    from rounded products does not halve the gradient, the following steps are computed without rounding.
    """

    rounding = GRADIENT_ROUNDING * torch.finfo(objective.rows.dtype).eps

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
            break  # no step lowers the value any further: this is the precision of the rows
        point = point if found is None else found
        if is_poor:
            objective = replace(objective, rounded=None)
    ran_out = not is_solved(point) and passes >= most_passes
    share = point.relative_gradient(objective.penalty)
    return Solution(point.heads, point.value, point.gradient_norm, share, passes, ran_out)


def _newton_step(objective: Objective, point: Point, most_products: int) -> tuple[LinearHeads, int]:
    """Approximates -gradient / Hessian by preconditioned conjugate gradients. Also returns the number of products."""
    step = point.heads.plus(point.heads, -1.0)
    residual = step.plus(point.gradient, -1.0)
    direction = divided = objective.preconditioned(point, residual)
    size = first = residual.dot(divided)
    for number in range(1, most_products + 1):
        product = objective.curvature(point, direction)
        bend = direction.dot(product)
        if float(bend) <= 0:  # only rounding makes this happen: the Hessian is positive
            return (direction, number) if number == 1 else (step, number)
        rate = (size / bend)[:, None]
        step, residual = step.plus(direction, rate), residual.plus(product, -rate)
        divided = objective.preconditioned(point, residual)
        before, size = size, residual.dot(divided)
        if float(size) <= RESIDUAL**2 * float(first):
            break
        direction = divided.plus(direction, (size / before)[:, None])
    return step, number


def _line_search(objective: Objective, point: Point, step: LinearHeads) -> tuple[Point | None, int]:
    """Tries ever shorter steps until one ends at a lower value and not far beyond the minimum. Also returns the number tried.

    The next step goes to the minimum of the parabola with the slopes at both ends, but is at least a tenth of the previous one.
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


def rounded_rows(rows: LazyRows, num_classes: int) -> Float[Tensor, "n R"] | None:
    """The rows in bf16, if the device multiplies bf16 faster and the products are large enough to gain from it; else None."""
    is_large = len(rows) * rows.width * num_classes >= WORTH_ROUNDING
    if rows.dtype != torch.float32 or rows.axes is not None or not is_large or not supports_bf16(rows.device):
        return None
    return rows.stored.to(torch.bfloat16)


# ----------------------------------------------------------------------------------------------------------------- the protocol


STRONG = 0.8
"""A penalty that is easy to solve from zero (features have unit variance)."""
FAR = 8.0
"""Largest ratio of successive penalties that is bridged without a penalty between them."""
ROUGH = 1e-3
"""Norm of the gradient that is small enough for a penalty between two others."""
NO_VARIANCE = 1e-10
"""Dimensions whose variance is at most this share of the mean variance count as constant and become zero."""


@dataclass(frozen=True)
class Standardized(ScaledSplit):
    """The training split with mean 0 and standard deviation 1 in every dimension, in the axes of its principal components."""

    def sweep(
        self,
        penalties: list[float],
        settings: LogisticSettings,
        which: Int[Tensor, " m"] | None = None,
        start: LinearHeads | None = None,
    ) -> Iterator[Solution]:
        """Yields a solution for each penalty on the rows `which` (all if None), each started from the previous one.

        The first starts from `start`, or from zeros at the penalty STRONG if it is None. If the ratio of two successive
        penalties is large, penalties between them are solved roughly first, because Newton steps are short far from the optimum
        of a weak penalty.
        """
        rows = self.rotated.rows if which is None else self.rotated.rows.select(which)
        labels = self.labels if which is None else self.labels[which]
        problem = Objective(rows, labels, self.num_classes, self.rotated.components.variances, STRONG)
        problem = replace(problem, rounded=rounded_rows(rows, self.num_classes))
        before = STRONG if start is None else penalties[0]
        for penalty in penalties:
            passes = 0
            for between in _between(before, penalty):
                rough = max(ROUGH, settings.gradient_norm)
                found = minimize(replace(problem, penalty=between), start, rough, settings.iterations)
                start, passes = found.heads, passes + found.passes
            goal = (settings.gradient_norm, settings.iterations, settings.relative_gradient)
            solution = minimize(replace(problem, penalty=penalty), start, *goal)
            start, before = solution.heads, penalty
            yield replace(solution, passes=passes + solution.passes)

    def weights(self, heads: LinearHeads) -> tuple[Float[Tensor, "D C"], Float[Tensor, " C"]]:
        """Weight and bias of one head, converted back from the components' axes to standardized features."""
        return self.rotated.components.axes @ heads.weight[:, 0], heads.bias[0]


def standardize(features: Shaped[Tensor, "n D"], labels: Int[Tensor, " n"]) -> Standardized:
    """Standardizes the training split on the labels' device: in float64 if the features are float64, else in float32."""
    mean, variance = moments(features, labels.device)
    is_constant = variance <= NO_VARIANCE * variance.mean()
    scale = torch.where(is_constant, 0.0, variance.clamp(min=1e-30).rsqrt())
    return Standardized(mean, scale, whole_rotation(features, mean, scale), labels, int(labels.max()) + 1)


def evaluate_logistic(probe: FeatureProbe, settings: EvaluationSettings) -> tuple[ProtocolResult, ...]:
    """Test accuracy with the best lambda of `settings.logistic.penalties`, for each selection rule.

    `held_out` solves on 90 % of the training split and chooses lambda on the other 10 %; the chosen lambda is then solved on
    the whole split. `paper` solves on the whole training split and chooses the best on the test split. Only the first kind of
    features (the last layer, or pixels) is used. `extra` holds the norm of the gradient at the solution, also as a share of
    lambda |W|, and top-5 accuracy if there are more than five classes. Warns if the search for a lambda ended before the
    gradient was small enough.
    """
    penalties = strongest_first(settings.logistic.penalties)
    problem = standardize(probe.train.features[probe.kind], probe.train.labels)
    queries = problem.project(probe.test.features[probe.kind])
    results = []
    for rule in selections(settings):
        sweep = _sweep_on_test if rule == "paper" else _sweep_held_out
        heads, solutions = sweep(problem, probe, queries, penalties, settings)
        best = chosen_first(heads, rule)
        accuracy, solution = heads[best].test_accuracy, solutions[best]
        extra = {"gradient_norm": solution.gradient_norm, "relative_gradient": solution.relative_gradient}
        if problem.num_classes > TOP:
            extra["top5"] = _top(solution.heads, queries, probe.test.labels)
        error = Accuracy(accuracy, len(probe.test.labels)).standard_error
        results.append(ProtocolResult(accuracy, error, with_choice(heads, best), rule, extra))
    return tuple(results)


def _sweep_on_test(
    problem: Standardized, probe: FeatureProbe, queries: LazyRows, penalties: list[float], settings: EvaluationSettings
) -> tuple[list[HeadResult], list[Solution]]:
    """One head for every lambda, solved on the whole training split."""
    solutions = list(problem.sweep(penalties, settings.logistic))
    _warn_of_unsolved(penalties, solutions, settings.logistic)
    scores = [_accuracy(solution, queries, probe.test.labels) for solution in solutions]
    heads = [_head(probe.kind, penalty, None, score) for penalty, score in zip(penalties, scores, strict=True)]
    return heads, solutions


def _sweep_held_out(
    problem: Standardized, probe: FeatureProbe, queries: LazyRows, penalties: list[float], settings: EvaluationSettings
) -> tuple[list[HeadResult], list[Solution]]:
    """The best lambda on the held-out part, solved again on the whole training split. No other head sees the test split."""
    kept, held = held_out_rows(problem.labels, settings.seed)
    known = problem.rotated.rows.select(held)
    solutions = list(problem.sweep(penalties, settings.logistic, kept))
    scores = [_accuracy(solution, known, problem.labels[held]) for solution in solutions]
    best = scores.index(max(scores))
    (final,) = problem.sweep([penalties[best]], settings.logistic, start=solutions[best].heads)
    _warn_of_unsolved([*penalties, penalties[best]], [*solutions, final], settings.logistic)
    return [_head(probe.kind, penalties[best], scores[best], _accuracy(final, queries, probe.test.labels))], [final]


def _warn_of_unsolved(penalties: list[float], solutions: list[Solution], settings: LogisticSettings) -> None:
    """Gives one warning for all searches that ran out of passes."""
    unsolved = [(each, found) for each, found in zip(penalties, solutions, strict=True) if found.ran_out]
    if unsolved:
        words = ", ".join(f"{each:g} (norm {found.gradient_norm:.1e})" for each, found in unsolved)
        warnings.warn(
            f"logistic regression was not solved within logistic.iterations={settings.iterations} passes for lambda {words}: "
            "raise --logistic.iterations, or leave out the weakest of --logistic.penalties",
            stacklevel=3,
        )


def _head(kind: str, penalty: float, held_out: float | None, on_test: float) -> HeadResult:
    return HeadResult(kind, "logistic", f"lambda {penalty:g}", held_out, on_test)


def _accuracy(solution: Solution, rows: LazyRows, labels: Int[Tensor, " m"]) -> float:
    return top1(solution.heads.predict(rows)[0], labels).value


def _top(heads: LinearHeads, rows: LazyRows, labels: Int[Tensor, " m"]) -> float:
    """Top-5 accuracy: the share of images whose class is among the five with the highest scores."""
    hits = (scores.topk(TOP, dim=2).indices[:, 0] for scores in heads.scores(rows))  # [chunk, 5]
    return float((torch.cat(list(hits)) == labels[:, None]).any(dim=1).double().mean())


def _between(before: float, penalty: float) -> list[float]:
    """Penalties between `before` and `penalty` in equal ratios of at most FAR; empty if the two are near each other."""
    num = max(0, math.ceil(math.log(before / penalty, FAR) - 1e-9) - 1)
    return [before * (penalty / before) ** (step / (num + 1)) for step in range(1, num + 1)]
