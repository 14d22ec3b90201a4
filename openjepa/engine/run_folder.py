"""The run folder: who may write it, whether it is the same run, and what it says about its environment."""

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch

import openjepa
from openjepa.config import difference, load_run_config, save_yaml
from openjepa.engine.device import device_name
from openjepa.settings.run import RunConfig
from openjepa.whole_files import whole_file

_CANNOT_CHANGE_RESULTS = ("system", "monitor", "run.name", "run.output", "recipe", "preset", "data.max_skipped")


@dataclass(frozen=True)
class RunFolder:
    """An opened, locked run folder."""

    path: Path
    lock: IO[str]
    """Held until closed or until the process ends."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes a JSON file so that a reader never sees half of it."""
        with whole_file(self.path / name) as file:
            file.write_text(json.dumps(content, indent=1, default=str))

    def close(self) -> None:
        """Lets another process write here."""
        self.lock.close()


def open_run_folder(config: RunConfig, fresh: bool) -> RunFolder:
    """Creates or reopens the folder of `config`, locks it and writes `config.yaml`.

    Raises ValueError where the folder holds a run whose settings could give other results (with the difference), or where
    another process is writing. `fresh` takes the next free name instead.
    """
    path = run_path(config)
    if fresh:
        path = _next_free(path)
    path.mkdir(parents=True, exist_ok=True)
    lock = _lock(path)
    try:
        _check_same_run(path, config)
    except ValueError:
        lock.close()
        raise
    # the name that the folder really has, so that its config.yaml continues it and no other
    named = replace(config, run=replace(config.run, name=path.name))
    with whole_file(path / "config.yaml") as file:
        save_yaml(named, file)
    return RunFolder(path, lock)


def run_path(config: RunConfig) -> Path:
    """`<output>/<name>`; without a name it is made of the recipe's, the preset's and the data set's."""
    name = config.run.name or "-".join(part for part in (config.recipe, config.preset, config.data.name()) if part != "custom")
    return Path(config.run.output).expanduser() / name


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """What the numbers of a run depend on beside its settings."""
    return {
        "openjepa": openjepa.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": device_name(device),
        "precision": precision,
        "commit": _commit(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _next_free(path: Path) -> Path:
    number, candidate = 2, path
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def _lock(path: Path) -> IO[str]:
    lock = (path / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        message = f"another process is writing to {path}; wait for it, or choose another --run.name or --fresh"
        raise ValueError(message) from None
    # forked data workers would hold the lock on after this process is killed
    os.register_at_fork(after_in_child=lock.close)
    return lock


def _check_same_run(path: Path, config: RunConfig) -> None:
    file = path / "config.yaml"
    if not file.exists():
        return
    changed = [
        f"  {name}: {old!r} -> {new!r}"
        for name, old, new in difference(load_run_config(file), config)
        if not any(name == skip or name.startswith(f"{skip}.") for skip in _CANNOT_CHANGE_RESULTS)
    ]
    if changed:
        listing = "\n".join(changed)
        raise ValueError(
            f"{path} holds a run with other settings (there -> asked for):\n{listing}\n"
            "Repeat its settings to continue it, or pass --fresh or --run.name for a new folder; nothing was changed."
        )


def _commit() -> str | None:
    """Commit of the checkout that this package runs from, with a mark if it has changes; None outside a checkout."""
    root = Path(openjepa.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
