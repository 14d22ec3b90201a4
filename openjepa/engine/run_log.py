"""metrics.jsonl, skipped.jsonl and, if asked for, TensorBoard."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from openjepa.engine.timings import seconds_of_steps
from openjepa.system.json_files import log_lines, number, readable
from openjepa.system.packages import require_package
from openjepa.system.whole_files import whole_file
from openjepa.types import Skipped


class RunLog:
    """Appends to the logs of a run folder; lines after the step that training resumes from are dropped first."""

    def __init__(self, folder: Path, resume_step: int, tensorboard: bool) -> None:
        """Opens the logs; `resume_step` is -1 where nothing is resumed."""
        for name in ("metrics.jsonl", "skipped.jsonl"):
            _truncate(folder / name, resume_step)
        self._path = folder / "metrics.jsonl"
        self._metrics: IO[str] = self._path.open("a")
        self._skipped = folder / "skipped.jsonl"
        self._events = _event_writer(folder, resume_step) if tensorboard else None

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl; numbers that are not finite are written as null."""
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
        """Samples that skipped.jsonl already lists."""
        rows = filter(None, map(readable, log_lines(self._skipped)))
        return [str(row["name"]) for row in rows if "name" in row]

    def write_skipped(self, step: int, samples: Iterable[Skipped]) -> None:
        """One line of skipped.jsonl per sample that was replaced."""
        lines = [json.dumps({"step": step, "name": sample.name, "reason": sample.reason}) for sample in samples]
        if lines:
            with self._skipped.open("a") as file:
                file.write("\n".join(lines) + "\n")

    def close(self) -> None:
        """Flushes and closes."""
        self._metrics.close()
        if self._events is not None:
            self._events.close()


def logged_steps(folder: Path) -> int:
    """The last step that metrics.jsonl of a run folder has a line of; 0 where no step was logged."""
    steps = map(_step_of, log_lines(folder / "metrics.jsonl"))
    return int(max((step for step in steps if step < math.inf), default=0))


def logged_step_seconds(folder: Path, step: int) -> float:
    """Seconds of the steps up to `step`, from the speeds in metrics.jsonl, for runs of versions that did not add them up."""
    rows = [row for row in _rows(folder / "metrics.jsonl", "train") if row["step"] <= step]
    speeds = [(number(row.get("images")), number(row.get("images_per_second"))) for row in rows]
    return seconds_of_steps((images, speed) for images, speed in speeds if images is not None and speed is not None)


def refuse_missing_tensorboard(wanted: bool) -> None:
    """Raises Refusal where TensorBoard is `wanted` and not installed."""
    if wanted:
        require_package("tensorboard", "system.tensorboard=True", "turn it off")


def _truncate(path: Path, step: int) -> None:
    """Drops lines later than `step` and broken ones; whatever was measured after the checkpoint will be measured again."""
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
    """Infinite for a damaged line."""
    step = number((readable(line) or {}).get("step"))
    return math.inf if step is None else step


def _event_writer(folder: Path, resume_step: int) -> Any:
    refuse_missing_tensorboard(wanted=True)
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=max(0, resume_step))
