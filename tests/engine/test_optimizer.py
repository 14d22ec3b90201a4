"""Parameter groups: the rates and the decay of each, and how gradients are clipped."""

import math

import pytest
import torch
from torch import nn

from openjepa.engine.optimizer import build_optimizer, clip_gradients, gradient_norm, set_rates
from openjepa.settings.run import OptimizationSettings
from openjepa.types import ParameterRule

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
