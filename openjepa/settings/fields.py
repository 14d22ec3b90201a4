"""Ranges of settings: smallest and largest value, and how an error says it. Free of torch.

Which settings dataclass each choice of a component means: `data.source: folder` -> FolderSettings, and so on.

Derived from the dataclasses themselves, so that a new component needs no line here; a test asserts that the registries METHODS,
MASKS and SOURCES, which belong to layers above, say the same.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from openjepa.refusals import Refusal
from openjepa.settings.masks import MaskSettings
from openjepa.settings.methods import MethodSettings
from openjepa.settings.sources import DataSettings

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


@dataclass(frozen=True)
class Choice:
    """A component that can be chosen."""

    base: type[Any]
    """Dataclass of the settings that all its choices have."""
    field: str
    """The setting that names the choice, e.g. `source`."""
    options: Mapping[str, type[Any]]
    """Dataclass of each name."""


def _choice(base: type[Any], name: str) -> Choice:
    """The options of `base`: its descendants that give its field `name` a default, each under that."""
    defaults = {cls: {item.name: item.default for item in fields(cls)}[name] for cls in _descendants(base)}
    return Choice(base=base, field=name, options={str(value): cls for cls, value in defaults.items() if value is not MISSING})


def _descendants(base: type[Any]) -> Iterator[type[Any]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _descendants(cls)


CHOICES: dict[str, Choice] = {
    "method": _choice(MethodSettings, "name"),
    "masks": _choice(MaskSettings, "strategy"),
    "data": _choice(DataSettings, "source"),
}
"""By the name of the field of RunConfig."""
