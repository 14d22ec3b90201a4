"""The real torchrun: restarts after a killed process, nodes that meet, and signals to torchrun itself.

Each prints what it has seen; docs/results/scale/torchrun.txt keeps that.
"""

import json
import os
import random
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from openjepa.config import load_run_config
from openjepa.settings.run import RunConfig
from openjepa.training.loop import train
from tests.helpers.images import write_folder
from tests.helpers.ranks import free_port, on_ranks
from tests.helpers.small_runs import lines, small_config, weights
from tests.helpers.torchruns import steps_logged, torchrun, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
STEPS = 60
LONG = 100_000
SIGNALS = ("--signals-to-handle", "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1")
AT_A_SIGNAL = {"SIGTERM": 143, "SIGUSR1": 75}


def run(images: Path, output: Path, steps: int = STEPS) -> RunConfig:
    """A run that saves after every third step."""
    config = small_config(images, output, total_steps=steps)
    system = replace(config.system, log_every=3, checkpoint_minutes=0.0, threads=1)
    return replace(config, monitor=replace(config.monitor, every=0), system=system)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("torchrun") / "images", 40)


@pytest.fixture(scope="module")
def of_two(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run of two processes."""
    folder = tmp_path_factory.mktemp("two")
    on_ranks(2, folder / "output", train, run(images, folder))
    return folder / "run"


@pytest.fixture(scope="module")
def of_one(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = train(run(images, tmp_path_factory.mktemp("one")))
    assert folder is not None
    return folder


def largest_difference(one: Path, other: Path) -> float:
    pairs = list(zip(lines(one, "train"), lines(other, "train"), strict=True))
    assert [first["step"] for first, _ in pairs] == [second["step"] for _, second in pairs] == list(range(3, STEPS + 1, 3))
    return max(abs(first["loss"] - second["loss"]) for first, second in pairs)


def same_weights(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all((first[key] == second[key]).all() for key in first)


@pytest.mark.parametrize(("rank", "words"), [(1, ()), (0, ("--fresh",))])
def test_after_a_killed_process_all_start_again_and_the_run_is_the_undisturbed_one(
    images: Path, of_two: Path, tmp_path: Path, rank: int, words: tuple[str, ...]
) -> None:
    config = run(images, tmp_path)
    folder = tmp_path / "run"
    if words:  # an older run of this name, which a fresh one must leave alone
        folder.mkdir()
        folder = tmp_path / "run-2"
    kills = []
    with torchrun(config, tmp_path / "out.log", "--standalone", "--max-restarts", "2", words=words) as agent:
        for least in (5, 12):  # lines of the log, of which there are 20
            wait_until(lambda least=least: steps_logged(folder) >= least and len(agent.workers()) == 2, agent)  # type: ignore[misc]  # mypy infers no lambda with a default
            kills.append(3 * steps_logged(folder))
            os.kill(agent.workers()[rank], signal.SIGKILL)
        code = agent.ended()
    output = agent.output()
    assert code == 0, output[-4000:]
    assert sorted(path.name for path in tmp_path.glob("run*")) == (["run", "run-2"] if words else ["run"])
    assert output.count("processes  2, ") == 3 and output.count("next: ") == 1
    sessions = json.loads((folder / "environment.json").read_text())["continued"]
    assert len(sessions) == 2 and all(session["from_step"] > 0 for session in sessions)
    difference = largest_difference(of_two, folder)
    print(
        f"\nrank {rank} of 2 killed at steps {kills}, continued from {[row['from_step'] for row in sessions]}, "
        f"--max-restarts 2 {' '.join(words)}: exit code {code}, "
        f"largest difference of losses {difference}, weights bitwise equal: {same_weights(of_two, folder)}"
    )
    assert difference < 1e-5 and load_run_config(folder).run.name == folder.name


def test_without_restarts_a_killed_process_ends_the_run_and_the_same_command_continues_it(
    images: Path, of_two: Path, tmp_path: Path
) -> None:
    config = run(images, tmp_path)
    with torchrun(config, tmp_path / "first.log", "--standalone") as agent:
        wait_until(lambda: steps_logged(tmp_path / "run") >= 5, agent)
        begun = time.monotonic()
        os.kill(agent.workers()[1], signal.SIGKILL)
        code = agent.ended()
    seconds = time.monotonic() - begun
    assert code == 1 and "waited for the others in" in agent.output(), agent.output()[-4000:]
    with torchrun(config, tmp_path / "second.log", "--standalone") as agent:
        assert agent.ended() == 0, agent.output()[-4000:]
    difference = largest_difference(of_two, tmp_path / "run")
    print(f"\nrank 1 of 2 killed, no restarts: exit code 1 after {seconds:.1f} s; continued: difference of losses {difference}")
    assert difference < 1e-5


@pytest.mark.parametrize("processes", [1, 2])
def test_two_nodes_are_the_run_of_one_process(images: Path, of_one: Path, tmp_path: Path, processes: int) -> None:
    """Two rendezvous agents, as on two machines; a process of the second is killed in the middle."""
    config = run(images, tmp_path)
    meeting = f"--nnodes 2 --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:{free_port()} --rdzv-id x --max-restarts 1".split()
    with (
        torchrun(config, tmp_path / "node0.log", *meeting, processes=processes) as first,
        torchrun(config, tmp_path / "node1.log", *meeting, processes=processes) as second,
    ):
        wait_until(lambda: steps_logged(tmp_path / "run") >= 7, second)
        at = 3 * steps_logged(tmp_path / "run")
        rank, worker = random.Random(0).choice(sorted(second.workers().items()))
        os.kill(worker, signal.SIGKILL)
        codes = [first.ended(), second.ended()]
    assert codes == [0, 0], first.output()[-4000:] + second.output()[-4000:]
    output = first.output() + second.output()
    assert output.count(f"processes  {2 * processes}, ") == 2 and output.count("next: ") == 1
    difference = largest_difference(of_one, tmp_path / "run")
    print(
        f"\n2 agents x {processes}, rank {rank} of the second killed at step {at}: exit codes {codes}, "
        f"largest difference of losses from one process {difference:.1e}"
    )
    assert difference < 1e-5


@pytest.mark.parametrize("name", list(AT_A_SIGNAL))
def test_a_signal_to_torchrun_saves_in_all_processes_at_the_same_step(images: Path, tmp_path: Path, name: str) -> None:
    config = run(images, tmp_path, LONG)
    logs = ("--log-dir", str(tmp_path / "logs"), "--redirects", "3")
    with torchrun(config, tmp_path / "out.log", "--standalone", "--max-restarts", "2", *SIGNALS, *logs) as agent:
        wait_until(lambda: steps_logged(tmp_path / "run") >= 5, agent)
        begun = time.monotonic()
        os.kill(agent.process.pid, getattr(signal, name))
        code = agent.ended()
    seconds = time.monotonic() - begun
    said = [path.read_text() for path in sorted((tmp_path / "logs").rglob("stderr.log"))]
    (last,) = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))[-1:]
    step = int(last.name.removeprefix("step_"))
    print(f"\n{name} to torchrun: exit code {code} after {seconds:.1f} s, saved at step {step}, {len(said)} processes")
    assert len(said) == 2 and [f"stopped by {name} after step {step};" in words for words in said] == [True, False], said
    assert code == 1 and seconds < 30 and "Traceback" not in "".join(said)
