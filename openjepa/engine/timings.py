"""Seconds of a run's steps, from the lines of its log. Free of torch."""

from collections.abc import Iterable
from itertools import pairwise


def seconds_of_steps(lines: Iterable[tuple[float, float]]) -> float:
    """Seconds that the steps took together; `lines`: images seen, and images per second since the line before.

    For runs of versions that did not write `step_seconds`. Looks and saving do not count in images per second, so not here.
    """
    known = [(images, rate) for images, rate in lines if rate > 0]
    return sum((images - before) / rate for (before, _), (images, rate) in pairwise([(0.0, 1.0), *known]))
