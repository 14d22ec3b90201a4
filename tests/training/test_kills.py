"""Runs that are killed again and again at random moments, also in the middle of a save, and end as if nothing had happened.

Each prints what it has seen; docs/results/scale/kills.txt keeps that.
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from openjepa.engine import checkpoint
from openjepa.refusals import Refusal
from openjepa.settings.run import RunConfig
from openjepa.training.loop import train
from tests.helpers.images import write_folder
from tests.helpers.processes import in_clean_process
from tests.helpers.ranks import SECONDS, on_ranks, start_ranks
from tests.helpers.small_runs import lines, small_config, weights
from tests.helpers.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
WRITES = ("begin_checkpoint", "save_tensors", "checksums", "write_manifest", "flush_folder", "prune")
"""What a save does, in this order; `flush_folder` comes after the renaming."""


def run(images: Path, output: Path, steps: int, saves: bool = True) -> RunConfig:
    """A run that saves after every step, or only at its end."""
    config = small_config(images, output, total_steps=steps)
    system = replace(config.system, checkpoint_minutes=0.0 if saves else 999.0, threads=1)
    return replace(config, monitor=replace(config.monitor, every=0), system=system)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "images", 40)


def slowly(seconds: float, work: Callable[..., Any]) -> Callable[..., Any]:
    """`work` with a pause before it and after it."""

    def paused(*values: Any, **named: Any) -> Any:
        time.sleep(seconds)
        result = work(*values, **named)
        time.sleep(seconds)
        return result

    return paused


def train_slowly_saving(config: RunConfig, seconds: float) -> None:
    """Trains with pauses in every part of a save, so that a kill meets each. For a process that is killed."""
    for name in WRITES if seconds else ():
        setattr(checkpoint, name, slowly(seconds, getattr(checkpoint, name)))
    train(config)


def state_of(folder: Path) -> str:
    """What a killed run has left of the save that it was in."""
    unfinished = list(folder.glob("checkpoints/.writing-*"))
    if not unfinished:
        return "between two saves" if (folder / "checkpoints").exists() else "before the first save"
    inside = unfinished[0]
    if (inside / "manifest.json").exists():
        return "in a save, before the renaming"
    return "in a save, tensors written" if (inside / "tensors" / ".metadata").exists() else "in a save, tensors missing"


def losses(folder: Path) -> list[tuple[float, float]]:
    return [(line["step"], line["loss"]) for line in lines(folder, "train")]


def same_end(one: Path, other: Path) -> bool:
    """True if two runs have bitwise the same losses, networks, and last checkpoints."""
    first, second = (checkpoint.latest_checkpoint(folder / "checkpoints") for folder in (one, other))
    assert first is not None and second is not None and first.name == second.name
    states = [tensors(path) for path in (first, second)]
    assert states[0].keys() == states[1].keys()
    same_state = all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    networks = [weights(folder) for folder in (one, other)]
    return same_state and losses(one) == losses(other) and all(torch.equal(networks[0][n], networks[1][n]) for n in networks[0])


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint: weights, target encoder, moments."""
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    file = path.parent.parent / "whole.pt"
    dcp_to_torch_save(path / "tensors", file)
    found: dict[str, torch.Tensor] = {}

    def add(name: str, value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                add(f"{name}.{key}", item)
        elif isinstance(value, torch.Tensor):
            found[name] = value

    add("", torch.load(file, weights_only=False))
    assert any("moment" in name or "exp_avg" in name for name in found)
    return found


def newest(folder: Path) -> str:
    """The name of the last checkpoint; empty without one."""
    return max((path.name for path in folder.glob("checkpoints/step_*")), default="")


def wait_for_a_save(folder: Path, before: str) -> None:
    """Waits for a checkpoint that is newer than `before`."""
    wait_for(lambda: newest(folder) > before, SECONDS)


def test_fifty_kills_of_one_process_leave_the_run_as_it_would_have_been(images: Path, tmp_path: Path) -> None:
    steps, kills = 500, 50
    chance = random.Random(0)
    whole = train(run(images, tmp_path / "whole", steps, saves=False))
    config, folder = run(images, tmp_path / "killed", steps), tmp_path / "killed" / "run"
    seen: Counter[str] = Counter()
    for number in range(kills):
        before = newest(folder)
        process = in_clean_process(train_slowly_saving, config, (0, 0, 0.02, 0.1)[number % 4], log=tmp_path / "log")
        if number % 5 > 0:  # every fifth may be killed while it starts
            wait_for_a_save(folder, before)
        time.sleep(chance.uniform(0, 1.0))
        assert process.pid is not None and process.is_alive(), (tmp_path / "log").read_text()
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        seen[state_of(folder)] += 1
    at = losses(folder)[-1][0]
    assert train(run(images, tmp_path / "killed", steps, saves=False)) == folder
    broken = list((folder / "checkpoints").glob("broken_*"))
    print(f"\n{kills} SIGKILLs of one process, the last at about step {at} of {steps}:")
    for state, count in sorted(seen.items()):
        print(f"  {count:3} {state}")
    assert whole is not None
    equal = same_end(whole, folder)
    print(f"  {len(broken)} broken checkpoints; losses, networks, moments bitwise as in the undisturbed run: {equal}")
    assert equal and not broken and sum(count for state, count in seen.items() if "in a save" in state) >= 10


def ends(config: RunConfig) -> str:
    try:
        train(config)
    except Refusal as error:
        return str(error)
    return "finished"


def test_ten_kills_of_one_of_two_processes_leave_the_run_as_it_would_have_been(images: Path, tmp_path: Path) -> None:
    steps, kills = 150, 10
    chance = random.Random(1)
    on_ranks(2, tmp_path / "output", train, run(images, tmp_path / "whole", steps, saves=False))
    config, folder = run(images, tmp_path / "killed", steps), tmp_path / "killed" / "run"
    seen: Counter[str] = Counter()
    slowest = 0.0
    for number in range(kills):
        before = newest(folder)
        ranks = start_ranks(2, tmp_path / f"output{number}", ends, config)
        wait_for_a_save(folder, before)
        time.sleep(chance.uniform(0, 1.0))
        rank = chance.randrange(2)
        assert all(process.is_alive() for process in ranks)
        os.kill(ranks[rank].pid, signal.SIGKILL)
        begun = time.monotonic()
        ranks[1 - rank].join(SECONDS)
        slowest = max(slowest, time.monotonic() - begun)
        assert ranks[1 - rank].exitcode == 0, "the other process hangs"
        words = torch.load(tmp_path / f"output{number}" / f"rank{1 - rank}.pt", weights_only=False)
        assert "at least one of them ended or cannot be reached" in words, words
        ranks[rank].join()
        seen[f"rank {rank}, {state_of(folder)}"] += 1
    at = losses(folder)[-1][0]
    on_ranks(2, tmp_path / "last", train, run(images, tmp_path / "killed", steps, saves=False))
    print(f"\n{kills} SIGKILLs of one of two processes (DDP), the last at about step {at} of {steps}:")
    for state, count in sorted(seen.items()):
        print(f"  {count:3} {state}")
    equal = same_end(tmp_path / "whole" / "run", folder)
    print(f"  the other ended within {slowest:.1f} s; losses, networks, moments bitwise as undisturbed: {equal}")
    assert equal
