"""Faults in runs of several processes: signals, lost and hanging processes, numbers that are not finite, two launches."""

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.engine import distributed
from openjepa.engine.run_states import list_runs
from openjepa.methods.ijepa import IJepa
from openjepa.refusals import Refusal, RepeatedRefusal
from openjepa.schedules import Progress
from openjepa.settings.run import RunConfig
from openjepa.system.interrupts import REQUEUE, Interrupted
from openjepa.training.loop import train
from openjepa.types import Batch, LossOutput
from tests.helpers.images import write_folder
from tests.helpers.ranks import SECONDS, on_ranks, results, start_ranks
from tests.helpers.small_runs import lines, small_config, weights
from tests.helpers.waiting import wait_for

STEPS = 24
LONG = 100_000


def outcome(config: RunConfig) -> tuple[str, object]:
    """How a run ends in this process: `finished`, `interrupted` with exit code and step, or the words of a refusal."""
    try:
        train(config)
    except Interrupted as error:
        return "interrupted", (error.exit_code, str(error))
    except RepeatedRefusal as error:
        return "repeated", str(error)
    except Refusal as error:
        return "refused", str(error)
    return "finished", None


def with_a_bad_loss(config: RunConfig, rank: int, step: int) -> tuple[str, object]:
    """The outcome of a run in which one process computes a loss that is not a number at one step."""
    whole = IJepa.forward

    def forward(self: IJepa, batch: Batch, progress: Progress) -> LossOutput:
        output = whole(self, batch, progress)
        is_bad = progress.step == step and distributed.rank() == rank
        return replace(output, total=output.total * float("nan")) if is_bad else output

    IJepa.forward = forward  # type: ignore[method-assign]  # only in this process, which ends with the run
    return outcome(config)


def run(images: Path, output: Path, steps: int, timeout: float = 60.0) -> RunConfig:
    config = small_config(images, output, total_steps=steps)
    monitor = replace(config.monitor, every=0)
    return replace(config, monitor=monitor, parallel=replace(config.parallel, timeout_seconds=timeout))


def started(processes: int, tmp_path: Path, config: RunConfig) -> list[Any]:
    """Processes of a run that has taken some steps."""
    ranks = start_ranks(processes, tmp_path / "output", outcome, config)
    log = Path(config.run.output) / "run" / "metrics.jsonl"

    def are_training() -> bool:
        assert all(process.is_alive() for process in ranks), "a process has ended"
        return log.is_file() and len(log.read_text().splitlines()) > 3

    wait_for(are_training, SECONDS)
    return ranks


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("survival") / "images", 40)


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", REQUEUE)])
def test_a_signal_to_one_process_stops_all_after_the_same_step(images: Path, tmp_path: Path, name: str, code: int) -> None:
    ranks = started(2, tmp_path, run(images, tmp_path, LONG))
    begun = time.monotonic()
    os.kill(ranks[1].pid, getattr(signal, name))
    found = results(ranks, tmp_path / "output")
    assert time.monotonic() - begun < 60
    assert found[0] == found[1] and found[0][0] == "interrupted"
    exit_code, words = found[0][1]
    (last,) = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))[-1:]
    assert exit_code == code and f"after step {int(last.name.removeprefix('step_'))};" in words
    assert lines(tmp_path / "run", "train")[-1]["step"] <= int(last.name.removeprefix("step_"))


