"""Each method on two and on four processes gives loss, gradients and statistics of a single process with the whole batch."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openjepa.engine import distributed
from openjepa.methods import METHODS
from openjepa.methods.base import Method
from openjepa.models.transformer import set_slots
from openjepa.schedules import Progress
from openjepa.settings.masks import BlockwiseSettings
from openjepa.settings.run import RunConfig
from openjepa.types import Batch
from tests.helpers.images import write_folder
from tests.helpers.method_steps import batch_of, parts, rows
from tests.helpers.ranks import on_ranks
from tests.helpers.small_runs import method_config

PROGRESS = Progress(step=5, total_steps=100, steps_per_epoch=4)
RATE = 0.1
"""Learning rate of the one step of plain gradient descent, so that the moving averages have something to follow."""
COUPLED = {
    "data2vec": {"layer_norm": "batch"},
    "dino": {"head_batch_norm": True},
    "ibot": {"head_batch_norm": True},
    "msn": {"head_input_norm": True, "sinkhorn": True},
}
"""Settings that switch on every term that looks at the whole batch."""


@dataclass(frozen=True)
class Step:
    """What one step gives."""

    loss: float
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]
    """Weights, moving averages and centers after it."""


def config_of(name: str, folder: Path) -> RunConfig:
    """A method with drop path and all its coupled terms."""
    config = method_config(name, folder / "images", folder)
    model = replace(config.model, drop_path=0.4, initialization="fan_in")
    config = replace(config, model=model, method=replace(config.method, **COUPLED.get(name, {})))
    if isinstance(config.masks, BlockwiseSettings):  # images with different numbers of masked patches
        return replace(config, masks=BlockwiseSettings(ratios=(0.2, 0.5), spreads=(0.1, 0.1)))
    return config


def take_step(method: Method, batch: Batch) -> Step:
    """One step on this process's images of `batch`. Every process gets the same."""
    rank, share = distributed.rank(), len(batch.sample_ids) // distributed.world_size()
    own = rows(batch, list(range(rank * share, (rank + 1) * share)))
    set_slots(method, rank * share, share, len(batch.sample_ids))
    torch.manual_seed(7)
    loss = method(own, PROGRESS).total
    loss.backward()
    gradients = {}
    with torch.no_grad():
        for name, value in method.named_parameters():
            if value.grad is not None:
                gradients[name] = distributed.mean_over_ranks(value.grad)
                value.sub_(gradients[name], alpha=RATE)
    method.after_step(PROGRESS)
    return Step(distributed.mean_over_ranks(loss.detach()).item(), gradients, method.state_dict())


def new_method(config: RunConfig) -> Method:
    """The same in every process. Centers are not where they start."""
    _, method = parts(config)
    torch.manual_seed(3)
    for name, value in method.named_buffers():
        if "center" in name:
            value.normal_(std=0.1)
    return method


def all_steps(folder: Path) -> dict[str, Step]:
    batches = torch.load(folder / "batches.pt", weights_only=False)
    return {name: take_step(new_method(config_of(name, folder)), batch) for name, batch in batches.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and the batch of each method."""
    folder = tmp_path_factory.mktemp("ranks")
    write_folder(folder / "images", 40)
    batches = {}
    for name in METHODS:
        sampler, method = parts(config_of(name, folder))
        batches[name] = batch_of(config_of(name, folder), method, sampler)
    masked = batches["data2vec"].masks["image"].masked.view(4, -1).sum(dim=1)
    assert len(set(masked.tolist())) > 1, "the processes must have different numbers of masked patches"
    torch.save(batches, folder / "batches.pt")
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Step]:
    return all_steps(folder)


def assert_same(found: Step, expected: Step) -> None:
    """To rounding."""
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    whole = torch.stack([value.norm() for value in expected.gradients.values()]).norm()
    for first, second in ((found.gradients, expected.gradients), (found.state, expected.state)):
        assert first.keys() == second.keys()
        for name, value in second.items():
            # a bias before a normalization, and that of a key, has a gradient of zero in exact arithmetic
            size = whole if value.norm() < 1e-6 * whole else value.norm()
            assert (first[name] - value).norm() <= 1e-5 * size, name


@pytest.mark.parametrize("number", [2, 4])
def test_processes_together_learn_what_one_would(number: int, folder: Path, alone: dict[str, Step]) -> None:
    for found in on_ranks(number, folder / f"{number}", all_steps, folder):
        for name in METHODS:
            assert_same(found[name], alone[name])
