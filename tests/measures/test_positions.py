"""Measures of positions against slow restatements, and the verdict on runs that predict positions, or did not yet begin to."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from openjepa.measures.positions import position_share, position_statistics
from openjepa.measures.verdicts import PositionStatistics, judged_positions


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def places(*shape: int, number: int = 9, seed: int = 1) -> Tensor:
    return torch.randint(number, shape, generator=torch.Generator().manual_seed(seed))


def slow_share(targets: Tensor, positions: Tensor) -> float:
    rows, where = targets.double().flatten(0, 2).numpy(), positions.flatten().numpy()
    within = sum(((group - group.mean(0)) ** 2).sum() for group in (rows[where == place] for place in np.unique(where)))
    total = ((rows - rows.mean(0)) ** 2).sum()
    return float(1 - within / (len(rows) - len(np.unique(where))) / (total / (len(rows) - 1)))


def test_the_share_is_its_definition() -> None:
    positions = places(12, 2, 5)
    targets = random(12, 2, 5, 3) + 0.7 * random(9, 3, seed=2)[positions] + 40
    share = position_share(targets, positions)
    assert share == pytest.approx(slow_share(targets, positions), abs=1e-5) and 0.1 < share < 0.9


def test_the_share_of_positions_is_one_and_of_random_targets_zero_on_average() -> None:
    positions = places(6, 2, 4)
    assert position_share(random(9, 5)[positions], positions) == pytest.approx(1, abs=1e-5)
    shares = [position_share(random(6, 2, 4, 5, seed=seed), positions) for seed in range(60)]
    assert abs(np.mean(shares)) < 0.01 < np.std(shares), "means of few targets explain nothing, though they are close to them"


def test_the_share_of_what_does_not_vary_is_unknown() -> None:
    assert math.isnan(position_share(torch.ones(3, 1, 2, 4), places(3, 1, 2)))
    assert math.isnan(position_share(random(1, 1, 4, 4), torch.arange(4)[None, None]))


def test_the_cosines_are_those_of_each_prediction() -> None:
    predictions, targets, others = (random(4, 2, 3, 6, seed=seed) for seed in range(3))

    def slow(one: Tensor, other: Tensor) -> float:
        pairs = zip(one.double().reshape(-1, 6).numpy(), other.double().reshape(-1, 6).numpy(), strict=True)
        return float(np.mean([a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in pairs]))

    found = position_statistics(predictions, targets, others, places(4, 2, 3))
    assert found.cosine_own == pytest.approx(slow(predictions, targets), abs=1e-6)
    assert found.cosine_other == pytest.approx(slow(predictions, others), abs=1e-6)
    assert found.cosine_targets == pytest.approx(slow(targets, others), abs=1e-6)
    assert found.gap == found.cosine_own - found.cosine_other
    assert replace(found, cosine_own=1.0, cosine_other=found.cosine_targets).beyond_position == pytest.approx(1)


START = PositionStatistics(0.18, -0.121, -0.120, 0.77)
BLIND = PositionStatistics(0.18, 0.871, 0.871, 0.77)
EMPTY = PositionStatistics(0.95, 1.0, 1.0, 1.0)
LEARNS = PositionStatistics(0.09, 0.93, 0.88, 0.83)
NOT_FINITE = PositionStatistics(math.nan, math.nan, math.nan, math.nan)


@pytest.mark.parametrize(
    ("looks", "verdict"),
    [
        ([START, BLIND, BLIND], True),
        ([START, EMPTY, EMPTY], True),
        ([START, LEARNS, LEARNS, LEARNS], False),
        ([START, BLIND, LEARNS], False),
        ([START, LEARNS, BLIND], False),
        ([START, LEARNS, BLIND, BLIND], True),
        ([START, BLIND], None),
        ([START, NOT_FINITE, LEARNS], None),
        ([START, NOT_FINITE, BLIND, BLIND], True),
        ([START, BLIND, BLIND, NOT_FINITE], None),
        ([], None),
    ],
)
def test_the_verdict_needs_two_looks_after_the_first(looks: list[PositionStatistics], verdict: bool | None) -> None:
    found = judged_positions(looks)
    assert found.positions is verdict and (found.words is None) == (verdict is None)
    assert verdict is None or ("predicts positions" in str(found.words)) == verdict


def test_targets_that_are_alike_everywhere_have_nothing_beyond_positions() -> None:
    assert PositionStatistics(0.2, 1.0, 1.0, 1.0).beyond_position == 0
