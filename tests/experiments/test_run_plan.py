"""Plans of runs: closed forms of memory and time, the paper's run, refusals."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.cli import main
from openjepa.engine.costs import StepCosts, WeightUnit
from openjepa.engine.parallel_costs import Division, SentBytes, checkpoint_copy, memory_parts, sent_bytes
from openjepa.experiments.gpu_table import COLLECTIVES, GPUS, LINK_SECONDS, MEMORY, NETWORK_SECONDS, START_SECONDS
from openjepa.experiments.plan_tables import print_run_plan
from openjepa.experiments.run_plan import make_run_plan
from openjepa.experiments.step_forecast import Machines, forecast_step, muon_flops
from openjepa.models.vit import build_encoder
from openjepa.recipes import load_recipe
from openjepa.settings.experiments import PlanSettings
from openjepa.settings.models import ModelSettings
from tests.helpers.costs import counted

ROOT = Path(__file__).parents[2]
CUDA = torch.device("cuda")
BLOCK, REST, AVERAGE = (
    WeightUnit(((64, 10),), True, True),
    WeightUnit(((30,),), True, False),
    WeightUnit(((64, 10),), False, True),
)
COSTS = StepCosts({"encoder": 1e9}, 3e9, kept_bytes=6400.0, kept_scores=0.0, images=8, units=(BLOCK, BLOCK, REST, AVERAGE))
H100 = GPUS["h100"]


def machines(gpus: int) -> Machines:
    return Machines(H100, gpus, 8, H100.link, H100.network)


def test_memory_of_the_two_strategies() -> None:
    """DDP holds all 1,310 trained weights and copies of them, FSDP2 a fourth of each tensor's rows, rounded up."""
    ddp = memory_parts(COSTS, Division("ddp", 4), 16, CUDA)
    assert (ddp.weights, ddp.gradients, ddp.moments, ddp.target_encoder) == (5240, 5240, 10480, 2560)
    assert (ddp.copies, ddp.activations, ddp.temporaries) == (2620, 2 * 6400 * 36 / 64, 0)
    fsdp2 = memory_parts(COSTS, Division("fsdp2", 4), 16, CUDA)
    own = 160 + 160 + 8
    assert (fsdp2.weights, fsdp2.gradients, fsdp2.moments, fsdp2.target_encoder) == (4 * own, 4 * own, 8 * own, 640)
    assert fsdp2.copies == 60 and fsdp2.temporaries == 640 * (3 * 2 + 4), "two gathered blocks, a gradient, and one on its way"
    accumulating = memory_parts(COSTS, Division("fsdp2", 4, microbatches=2, reduce_precision="bf16"), 16, CUDA)
    assert accumulating.gradients == fsdp2.gradients + 2 * 1310
    assert checkpoint_copy(COSTS, Division("ddp", 4)) == (12 * 1310 + 4 * 640) / 4
    assert checkpoint_copy(COSTS, Division("fsdp2", 4)) == 12 * own + 640


def test_muon_has_one_moment_and_products() -> None:
    """For the two trained matrices of blocks, of 640 weights each."""
    memory = [memory_parts(COSTS, Division("ddp", 4, optimizer=name), 16, CUDA) for name in ("adamw", "muon")]
    assert memory[0].moments - memory[1].moments == 4 * 1280
    divided = memory_parts(COSTS, Division("fsdp2", 4, optimizer="muon"), 16, CUDA)
    assert divided.moments == 4 * (160 + 160 + 2 * 8)
    assert checkpoint_copy(COSTS, Division("ddp", 4, optimizer="muon")) == (12 * 1310 + 4 * 640 - 4 * 1280) / 4
    assert muon_flops(COSTS) == 2 * 5 * (2 * 2 * 10 * 10 * 64 + 2 * 10**3), "X X^T, B X, and A A"
    step = forecast_step(COSTS, Division("ddp", 8, optimizer="muon"), 32, machines(8), mfu=0.5)
    moved = 32 * 30 + 92 * 1280 + 12 * 640
    products = muon_flops(COSTS) / (0.5 * H100.peak("bf16"))
    assert step.optimizer == pytest.approx(moved / (MEMORY * H100.memory_bandwidth) + products)


