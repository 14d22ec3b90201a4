"""How fast each row trains on this machine: short turns of real steps, all rows in every round."""

import statistics
from collections.abc import Mapping

from openjepa.experiments.ablation_lengths import Speed
from openjepa.settings.run import RunConfig
from openjepa.training.real_steps import RealSteps


def measure_speeds(rows: Mapping[str, RunConfig], rounds: int) -> dict[str, Speed]:
    """Images per second of every row: loader, masks, forward, backward, optimizer and moving average.

    The ratio of a row's speed to the first row's is formed within each round, so that what slows the machine down for longer
    than a round slows all of them; the medians over the rounds are multiplied by the first row's median.
    """
    turns = {row: RealSteps(config) for row, config in rows.items()}
    try:
        found = [{row: turn.images_per_second() for row, turn in turns.items()} for _ in range(rounds)]
    finally:
        for turn in turns.values():
            turn.close()
    first = next(iter(rows))
    common = statistics.median(speeds[first] for speeds in found)
    return {
        row: Speed(common * statistics.median(speeds[row] / speeds[first] for speeds in found), turn.flops)
        for row, turn in turns.items()
    }
