"""Logistic regression: seconds at the size of ImageNet-1 %, and beside scikit-learn: `python -m benchmarks.logistic`.

Features are generated: classes have random centers and 12 or 13 images each, and dimensions are correlated with a spectrum that
falls as 1 / k. The sweep is that of the settings; each lambda starts from the previous solution. `cold` is one lambda started
from zero. scikit-learn solves a smaller problem in float32 by its L-BFGS from zero, with a tolerance that ends near our
gradient norm.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor
from torch.nn import functional

from benchmarks.records import keep, load, origin
from openjepa.evaluation.probes.logistic import Solution, Standardized, standardize
from openjepa.settings.evaluation import LogisticSettings

COLD = 2.5e-4
"""MSN's default lambda."""


@dataclass(frozen=True)
class Options:
    """What is solved."""

    images: int = 12_811
    """As many as the published 1 % list of ImageNet."""
    width: int = 1280
    """Of a ViT-H."""
    classes: int = 1000
    """Of ImageNet."""
    distance: float = 0.3
    """Of the centers, in standard deviations within a class; 0.3: about 7 of 10 test images are right."""
    reference: tuple[int, int, int] = (4000, 256, 100)
    """Images, width and classes of the problem that scikit-learn solves as well."""
    sweep: bool = True
    """Also solve for all penalties, one after the other."""
    threads: int | None = None
    """None: all cores."""
    clock: str = "wall"
    """`wall` or `process` (processor time), for machines that others use too."""
    output: Path | None = None
    """JSON file."""


def main() -> None:
    """Runs and prints."""
    options = tyro.cli(Options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.clock == "process" else time.perf_counter
    result: dict[str, Any] = {
        **origin(),
        "clock": options.clock,
        "load": load(),
        "problem": [options.images, options.width, options.classes],
        **solve_all(options, clock),
        "against_scikit_learn": against_scikit_learn(options, clock),
    }
    keep(result, options.output)


def features(num: int, width: int, classes: int, distance: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows and labels; the centers and the correlation do not depend on the seed."""
    shape = torch.Generator().manual_seed(0)
    spread = torch.arange(1, width + 1).float().rsqrt()
    axes = torch.linalg.qr(torch.randn(width, width, generator=shape))[0]
    centers = distance * torch.randn(classes, width, generator=shape) * spread
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(num) % classes
    return (centers[labels] + torch.randn(num, width, generator=generator) * spread) @ axes, labels


def solve_all(options: Options, clock: Any) -> dict[str, Any]:
    """Seconds of preparing, of one cold lambda, and of each lambda of the sweep."""
    rows, labels = features(options.images, options.width, options.classes, options.distance, 1)
    others, answers = features(10_000, options.width, options.classes, options.distance, 2)
    start = clock()
    problem = standardize(rows, labels)
    prepared = clock() - start
    queries = problem.project(others)

    def row(penalty: float, solution: Solution, seconds: float) -> dict[str, float]:
        right = float((solution.heads.predict(queries)[0] == answers).double().mean())
        found = {"penalty": penalty, "seconds": seconds, "gradient_norm": solution.gradient_norm, "passes": solution.passes}
        print({**found, "test_accuracy": right}, flush=True)
        return {**found, "test_accuracy": right}

    cold = [row(COLD, *timed) for timed in timed_sweep(problem, [COLD], clock)]
    penalties = list(LogisticSettings().penalties) if options.sweep else []
    sweep = [row(p, *timed) for p, timed in zip(penalties, timed_sweep(problem, penalties, clock), strict=True)]
    total = prepared + sum(each["seconds"] for each in sweep)
    return {"seconds_of_preparing": prepared, "cold": cold[0], "sweep": sweep, "seconds_of_the_sweep": total}


def timed_sweep(problem: Standardized, penalties: list[float], clock: Any) -> list[tuple[Solution, float]]:
    """Each solution with its seconds."""
    found, start = [], clock()
    for solution in problem.sweep(penalties, LogisticSettings()):
        found.append((solution, clock() - start))
        start = clock()
    return found


def against_scikit_learn(options: Options, clock: Any) -> dict[str, Any]:
    """Seconds of both on the same standardized features, and the gradient's norm at both ends."""
    from sklearn.linear_model import LogisticRegression

    num, width, classes = options.reference
    rows, labels = features(num, width, classes, options.distance, 1)
    problem = standardize(rows, labels)
    given = (rows - problem.mean) * problem.scale
    ((ours, seconds),) = timed_sweep(problem, [COLD], clock)
    start = clock()
    model = LogisticRegression(C=1 / (num * COLD), tol=2e-6, max_iter=5000).fit(given.numpy(), labels.numpy())
    theirs = clock() - start
    weight, bias = torch.from_numpy(model.coef_.T).double(), torch.from_numpy(model.intercept_).double()
    weight.requires_grad_()
    bias.requires_grad_()
    loss = functional.cross_entropy(given.double() @ weight + bias, labels) + COLD / 2 * weight.square().sum()
    gradients = torch.autograd.grad(loss, (weight, bias))
    return {
        "problem": list(options.reference),
        "penalty": COLD,
        "seconds": {"ours": seconds, "scikit-learn lbfgs": theirs},
        "ratio": theirs / seconds,
        "gradient_norm": {
            "ours": ours.gradient_norm,
            "scikit-learn lbfgs": float(sum(g.square().sum() for g in gradients) ** 0.5),
        },
        "objective": {"ours": ours.value, "scikit-learn lbfgs": float(loss.detach())},
    }


if __name__ == "__main__":
    main()
