"""Strategies of several processes: which is chosen, and gradients, clipping and the freeze after NaN with divided weights."""

from functools import partialmethod
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from openjepa.engine import distributed
from openjepa.engine.failures import FiniteGuard
from openjepa.engine.optimizer import build_optimizer, clip_gradients, gradient_norm, set_rates
from openjepa.engine.parallel import Reduction, choose_strategy, over_processes, prepare_blocks
from openjepa.models.transformer import Block
from openjepa.refusals import Refusal
from openjepa.settings.models import SIZES
from openjepa.settings.run import OptimizationSettings, ParallelSettings, RunSettings
from openjepa.types import ParameterRule
from tests.helpers.ranks import on_ranks

RULES = (ParameterRule(matches=lambda name, value: True, decay=True),)
CPU = torch.device("cpu")


class Network(nn.Module):
    """A method as far as strategies know it: one network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).square().mean()


def rows(number: int) -> torch.Tensor:
    return torch.arange(number * 5.0).view(number, 5).sin()


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def two_microbatches(strategy: Any, share: torch.Tensor, settings: ParallelSettings) -> dict[str, Any]:
    """Gradients of two microbatches, their norm, those after the first one, and those after clipping each of them."""
    method = Network()
    trained = over_processes(method, [method.network], strategy, settings, CPU, "fp32")
    optimizer = build_optimizer(method.named_parameters(), RULES, OptimizationSettings())
    first, reduction = [], Reduction(trained)
    for number, part in enumerate(share.chunk(2)):
        reduction.before(is_last=number == 1)
        (trained(part) / 2).backward()
        if number == 0:
            first = [value.grad.clone() for value in method.parameters() if value.grad is not None]
    norm = gradient_norm(optimizer)
    gradients = [whole(value.grad).clone() for value in method.parameters() if value.grad is not None]
    clip_gradients(optimizer, norm, 1e-3, "per_tensor")
    clipped = [whole(value.grad).clone() for value in method.parameters() if value.grad is not None]
    return {"gradients": gradients, "norm": norm, "clipped": clipped, "first": first}


def steps_after_nan() -> list[float]:
    """The largest change of a weight in three steps, of which the second has a NaN in one process. No host check in between."""
    method = Network()
    over_processes(method, [method.network], "fsdp2", ParallelSettings(), CPU, "fp32")
    optimizer = build_optimizer(method.named_parameters(), RULES, OptimizationSettings())
    set_rates(optimizer, 0.1, 0.0)
    guard = FiniteGuard(optimizer, CPU, history=3)
    guard._every_step = False  # as on a GPU
    changes = []
    for step in range(3):
        optimizer.zero_grad()
        is_bad = step == 1 and distributed.rank() == 1
        loss = method(rows(4) * (float("nan") if is_bad else 1.0))
        loss.backward()
        guard.watch(step, loss.detach(), gradient_norm(optimizer), [torch.tensor([step])])
        before = [whole(value).clone() for value in method.parameters()]
        optimizer.step()
        changes.append(max(float((whole(now) - old).abs().max()) for now, old in zip(method.parameters(), before, strict=True)))
    return changes


class OneMatrix(nn.Module):
    """A network with one matrix of a block."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(nn.Linear(5, 7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x).square().mean()


def full_rank_rows() -> torch.Tensor:
    """Rows whose gradients have no singular value of zero, which Muon would fill with noise."""
    return torch.randn(16, 5, generator=torch.Generator().manual_seed(1))


def muon_step(strategy: Any, share: torch.Tensor) -> torch.Tensor:
    """The matrix after a step of Muon."""
    method = OneMatrix()
    trained = over_processes(method, [method.blocks], strategy, ParallelSettings(), CPU, "fp32")
    optimizer = build_optimizer(method.named_parameters(), RULES, OptimizationSettings(optimizer="muon"))
    set_rates(optimizer, 0.1, 0.0)
    trained(share).backward()
    optimizer.step()
    return whole(method.blocks[0].weight).detach()


def in_two_processes() -> dict[str, Any]:
    # of each microbatch of four rows, two belong to this process
    share = torch.cat([part.chunk(2)[distributed.rank()] for part in rows(8).chunk(2)])
    found: dict[str, Any] = {name: two_microbatches(name, share, ParallelSettings()) for name in ("ddp", "fsdp2")}
    found["muon"] = muon_step("fsdp2", full_rank_rows().chunk(2)[distributed.rank()])
    rounded = ParallelSettings(reduce_precision="bf16")
    return {**found, "fsdp2 bf16": two_microbatches("fsdp2", share, rounded), "changes": steps_after_nan()}


