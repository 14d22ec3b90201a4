"""Runs that the real torchrun starts: the command, its workers, and signals to them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from openjepa.config import save_yaml
from openjepa.settings.run import RunConfig
from tests.helpers.waiting import wait_for

ROOT = Path(__file__).parents[2]
SECONDS = 180


@dataclass(frozen=True)
class Agent:
    """A torchrun, which starts the processes of one node. What all of them print is in `log`."""

    process: subprocess.Popen[bytes]
    log: Path

    def workers(self) -> dict[int, int]:
        """The process of each rank of this node."""
        found = {}
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
            with suppress(OSError):
                variables = dict(
                    entry.split("=", 1) for entry in Path(f"/proc/{child}/environ").read_text().split("\0") if "=" in entry
                )
                if "RANK" in variables:
                    found[int(variables["RANK"])] = int(child)
        return found

    def ended(self, seconds: float = SECONDS) -> int:
        """Its exit code. Raises TimeoutExpired if it does not end within `seconds`."""
        return self.process.wait(seconds)

    def output(self) -> str:
        """What it and its workers have printed."""
        return self.log.read_text()


@contextmanager
def torchrun(config: RunConfig, log: Path, *options: str, processes: int = 2, words: tuple[str, ...] = ()) -> Iterator[Agent]:
    """`torchrun OPTIONS -m openjepa train --config FILE WORDS` with workers of one thread; nothing of it survives the block."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = log.with_suffix(".yaml")
    save_yaml(config, file)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), *options]
    command += ["-m", "openjepa", "train", "--config", str(file), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT, cwd=log.parent)
    agent = Agent(process, log)
    try:
        yield agent
    finally:
        workers = agent.workers() if process.poll() is None else {}
        process.kill()
        process.wait()
        for worker in workers.values():  # torchrun starts each in a session of its own
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)


def wait_until(condition: Callable[[], bool], agent: Agent) -> None:
    """Waits until `condition` is true. Fails, with what was printed, if `agent` ends before or if it takes too long."""

    def is_met() -> bool:
        assert agent.process.poll() is None, agent.output()[-4000:]
        return condition()

    wait_for(is_met, SECONDS, lambda: agent.output()[-4000:])


def steps_logged(run: Path) -> int:
    """The last step of a run's log; 0 without one."""
    log = run / "metrics.jsonl"
    return log.read_text().count('"kind": "train"') if log.exists() else 0
