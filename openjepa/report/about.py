"""What the method of a run is, as `openjepa train` wrote it into summary.json: family, x, y, z, energy."""

from collections.abc import Sequence

from openjepa.report.facts import Fact
from openjepa.report.reading import RunFolder, lookup, text

LABELS = {
    "title": "Method",
    "family": "Family",
    "x": "Given (x)",
    "y": "To be compatible (y)",
    "z": "What the predictor is told (z)",
    "energy": "Energy",
    "against_collapse": "Against collapse",
}


def learned_from(runs: Sequence[RunFolder]) -> list[Fact]:
    """One row for each part of a method that at least one run has; empty for runs that do not say (older ones)."""
    rows = [
        Fact(label, [text(lookup(run.summary, "about", name, default=""), 300) for run in runs])
        for name, label in LABELS.items()
    ]
    return [row for row in rows if any(row.values)]
