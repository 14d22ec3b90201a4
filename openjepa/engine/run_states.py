"""Whether runs train, and how far they are, read from their folders alone. Free of torch.

A run whose lock is held trains, on whatever machine. Without a lock that can be seen from here (another machine's on a file
system that passes no locks on, or none because the folder is a copy), the age of the last line of metrics.jsonl decides. Ages
are measured by the clock of the file system, so that clocks of machines need not agree.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openjepa.config import number, readable, readable_object, readable_yaml
from openjepa.engine.checkpoint_files import newest_first
from openjepa.records import Summary, read_summary
from openjepa.refusals import Refusal
from openjepa.system.console import absent, format_seconds
from openjepa.system.shared_files import is_taken

RUN_FILES = ("config.yaml", "metrics.jsonl", "summary.json")
"""A folder with one of these is a run."""
DEEPEST = 3
"""Levels below the folder on which runs are looked for: `openjepa ablate` writes runs/ablation/<run>."""
STUCK_INTERVALS, LEAST_STUCK_SECONDS = 10, 60.0
"""Logging intervals without a step after which a run is stuck, and the least time that this takes."""
TAIL_BYTES, RECENT_LINES = 65536, 11
"""The end of metrics.jsonl that is read, and the lines of it from which the pace is taken."""

State = Literal["alive", "stuck", "finished", "interrupted", "failed", "never started"]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What the folder of a run says about its training. None: not known."""

    name: str
    """Path of the folder below the one that is listed."""
    state: State
    reason: str = ""
    """Why it is in this state, if there is more to say."""
    recipe: str = ""
    method: str = ""
    step: int = 0
    total_steps: int | None = None
    images_per_second: float | None = None
    """Speed of the last logging interval, over all processes."""
    seconds_left: float | None = None
    """Time that the rest takes at the pace of the last lines."""
    processes: int | None = None
    loss: float | None = None
    step_age: float | None = None
    """Seconds since the last line of the log."""
    checkpoint_age: float | None = None
    """Seconds since the last checkpoint."""
    damaged: tuple[str, ...] = ()
    """Files that cannot be read."""


@dataclass(frozen=True)
class _Log:
    """The end of metrics.jsonl."""

    lines: Sequence[dict[str, Any]] = ()
    """Its last lines of training, oldest first."""
    age: float | None = None
    is_damaged: bool = False

    def pace(self) -> tuple[float, float]:
        """Seconds of a step, and seconds of a logging interval. Infinite if not known."""
        first, last = self.lines[0], self.lines[-1]
        steps, seconds = last["step"] - first["step"], last["seconds"] - first["seconds"]
        if len(self.lines) == 1:
            steps, seconds = last["step"], last["seconds"]
        intervals = max(1, len(self.lines) - 1)
        return (seconds / steps, seconds / intervals) if steps > 0 and seconds >= 0 else (float("inf"), float("inf"))


def list_runs(folder: Path) -> list[RunState]:
    """The states of all runs in and below `folder`, by name. Raises Refusal if there is no such folder."""
    if not folder.is_dir():
        raise Refusal(f"FOLDER={folder} {'is no folder' if folder.exists() else absent(folder, hub=False, files=False)}")
    now = _now(folder)
    return [run_state(path, folder, now) for path in _runs(folder, DEEPEST)]


def _runs(folder: Path, levels: int) -> Iterator[Path]:
    """Yields the run folders in and below `folder`, by name. Leaves out what cannot be read, and hidden folders."""
    try:
        with os.scandir(folder) as entries:
            is_folder = {entry.name: entry.is_dir() for entry in entries}
    except OSError:
        return
    if any(is_folder.get(name) is False for name in RUN_FILES):
        yield folder
    elif levels:
        for name in sorted(name for name, yes in is_folder.items() if yes and not name.startswith(".")):
            yield from _runs(folder / name, levels - 1)


