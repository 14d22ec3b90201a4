"""A small network with an optimizer, to be saved and loaded, and disks that are slow, full or fatal."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystem

from openjepa.engine.checkpoint import CheckpointWriter, TrainerState, load_checkpoint
from openjepa.engine.optimizer import build_optimizer
from openjepa.settings.run import OptimizationSettings
from openjepa.types import LoaderPosition, ParameterRule

RULES = (
    ParameterRule(matches=lambda name, value: value.ndim == 1, decay=False),
    ParameterRule(matches=lambda name, value: True, decay=True),
)


def network(seed: int) -> nn.Module:
    """A network whose last layer is frozen, like a teacher: it is saved too, but never optimized."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    model[2].requires_grad_(False)
    return model


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """An optimizer of the network, as a run has it."""
    return build_optimizer(model.named_parameters(), RULES, OptimizationSettings())


def make(seed: int) -> tuple[nn.Module, torch.optim.AdamW]:
    """Network and optimizer. The weights depend on the seed."""
    model = network(seed)
    return model, adamw(model)


def step(model: nn.Module, optimizer: torch.optim.AdamW, seed: int) -> None:
    """Takes a step on random inputs."""
    optimizer.zero_grad()
    model(torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
    optimizer.step()


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainerState, keep_every: int | None = None
) -> Path:
    """Writes `<folder>/step_<number>` and returns it when it is whole. All processes call it together."""
    with CheckpointWriter(folder, model, optimizer, keep_every, asynchronous=False) as writer:
        return writer.save(state)


def state_at(number: int) -> TrainerState:
    """A state after `number` steps."""
    return TrainerState(step=number, position=LoaderPosition(1, 2), images_seen=7, seconds=1.5, samples_skipped=3)


def copies(model: nn.Module, optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """Copies of the weights and the moments."""
    moments = {f"{n}.{key}": value for n, entry in enumerate(optimizer.state.values()) for key, value in entry.items()}
    return {name: value.clone() for name, value in (model.state_dict() | moments).items()}


def loaded(path: Path) -> dict[str, torch.Tensor]:
    """The weights and the moments that a checkpoint holds, as a single process reads them."""
    model, optimizer = make(9)
    load_checkpoint(path, model, optimizer)
    return copies(model, optimizer)


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """True if both hold the same names and bits."""
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def opened_by(monkeypatch: pytest.MonkeyPatch, opened: Callable[[Path, str], IO[bytes]]) -> None:
    """Lets `opened` open the files of tensors, given their path and mode."""

    @contextmanager
    def create(self: FileSystem, path: Path, mode: str) -> Iterator[IO[bytes]]:
        with opened(path, mode) as stream:
            yield stream

    monkeypatch.setattr(FileSystem, "create_stream", create)
