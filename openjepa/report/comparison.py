"""Ours beside the paper: for each row of a suite our numbers among those that were published for it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openjepa.report.probes import measured, shown_variant, title_of
from openjepa.report.reading import RunFolder, number, text

ANY_PROTOCOL = ("linear", "fine-tuned")
"""What a published number of protocol `any` is the better of (I-JEPA, Table 2)."""
OUR_METHOD = "I-JEPA"
MAX_PUBLISHED = 60
CHANGED = re.compile(r"(linear_full|finetune)\.|(^|-)max\d|(^|-)\d+shot|pct")
"""In the words that set a result apart: settings of the protocol itself, or another number of labeled images."""


@dataclass(frozen=True)
class Number:
    """One accuracy in percent, ours or published."""

    value: float
    error: str
    """Behind ±: the standard error, of several seeds their spread; empty for published numbers."""
    half_width: float
    """The same in percent, 0 where it is not known."""
    protocol: str
    source: str
    """The paper's table; for ours the selection rule."""
    run: int | None = None
    """Which run; None for a published number."""
    method: str = ""
    architecture: str = ""
    epochs: str = ""
    seeds: int = 1
    variant: str = ""
    compares: bool = True
    """Whether it is a number of the published protocol."""

    @property
    def name(self) -> str:
        """For a label: the method and its network, or our probe."""
        return self.protocol if self.run is not None else f"{self.method} {self.architecture}".strip()


@dataclass(frozen=True)
class Comparison:
    """One row of a suite: all numbers, the highest first."""

    task: str
    numbers: Sequence[Number]

    @property
    def ours(self) -> list[Number]:
        """Our numbers, the highest first."""
        return [item for item in self.numbers if item.run is not None]

    @property
    def published(self) -> list[Number]:
        """The published ones, the highest first."""
        return [item for item in self.numbers if item.run is None]

    @property
    def same_method(self) -> list[Number]:
        """The published ones of I-JEPA, the highest first."""
        return [item for item in self.published if item.method == OUR_METHOD]


def comparisons(runs: Sequence[RunFolder]) -> list[Comparison]:
    """The rows that have published numbers, in the order of the files; all runs' numbers of a row stand together."""
    rows: dict[str, tuple[str, list[Number], list[Number]]] = {}
    for index, run in enumerate(runs):
        for result in run.evaluations:
            theirs = _published(result)
            ours = _ours(index, result, {item.protocol for item in theirs})
            if theirs and ours:
                key = text(result.get("row") or result["_file"], 80)
                rows.setdefault(key, (title_of(result), theirs, []))[2].extend(ours)
    return [Comparison(task, sorted([*theirs, *ours], key=lambda item: -item.value)) for task, theirs, ours in rows.values()]


def compares(probe: str, protocols: set[str]) -> bool:
    """Whether a number of ours is measured as one of the published ones."""
    return probe in protocols or ("any" in protocols and probe in ANY_PROTOCOL)


def _is_changed(result: Mapping[str, Any]) -> bool:
    """Whether an evaluation says that it used other settings or fewer images than the published protocol."""
    return CHANGED.search(text(result.get("variant") or "", 400)) is not None


def _ours(index: int, result: Mapping[str, Any], protocols: set[str]) -> list[Number]:
    numbers = []
    for found in measured(result):
        score = found.scores.get("encoder")
        if score is None:
            continue
        half_width = score.error if score.spread is None else score.spread
        numbers.append(
            Number(
                value=100 * score.value,
                error=score.shown_error,
                half_width=100 * (half_width or 0.0),
                protocol=found.probe,
                source=found.selection,
                run=index,
                seeds=score.seeds,
                variant=shown_variant(result),
                compares=compares(found.probe, protocols) and not _is_changed(result),
            )
        )
    return numbers


def _published(result: Mapping[str, Any]) -> list[Number]:
    listed = result.get("published")
    numbers = []
    for item in listed[:MAX_PUBLISHED] if isinstance(listed, list) else []:
        value = number(item.get("value")) if isinstance(item, Mapping) else None
        if value is None or not 0 <= value <= 100:
            continue
        method, architecture, epochs = (text(item.get(name) or "", 24) for name in ("method", "architecture", "epochs"))
        protocol, source = text(item.get("protocol") or "", 24), text(item.get("source") or "", 60)
        numbers.append(Number(value, "", 0.0, protocol, source, None, method, architecture, epochs))
    return numbers
