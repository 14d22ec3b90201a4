"""How the schedules number the steps, and the temperature that stands still within an epoch."""

from dataclasses import replace

import pytest

from openjepa.methods.assignment import teacher_temperature
from openjepa.schedules import Progress, cosine_momentum, learning_rate, weight_decay
from openjepa.settings.run import OptimizationSettings

OPTIM = OptimizationSettings(
    lr=1.0,
    start_lr=0.0,
    final_lr=0.0,
    warmup_steps=4,
    weight_decay=0.0,
    final_weight_decay=1.0,
    weight_decay_schedule="linear",
    lr_schedule="constant_cooldown",
    cooldown=0.5,
)


def values(numbering: str, quantity: object = learning_rate) -> list[float]:
    optim = replace(OPTIM, schedule_steps=numbering)  # type: ignore[arg-type]
    return [quantity(optim, Progress(step, 10, 5)) for step in range(10)]  # type: ignore[operator]


def test_the_three_ways_to_number_steps() -> None:
    """Four steps of warm-up, a plateau, and a cooldown over the last five of ten; `inclusive` reaches both ends of each."""
    assert values("from_one") == pytest.approx([0.25, 0.5, 0.75, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])
    assert values("from_zero") == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1, 0.8, 0.6, 0.4, 0.2])
    assert values("inclusive") == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1, 0.75, 0.5, 0.25, 0])


def test_weight_decay_counts_alike() -> None:
    assert values("from_one", weight_decay) == pytest.approx([step / 10 for step in range(1, 11)])
    assert values("from_zero", weight_decay) == values("inclusive", weight_decay) == [step / 10 for step in range(10)]


def test_a_constant_weight_decay_keeps_the_value_of_the_start() -> None:
    """The paper's Table 13 compares 0.05 with 0.04 to 0.4."""
    optim = replace(OPTIM, weight_decay=0.05, weight_decay_schedule="constant")
    assert [weight_decay(optim, Progress(step, 10, 5)) for step in (0, 5, 9)] == [0.05, 0.05, 0.05]


def test_a_warmup_of_one_step_is_inclusive_too() -> None:
    optim = replace(OPTIM, warmup_steps=1, schedule_steps="inclusive", start_lr=0.5)
    assert learning_rate(optim, Progress(0, 10, 5)) == 0.5 and learning_rate(optim, Progress(1, 10, 5)) == 1.0


def test_cosine_momentum_is_half_a_cosine() -> None:
    found = [cosine_momentum(0.9, 1.0, Progress(step, 4, 2)) for step in range(4)]
    assert found == pytest.approx([0.9, 0.95 - 0.05 * 2**-0.5, 0.95, 0.95 + 0.05 * 2**-0.5])


def temperatures(warmup_epochs: int, start_epoch: int = 0) -> list[float]:
    """Of the first and the last step of six epochs of three steps; they must agree."""
    ends = [
        [
            teacher_temperature(0.04, 0.07, warmup_epochs, Progress(step, 18, 3), start_epoch)
            for step in (3 * epoch, 3 * epoch + 2)
        ]
        for epoch in range(6)
    ]
    assert all(first == last for first, last in ends)
    return [first for first, _ in ends]


def test_temperatures_grow_by_whole_epochs() -> None:
    assert temperatures(4) == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07, 0.07])
    assert temperatures(2, start_epoch=2) == pytest.approx([0.04, 0.04, 0.04, 0.07, 0.07, 0.07])
    assert temperatures(1) == [0.04] + 5 * [0.07]
    assert temperatures(0) == 6 * [0.07]
