"""What is planned for one of several processes, beside what two of them really hold and send."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.engine.checkpoint import CheckpointWriter
from openjepa.engine.optimizer import build_optimizer
from openjepa.engine.parallel import Reduction, over_processes, prepare_blocks
from openjepa.engine.parallel_costs import Division, checkpoint_copy, memory_parts, own_numbers, sent_bytes
from openjepa.methods.teachers import networks
from openjepa.recipes import load_recipe
from openjepa.schedules import Progress
from openjepa.settings.derived import resolve
from openjepa.settings.run import ParallelSettings, RunConfig
from openjepa.training.timed_steps import TimedStep
from openjepa.types import Masks
from tests.helpers.checkpoints import state_at
from tests.helpers.held_memory import Ledger, own_bytes
from tests.helpers.ranks import on_ranks

CPU = torch.device("cpu")
PROGRESS = Progress(step=5, total_steps=100, steps_per_epoch=4)
CASES = [("ddp", False), ("fsdp2", False), ("fsdp2", True)]
PROCESSES, IMAGES, MICROBATCHES = 2, 4, 2


def nano(recompute: bool) -> RunConfig:
    """A nano encoder on microbatches of four images. (`l2`, because torch's smooth L1 loss keeps the storage of its parts.)"""
    config = load_recipe("cpu-32")
    return resolve(
        replace(
            config,
            method=replace(config.method, loss="l2"),  # type: ignore[call-arg]
            optim=replace(config.optim, batch_size=IMAGES, microbatch_size=IMAGES, images_per_device=None),
            run=replace(config.run, device="cpu", precision="fp32", recompute=recompute),
        ),
        total_steps=100,
    )


def tensors_of(masks: Masks) -> list[torch.Tensor]:
    return [value for value in vars(masks).values() if isinstance(value, torch.Tensor)]


class WatchedWriter(CheckpointWriter):
    """Counts the bytes of the copies from which checkpoints are written."""

    copied = 0

    def _staged(self, tensors: dict[str, Any]) -> dict[str, Any]:
        staged = super()._staged(tensors)
        self.copied += own_bytes(value for value in staged.values() if isinstance(value, torch.Tensor))
        return staged


def measure(folder: Path, strategy: Any, recompute: bool) -> dict[str, float]:
    """Bytes that one of two processes holds after the first forward of its last step, sends in that step, and saves from."""
    config, parallel = nano(recompute), ParallelSettings(strategy=strategy)
    step = TimedStep(config)
    method = step.method
    prepare_blocks(method, config.run)
    module = over_processes(method, networks(method), strategy, parallel, CPU, "fp32")
    reduction = Reduction(module)
    optimizer = build_optimizer(method.named_parameters(), method.parameter_rules(), config.optim)
    batch = step.batch.normalized(config.data.pixel_mean, config.data.pixel_std)
    known = [*method.parameters(), *method.buffers(), *batch.views.values(), *tensors_of(batch.masks["image"])]
    steps = 3 if strategy == "ddp" else 2  # in the second one DDP puts its buckets in order
    for step_number in range(steps):
        optimizer.zero_grad(set_to_none=True)
        held, ledgers = list[int](), [Ledger(PROCESSES, known) for _ in range(MICROBATCHES)]
        for number, ledger in enumerate(ledgers):
            reduction.before(is_last=number == MICROBATCHES - 1)
            with ledger if step_number == steps - 1 else nullcontext():
                output = module(batch, PROGRESS)
                held = [*held, ledger.held()]
                output.total.backward()
        optimizer.step()
        method.after_step(PROGRESS)
    with WatchedWriter(folder / f"{strategy}{recompute}", method, optimizer) as writer:
        writer.save(state_at(1))
    trained = [value for value in method.parameters() if value.requires_grad]
    moments = [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    return {
        "activations": held[0],
        "sent": sum(ledger.sent.total() for ledger in ledgers),
        "weights": own_bytes(trained),
        "target_encoder": own_bytes(value for value in method.parameters() if not value.requires_grad),
        "gradients": own_bytes(value.grad for value in trained if value.grad is not None),
        "moments": own_bytes(moments),
        "checkpoint_copy": writer.copied,
    }


def measure_all(folder: Path) -> dict[tuple[str, bool], dict[str, float]]:
    return {case: measure(folder, *case) for case in CASES}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], dict[str, float]]:
    return on_ranks(PROCESSES, tmp_path_factory.mktemp("ranks"), measure_all, tmp_path_factory.mktemp("saved"))[0]


@pytest.mark.parametrize(("strategy", "recompute"), CASES)
def test_the_plan_is_what_two_processes_hold_and_send(
    measured: dict[tuple[str, bool], dict[str, float]], strategy: Any, recompute: bool
) -> None:
    costs = TimedStep(nano(recompute)).costs
    division = Division(strategy, PROCESSES, MICROBATCHES, "fp32", "fp32", recompute)
    planned = asdict(memory_parts(costs, division, IMAGES, CPU))
    # the gradients of both microbatches together, which FSDP2 holds whole until it has divided them
    planned["gradients"] -= 4 * own_numbers(costs, 1, is_trained=True) if strategy == "fsdp2" else 0
    found = measured[strategy, recompute]
    for part in ("weights", "target_encoder", "gradients", "moments"):
        assert found[part] == planned[part], part
    assert found["sent"] == sent_bytes(costs, division).total()
    assert found["activations"] == pytest.approx(planned["activations"], rel=0.1)
    assert found["checkpoint_copy"] == pytest.approx(checkpoint_copy(costs, division), rel=0.01)