def test_divided_and_replicated_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    one = two_microbatches("single", rows(8), ParallelSettings())
    found, other = on_ranks(2, tmp_path, in_two_processes)
    torch.testing.assert_close(found["muon"], muon_step("single", full_rank_rows()), rtol=0, atol=3e-3)  # in bf16
    assert (found["muon"] - OneMatrix().blocks[0].weight).abs().max() > 0.02
    for name in ("ddp", "fsdp2", "fsdp2 bf16"):
        close = {"rtol": 2e-2, "atol": 2e-3} if "bf16" in name else {"rtol": 1e-5, "atol": 1e-7}
        for key in ("gradients", "clipped"):
            torch.testing.assert_close(found[name][key], one[key], **close)
        torch.testing.assert_close(found[name]["norm"], one["norm"], **close)
        assert torch.equal(found[name]["norm"], other[name]["norm"])
    assert found["fsdp2"]["first"] == [], "nothing is reduced before the last microbatch"
    assert not torch.equal(found["ddp"]["first"][0], other["ddp"]["first"][0])
    assert not torch.equal(found["fsdp2"]["norm"], found["fsdp2 bf16"]["norm"])
    for changes in (found["changes"], other["changes"]):
        assert changes[0] > 0 and changes[1:] == [0.0, 0.0], "nothing moves after the first bad step"


class Blocks(nn.Module):
    """A method whose network is two transformer blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(*(Block(16, 2, 32, 1e-6) for _ in range(2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x).square().mean()


def compiled_blocks() -> dict[str, tuple[int, list[float]]]:
    """Number of graphs, and losses of three steps, of two blocks: by strategy, compiled or not, with or without recompute."""
    found = {}
    x = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(distributed.rank()))
    for strategy, compiled, recompute in product(("ddp", "fsdp2"), (False, True), (False, True)):
        torch.compiler.reset()
        graphs = list[GraphModule]()

        def backend(graph: GraphModule, inputs: list[torch.Tensor], graphs: list[GraphModule] = graphs) -> Any:
            graphs.append(graph)
            return graph.forward

        method = Blocks()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Block, "compile", partialmethod(nn.Module.compile, backend=backend))
            prepare_blocks(method, RunSettings(compile=compiled, recompute=recompute))
        trained = over_processes(method, [method.network], strategy, ParallelSettings(), CPU, "fp32")
        if strategy == "ddp":
            trained.bucket_bytes_cap = 1000  # a gradient of a layer fills a bucket, as in a large network
            torch.distributed._DEFAULT_FIRST_BUCKET_BYTES = 1000
        optimizer = build_optimizer(method.named_parameters(), RULES, OptimizationSettings())
        set_rates(optimizer, 0.01, 0.0)
        losses = []
        for _ in range(3):
            optimizer.zero_grad()
            loss = trained(x)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found[f"{strategy} {compiled} {recompute}"] = (len(graphs), losses)
    return found


def test_a_compiled_block_is_one_graph_and_trains_as_before(tmp_path: Path) -> None:
    for found in on_ranks(2, tmp_path, compiled_blocks):
        for strategy, recompute in product(("ddp", "fsdp2"), (False, True)):
            graphs, losses = found[f"{strategy} True {recompute}"]
            number, expected = found[f"{strategy} False {recompute}"]
            assert number == 0 and graphs == 2, "one for each block"
            assert losses == pytest.approx(expected, rel=1e-6) and losses == pytest.approx(
                found["ddp False False"][1], rel=1e-5
            )


@pytest.mark.parametrize(
    ("strategy", "size", "device", "processes", "expected"),
    [
        ("auto", "huge", "cuda", 8, "fsdp2"),
        ("auto", "giant", "cuda", 2, "fsdp2"),
        ("auto", "large", "cuda", 8, "ddp"),
        ("auto", "huge", "cpu", 2, "ddp"),
        ("fsdp2", "tiny", "cpu", 2, "fsdp2"),
        ("ddp", "giant", "cuda", 8, "ddp"),
        ("fsdp2", "huge", "cuda", 1, "single"),
    ],
)
def test_large_encoders_are_divided_on_gpus(strategy: Any, size: Any, device: str, processes: int, expected: str) -> None:
    assert choose_strategy(ParallelSettings(strategy=strategy), SIZES[size], device, processes) == expected


def test_a_precision_that_a_device_lacks_is_refused() -> None:
    settings = ParallelSettings(reduce_precision="bf16")
    assert choose_strategy(settings, SIZES["base"], "cuda", 2) == "ddp"
    with pytest.raises(Refusal, match=r"parallel\.reduce_precision=bf16 with replicated networks needs GPUs"):
        choose_strategy(settings, SIZES["base"], "cpu", 2)
