"""What the results do not say by their numbers: the encoder has been trained further, or a task could not be probed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openjepa.report.facts import command
from openjepa.report.probes import full_title, measured, title_of, variant_of
from openjepa.report.reading import RunFolder, text
from openjepa.system.json_files import number


@dataclass(frozen=True)
class Stale:
    """Evaluations of an encoder that the run has trained further since."""

    run: int
    tasks: str
    step: int
    now: int
    again: str
    """What evaluates anew: a command line."""
    other_options: bool
    """Whether some of them were made with options that the command must repeat."""


def stale(runs: Sequence[RunFolder]) -> list[Stale]:
    """Results whose step is not the run's, those of one run and step together."""
    found = []
    for index, run in enumerate(runs):
        now = number(run.summary.get("step"))
        done = [(result, number(result.get("step"))) for result in run.evaluations if not result.get("skipped")]
        for step in sorted({step for _, step in done if step is not None and now is not None and step != now}):
            old = [result for result, known in done if known == step]
            tasks = ", ".join(dict.fromkeys(full_title(result) for result in old))
            found.append(
                Stale(
                    index, tasks, int(step), int(now or 0), command(run, "evaluate"), any(variant_of(result) for result in old)
                )
            )
    return found


def skipped_tasks(runs: Sequence[RunFolder]) -> list[tuple[int, str, str]]:
    """(run, task, reason) of what could not be probed: each task once, and none whose title or row of a suite has numbers."""
    found: dict[tuple[int, str], tuple[int, str, str]] = {}
    for index, run in enumerate(runs):
        done = {name for result in run.evaluations if measured(result) for name in _names(result)}
        for result in run.evaluations:
            if result.get("skipped") and not done.intersection(_names(result)):
                title = title_of(result)
                found.setdefault((index, title), (index, title, text(result["skipped"], 200)))
    return list(found.values())


def _names(result: Mapping[str, Any]) -> set[tuple[str, str]]:
    """What a reader knows a result by."""
    row = text(result.get("row") or "", 80)
    return {("title", title_of(result)), *((("row", row),) if row else ())}
