"""Parameter groups: the rates and the decay of each, and how gradients are clipped."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from openjepa.engine.checkpoint import CheckpointWriter, TrainerState, load_checkpoint
from openjepa.engine.optimizer import build_optimizer, clip_gradients, gradient_norm, set_rates
from openjepa.methods.base import DEFAULT_RULES
from openjepa.models.transformer import build_blocks
from openjepa.settings.run import OptimizationSettings
from openjepa.types import LoaderPosition, ParameterRule

RULES = (
    ParameterRule(matches=lambda name, value: name.endswith("bias"), decay=False),
    ParameterRule(matches=lambda name, value: name.startswith("1."), decay=True, lr_scale=0.5),
    ParameterRule(matches=lambda name, value: True, decay=True),
)


def test_the_first_matching_rule_sets_decay_and_rate() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    optimizer = build_optimizer(model.named_parameters(), RULES, OptimizationSettings())
    set_rates(optimizer, 0.1, 0.4)
    found = {id(value): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for value in group["params"]}
    expected = {"0.weight": (0.1, 0.4), "0.bias": (0.1, 0.0), "1.weight": (0.05, 0.4), "1.bias": (0.1, 0.0)}
    assert found == {id(dict(model.named_parameters())[name]): rates for name, rates in expected.items()}


def test_rules_that_match_not_everything_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no parameter rule matches '0\.weight'"):
        build_optimizer(nn.Sequential(nn.Linear(1, 1)).named_parameters(), RULES[:1], OptimizationSettings())


def test_clipping_scales_the_whole_gradient_to_the_limit() -> None:
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model.named_parameters(), RULES, OptimizationSettings())
    model.weight.grad, model.bias.grad = torch.full((2, 3), 3.0), torch.full((2,), 4.0)
    norm = gradient_norm(optimizer)
    assert norm.item() == pytest.approx(math.sqrt(6 * 9 + 2 * 16))
    clip_gradients(optimizer, norm, 1.0)
    assert gradient_norm(optimizer).item() == pytest.approx(1.0, rel=1e-4)
    assert model.bias.grad[0].item() == pytest.approx(4 / norm.item(), rel=1e-4)


def test_each_tensor_is_clipped_by_its_own_norm() -> None:
    """A norm of sqrt(54) = 7.3 is scaled to the limit, one of 0.28 is left as it is, and so is what has no gradient."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(1, 1))
    optimizer = build_optimizer(model.named_parameters(), RULES, OptimizationSettings())
    model[0].weight.grad, model[0].bias.grad = torch.full((2, 3), 3.0), torch.full((2,), 0.2)
    clip_gradients(optimizer, gradient_norm(optimizer), 1.0, "per_tensor")
    assert model[0].weight.grad.norm().item() == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(model[0].bias.grad, torch.full((2,), 0.2))
    assert model[1].weight.grad is None


@pytest.mark.parametrize("mode", ["global", "per_tensor"])
def test_what_a_rule_leaves_unclipped_counts_for_no_norm(mode: str) -> None:
    model = nn.Linear(3, 2)
    rules = (ParameterRule(matches=lambda name, value: name == "bias", decay=False, clip=False), RULES[-1])
    optimizer = build_optimizer(model.named_parameters(), rules, OptimizationSettings())
    model.weight.grad, model.bias.grad = torch.full((2, 3), 3.0), torch.full((2,), 40.0)
    clip_gradients(optimizer, gradient_norm(optimizer), 1.0, mode)  # type: ignore[arg-type]
    assert model.weight.grad.norm().item() == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(model.bias.grad, torch.full((2,), 40.0))


# ------------------------------------------------------------------------------------------------------------------- Muon


class Network(nn.Module):
    """A part before the blocks, one block, and two parts after it, of which one never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.blocks, self.head = nn.Linear(6, 8), build_blocks(8, 1, 2, 3.0, 1e-6), nn.Linear(8, 2)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks[0](self.embed(x))).square().mean()


MATRICES = {f"blocks.0.{name}.weight" for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}


def steps(network: Network, optimizer: torch.optim.Optimizer, numbers: range) -> None:
    for number in numbers:
        set_rates(optimizer, 0.01, 0.1)
        optimizer.zero_grad(set_to_none=True)
        network(torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(number))).backward()
        clip_gradients(optimizer, gradient_norm(optimizer), 0.5)
        optimizer.step()


def optimizer_of(network: Network, name: str) -> torch.optim.Optimizer:
    return build_optimizer(network.named_parameters(), DEFAULT_RULES, OptimizationSettings(optimizer=name))  # type: ignore[arg-type]


def test_muon_moves_the_matrices_of_blocks_and_adamw_all_else() -> None:
    """A step of Muon has singular values near 0.2 sqrt(longer side); the rest moves bitwise as without it."""
    start = Network().state_dict()
    moved = {}
    for name in ("adamw", "muon"):
        network = Network()
        steps(network, optimizer_of(network, name), range(1))
        moved[name] = network.state_dict()
        gradients = {key: value.grad for key, value in network.named_parameters()}
    for name, value in start.items():
        is_same = torch.equal(moved["adamw"][name], moved["muon"][name])
        assert is_same == (name not in MATRICES), name
        if name in MATRICES:
            step = (value * (1 - 0.01 * 0.1) - moved["muon"][name]) / 0.01
            values = torch.linalg.svdvals(step) / (0.2 * math.sqrt(max(value.shape)))
            of_gradient = torch.linalg.svdvals(gradients[name])
            assert 0.7 < values[0] < 1.3 and values[1] / values[0] > 2 * of_gradient[1] / of_gradient[0], name


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_checkpoint_continues_bitwise(name: str, tmp_path: Path) -> None:
    """Also with a parameter that never got a gradient."""
    network = Network()
    optimizer = optimizer_of(network, name)
    steps(network, optimizer, range(3))
    writer = CheckpointWriter(tmp_path, network, optimizer, asynchronous=False)
    saved = writer.save(TrainerState(3, LoaderPosition()))
    steps(network, optimizer, range(3, 6))
    other = Network()
    continued = optimizer_of(other, name)
    load_checkpoint(saved, other, continued)
    steps(other, continued, range(3, 6))
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in network.state_dict().items())