def test_bytes_of_rings() -> None:
    """Each of W processes sends (W - 1) / W of what is gathered or scattered, and twice that of what is reduced for all."""
    assert sent_bytes(COSTS, Division("single", 1)).total() == 0
    assert sent_bytes(COSTS, Division("ddp", 4, microbatches=3)) == SentBytes(0, 2 * 0.75 * 4 * 1310)
    found = sent_bytes(COSTS, Division("fsdp2", 4, microbatches=3))
    blocks, rest = 2 * 640 * 2, 2 * 32 * 4  # bytes, the 30 rows padded to 32; trained ones are gathered twice
    assert found == SentBytes(0.75 * 3 * (2 * blocks + rest + 2 * 640), 0.75 * 4 * (2 * 640 + 32))


def test_a_ring_leaves_each_node_once() -> None:
    assert (machines(8).crossing(), machines(16).crossing(), machines(20).crossing()) == (0, 1 / 8, 3 / 20)
    assert machines(8).seconds(SentBytes(9e9, 0)) == pytest.approx(9e9 / H100.link / COLLECTIVES)
    assert machines(16).seconds(SentBytes(4e9, 4e9)) == pytest.approx(1e9 / H100.network / COLLECTIVES)
    assert machines(16).ring_latency() == pytest.approx(START_SECONDS + 14 * LINK_SECONDS + NETWORK_SECONDS)


def test_only_communication_that_does_not_fit_beside_the_backward_is_waited_for() -> None:
    slow = replace(machines(16), network=1.0)  # one byte a second
    division = Division("ddp", 16)
    step = forecast_step(COSTS, division, 32, slow, mfu=0.5)
    assert step.compute == pytest.approx(32 * 3e9 / (0.5 * H100.peak("bf16")))
    sent = 2 * 15 / 16 * 4 * 1310 / 8 / COLLECTIVES
    assert step.communication == pytest.approx(sent, rel=1e-4)
    assert step.waiting == pytest.approx(step.communication - step.compute * 2 / 3)
    assert step.total() == step.compute + step.optimizer + step.waiting
    assert forecast_step(COSTS, division, 10**6, machines(16), mfu=0.5).waiting == 0


@pytest.mark.parametrize(("gpu", "images_per_second"), [("a100-80", 693 / 8), ("h100", 1428 / 8)])
def test_the_expected_utilization_is_what_nvidia_measured(gpu: str, images_per_second: float) -> None:
    """Images/s of one GPU that trains ViT-g/14 (NeMo 24.07 user guide), within 5 %."""
    with torch.device("meta"):
        encoder = build_encoder(
            ModelSettings(size="giant", patch_size=14, class_token=True).encoder((224, 224), (0.5,) * 3, (0.5,) * 3)
        )
    images = torch.empty(1, 3, 224, 224, device="meta")
    flops = 3 * counted(lambda: encoder.to("meta")(images))
    assert flops == pytest.approx(1.60e12, rel=0.01)
    assert GPUS[gpu].expected_mfu("bf16") == pytest.approx(images_per_second * flops / GPUS[gpu].peak("bf16"), rel=0.05)


def test_the_run_of_the_paper() -> None:
    """ViT-H/14 on 16 A100 took less than 72 hours: between what is expected at best and at the most."""
    config = load_recipe("ijepa-vith14", "paper")
    run, (column,) = (plan := make_run_plan(config, PlanSettings(gpus=(16,), gpu="a100-80"))).run, plan.columns
    assert (run.images, run.steps, run.epochs) == (1_281_167, 187_500, 300)
    assert (column.strategy, column.microbatch, column.microbatches, column.nodes) == ("fsdp2", 128, 1, 2)
    assert column.hours_at_paper_pace is not None and 70 < column.hours_at_paper_pace < 72 and 25 < column.hours < 36
    assert column.memory is not None and column.memory_bytes < 80e9
    assert run.total_flops == pytest.approx(2.434e20, rel=0.01)


