"""One process beside several: the same run, in turns. `python -m benchmarks.processes [--processes 2] [--strategy ddp]`.

Every round trains the recipe twice on generated images: in one process (on CPUs with as many threads as there are processes),
and in several of one thread (or one GPU) each. Images per second are those of the last logging intervals, so that start and
first steps do not count. Ratios are computed within a round. Both runs see the same samples.
"""

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.records import keep, launcher, load, origin
from benchmarks.walks import write_images

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Options:
    """What is compared."""

    processes: int = 2
    """Number of processes that share the batch."""
    recipe: str = "cpu-64"
    """Recipe of both runs."""
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    """How several processes train."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Devices of both runs. Several processes need as many GPUs."""
    batch_size: int = 64
    """Images per step, over all processes."""
    steps: int = 60
    """Steps of each run. The first third is not counted."""
    rounds: int = 3
    """Number of times that both run."""
    limit: float = 3600.0
    """Seconds after which a run is ended, with an error."""
    settings: tuple[str, ...] = ()
    """More options of `openjepa train`, for both."""
    output: Path | None = None
    """JSON file."""


def main() -> None:
    """Runs and prints."""
    options = tyro.cli(Options, description=__doc__)
    keep(compare(options), options.output)


def compare(options: Options) -> dict[str, object]:
    """Images per second of one process and of several, in every round, and how long their steps waited for data."""
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        write_images(images, images=max(64, options.batch_size))
        both = (1, options.processes)
        rounds = [[_speed(options, number, Path(folder), images) for number in both] for _ in range(options.rounds)]
    ratios = [several[0] / one[0] for one, several in rounds]
    return {
        **origin(),
        "load": load(),
        "recipe": options.recipe,
        "strategy": options.strategy,
        "batch_size": options.batch_size,
        "processes": options.processes,
        "images_per_second": {"one process": [one[0] for one, _ in rounds], "several": [several[0] for _, several in rounds]},
        "data_wait": {"one process": [one[1] for one, _ in rounds], "several": [several[1] for _, several in rounds]},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def _speed(options: Options, processes: int, folder: Path, images: Path) -> tuple[float, float]:
    """Images per second of one run, and the share of its time that it waited for data."""
    name = f"run{processes}"
    train = ["-m", "openjepa", "train", options.recipe, "--data.path", str(images)]
    train += ["--run.output", str(folder), "--run.name", name]
    train += ["--optim.total-steps", str(options.steps), "--optim.batch-size", str(options.batch_size), "--fresh"]
    train += ["--run.device", options.device, "--monitor.every", "0", "--system.log-every", str(max(1, options.steps // 6))]
    train += ["--parallel.strategy", options.strategy, "--optim.warmup-steps", "2", *options.settings]
    threads = 1 if processes > 1 else options.processes
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [*launcher(processes), *train, "--system.threads", str(threads)]
    _ended_well(command, environment, options.limit)
    logs = sorted(folder.glob(f"{name}*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
    rows = [json.loads(line) for line in logs[-1].read_text().splitlines()]
    counted = [row for row in rows if row["kind"] == "train" and row["step"] > options.steps // 3]
    return statistics.mean(row["images_per_second"] for row in counted), statistics.mean(row["data_wait"] for row in counted)


def _ended_well(command: Sequence[str], environment: Mapping[str, str], limit: float) -> None:
    """Runs `command`. Raises RuntimeError, with its output, if it fails or if it does not end within `limit` seconds."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **streams) as process:  # type: ignore[call-overload]
        try:
            output, late = process.communicate(timeout=limit)[0], ""
        except subprocess.TimeoutExpired:
            process.terminate()  # not killed: torchrun ends its workers, which have sessions of their own
            output, late = process.communicate()[0], f"no end within {limit:g} s: "
    if process.returncode or late:
        raise RuntimeError(f"{late}{' '.join(command)}\n{output[-4000:]}")


if __name__ == "__main__":
    main()
