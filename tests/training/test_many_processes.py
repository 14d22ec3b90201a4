"""Runs of one, two and four processes are the same run."""

from pathlib import Path

from openjepa.settings.run import RunConfig
from openjepa.training.loop import train

METHODS = ("ijepa", "mae", "data2vec", "dino", "ibot", "msn")


def train_all(configs: list[RunConfig]) -> list[Path | None]:
    return [train(config) for config in configs]