def _now(folder: Path) -> float:
    """The time by the clock that dates the files in `folder`; that of this machine if no file can be made there."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:
        return time.time()


def run_state(path: Path, below: Path, now: float) -> RunState:
    """The state of the run in the folder `path`. `below`: the folder that its name is relative to. `now`: time in seconds."""
    damaged: list[str] = []
    config, summary = _config(path, damaged), _summary(path, damaged)
    log = _log(path / "metrics.jsonl", now)
    saved_step, checkpoint_age = _newest_checkpoint(path / "checkpoints", now)
    last = log.lines[-1] if log.lines else {}
    step = int(last.get("step", summary.step or saved_step))
    is_locked = is_taken(path / ".lock")
    if log.is_damaged or (step and not log.lines and not is_locked):  # a run that has taken steps has logged them
        damaged.append("metrics.jsonl")
    state, reason = _judged(summary, log, is_locked)
    if is_locked is False and ((state == "never started" and step) or (state == "alive" and "summary.json" in damaged)):
        state, reason = "interrupted", "no process holds its lock"
    total = summary.total_steps or _total_steps(config)
    seconds = log.pace()[0] if log.lines else float("inf")
    left = max(0, total - step) * seconds if total and seconds < float("inf") else None
    return RunState(
        name=str(path.relative_to(below)) if path != below else path.resolve().name,
        state=state,
        reason=reason,
        recipe=_text(config.get("recipe")),
        method=_text(_group(config, "method").get("name")),
        step=step,
        total_steps=total,
        images_per_second=number(last.get("images_per_second")),
        seconds_left=0.0 if state == "finished" else left,
        processes=summary.processes,
        loss=number(last.get("loss")),
        step_age=log.age,
        checkpoint_age=checkpoint_age,
        damaged=tuple(damaged),
    )


def _judged(summary: Summary, log: _Log, is_locked: bool | None) -> tuple[State, str]:
    """The state of a run and the reason. `is_locked`: None if the file system does not tell."""
    age = log.age if log.lines and log.age is not None else None
    silent = age is not None and age > max(LEAST_STUCK_SECONDS, STUCK_INTERVALS * log.pace()[1])
    since = "" if age is None else f"no step for {format_seconds(age)}"
    if summary.status == "finished":
        return "finished", ""
    if is_locked:
        return ("stuck", since) if silent else ("alive", "" if log.lines else "no step yet")
    if summary.status == "failed":
        return "failed", _text(summary.error, 300)
    if summary.status == "interrupted":
        return "interrupted", f"a process was killed or hung in {_text(summary.lost_in)}" if summary.lost_in else ""
    if not log.lines:
        return "never started", ""
    if not silent:
        return "alive", ""  # on a machine whose locks are not seen here
    return "interrupted", f"{since}, and no process holds its lock"


def _config(path: Path, damaged: list[str]) -> dict[str, Any]:
    file = path / "config.yaml"
    if not file.exists():
        return {}
    try:
        content = readable_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if content is None:
        damaged.append(file.name)
    return content or {}


def _summary(path: Path, damaged: list[str]) -> Summary:
    content = readable_object(path / "summary.json")
    if content is None and (path / "summary.json").exists():
        damaged.append("summary.json")
    return read_summary(content or {})


def _log(path: Path, now: float) -> _Log:
    """Reads the end of metrics.jsonl. Its last line may be half-written, and its first one is cut."""
    try:
        with path.open("rb") as file:
            start = max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES)
            file.seek(start)
            text = file.read().decode("utf-8", errors="replace")
            age = max(0.0, now - os.fstat(file.fileno()).st_mtime)
    except FileNotFoundError:
        return _Log()
    except OSError:
        return _Log(is_damaged=True)
    whole, _, cut = text.rpartition("\n")
    lines, is_damaged = list[dict[str, Any]](), bool(cut) and not cut.startswith("{")
    for row in map(readable, filter(None, reversed(whole.split("\n")[bool(start) :]))):
        is_damaged = is_damaged or row is None
        if row is not None and row.get("kind") == "train" and _is_timed(row):
            lines.insert(0, row)
        if len(lines) == RECENT_LINES:
            break
    return _Log(lines, age, is_damaged)


def _is_timed(row: dict[str, Any]) -> bool:
    return all(number(row.get(name)) is not None for name in ("step", "seconds"))


def _newest_checkpoint(folder: Path, now: float) -> tuple[int, float | None]:
    """The step of the last checkpoint and its age; 0 and None if there is none that can be seen."""
    try:
        saved = newest_first(folder)
        dates = [path.stat().st_mtime for path in saved]
    except OSError:
        return 0, None
    steps = [int(digits) for digits in (path.name.removeprefix("step_") for path in saved) if digits.isdecimal()]
    return max(steps, default=0), max(0.0, now - max(dates)) if dates else None


def _total_steps(config: dict[str, Any]) -> int | None:
    steps = number(_group(config, "optim").get("total_steps"))
    return None if steps is None else int(steps)


def _group(config: dict[str, Any], name: str) -> dict[str, Any]:
    found = config.get(name)
    return found if isinstance(found, dict) else {}


def _text(value: object, limit: int = 80) -> str:
    line = " ".join(str(value or "").split())
    return line if len(line) <= limit else f"{line[: limit - 3]}..."
