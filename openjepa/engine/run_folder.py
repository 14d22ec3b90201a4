"""The run folder: its lock, the check that it holds the same run, its environment, and its logs.

The logs are metrics.jsonl, skipped.jsonl and, if asked for, TensorBoard.
"""

import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import torch

import openjepa
from openjepa.config import difference, load_run_config, log_lines, number, read_object, readable, save_yaml
from openjepa.engine import distributed
from openjepa.engine.device import device_name
from openjepa.masks.official_draws import microbatch_note
from openjepa.records import Environment, read_environment, read_summary, seconds_of_steps
from openjepa.refusals import Refusal, require_package
from openjepa.settings.run import RunConfig
from openjepa.system.console import HUB_MARK, this_command
from openjepa.system.shared_files import Claim, take, whole_file
from openjepa.types import Skipped

_CANNOT_CHANGE_RESULTS = (
    "system",
    "parallel",
    "run.recompute",
    "monitor",
    "run.name",
    "run.output",
    "recipe",
    "preset",
    "data.max_skipped",
)
_RESOLVED = ("run.device", "run.precision")
"""Settings that are compared by their resolved values (environment.json)."""
WEIGHT_ENDINGS = (".tar", ".pth", ".pt", ".ckpt", ".bin", ".safetensors")
"""Endings of files of weights. A file may have two of them: `.pth.tar`."""
USUAL_NAMES = ("encoder", "context_encoder", "encoder_initial", "model", "pytorch_model", "checkpoint", "jepa-latest")
"""Names of weights that say nothing, because they are the same everywhere."""


