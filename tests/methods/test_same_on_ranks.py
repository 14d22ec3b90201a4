"""Each method on two and on four processes gives loss, gradients and statistics of a single process with the whole batch."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from openjepa.engine import distributed
from openjepa.methods import METHODS
from openjepa.methods.base import Method
from openjepa.methods.teachers import networks
from openjepa.models.transformer import Block, ImageSlots
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
    "ijepa": {
        "contexts": 2,
        "target_norm": "position",
        "target_layers": (1, 2),
        "position_noise": 0.25,
        "sampled_targets": 2,
        "context_loss": 0.5,
        "context_loss_warmup": (0, 0.1),
        "regularizer": "sigreg",
        "regularizer_width": 8,
        "sigreg_slices": 16,
    },
    "data2vec": {"layer_norm": "batch", "target_branch": "mlp"},
    "dino": {"head_batch_norm": True},
    "ibot": {"head_batch_norm": True},
    "msn": {"head_input_norm": True, "sinkhorn": True},
}
"""Settings that switch on every term that looks at the whole batch, several contexts, outputs of parts of blocks, and draws."""
CENTERS = {"ijepa": 2, "dino": 1, "ibot": 2}
"""Number of centers, or of statistics of positions, of a method."""


@dataclass(frozen=True)
class Step:
    """What one step gives."""

    loss: float
    gradients: dict[str, Tensor]
    state: dict[str, Tensor]
    """Weights, moving averages and centers after it."""
    looks: dict[str, Tensor]
    """What probe, energies and predicted features gave before it, in each process for the whole batch."""
    collectives: int
    """Number of calls by which `after_step` talks to the other processes."""


def config_of(name: str, folder: Path) -> RunConfig:
    """A method with drop path and all its coupled terms."""
    config = method_config(name, folder / "images", folder)
    model = replace(config.model, drop_path=0.4, initialization="fan_in")
    config = replace(config, model=model, method=replace(config.method, **COUPLED.get(name, {})))
    if isinstance(config.masks, BlockwiseSettings):  # images with different numbers of masked patches
        return replace(config, masks=BlockwiseSettings(ratios=(0.2, 0.5), spreads=(0.1, 0.1)))
    return config


def divide(method: Method) -> None:
    """Divides all weights over the processes: those of each block, and the rest of each network."""
    mesh = init_device_mesh("cpu", (distributed.world_size(),))
    for network in networks(method):
        for block in (module for module in network.modules() if isinstance(module, Block)):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh, reshard_after_forward=True)
    assert all(isinstance(value, DTensor) for value in method.parameters())


def whole(value: Tensor) -> Tensor:
    return value.full_tensor() if isinstance(value, DTensor) else value


def take_step(method: Method, batch: Batch) -> Step:
    """One step on this process's images of `batch`. Every process gets the same."""
    looks = look(method, batch)
    rank, share = distributed.rank(), len(batch.sample_ids) // distributed.world_size()
    own = rows(batch, list(range(rank * share, (rank + 1) * share)))
    ImageSlots(method, method.inputs().contexts).set(rank * share, share, len(batch.sample_ids))
    torch.manual_seed(7)
    loss = method(own, PROGRESS).total
    loss.backward()
    gradients = {}
    with torch.no_grad():
        for name, value in method.named_parameters():
            if value.grad is not None:
                if not isinstance(value, DTensor):  # else they have been averaged
                    value.grad = distributed.mean_over_ranks(value.grad)
                gradients[name] = whole(value.grad)
                value.sub_(value.grad, alpha=RATE)
    with CommDebugMode() as calls:
        method.after_step(PROGRESS)
    state = {name: whole(value) for name, value in method.state_dict().items()}
    mean = distributed.mean_over_ranks(loss.detach()).item()
    return Step(mean, gradients, state, looks, calls.get_total_counts())


def look(method: Method, batch: Batch) -> dict[str, Tensor]:
    probe = method.probe(batch, PROGRESS)
    tables = {"energies": method.energies(batch, PROGRESS), "predictions": method.predicted_features(batch, PROGRESS)}
    found = {"loss": probe.loss, "features": probe.features, "targets": probe.targets, **tables}
    return {name: value for name, value in found.items() if value is not None}


def new_method(config: RunConfig) -> Method:
    """The same in every process. Centers are not where they start."""
    _, method = parts(config)
    torch.manual_seed(3)
    for name, value in method.named_buffers():
        if "center" in name:
            value.normal_(std=0.1)
    return method


def all_steps(folder: Path, divided: bool = False) -> dict[str, Step]:
    found = {}
    for name, batch in torch.load(folder / "batches.pt", weights_only=False).items():
        method = new_method(config_of(name, folder))
        if divided:
            divide(method)
        found[name] = take_step(method, batch)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, and the batch of each method."""
    folder = tmp_path_factory.mktemp("ranks")
    write_folder(folder / "images", 40)
    batches = {}
    for name in METHODS:
        sampler, method = parts(config_of(name, folder))
        terms = method.coupled_terms()
        if terms is not None and all(term.synchronized for term in terms):  # several processes refuse any other
            batches[name] = batch_of(config_of(name, folder), method, sampler)
    assert len(batches) >= 6
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
    total = torch.stack([value.norm() for value in expected.gradients.values()]).norm()
    pairs = ((found.gradients, expected.gradients), (found.state, expected.state), (found.looks, expected.looks))
    for first, second in pairs:
        assert first.keys() == second.keys()
        for name, value in second.items():
            # a bias before a normalization, and that of a key, has a gradient of zero in exact arithmetic
            size = total if value.norm() < 1e-6 * total else value.norm()
            assert (first[name] - value).norm() <= 1e-5 * size, name


@pytest.mark.parametrize("number", [2, 4])
def test_processes_together_learn_what_one_would(number: int, folder: Path, alone: dict[str, Step]) -> None:
    for found in on_ranks(number, folder / f"{number}", all_steps, folder):
        for name in alone:
            assert_same(found[name], alone[name])


def test_divided_networks_learn_the_same(folder: Path, alone: dict[str, Step]) -> None:
    """With FSDP2. The moving averages follow without a word to the others: only the sums of centers travel."""
    for found in on_ranks(2, folder / "divided", all_steps, folder, True):
        for name in alone:
            assert_same(found[name], alone[name])
            assert found[name].collectives == CENTERS.get(name, 0)