def test_a_batch_that_does_not_fit_is_cut_and_more_than_that_refused(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_recipe("ijepa-vith14", "paper")
    plan = make_run_plan(config, PlanSettings(gpus=(48, 64, 8), gpu="rtx4090"))
    odd, many, few = plan.columns
    assert odd.problem is not None and "use 32 or 64 GPUs, or --optim.batch-size 2016 or 2064" in odd.problem
    assert many.microbatch * many.microbatches == 32 and few.microbatch * few.microbatches == 256
    assert few.microbatches > 1 and few.memory_bytes <= 24e9 < 2 * few.memory_bytes, "the next divisor would not fit"
    alone = replace(config, parallel=replace(config.parallel, strategy="ddp"), model=replace(config.model, depth=80))
    with pytest.raises(
        ValueError, match=r"8 GPUs: a single image does not fit into the 24 GB .* use --parallel.strategy fsdp2"
    ):
        make_run_plan(alone, PlanSettings(gpus=(8,), gpu="rtx4090"))
    print_run_plan(plan)
    shown = capsys.readouterr().out
    assert "64 GPUs" in shown and "does not fit" not in shown and "\n48 GPUs do not divide" in shown


def test_json_has_a_column_for_each_number(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", "cpu-64", "--gpus", "1", "4", "--gpu", "l40s", "--mfu", "0.5", "--decode-rate", "100", "--json"])
    found = json.loads(capsys.readouterr().out)
    one, four = found["columns"]
    assert (one["strategy"], four["strategy"]) == ("single", "ddp") and one["sent"] == {"gathered": 0, "reduced": 0}
    assert one["decoding_cores"] == one["images_per_second"] / 100 and one["hours_at_paper_pace"] is None
    assert four["step"]["compute"] == pytest.approx(one["step"]["compute"] / 4)
    assert all(isinstance(found["run"][name], int) for name in ("step_flops", "total_flops"))
    assert all(isinstance(value, int) for value in found["run"]["flops"].values())
    assert found["run"]["epochs"] is None and found["run"]["steps"] == load_recipe("cpu-64").optim.total_steps


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("gpu-224 --data.path /nope", "data.path=/nope is not there; give --images N"),
        ("ijepa-vith14 --bandwidth 300", "--bandwidth 300 must be two numbers"),
        ("ijepa-vith14 --bandwidth -1", "--bandwidth -1.0 must be above 0"),
        ("ijepa-vith14 --gpus 48", "openjepa: 48 GPUs do not divide optim.batch_size=2048"),
        ("ijepa-vith14 --gpus 0", "--gpus 0 must be at least 1"),
        ("ijepa-vith14 --gpu h300", "with --mfu and --bandwidth: did you mean 'h100' or 'h200'?\n"),
        ("ijepa-vith14 --mfu 1.5", "--mfu 1.5 must be above 0 and at most 1"),
        ("ijepa-vith14 --bandwidth 300 0", "--bandwidth 0.0 must be above 0"),
        (
            "ijepa-vitg16 --gpus 64",
            "data.path is empty, and the length of the run follows from the number of images: give --images N",
        ),
        ("gpu-224 --gpu v100 --run.precision bf16", "the V100 SXM2 32 GB has no products in bf16"),
        ("ijepa-vith14 --gpus 4 --optim.microbatch-size 100", "optim.microbatch_size=100 does not divide"),
    ],
)
def test_nonsense_is_refused(words: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["plan", *words.split()])
    assert exit_.value.code == 2 and message in capsys.readouterr().err


def test_short_times_are_not_shown_as_zero_and_small_recipes_not_at_the_pace_of_the_paper(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["plan", "cpu-64", "--gpus", "1"])
    shown = dict(
        re.split(r"   +", line.strip()) for line in capsys.readouterr().out.splitlines() if re.search(r"\S   +\S", line)
    )
    assert "at the pace of the paper" not in shown
    for name in ("compute", "optimizer", "all", "hours", "GPU hours"):
        assert float(shown[name].split()[0]) > 0, name


def test_precision_follows_the_gpu() -> None:
    config = load_recipe("cpu-64")
    plan = make_run_plan(config, PlanSettings(gpus=(1,), gpu="v100"))
    assert plan.run.precision == "fp32" and make_run_plan(config, PlanSettings(gpus=(1,))).run.precision == "bf16"


def test_the_table_of_the_docs_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    written = (ROOT / "docs/results/scale/plan-vith14.txt").read_text()
    blocks = [block.partition("\n") for block in written.split("$ openjepa ")[1:]]
    assert len(blocks) == 3
    for command, _, text in blocks:
        main(command.split())
        printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
        assert printed == text.splitlines()
