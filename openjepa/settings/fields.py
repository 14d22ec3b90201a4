"""Ranges of settings: smallest and largest value, and how an error says it. Free of torch."""

import math

from openjepa.refusals import Refusal

Range = tuple[float, float, str]
"""Smallest and largest value, and both in words."""

FRACTION: Range = (0.0, 1.0, "between 0 and 1")
ABOVE_ZERO_FRACTION: Range = (math.nextafter(0, 1), 1.0, "above 0 and at most 1")
POSITIVE: Range = (math.nextafter(0, 1), math.inf, "above 0")
NOT_NEGATIVE: Range = (0.0, math.inf, "at least 0")
COUNT: Range = (1.0, math.inf, "at least 1")
BELOW_ONE: Range = (0.0, math.nextafter(1, 0), "at least 0 and below 1")


def check_range(name: str, value: float, limits: Range) -> None:
    """Refusal that names the setting where `value` lies outside of its range, or is infinite or no number."""
    low, high, words = limits
    if not low <= value <= high or math.isinf(value):
        raise Refusal(f"{name}={value} must be {words}")
