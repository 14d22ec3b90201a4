"""What the runs of an ablation have given, one file a run, and all of them in results.json. Free of torch."""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from openjepa.system import claims
from openjepa.system.json_files import readable_object
from openjepa.system.whole_files import whole_file

RESULTS = "results"
"""Folder with a file for every run."""
Numbers = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """One run: what it has used and what its encoder is worth, or why it failed."""

    name: str
    """Of its folder."""
    row: str
    seed: int
    budgets: tuple[str, ...]
    """Tables it belongs to."""
    status: Literal["finished", "failed"]
    error: str = ""
    written: float = 0.0
    """When, in seconds since 1970."""
    steps: int = 0
    images: int = 0
    """Images seen."""
    seconds: float = 0.0
    """Steps of training with their data path, without looks and saving."""
    total_seconds: float = 0.0
    """Training with looks and saving. 0 in results of older versions."""
    planned_seconds: float = 0.0
    """What the training should have taken at the measured speed."""
    images_per_second: float = 0.0
    """Measured in turns with the other rows before the first run."""
    flops: float = 0.0
    """Of an image in a training step."""
    evaluation_seconds: float = 0.0
    numbers: Numbers = field(default_factory=dict)
    """Of the encoder: `classification/linear` and so on as shares of 1, and `rank`."""
    errors: Numbers = field(default_factory=dict)
    """Standard error of each share, from the number of test images."""
    references: Mapping[str, Numbers] = field(default_factory=dict)
    """The same numbers of what was not trained: `untrained`, `pixels`."""


def write_result(output: Path, result: RunResult) -> None:
    """Writes the run's own file."""
    with whole_file(output / RESULTS / f"{result.name}.json") as file:
        file.write_text(json.dumps(asdict(result), indent=1) + "\n")


def read_result(output: Path, name: str) -> RunResult | None:
    """What is known of a run; None where it has not ended yet."""
    return _read(output / RESULTS / f"{name}.json")


def read_results(output: Path) -> list[RunResult]:
    """All that have ended, by name."""
    found = (_read(path) for path in sorted((output / RESULTS).glob("*.json")))
    return [result for result in found if result is not None]


def _read(path: Path) -> RunResult | None:
    content = readable_object(path)
    if content is None:
        return None
    known = {item.name for item in fields(RunResult)}
    values = {name: value for name, value in content.items() if name in known}
    try:
        return RunResult(**values | {"budgets": tuple(values["budgets"])})
    except (KeyError, TypeError):
        return None


def claimed(output: Path, name: str, wait: bool = False) -> AbstractContextManager[bool]:
    """Whether this process alone has the work `name` of the ablation until the block ends; a killed process has it no more.

    `wait`: until another process has done its part, and then always True.
    """
    return claims.claimed(output / ".claims", name, wait)
