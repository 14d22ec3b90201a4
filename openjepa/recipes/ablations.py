"""ABLATIONS: named comparisons. Each has a function that makes the runs to compare from one run. Free of torch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from openjepa.config import nearest
from openjepa.recipes.matched import CHANGES, with_method
from openjepa.refusals import Refusal
from openjepa.settings.run import RunConfig


@dataclass(frozen=True)
class Ablation:
    """One comparison of runs."""

    title: str
    """Heading of the tables."""
    column: str
    """Heading of the column with the names of the rows, e.g. `method`."""
    names: tuple[str, ...]
    """Names of the rows."""
    rows: Callable[[RunConfig], Mapping[str, RunConfig]]
    """Makes the run of each row from a run of I-JEPA. The other rows are compared with the first. The first row's time is that
    of the table at equal time, and its encoder before training is the untrained encoder."""


METHODS = ("ijepa", *CHANGES)


def _methods(config: RunConfig) -> dict[str, RunConfig]:
    return {name: with_method(config, name) for name in METHODS}


ABLATIONS = {
    "methods": Ablation("Methods in the same trainer, each with its own masks, crops and rates", "method", METHODS, _methods),
}


def ablation_rows(name: str, config: RunConfig, chosen: tuple[str, ...] = ()) -> dict[str, RunConfig]:
    """The rows of an ablation. `chosen`: only these and the first; empty: all.

    Raises Refusal if the ablation or a row does not exist.
    """
    if name not in ABLATIONS:
        raise Refusal(f"ablation {name!r} does not exist: {nearest(name, ABLATIONS)}")
    rows = ABLATIONS[name].rows(config)
    if unknown := [row for row in chosen if row not in rows]:
        raise Refusal(f"--rows {unknown[0]} does not exist in the ablation {name}: {nearest(unknown[0], rows)}")
    return {row: item for number, (row, item) in enumerate(rows.items()) if not chosen or number == 0 or row in chosen}
