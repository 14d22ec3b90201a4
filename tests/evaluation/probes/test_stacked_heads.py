"""The stacked optimizers against torch's SGD and against LARS's formula, one model at a time."""

import math

import pytest
import torch
from torch import Tensor

from openjepa.evaluation.probes.stacked_heads import StackedLars, StackedSgd

MODELS, STEPS = 3, 5
RATES, DECAYS = torch.tensor([0.5, 0.1, 0.02]), torch.tensor([0.0, 0.3, 0.01])
FACTORS = (1.0, 1.0, 0.1, 0.1, 0.01)


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(MODELS, *shape, generator=torch.Generator().manual_seed(seed))


def test_sgd_moves_every_model_as_torch_does() -> None:
    shapes, is_decayed = [(4, 6), (4,), (6,)], [True, True, False]
    stacked = [draw(shape, seed) for seed, shape in enumerate(shapes)]
    single = [[torch.nn.Parameter(value[model].clone()) for value in stacked] for model in range(MODELS)]
    optimizer = StackedSgd(stacked, is_decayed, RATES, DECAYS)
    theirs = []
    for model, parameters in enumerate(single):
        groups = [
            {"params": [value], "weight_decay": float(DECAYS[model]) if decayed else 0.0}
            for value, decayed in zip(parameters, is_decayed, strict=True)
        ]
        theirs.append(torch.optim.SGD(groups, lr=1.0, momentum=0.9, nesterov=True))
    for step, factor in enumerate(FACTORS):
        gradients = [draw(shape, 100 + 10 * step + i) for i, shape in enumerate(shapes)]
        optimizer.step(gradients, factor)
        for model, other in enumerate(theirs):
            for group, gradient in zip(other.param_groups, gradients, strict=True):
                group["lr"] = float(RATES[model]) * factor
                group["params"][0].grad = gradient[model].clone()
            other.step()
    for model, parameters in enumerate(single):
        for mine, value in zip(stacked, parameters, strict=True):
            torch.testing.assert_close(mine[model], value.detach(), rtol=1e-5, atol=1e-6)


def norm(numbers: list[float]) -> float:
    return math.sqrt(math.fsum(number * number for number in numbers))


def slow_lars(weights: list[float], gradients: list[list[float]], rate: float, decay: float, is_matrix: bool) -> list[float]:
    """Number by number: b = 0.9 b + trust (g + decay w), w = w - rate b; vectors have trust 1."""
    weights, momentum = list(weights), [0.0] * len(weights)
    for gradient, factor in zip(gradients, FACTORS, strict=True):
        change = [g + decay * w for g, w in zip(gradient, weights, strict=True)]
        if is_matrix:
            size, change_size = norm(weights), norm(change)
            trust = 0.001 * size / change_size if size > 0 and change_size > 0 else 1.0
            change = [trust * number for number in change]
        momentum = [0.9 * b + number for b, number in zip(momentum, change, strict=True)]
        weights = [w - rate * factor * b for w, b in zip(weights, momentum, strict=True)]
    return weights


@pytest.mark.parametrize("shape", [(4, 6), (6,)])
@pytest.mark.parametrize("from_zero", [False, True])
@pytest.mark.parametrize("is_decayed", [False, True])
def test_lars_is_its_formula(shape: tuple[int, ...], from_zero: bool, is_decayed: bool) -> None:
    stacked = draw(shape, 0).double()
    stacked[1] *= 0.0 if from_zero else 1.0
    start = stacked.clone()
    gradients = [draw(shape, 100 + step).double() for step in range(STEPS)]
    optimizer = StackedLars([stacked], [is_decayed], RATES.double(), DECAYS.double())
    for gradient, factor in zip(gradients, FACTORS, strict=True):
        optimizer.step([gradient.clone()], factor)
    for model in range(MODELS):
        slow = slow_lars(
            start[model].flatten().tolist(),
            [gradient[model].flatten().tolist() for gradient in gradients],
            float(RATES.double()[model]),
            float(DECAYS.double()[model]) if is_decayed else 0.0,
            is_matrix=len(shape) == 2,
        )
        torch.testing.assert_close(stacked[model].flatten(), torch.tensor(slow, dtype=torch.float64), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["sgd", "lars"])
def test_a_model_that_becomes_infinite_touches_no_other(kind: str) -> None:
    results = []
    for poison in (False, True):
        values = [draw((4, 6), 0), draw((4,), 1)]
        optimizer = (StackedSgd if kind == "sgd" else StackedLars)(values, [True, True], RATES, DECAYS)
        for step in range(STEPS):
            gradients = [draw((4, 6), 100 + step), draw((4,), 200 + step)]
            if poison:
                gradients[0][1], gradients[1][1] = math.nan, math.inf
            optimizer.step(gradients, 1.0)
        results.append(values)
    for clean, poisoned in zip(*results, strict=True):
        assert torch.equal(clean[[0, 2]], poisoned[[0, 2]]) and not torch.isfinite(poisoned[1]).any()
