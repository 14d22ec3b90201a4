"""How long a training loop stands still for a save: written at once, or by a thread. `python -m benchmarks.checkpoints`.

Every round trains an encoder with its moving average three times: without saves, with saves that the loop waits for, and with
saves that a thread writes. The stall is the time that the loop spends in `save`. The cost is what a save adds to the time of
the run. It includes what the thread takes from the steps, but is the difference of two runs and therefore less certain.
"""

import copy
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import nn

from benchmarks.records import keep, load, origin
from openjepa.engine.checkpoint import CheckpointWriter, TrainerState
from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig
from openjepa.types import LoaderPosition


@dataclass(frozen=True)
class Options:
    """The network, and how often it is saved."""

    width: int = 192
    """Width of the encoder (ViT-Ti: 192)."""
    depth: int = 12
    """Blocks of the encoder."""
    batch_size: int = 16
    """Images of a step, of 64 x 64 pixels in patches of 8."""
    steps: int = 40
    """Steps between two saves."""
    saves: int = 3
    """Saves in a run."""
    rounds: int = 3
    """Number of times that each way runs, in turns."""
    folder: Path | None = None
    """Folder on the disk that is written to. None: the system's folder for temporary files."""
    output: Path | None = None
    """JSON file."""


@dataclass(frozen=True)
class Times:
    """Seconds of one run."""

    whole: float
    stalls: tuple[float, ...] = ()


def main() -> None:
    """Runs and prints."""
    options = tyro.cli(Options, description=__doc__)
    keep(compare(options), options.output)


def compare(options: Options) -> dict[str, Any]:
    """Stall and cost of a save, in seconds and as shares of the interval between two saves."""
    rounds = [(_run(options, None), _run(options, False), _run(options, True)) for _ in range(options.rounds)]
    interval = statistics.median(plain.whole for plain, _, _ in rounds) / options.saves
    waiting = _summary([(plain, run) for plain, run, _ in rounds], interval, options.saves)
    beside = _summary([(plain, run) for plain, _, run in rounds], interval, options.saves)
    model, optimizer = _network(options)
    moments = 2 * sum(value.nbytes for group in optimizer.param_groups for value in group["params"])
    return {
        **origin(),
        "load": load(),
        "weights": sum(value.numel() for value in model.parameters()),
        "bytes": sum(value.nbytes for value in model.state_dict().values()) + moments,
        "interval_seconds": interval,
        "waited for": waiting,
        "by a thread": beside,
        "stall_ratio": beside["stall_seconds"] / waiting["stall_seconds"],
    }


def _summary(runs: list[tuple[Times, Times]], interval: float, saves: int) -> dict[str, float]:
    stall = statistics.median(seconds for _, run in runs for seconds in run.stalls)
    cost = statistics.median((run.whole - plain.whole) / saves for plain, run in runs)
    return {
        "stall_seconds": stall,
        "stall_share": stall / interval,
        "stall_share_of_10_minutes": stall / 600,
        "cost_seconds": cost,
        "cost_share": cost / interval,
    }


def _network(options: Options) -> tuple[nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    shape = {"width": options.width, "depth": options.depth, "heads": options.width // 64, "mlp_ratio": 4.0}
    config = EncoderConfig(**shape, patch_size=8, image_size=(64, 64))
    encoder = build_encoder(config)
    average = copy.deepcopy(encoder).requires_grad_(False)
    return nn.ModuleDict({"encoder": encoder, "average": average}), torch.optim.AdamW(encoder.parameters(), lr=1e-4)


def _run(options: Options, asynchronous: bool | None) -> Times:
    """Trains, and saves after every `steps` steps unless `asynchronous` is None. The last write is waited for."""
    model, optimizer = _network(options)
    images = torch.randn(options.batch_size, 3, 64, 64)
    _step(model, optimizer, images)
    stalls = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        begun = time.perf_counter()
        with CheckpointWriter(Path(folder), model, optimizer, asynchronous=bool(asynchronous)) as writer:
            for number in range(1, options.saves + 1):
                for _ in range(options.steps):
                    _step(model, optimizer, images)
                if asynchronous is not None:
                    before = time.perf_counter()
                    writer.save(TrainerState(number, LoaderPosition()))
                    stalls.append(time.perf_counter() - before)
        return Times(time.perf_counter() - begun, tuple(stalls))


def _step(model: nn.Module, optimizer: torch.optim.AdamW, images: torch.Tensor) -> None:
    optimizer.zero_grad()
    model["encoder"](images).patches.square().mean().backward()  # type: ignore[index]
    optimizer.step()


if __name__ == "__main__":
    main()
