"""Facts about the machine and the code for every benchmark result, and functions that print and save results."""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from openjepa.engine.run_folder import environment


def origin() -> dict[str, Any]:
    """Commit, date, processor, threads and version of torch, to stand at the head of a result."""
    where = environment(torch.device("cpu"), "fp32")
    return {
        "commit": where.commit,
        "date": where.started,
        "machine": where.cpu,
        "threads": where.threads,
        "torch": where.torch,
    }


def load() -> list[str] | None:
    """How many programs wanted a core in the last 1, 5 and 15 minutes; None where the system does not say."""
    return Path("/proc/loadavg").read_text().split()[:3] if Path("/proc/loadavg").exists() else None


def keep(result: object, output: Path | None) -> None:
    """Prints a result, and writes it to a JSON file where one is named."""
    text = json.dumps(result, indent=2)
    print(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n")


def launcher(processes: int) -> list[str]:
    """The start of a command, up to Python's `-m`: one process, or several that torchrun starts on this machine."""
    several = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, *(several if processes > 1 else [])]