@dataclass(frozen=True)
class RunFolder:
    """An opened, locked run folder."""

    path: Path
    lock: Claim | None
    """Lock that the main process holds until `close` or until it ends; None in the other processes."""
    notes: tuple[str, ...] = ()
    """Notes on what makes a continued run differ from an uninterrupted one, although it may be continued."""

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Writes the JSON file `name`, which nobody sees half-written."""
        with whole_file(self.path / name) as file:
            file.write_text(json.dumps(content, indent=1, default=str))

    def close(self) -> None:
        """Releases the lock, so that another run can write here."""
        if self.lock is not None:
            self.lock.release()


def open_run_folder(config: RunConfig, fresh: bool, device: torch.device, precision: str) -> RunFolder:
    """The folder of `config`, which the main process creates or reopens, locks and prepares for all processes.

    `fresh`: takes the next free name. Raises Refusal, with the difference, if the folder holds a run whose settings, device or
    precision could give other results, or if another process is writing. The settings of a run that has not taken a step are
    replaced.
    """
    locks: list[Claim] = []

    def prepare() -> tuple[Path, tuple[str, ...]]:
        path, lock, notes = _prepared(config, fresh, device, precision)
        locks.append(lock)
        return path, notes

    path, notes = distributed.from_main(prepare)
    return RunFolder(path, locks[0] if locks else None, notes)


def _prepared(config: RunConfig, fresh: bool, device: torch.device, precision: str) -> tuple[Path, Claim, tuple[str, ...]]:
    path = run_path(config)
    if fresh:
        # processes that torchrun starts again continue the folder that they have begun
        path = Path(distributed.once(f"fresh {path}", lambda: str(_next_free(path))))
    path.mkdir(parents=True, exist_ok=True)
    lock = _lock(path)
    notes: tuple[str, ...] = ()
    try:
        if has_begun(path):
            processes = read_summary(read_object(path / "summary.json") or {}).processes or 1
            _check_same_run(path, config, processes)
            notes = _check_same_processes(path, config, processes) + _check_same_machine(path, device, precision)
    except BaseException:
        lock.release()
        raise
    # the actual name of the folder, so that its config.yaml continues this run and no other
    named = replace(config, run=replace(config.run, name=path.name))
    with whole_file(path / "config.yaml") as file:
        save_yaml(named, file)
    return path, lock, notes


def has_begun(path: Path) -> bool:
    """True if a run folder holds the work of a step: a checkpoint (even a broken one), an encoder or a line of the log."""
    saved = [*path.glob("checkpoints/step_*"), *path.glob("checkpoints/broken_step_*")]
    return bool(saved) or (path / "encoder").exists() or logged_steps(path) > 0


def run_path(config: RunConfig) -> Path:
    """`<output>/<name>`. The default name joins the names of recipe, preset, data set and starting weights."""
    parts = [part for part in (config.recipe, config.preset, config.data.name()) if part != "custom"]
    origin = [] if config.run.init is None else ["from", weights_name(config.run.init)]
    return Path(config.run.output).expanduser() / (config.run.name or "-".join([*parts, *origin]))


def weights_name(init: str) -> str:
    """Name of weights: their file without its ending, or their folder. If that says nothing, the folder above is added.

    It depends only on the words of `init`, so that a run is found again even if the weights are gone.
    """
    place = Path(init.removeprefix(HUB_MARK))
    name = without_ending(place.name)
    return f"{place.parent.name}-{name}" if name in USUAL_NAMES and place.parent.name else name


def without_ending(name: str) -> str:
    """The name of a file of weights without its endings."""
    return re.sub(rf"({'|'.join(map(re.escape, WEIGHT_ENDINGS))})+$", "", name)


def environment(device: torch.device, precision: str) -> Environment:
    """Everything beside the settings on which the numbers of a run depend: versions, hardware, threads, commit."""
    return Environment(
        openjepa=openjepa.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=device_name(torch.device("cpu")),
        threads=torch.get_num_threads(),
        device=str(device),
        device_name=device_name(device),
        precision=precision,
        commit=_commit(),
        command=this_command(),
        started=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    )


class RunLog:
    """Appends to the logs of a run folder. First drops the lines after the step from which training resumes."""

    def __init__(self, folder: Path, resume_step: int, tensorboard: bool) -> None:
        """Opens the logs. `resume_step`: the step from which training resumes; -1 for a new run.

        Only the main process writes. The others can read what was there, and what they write is dropped.
        """
        self._path = folder / "metrics.jsonl"
        self._skipped = folder / "skipped.jsonl"
        distributed.from_main(lambda: _truncate(self._path, resume_step))
        distributed.from_main(lambda: _truncate(self._skipped, resume_step))
        self._writes = distributed.is_main()
        self._metrics: IO[str] = (self._path if self._writes else Path(os.devnull)).open("a")
        self._events = _event_writer(folder, resume_step) if tensorboard and self._writes else None

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Writes one line of metrics.jsonl. Numbers that are not finite are written as null."""
        clean = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
        }
        self._metrics.write(json.dumps({"kind": kind, "step": step, **clean}) + "\n")
        self._metrics.flush()
        if self._events is not None:
            for name, value in clean.items():
                if isinstance(value, int | float):
                    self._events.add_scalar(f"{kind}/{name}", value, step)

    def read(self, kind: str) -> list[dict[str, Any]]:
        """All lines of one kind so far, oldest first."""
        return _rows(self._path, kind)

    def skipped_names(self) -> list[str]:
        """Names of the samples that skipped.jsonl already lists."""
        rows = filter(None, map(readable, log_lines(self._skipped)))
        return [str(row["name"]) for row in rows if "name" in row]

    def write_skipped(self, found: Iterable[tuple[int, Skipped]]) -> None:
        """Writes one line of skipped.jsonl for each sample that was replaced. `found`: each with its step."""
        lines = [json.dumps({"step": step, **asdict(sample)}) for step, sample in found]
        if lines and self._writes:
            with self._skipped.open("a") as file:
                file.write("\n".join(lines) + "\n")

    def close(self) -> None:
        """Flushes and closes."""
        self._metrics.close()
        if self._events is not None:
            self._events.close()


def logged_steps(folder: Path) -> int:
    """The last step in metrics.jsonl of a run folder; 0 if no step was logged."""
    steps = map(_step_of, log_lines(folder / "metrics.jsonl"))
    return int(max((step for step in steps if step < math.inf), default=0))


def logged_step_seconds(folder: Path, step: int) -> float:
    """Seconds of the steps up to `step`, from the speeds in metrics.jsonl. For runs of versions that did not sum them."""
    rows = [row for row in _rows(folder / "metrics.jsonl", "train") if row["step"] <= step]
    speeds = [(number(row.get("images")), number(row.get("images_per_second"))) for row in rows]
    return seconds_of_steps((images, speed) for images, speed in speeds if images is not None and speed is not None)


