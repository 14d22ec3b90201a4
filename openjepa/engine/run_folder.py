"""The run folder: who may write it, whether it is the same run, and what it says about its environment."""

import json
import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import openjepa
from openjepa.config import difference, load_run_config, save_yaml
from openjepa.engine.device import device_name
from openjepa.engine.run_log import logged_steps
from openjepa.refusals import Refusal
from openjepa.settings.run import RunConfig
from openjepa.system.claims import Claim, take
from openjepa.system.hub_names import MARK
from openjepa.system.json_files import read_object
from openjepa.system.shell import this_command
from openjepa.system.whole_files import whole_file

_CANNOT_CHANGE_RESULTS = ("system", "monitor", "run.name", "run.output", "recipe", "preset", "data.max_skipped")
_RESOLVED = ("run.device", "run.precision")
"""Not compared as they are written but as what they were resolved to, which environment.json holds."""


WEIGHT_ENDINGS = (".tar", ".pth", ".pt", ".ckpt", ".bin", ".safetensors")
"""Of files of weights; `.pth.tar` has two."""
USUAL_NAMES = ("encoder", "context_encoder", "encoder_initial", "model", "pytorch_model", "checkpoint", "jepa-latest")
"""Of folders and files of weights that are called the same everywhere."""


@dataclass(frozen=True)
class RunFolder:
    """An opened, locked run folder."""

    path: Path
    lock: Claim
    """Held until closed or until the process ends."""
    notes: tuple[str, ...] = ()
    """What makes a continued run differ from one that was left alone, though it may be continued."""

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
        self.lock.release()


def open_run_folder(config: RunConfig, fresh: bool, device: torch.device, precision: str) -> RunFolder:
    """Creates or reopens the folder of `config`, locks it and writes `config.yaml`.

    Raises Refusal where the folder holds a run whose settings, device or precision could give other results (with the
    difference), or where another process is writing. A run that has not taken a step binds nothing: its settings are replaced.
    `fresh` takes the next free name instead.
    """
    path = run_path(config)
    if fresh:
        path = _next_free(path)
    path.mkdir(parents=True, exist_ok=True)
    lock = _lock(path)
    notes: tuple[str, ...] = ()
    try:
        if has_begun(path):
            _check_same_run(path, config)
            notes = _check_same_machine(path, device, precision)
    except BaseException:
        lock.release()
        raise
    # the name that the folder really has, so that its config.yaml continues it and no other
    named = replace(config, run=replace(config.run, name=path.name))
    with whole_file(path / "config.yaml") as file:
        save_yaml(named, file)
    return RunFolder(path, lock, notes)


def has_begun(path: Path) -> bool:
    """Whether a run folder holds the work of a step: a checkpoint, broken ones included, an encoder or a line of the log."""
    saved = [*path.glob("checkpoints/step_*"), *path.glob("checkpoints/broken_step_*")]
    return bool(saved) or (path / "encoder").exists() or logged_steps(path) > 0


def run_path(config: RunConfig) -> Path:
    """`<output>/<name>`; without a name it is made of the recipe's, the preset's, the data set's and the starting weights'."""
    parts = [part for part in (config.recipe, config.preset, config.data.name()) if part != "custom"]
    origin = [] if config.run.init is None else ["from", weights_name(config.run.init)]
    return Path(config.run.output).expanduser() / (config.run.name or "-".join([*parts, *origin]))


def weights_name(init: str) -> str:
    """What weights are called: their file without its ending, or their folder; with the folder above where that tells more.

    Depends on nothing but the words, so that a run is found again when the weights are gone.
    """
    place = Path(init.removeprefix(MARK))
    name = without_ending(place.name)
    return f"{place.parent.name}-{name}" if name in USUAL_NAMES and place.parent.name else name


def without_ending(name: str) -> str:
    """The name of a file of weights without its endings."""
    return re.sub(rf"({'|'.join(map(re.escape, WEIGHT_ENDINGS))})+$", "", name)


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
        "command": this_command(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _next_free(path: Path) -> Path:
    number, candidate = 2, path
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def _lock(path: Path) -> Claim:
    claim = take(path / ".lock")
    if claim is None:
        raise Refusal(f"another process is writing to {path}; wait for it, or choose another --run.name or --fresh")
    # forked data workers would hold the lock on after this process is killed
    os.register_at_fork(after_in_child=claim.leave)
    return claim


def _check_same_run(path: Path, config: RunConfig) -> None:
    file = path / "config.yaml"
    if not file.exists():
        return
    skipped = _CANNOT_CHANGE_RESULTS + (_RESOLVED if (path / "environment.json").exists() else ())
    changed = [
        f"  {name}: {old!r} -> {new!r}"
        for name, old, new in difference(load_run_config(file), config)
        if not any(name == skip or name.startswith(f"{skip}.") for skip in skipped)
    ]
    if changed:
        listing = "\n".join(changed)
        raise Refusal(
            f"{path} holds a run with other settings (there -> asked for):\n{listing}\n"
            "Repeat its settings to continue it, or pass --fresh or --run.name for a new folder; nothing was changed."
        )


def _check_same_machine(path: Path, device: torch.device, precision: str) -> tuple[str, ...]:
    """Raises Refusal for another kind of device or precision than the first session's; returns notes on smaller changes."""
    first = read_object(path / "environment.json") or {}
    # the number of threads decides the order of sums only where the CPU does them
    now = {"torch": torch.__version__} | ({"threads": torch.get_num_threads()} if device.type == "cpu" else {})
    device_then = str(first.get("device", device)).split(":")[0]
    precision_then = first.get("precision", precision)
    if (device_then, precision_then) != (device.type, precision):
        raise Refusal(
            f"{path} holds a run on {device_then} in {precision_then}, and this would continue it on {device.type} in "
            f"{precision} (run.device, run.precision). Continue it with --run.device {device_then} --run.precision "
            f"{precision_then}, or pass --fresh or --run.name for a new folder; nothing was changed."
        )
    return tuple(
        f"{name} was {first[name]} and is now {now[name]}: the continued run is not bitwise the one that was left alone"
        for name in now
        if name in first and first[name] != now[name]
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
