"""The guard against numbers that are not finite, and what is said when memory is used up."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from openjepa.checks import check
from openjepa.engine.failures import FiniteGuard, NotFinite, explain_memory
from openjepa.engine.optimizer import build_optimizer, gradient_norm
from openjepa.methods.base import DEFAULT_RULES
from openjepa.settings.masks import MultiblockSettings
from openjepa.settings.run import OptimizationSettings, RunConfig
from openjepa.settings.sources import FolderSettings


def test_no_weight_moves_after_a_number_that_is_not_finite() -> None:
    model = nn.Linear(2, 1)
    optimizer = build_optimizer(model.named_parameters(), DEFAULT_RULES, OptimizationSettings())
    guard = FiniteGuard(optimizer, torch.device("cpu"), history=5)
    guard._every_step = False  # as on CUDA, where the host looks only now and then
    ids = [torch.tensor([4, 7])]
    for step, bad in enumerate([False, True, False]):
        before = model.weight.detach().clone()
        model.weight.grad = torch.full((1, 2), math.nan if bad else 1.0)
        model.bias.grad = torch.ones(1)
        guard.watch(step, torch.tensor(0.5), gradient_norm(optimizer), ids if bad else [torch.tensor([0])])
        optimizer.step()
        assert torch.equal(before, model.weight) == (step >= 1)  # frozen from the bad step on, for good
    with pytest.raises(NotFinite) as error:
        guard.raise_if_bad()
    assert error.value.step == 1 and error.value.sample_ids == [4, 7]


def test_on_the_cpu_the_guard_raises_before_the_step() -> None:
    optimizer = build_optimizer(nn.Linear(2, 1).named_parameters(), DEFAULT_RULES, OptimizationSettings())
    with pytest.raises(NotFinite):
        FiniteGuard(optimizer, torch.device("cpu"), 3).watch(0, torch.tensor(math.inf), torch.tensor(1.0), [])


def test_the_guard_works_with_an_optimizer_that_is_not_fused() -> None:
    """As on Apple's GPUs: torch's AdamW refuses `found_inf` where it is not fused."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=False)
    guard = FiniteGuard(optimizer, torch.device("cpu"), history=5)
    before = model.weight.detach().clone()
    model.weight.grad, model.bias.grad = torch.ones(1, 2), torch.ones(1)
    guard.watch(0, torch.tensor(0.5), torch.tensor(1.0), [])
    optimizer.step()
    assert not torch.equal(before, model.weight)
    with pytest.raises(NotFinite):
        guard.watch(1, torch.tensor(math.nan), torch.tensor(1.0), [])


def test_out_of_memory_names_what_helps() -> None:
    config = RunConfig(optim=OptimizationSettings(batch_size=64, microbatch_size=32))
    with pytest.raises(ValueError, match=r"--optim.microbatch-size 16"), explain_memory(config):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="something else"), explain_memory(config):
        raise RuntimeError("something else")
    with pytest.raises(ValueError, match=r"out of memory at optim\.microbatch_size=32"), explain_memory(config):
        raise RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)")


@pytest.mark.parametrize(
    ("batch", "micro", "group", "advised"),
    [(50, 25, None, 10), (64, None, None, 32), (7, None, None, 1), (48, 24, 16, 8), (50, 1, None, None)],
)
def test_the_advised_microbatch_is_one_that_is_taken(
    batch: int, micro: int | None, group: int | None, advised: int | None
) -> None:
    optim = OptimizationSettings(batch_size=batch, microbatch_size=micro)
    config = RunConfig(optim=optim, masks=MultiblockSettings(group_size=group), data=FolderSettings(path="x"))
    with pytest.raises(ValueError, match="out of memory") as error, explain_memory(config):
        raise MemoryError
    assert (f"--optim.microbatch-size {advised} " in str(error.value)) == (advised is not None)
    if advised is not None:
        check(replace(config, optim=replace(optim, microbatch_size=advised)))
