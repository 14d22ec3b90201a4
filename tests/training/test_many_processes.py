"""Runs of one, two and four processes are the same run."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from openjepa.settings.run import RunConfig
from openjepa.training.loop import train
from tests.helpers.images import write_noise_images
from tests.helpers.ranks import on_ranks
from tests.helpers.small_runs import lines, method_config

METHODS = ("ijepa", "mae", "data2vec", "dino", "ibot", "msn")


def train_all(configs: list[RunConfig]) -> list[Path | None]:
    return [train(config) for config in configs]
