"""Which settings dataclass each choice of a component means: `data.source: folder` -> FolderSettings, and so on.

Derived from the dataclasses themselves, so that a new component needs no line here; a test asserts that the registries METHODS,
MASKS and SOURCES, which belong to layers above, say the same.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from openjepa.settings.masks import MaskSettings
from openjepa.settings.methods import MethodSettings
from openjepa.settings.sources import DataSettings


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
