"""Ours beside the paper: for each row of a suite our numbers among those that were published for it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from openjepa.report.probes import departures_of, measured, place_of, shown_variant, title_of
from openjepa.report.reading import RunFolder, text
from openjepa.report.wording import SUITE_ORDER
from openjepa.system.json_files import number

ANY_PROTOCOL = ("linear", "fine-tuned")
"""What a published number of protocol `any` is the better of (I-JEPA, Table 2)."""
OUR_METHOD = "I-JEPA"
MAX_PUBLISHED = 60
CHANGED = re.compile(r"(linear_full|finetune)\.|(^|-)max\d|(^|-)\d+shot|pct")
"""In the words that set a result of before apart, which does not list its departures: settings of the protocol itself, or
another number of labeled images."""
OTHER_PROBE = "another probe"


@dataclass(frozen=True)
class Number:
    """One accuracy in percent, ours or published."""

    value: float
    error: str
    """Behind ±: the standard error; empty for published numbers."""
    half_width: float
    """The larger of standard error and spread over seeds in percent, 0 where neither is known."""
    protocol: str
    source: str
    """The paper's table; for ours the selection rule."""
    run: int | None = None
    """Which run; None for a published number."""
    method: str = ""
    architecture: str = ""
    epochs: str = ""
    spread: str = ""
    """Standard deviation over seeds in words; empty for one seed."""
    variant: str = ""
    departures: Sequence[str] = ()
    """Why it is no number of the published protocol."""
    is_folded: bool = False
    """Whether it is a variant of an evaluation that is drawn."""

    @property
    def compares(self) -> bool:
        """Whether it is a number of the published protocol."""
        return not self.departures

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
    def drawn(self) -> list[Number]:
        """The numbers of the picture, the highest first: one variant of each run, and what follows the paper."""
        return [item for item in self.numbers if not item.is_folded]

    @property
    def departures(self) -> list[str]:
        """All reasons why numbers of the picture are not of the published protocol."""
        return list(dict.fromkeys(words for item in self.drawn for words in item.departures))

    @property
    def published(self) -> list[Number]:
        """The published ones, the highest first."""
        return [item for item in self.numbers if item.run is None]

    @property
    def same_method(self) -> list[Number]:
        """The published ones of I-JEPA, the highest first."""
        return [item for item in self.published if item.method == OUR_METHOD]


def comparisons(runs: Sequence[RunFolder]) -> list[Comparison]:
    """The rows that have published numbers, in the order of the paper; all runs' numbers of a row stand together."""
    rows: dict[str, tuple[str, list[Number], list[Number]]] = {}
    for index, run in enumerate(runs):
        for result in run.evaluations:
            theirs = _published(result)
            ours = _ours(index, result, {item.protocol for item in theirs})
            if theirs and ours:
                key = text(result.get("row") or result["_file"], 80)
                rows.setdefault(key, (title_of(result), theirs, []))[2].extend(ours)
    return [
        Comparison(task, sorted([*theirs, *_folded(ours)], key=lambda item: -item.value))
        for task, theirs, ours in (rows[key] for key in sorted(rows, key=lambda key: place_of(key, SUITE_ORDER)))
    ]


def compares(probe: str, protocols: set[str]) -> bool:
    """Whether a number of ours is measured as one of the published ones."""
    return probe in protocols or ("any" in protocols and probe in ANY_PROTOCOL)


def _folded(ours: Sequence[Number]) -> list[Number]:
    """The numbers with all but one variant of each run marked, as in the table of probes; none that follows the paper is."""
    main = {run: min(item.variant for item in ours if item.run == run) for run in {item.run for item in ours}}
    return [replace(item, is_folded=item.variant != main[item.run] and not item.compares) for item in ours]


def _departures(result: Mapping[str, Any]) -> tuple[str, ...]:
    """Why the numbers of a result are not of the published protocol, whatever the probe."""
    said = departures_of(result)
    if said is not None:
        return said
    variant = text(result.get("variant") or "", 400)
    if " of its " in str(result.get("data") or ""):  # how the line about the data says that classes are missing
        return (text(result.get("data"), 80),)
    return (f"other settings: {text(variant, 80)}",) if CHANGED.search(variant) else ()


def _ours(index: int, result: Mapping[str, Any], protocols: set[str]) -> list[Number]:
    numbers = []
    departed = _departures(result)
    for found in measured(result):
        score = found.scores.get("encoder")
        if score is None:
            continue
        other = () if compares(found.probe, protocols) else (OTHER_PROBE,)
        numbers.append(
            Number(
                value=100 * score.value,
                error=score.shown_error,
                half_width=100 * score.uncertainty,
                protocol=found.probe,
                source=found.selection,
                run=index,
                spread=score.shown_spread,
                variant=shown_variant(result),
                departures=(*other, *departed),
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
