"""metrics.jsonl, skipped.jsonl and, if asked for, TensorBoard."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from openjepa.extras import require_package
from openjepa.timings import seconds_of_steps
from openjepa.types import Skipped
from openjepa.whole_files import whole_file


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
        lines = [json.loads(line) for line in self._path.read_text().splitlines()]
        return [line for line in lines if line["kind"] == kind]

    def skipped_names(self) -> list[str]:
        """Samples that skipped.jsonl already lists."""
        if not self._skipped.exists():
            return []
        return [json.loads(line)["name"] for line in self._skipped.read_text().splitlines()]

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
    path = folder / "metrics.jsonl"
    steps = [_step_of(line) for line in path.read_text().splitlines()] if path.exists() else []
    return int(max((step for step in steps if step < math.inf), default=0))


def logged_step_seconds(folder: Path, step: int) -> float:
    """Seconds of the steps up to `step`, from the speeds in metrics.jsonl, for runs of versions that did not add them up."""
    path = folder / "metrics.jsonl"
    lines = [line for line in path.read_text().splitlines() if _step_of(line) <= step] if path.exists() else []
    values = [line for line in map(json.loads, lines) if line["kind"] == "train"]
    return seconds_of_steps((line["images"], line["images_per_second"]) for line in values)


def refuse_missing_tensorboard(wanted: bool) -> None:
    """Raises Refusal where TensorBoard is `wanted` and not installed."""
    if wanted:
        require_package("tensorboard", "system.tensorboard=True", "turn it off")


def _truncate(path: Path, step: int) -> None:
    """Drops lines later than `step` and broken ones; whatever was measured after the checkpoint will be measured again."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    with whole_file(path) as file:
        file.write_text("".join(f"{line}\n" for line in kept))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _event_writer(folder: Path, resume_step: int) -> Any:
    refuse_missing_tensorboard(wanted=True)
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"), purge_step=max(0, resume_step))