def refuse_missing_tensorboard(wanted: bool) -> None:
    """Raises Refusal if `wanted` is true but TensorBoard is not installed."""
    if wanted:
        require_package("tensorboard", "system.tensorboard=True", "turn it off")


def _next_free(path: Path) -> Path:
    """The first free one of `path`, `path-2`, `path-3`, ..."""
    number, candidate = 2, path
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


def _lock(path: Path) -> Claim:
    claim = take(path / ".lock", forked=False)
    if claim is None:  # `openjepa runs` may just be looking at it, which takes no time
        time.sleep(0.1)
        claim = take(path / ".lock", forked=False)
    if claim is None:
        raise Refusal(f"another process is writing to {path}; wait for it, or choose another --run.name or --fresh")
    return claim


def _check_same_run(path: Path, config: RunConfig, processes: int) -> None:
    """Raises Refusal if `config` is another run than that of `path`, which was trained by `processes`."""
    file = path / "config.yaml"
    if not file.exists():
        return
    skipped = _CANNOT_CHANGE_RESULTS + (_RESOLVED if (path / "environment.json").exists() else ())
    if processes != distributed.world_size():  # the same batch is divided in another way
        skipped += ("optim.microbatch_size",)
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


def _check_same_processes(path: Path, config: RunConfig, before: int) -> tuple[str, ...]:
    """Notes if the last session had another number of processes than this one."""
    now = distributed.world_size()
    if before == now:
        return ()
    note = (
        f"the run had {before} process{'es' * (before > 1)} and continues with {now}: every step has the same samples, crops "
        "and masks, but sums are taken in another order, so the weights agree to rounding and not bitwise"
    )
    size_then, size_now = (
        load_run_config(path / "config.yaml").optim.images_at_a_time(before),
        config.optim.images_at_a_time(now),
    )
    if size_then * before != size_now * now:
        note += (
            f". Terms of the loss that look at many images together saw {size_then * before} at a time and now see "
            f"{size_now * now}: --optim.microbatch-size {max(1, size_then * before // now)} keeps that"
        )
    of_masks = microbatch_note(config.masks, size_then, size_now)
    return (note,) if of_masks is None else (note, of_masks)


def _check_same_machine(path: Path, device: torch.device, precision: str) -> tuple[str, ...]:
    """Raises Refusal for another kind of device or precision than the first session's; returns notes on smaller changes."""
    content = read_object(path / "environment.json") or {}
    first = read_environment(content)
    # the number of threads decides the order of sums only where the CPU does them
    now: dict[str, object] = {"torch": torch.__version__} | (
        {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
    )
    # as they stand in the file: what is damaged there must not pass for the device of today
    device_then = str(content.get("device", device)).split(":")[0]
    precision_then = content.get("precision", precision)
    if (device_then, precision_then) != (device.type, precision):
        raise Refusal(
            f"{path} holds a run on {device_then} in {precision_then}, and this would continue it on {device.type} in "
            f"{precision} (run.device, run.precision). Continue it with --run.device {device_then} --run.precision "
            f"{precision_then}, or pass --fresh or --run.name for a new folder; nothing was changed."
        )
    return tuple(
        f"{name} was {then} and is now {now[name]}: the continued run is not bitwise the one that was left alone"
        for name in now
        if (then := getattr(first, name)) and then != now[name]
    )


def _commit() -> str | None:
    """Commit of the git checkout that this package runs from, marked if it has changes; None outside a checkout."""
    root = Path(openjepa.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _truncate(path: Path, step: int) -> None:
    """Drops broken lines and lines after `step`, because what they measured will be measured again."""
    if not path.exists():
        return
    kept = [line for line in log_lines(path) if _step_of(line) <= step]
    with whole_file(path) as file:
        file.write_text("".join(f"{line}\n" for line in kept))


def _rows(path: Path, kind: str) -> list[dict[str, Any]]:
    """All lines of one kind, oldest first, without damaged ones."""
    lines = [line for line in log_lines(path) if _step_of(line) < math.inf]
    return [row for row in filter(None, map(readable, lines)) if row.get("kind") == kind]


def _step_of(line: str) -> float:
    """The step of a line of the log; infinite if the line is damaged."""
    step = number((readable(line) or {}).get("step"))
    return math.inf if step is None else step


def _event_writer(folder: Path, resume_step: int) -> Any:
    refuse_missing_tensorboard(wanted=True)
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=max(0, resume_step))