def test_a_run_that_changes_its_number_of_processes_is_the_same_run(images: Path, tmp_path: Path) -> None:
    whole, cut = run(images, tmp_path / "whole", STEPS), run(images, tmp_path / "cut", STEPS)
    train(whole)
    for processes, until in ((2, 8), (1, 16), (4, STEPS)):
        on_ranks(processes, tmp_path / f"output{until}", stopped, cut, until)
    for line, other in zip(lines(tmp_path / "whole/run", "train"), lines(tmp_path / "cut/run", "train"), strict=True):
        assert line["step"] == other["step"] and abs(line["loss"] - other["loss"]) < 1e-5
    one, several = weights(tmp_path / "whole/run"), weights(tmp_path / "cut/run")
    assert all(torch.allclose(one[key], several[key], atol=1e-3) for key in one)
    said = (tmp_path / "output16/rank0.txt").read_text() + (tmp_path / f"output{STEPS}/rank0.txt").read_text()
    assert "note: the run had 2 processes and continues with 1:" in said
    assert "note: the run had 1 process and continues with 4:" in said


def stopped(config: RunConfig, step: int) -> None:
    """Trains until a signal after `step` steps, which the main process sends to itself."""
    from openjepa.training import loop

    write = loop.RunLog.write

    def write_and_signal(log: loop.RunLog, kind: str, number: int, values: dict[str, float]) -> None:
        write(log, kind, number, values)
        if kind == "train" and number == step and distributed.is_main():
            os.kill(os.getpid(), signal.SIGTERM)

    loop.RunLog.write = write_and_signal  # type: ignore[method-assign,assignment]  # as above
    outcome(config)


def test_a_loss_that_is_not_finite_in_one_process_stops_all_and_its_samples_are_named(images: Path, tmp_path: Path) -> None:
    config = run(images, tmp_path, STEPS)
    first, second = on_ranks(2, tmp_path / "output", with_a_bad_loss, config, 1, 5, joined=False)
    kinds = {first[0], second[0]}
    assert kinds == {"refused", "repeated"}
    words = first[1]
    assert "step 5 is not finite" in words and "samples in process 1 of 2: " in words and words == second[1]
    names = words.partition("of 2: ")[2].partition(". Lower")[0].split(", ")
    assert len(names) == 4 and all((images / name).is_file() for name in names)
    assert max(line["step"] for line in lines(tmp_path / "run", "train")) == 5


def test_the_end_of_one_process_ends_the_others_with_the_reason(images: Path, tmp_path: Path) -> None:
    ranks = started(2, tmp_path, run(images, tmp_path, LONG))
    os.kill(ranks[1].pid, signal.SIGKILL)
    ranks[0].join(60)
    assert not ranks[0].is_alive()
    kind, words = torch.load(tmp_path / "output" / "rank0.pt", weights_only=False)
    assert kind == "refused" and "process 0 waited for the others in " in words and "ended or cannot be reached" in words
    (listed,) = list_runs(tmp_path / "run")
    assert listed.state == "interrupted" and listed.reason.startswith("a process was killed or hung in "), listed


def test_a_process_that_hangs_ends_the_others_within_the_time_limit(images: Path, tmp_path: Path) -> None:
    ranks = started(2, tmp_path, run(images, tmp_path, LONG, timeout=20.0))
    os.kill(ranks[1].pid, signal.SIGSTOP)
    ranks[0].join(60)
    hung = ranks[0].is_alive()
    ranks[1].kill()
    ranks[1].join()
    assert not hung
    kind, words = torch.load(tmp_path / "output" / "rank0.pt", weights_only=False)
    assert kind == "refused" and "did not come within 20 s (parallel.timeout_seconds)" in words
    assert "waited for the others in forward and gradients of step" in words or "the decision after step" in words


def test_a_second_launch_of_the_same_run_is_refused_in_all_its_processes(images: Path, tmp_path: Path) -> None:
    config = run(images, tmp_path, LONG)
    ranks = started(2, tmp_path, config)
    found = on_ranks(2, tmp_path / "second", outcome, config, joined=False)
    assert sorted(kind for kind, _ in found) == ["refused", "repeated"]
    assert all("another process is writing to" in str(words) for _, words in found)
    assert all(process.is_alive() for process in ranks)
    os.kill(ranks[0].pid, signal.SIGTERM)
    assert {kind for kind, _ in results(ranks, tmp_path / "output")} == {"interrupted"}
