"""Differences between the rows of an ablation with their standard errors, and whether the published ordering appears.

Runs with one seed have the same initial weights and the same order of images, so rows are compared seed by seed. Free of torch.
"""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

OrderVerdict = Literal["agrees", "partly", "contradicts", "within noise"]
Values = Mapping[str, Mapping[int, float]]
"""A number of each run: row -> seed -> value."""
ERRORS = 2.0
"""A difference of more than this number of standard errors is no noise."""


@dataclass(frozen=True)
class Paired:
    """Rows that are compared seed by seed."""

    means: Mapping[str, float]
    """Mean of each row over the common seeds."""
    seeds: int
    """Number of seeds that all rows have."""
    error: float | None
    """Standard error of the difference of two rows. None if there are fewer than two common seeds or rows.

    It is one for all pairs, from the spread that is left when the means of rows and seeds are removed: two or three seeds of a
    single pair would say nearly nothing.
    """

    def differences(self, first: str) -> dict[str, float]:
        """Mean of each row minus that of the row `first`. Empty if that row is missing."""
        return {row: mean - self.means[first] for row, mean in self.means.items()} if first in self.means else {}


def paired(values: Values) -> Paired:
    """Compares the rows of `values` over the seeds that all of them have. Rows without any run are left out."""
    rows = {row: found for row, found in values.items() if found}
    seeds = sorted(set.intersection(*(set(found) for found in rows.values()))) if rows else []
    if not seeds:
        return Paired({}, 0, None)
    means = {row: statistics.fmean(found[seed] for seed in seeds) for row, found in rows.items()}
    if len(seeds) < 2 or len(rows) < 2:
        return Paired(means, len(seeds), None)
    of_seeds = {seed: statistics.fmean(found[seed] for found in rows.values()) for seed in seeds}
    overall = statistics.fmean(means.values())
    left = [found[seed] - means[row] - of_seeds[seed] + overall for row, found in rows.items() for seed in seeds]
    variance = sum(value**2 for value in left) / ((len(rows) - 1) * (len(seeds) - 1))
    return Paired(means, len(seeds), math.sqrt(2 * variance / len(seeds)))


@dataclass(frozen=True)
class Ordering:
    """Pairs of rows whose published numbers differ, sorted by what they do here."""

    agree: int
    """Pairs that differ by more than noise, in the published direction."""
    disagree: int
    """Pairs that differ by more than noise, in the other direction."""
    noise: int
    """Pairs that differ by at most `ERRORS` standard errors."""

    @property
    def verdict(self) -> OrderVerdict:
        """`agrees`: at least half of the pairs agree, and none disagrees. `contradicts`: more pairs disagree than agree.

        `within noise`: no pair differs by more than noise. `partly`: everything else.
        """
        if not self.agree and not self.disagree:
            return "within noise"
        if self.disagree > self.agree:
            return "contradicts"
        return "agrees" if not self.disagree and self.agree >= self.noise else "partly"


def ordering(found: Paired, published: Mapping[str, float]) -> Ordering | None:
    """How the published order appears in `found`. None if no two rows can be compared."""
    pairs = [
        (found.means[one] - found.means[other], published[one] - published[other])
        for one, other in combinations([row for row in published if row in found.means], 2)
        if published[one] != published[other]
    ]
    if not pairs or found.error is None:
        return None
    clear = [(ours, theirs) for ours, theirs in pairs if abs(ours) > ERRORS * found.error]
    agree = sum((ours > 0) == (theirs > 0) for ours, theirs in clear)
    return Ordering(agree, len(clear) - agree, len(pairs) - len(clear))


VERDICTS: Mapping[OrderVerdict, str] = {
    "agrees": "The published ordering appears",
    "partly": "The published ordering appears in part",
    "contradicts": "The published ordering does not appear, but rather its reverse",
    "within noise": "The published ordering does not appear: all differences are within noise",
}


def order_words(found: Ordering | None, number: str) -> str:
    """The verdict in a sentence. `number`: the column that it is about."""
    if found is None:
        return f"No verdict by {number}: it needs two seeds of two rows with published numbers."
    total = found.agree + found.disagree + found.noise
    noise = f"{found.noise} within {ERRORS:g} standard errors"
    counts = f"{found.agree} of {total} pairs of rows agree, {found.disagree} disagree, {noise}"
    return f"{VERDICTS[found.verdict]} by {number} ({counts})."
