"""Several processes of one run, as torchrun starts them, but without its start-up time."""

import faulthandler
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from openjepa.engine import distributed
from tests.helpers.processes import CLEAN

SECONDS = 240
"""How long the processes may take together, in seconds: less than pytest allows a test, so that their output is shown."""

WHERE = signal.SIGUSR2
"""Signal upon which a process writes into its output where each of its threads stands."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def start_ranks(number: int, folder: Path, work: Callable[..., object], *arguments: object) -> list[Any]:
    """Starts `number` processes of one thread that call `work(*arguments)`. Rank r prints into `folder/rank<r>.txt`.

    `work` must be a function of a module. It finds torchrun's variables, but has not joined the others. What it returns is
    saved to `folder/rank<r>.pt`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    processes = []
    for rank in range(number):
        process = CLEAN.Process(target=_rank, args=(rank, number, port, folder, work, arguments))
        process.start()
        processes.append(process)
    return processes


def on_ranks(
    number: int, folder: Path, work: Callable[..., object], *arguments: object, joined: bool = True, seconds: float = SECONDS
) -> list[Any]:
    """What `work(*arguments)` returns in each of `number` processes. Asserts that all end well within `seconds`.

    `joined`: the processes have found each other before `work` is called (else `work` does it, as a command would).
    """
    if joined:
        processes = start_ranks(number, folder, _work_joined, seconds, work, *arguments)
    else:
        processes = start_ranks(number, folder, work, *arguments)
    return results(processes, folder, seconds)


def results(processes: list[Any], folder: Path, seconds: float = SECONDS) -> list[Any]:
    """What the processes that `start_ranks` has started return.

    Asserts that all end well within `seconds`. The error shows their output, and where those that hang stand. None survives.
    """
    end = time.monotonic() + seconds
    try:
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
    finally:  # also if pytest's own time limit ends the wait
        late = [process for process in processes if process.is_alive()]
        for process in late:
            os.kill(process.pid, WHERE)
        time.sleep(1.0 if late else 0.0)  # while they write where they stand
        for process in late:
            process.kill()
            process.join()
    codes = [process.exitcode for process in processes]
    output = "\n".join((folder / f"rank{rank}.txt").read_text() for rank in range(len(processes)))
    assert not late and codes == [0] * len(processes), f"exit codes {codes}, {len(late)} hung\n{output}"
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(len(processes))]


def _work_joined(seconds: float, work: Callable[..., object], *arguments: object) -> object:
    with distributed.joined(torch.device("cpu"), timeout_seconds=seconds):
        return work(*arguments)


def _rank(rank: int, number: int, port: int, folder: Path, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.environ |= {
        "WORLD_SIZE": str(number),
        "LOCAL_WORLD_SIZE": str(number),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    with (folder / f"rank{rank}.txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    faulthandler.register(WHERE, file=2)
    torch.save(work(*arguments), folder / f"rank{rank}.pt")
