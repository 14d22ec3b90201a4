"""Parameter groups, the guard against numbers that are not finite, run folders, logs, the display."""

import errno
import json
import math
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from openjepa.checks import check
from openjepa.config import load_run_config
from openjepa.engine.device import autocast, resolve_device, resolve_precision
from openjepa.engine.failures import FiniteGuard, NotFinite, explain_memory
from openjepa.engine.optimizer import build_optimizer, clip_gradients, gradient_norm, set_rates
from openjepa.engine.run_folder import RunFolder, RunLog, open_run_folder, run_path
from openjepa.settings.masks import MultiblockSettings
from openjepa.settings.run import OptimizationSettings, RunConfig, RunSettings, SystemSettings
from openjepa.settings.sources import DataSettings, FolderSettings, HuggingFaceSettings, ScenesSettings
from openjepa.system.console import Display, format_count, format_seconds
from openjepa.system.interrupts import Interrupts
from openjepa.system.shared_files import take
from openjepa.types import ParameterRule, Skipped
from tests.helpers.embedding import in_process

CPU = torch.device("cpu")
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


def test_no_weight_moves_after_a_number_that_is_not_finite() -> None:
    model = nn.Linear(2, 1)
    optimizer = build_optimizer(model.named_parameters(), RULES, OptimizationSettings())
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
    optimizer = build_optimizer(nn.Linear(2, 1).named_parameters(), RULES, OptimizationSettings())
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


def config_in(folder: Path) -> RunConfig:
    return RunConfig(run=RunSettings(output=str(folder), name="a"))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (FolderSettings(path="~/my photos/"), "my-photos"),
        (FolderSettings(), "folder"),
        (FolderSettings(path="photos/caf\udce9"), "caf-"),  # weights cannot be read from a path that is no text
        (HuggingFaceSettings(path="data/cifar10/*.parquet"), "cifar10"),
        (HuggingFaceSettings(path="owner/name"), "name"),
        (ScenesSettings(), "scenes"),
    ],
)
def test_a_run_is_named_after_its_data(data: DataSettings, name: str) -> None:
    config = RunConfig(recipe="cpu-64", preset="default", data=data, run=RunSettings(output="runs"))
    assert run_path(config) == Path("runs") / f"cpu-64-default-{name}"


def begun(folder: RunFolder, device: str = "cpu", precision: str = "fp32") -> None:
    """Leaves what a first step leaves: a line of the log, and the environment of the session."""
    folder.write_json("environment.json", {"device": device, "precision": precision, "threads": torch.get_num_threads()})
    (folder.path / "metrics.jsonl").write_text('{"kind": "monitor", "step": 0}\n{"kind": "train", "step": 10}\n')
    folder.close()


