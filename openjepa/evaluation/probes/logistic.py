"""L2-regularized multinomial logistic regression on the last layer's features, for a few labeled images (low-shot).

The protocol of MSN's low-shot evaluation (I-JEPA compares with it in sec. 6, by fine-tuning or a linear head, whichever is
better): features of the test view, standardized with the training split's mean and standard deviation, mean cross-entropy +
lambda / 2 |W|^2, lambda 0.00025 by default and 0.0025 in its example with five images per class. Here lambda is swept.

Where we know of differences from MSN's program (as quoted in public copies of it; not run): it centers each image's vector and
can scale it to length 1 instead of standardizing dimensions, divides its lambda by the number of images, and has no intercept.
A number of its lambda is therefore none of ours: 0.00025 there, for vectors of length 1, is about 0.00025 D / n here. The
intercept here is not penalized, as scikit-learn's, whose C is 1 / (n lambda).
"""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from openjepa.evaluation.probes.closed_sweep import Heads, ScaledSplit, whole_rotation
from openjepa.evaluation.probes.lazy_matrix import Rows, moments
from openjepa.evaluation.probes.newton import Objective, Solution, minimize, rounded_rows
from openjepa.evaluation.protocol import (
    FeatureProbe,
    HeadResult,
    ProtocolResult,
    chosen_first,
    held_out_rows,
    selections,
    with_choice,
)
from openjepa.measures.accuracy import TOP, Accuracy, top1
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings, LogisticSettings

STRONG = 0.8
"""A penalty that is easily solved from zero (features have unit variance)."""
FAR = 8.0
"""Ratio of neighboring penalties that is bridged in one go."""
ROUGH = 1e-3
"""Norm of the gradient that is good enough for a penalty on the way."""
NO_VARIANCE = 1e-10
"""Dimensions whose variance is below this share of the mean variance are constant but for rounding; they become zero."""


@dataclass(frozen=True)
class Standardized(ScaledSplit):
    """The training split with mean 0 and standard deviation 1 in every dimension, in the axes of its principal components."""

    def sweep(
        self,
        penalties: list[float],
        settings: LogisticSettings,
        which: Int[Tensor, " m"] | None = None,
        start: Heads | None = None,
    ) -> Iterator[Solution]:
        """A solution for each penalty from the rows `which` (None: all), each started from the one before.

        The first starts from `start`. Where that is None, or from one penalty to the next it is far, penalties between them are
        solved roughly on the way: far from the optimum of a weak penalty, Newton steps are short.
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

    def weights(self, heads: Heads) -> tuple[Float[Tensor, "D C"], Float[Tensor, " C"]]:
        """Weight and bias of one head for standardized features, out of the axes of the components."""
        return self.rotated.components.axes @ heads.weight[:, 0], heads.bias[0]


def standardize(features: Shaped[Tensor, "n D"], labels: Int[Tensor, " n"]) -> Standardized:
    """The training split, of any dtype: float64 is solved in float64, all else in float32, on the labels' device."""
    mean, variance = moments(features, labels.device)
    is_constant = variance <= NO_VARIANCE * variance.mean()
    scale = torch.where(is_constant, 0.0, variance.clamp(min=1e-30).rsqrt())
    return Standardized(mean, scale, whole_rotation(features, mean, scale), labels, int(labels.max()) + 1)


def evaluate_logistic(probe: FeatureProbe, settings: EvaluationSettings) -> tuple[ProtocolResult, ...]:
    """Accuracy on the test split with the best lambda of `settings.logistic.penalties`, for each selection rule.

    `held_out`: lambda is chosen on 10 % of the training split, solved on the other 90 %; the chosen one is then solved on all
    of it. `paper`: solved on all of the training split, the best on the test split. Only the first kind of features (the last
    layer, or pixels) is used. `extra`: the norm of the gradient at the solution, also as a share of lambda |W|, and top-5 if
    there are more than five classes. Warns if the search for some lambda has ended before its gradient was small enough.
    """
    penalties = _strongest_first(settings.logistic)
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
    problem: Standardized, probe: FeatureProbe, queries: Rows, penalties: list[float], settings: EvaluationSettings
) -> tuple[list[HeadResult], list[Solution]]:
    """One head for every lambda, solved on all of the training split."""
    solutions = list(problem.sweep(penalties, settings.logistic))
    _warn_of_unsolved(penalties, solutions, settings.logistic)
    scores = [_accuracy(solution, queries, probe.test.labels) for solution in solutions]
    heads = [_head(probe.kind, penalty, None, score) for penalty, score in zip(penalties, scores, strict=True)]
    return heads, solutions


def _sweep_held_out(
    problem: Standardized, probe: FeatureProbe, queries: Rows, penalties: list[float], settings: EvaluationSettings
) -> tuple[list[HeadResult], list[Solution]]:
    """The lambda that is best on the held-out part, solved anew on everything: the only head that sees the test split."""
    kept, held = held_out_rows(problem.labels, settings.seed)
    known = problem.rotated.rows.select(held)
    solutions = list(problem.sweep(penalties, settings.logistic, kept))
    scores = [_accuracy(solution, known, problem.labels[held]) for solution in solutions]
    best = scores.index(max(scores))
    (final,) = problem.sweep([penalties[best]], settings.logistic, start=solutions[best].heads)
    _warn_of_unsolved([*penalties, penalties[best]], [*solutions, final], settings.logistic)
    return [_head(probe.kind, penalties[best], scores[best], _accuracy(final, queries, probe.test.labels))], [final]


def _warn_of_unsolved(penalties: list[float], solutions: list[Solution], settings: LogisticSettings) -> None:
    """One warning for all of them."""
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


def _accuracy(solution: Solution, rows: Rows, labels: Int[Tensor, " m"]) -> float:
    return top1(solution.heads.predict(rows)[0], labels).value


def _top(heads: Heads, rows: Rows, labels: Int[Tensor, " m"]) -> float:
    """Share of the images whose class is among the five with the highest scores."""
    hits = (scores.topk(TOP, dim=2).indices[:, 0] for scores in heads.scores(rows))  # [chunk, 5]
    return float((torch.cat(list(hits)) == labels[:, None]).any(dim=1).double().mean())


def _between(before: float, penalty: float) -> list[float]:
    """Penalties on the way from one to another, in equal ratios of at most FAR; none where that is near."""
    num = max(0, math.ceil(math.log(before / penalty, FAR) - 1e-9) - 1)
    return [before * (penalty / before) ** (step / (num + 1)) for step in range(1, num + 1)]


def _strongest_first(settings: LogisticSettings) -> list[float]:
    """So that of two equally good penalties the stronger is taken, and each solution is near the next."""
    if not settings.penalties or min(settings.penalties) <= 0:
        raise Refusal(
            f"evaluation.logistic.penalties={settings.penalties} must be above 0: separable classes have no solution without it"
        )
    return sorted(settings.penalties, reverse=True)
