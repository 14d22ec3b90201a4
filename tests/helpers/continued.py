"""Runs that stop after a step and are continued: what they end in."""

from pathlib import Path

import pytest
import torch

from openjepa.engine.checkpoint import latest_checkpoint, load_weights
from openjepa.settings.run import RunConfig
from openjepa.system.interrupts import Interrupted, Interrupts
from openjepa.training.loop import train
from tests.helpers.method_steps import parts


def stop_after_a_step(config: RunConfig) -> None:
    """Starts or continues a run, and stops it after one step, as SIGTERM does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Interrupts, "__init__", lambda self: self.__dict__.update(requested="SIGTERM", _before={}))
        with pytest.raises(Interrupted, match="after step"):
            train(config)


def final_state(config: RunConfig) -> dict[str, torch.Tensor]:
    """All that the last checkpoint of a finished run says of its method."""
    checkpoint = latest_checkpoint(Path(config.run.output) / "run" / "checkpoints")
    assert checkpoint is not None
    _, method = parts(config)
    assert load_weights(checkpoint, method).step == config.optim.total_steps
    return method.state_dict()