def test_other_results_are_refused_and_other_bookkeeping_is_not(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    begun(open_run_folder(config, False, CPU, "fp32"))
    open_run_folder(replace(config, system=SystemSettings(workers=3)), False, CPU, "fp32").close()
    changed = replace(config, optim=OptimizationSettings(lr=0.5))
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.001 -> 0\.5"):
        open_run_folder(changed, False, CPU, "fp32").close()
    fresh = open_run_folder(changed, True, CPU, "fp32")
    begun(fresh)
    assert fresh.path == tmp_path / "a-2"
    continued = open_run_folder(load_run_config(fresh.path), False, CPU, "fp32")  # its config.yaml leads back to it
    continued.close()
    assert continued.path == fresh.path


def test_a_run_without_a_step_takes_other_settings(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    folder = open_run_folder(config, False, CPU, "fp32")
    folder.close()
    (folder.path / "metrics.jsonl").write_text('{"kind": "monitor", "step": 0}\n')  # the look before the first step
    changed = replace(config, optim=OptimizationSettings(lr=0.5))
    open_run_folder(changed, False, CPU, "fp32").close()
    assert load_run_config(folder.path).optim.lr == 0.5
    (folder.path / "checkpoints" / "step_00000001").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"optim\.lr: 0\.5 -> 0\.001"):
        open_run_folder(config, False, CPU, "fp32")


@pytest.mark.parametrize(("device", "precision"), [("cuda:1", "fp32"), ("cpu", "bf16")])
def test_another_device_or_precision_is_refused_with_what_continues_the_run(
    tmp_path: Path, device: str, precision: str
) -> None:
    config = config_in(tmp_path)
    begun(open_run_folder(config, False, CPU, "fp32"), device, precision)
    fix = f"--run.device {device.split(':')[0]} --run.precision {precision}"
    with pytest.raises(ValueError, match=fix):
        open_run_folder(config, False, CPU, "fp32")
    asked = replace(config, run=replace(config.run, device=device, precision=precision))  # type: ignore[arg-type]
    open_run_folder(asked, False, torch.device(device), precision).close()


def test_other_threads_are_noted(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    begun(open_run_folder(config, False, CPU, "fp32"))
    same = open_run_folder(config, False, CPU, "fp32")
    same.write_json("environment.json", {"device": "cpu", "precision": "fp32", "threads": 99, "torch": torch.__version__})
    same.close()
    other = open_run_folder(config, False, CPU, "fp32")
    other.close()
    assert same.notes == () and len(other.notes) == 1 and other.notes[0].startswith("threads was 99 and is now")


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    first = open_run_folder(config_in(tmp_path), False, CPU, "fp32")
    with pytest.raises(ValueError, match="another process is writing"):
        open_run_folder(config_in(tmp_path), False, CPU, "fp32")
    first.close()
    open_run_folder(config_in(tmp_path), False, CPU, "fp32").close()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_second_writer(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, "No locks available")

    monkeypatch.setattr("openjepa.system.shared_files.fcntl.flock", refuse)
    for _ in range(2):
        with pytest.warns(UserWarning, match="cannot lock files: let only one process work there at a time"):
            folder = open_run_folder(config_in(tmp_path), False, CPU, "fp32")
        folder.close()


def test_forked_workers_neither_hold_the_folder_nor_let_it_go(tmp_path: Path) -> None:
    first = open_run_folder(config_in(tmp_path), False, CPU, "fp32")
    worker = in_process(lambda: time.sleep(1000))
    with pytest.raises(ValueError, match="another process is writing"):  # the worker has closed its copy by now
        open_run_folder(config_in(tmp_path), False, CPU, "fp32")
    first.lock.leave()  # as when this process is killed: nobody says that it lets go, and the worker lives on
    again = take(first.path / ".lock", wait=True)
    assert again is not None and worker.is_alive()
    again.release()
    worker.kill()
    worker.join()


def test_resume_drops_lines_after_the_checkpoint_and_broken_ones(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, tensorboard=False)
    for step in (10, 20, 30):
        log.write("train", step, {"loss": float(step), "nan": math.nan})
        log.write_skipped(step, [Skipped(f"{step}.jpg", "truncated")])
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # a kill in the middle of a line
    RunLog(tmp_path, 20, tensorboard=False).close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20] and lines[0]["nan"] is None
    assert [json.loads(line)["name"] for line in (tmp_path / "skipped.jsonl").read_text().splitlines()] == ["10.jpg", "20.jpg"]


def test_a_signal_is_remembered_and_the_handlers_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGTERM)
        assert interrupts.requested == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) is before


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


def test_a_missing_device_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="unknown"):
        resolve_device("tpu")
    for name in ("cuda:x", "cuda:", "mps:one", "cuda:-1"):
        with pytest.raises(ValueError, match=f"run.device='{name}' is unknown"):
            resolve_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="available: cpu"):
            resolve_device("cuda")


def test_precision_decides_what_a_product_is_computed_in() -> None:
    cpu = torch.device("cpu")
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        assert resolve_precision(precision, cpu) == precision
        with autocast(cpu, precision):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_plain_display_prints_step_time_left_and_values(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display(10, 0, "plain", plain_seconds=0.0)
    display.update(4, {"loss": "0.2"}, None)
    display.update(5, {"loss": "0.1"}, 185.0)
    display.close()
    assert capsys.readouterr().err.splitlines() == ["step 4/10  ? left  loss 0.2", "step 5/10  3m05s left  loss 0.1"]


@pytest.mark.parametrize(("seconds", "text"), [(4.6, "5s"), (185, "3m05s"), (7620, "2h07m"), (273600, "3d04h")])
def test_times_are_short(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(("number", "text"), [(512, "512"), (12345, "12.3k"), (21.6e6, "21.6M")])
def test_counts_are_short(number: float, text: str) -> None:
    assert format_count(number) == text
