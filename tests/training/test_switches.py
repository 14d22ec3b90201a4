"""Switches of all parts in one run: stopped after the first step and continued, it ends in the same weights, bit by bit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.recipes.ablations import with_changes
from openjepa.training.loop import train
from tests.helpers.continued import final_state, stop_after_a_step
from tests.helpers.images import write_folder
from tests.helpers.small_runs import small_config

OPTIMIZERS: dict[str, Any] = {
    "optim.optimizer": "muon",
    "optim.lr_schedule": "constant_cooldown",
    "optim.cooldown": 0.5,
    "optim.weight_decay_schedule": "constant",
}
RUNS: dict[str, dict[str, Any]] = {
    "sigreg": {
        "masks.strategy": "inverse_block",
        "method.contexts": 2,
        "method.regularizer": "sigreg",
        "method.regularizer_width": 8,
        "method.sigreg_slices": 16,
        "method.predictor_pass": "cross",
        "method.position_noise": 0.25,
        "method.target_norm": "position",
        "method.ema_start": None,
        "method.ema_memory": 0.6,
        "method.ema_end": 0.99,
        "data.horizontal_flip": True,
        **OPTIMIZERS,
    },
    "vicreg": {
        "masks.context_cut": "smallest",
        "masks.num_targets": 2,
        "method.regularizer": "vicreg",
        "method.target_masking": "input",
        "method.sampled_targets": 1,
        "method.loss": "l1",
        "optim.microbatch_size": 4,
    },
}
"""Switches that can stand together."""


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_continues_bitwise(name: str, tmp_path: Path) -> None:
    images = write_folder(tmp_path / "images", 16)
    config = with_changes(small_config(images, tmp_path / "whole", total_steps=3), RUNS[name])
    config = replace(config, monitor=replace(config.monitor, every=0))
    assert train(config) is not None
    stopped = replace(config, run=replace(config.run, output=str(tmp_path / "stopped")))
    stop_after_a_step(stopped)
    assert train(stopped) is not None
    expected, found = (final_state(run) for run in (config, stopped))
    assert expected.keys() == found.keys() and all(torch.equal(value, found[key]) for key, value in expected.items())
