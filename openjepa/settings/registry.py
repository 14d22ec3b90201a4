"""One line of a registry: the settings of a component and where its code stands; and what chooses among the lines.

Registries are dict literals: METHODS, MASKS, SOURCES and PROTOCOLS stand with the settings that choose from them, FORMATS and
OUTPUTS in the `__init__.py` of their package. They stay free of torch: the code is imported when `load` is called, so that
`--help` and the report never pay for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

SettingsType = TypeVar("SettingsType")


class Line:
    """One line of a registry. Abstract: what it knows of a component is up to each registry."""

    home: str
    """`package.module:name` of what it stands for."""

    def load(self) -> Any:
        """Imports what it stands for."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(module), name)


@dataclass(frozen=True)
class Entry(Line, Generic[SettingsType]):
    """What a registry knows of one component."""

    settings: type[SettingsType]
    """Frozen dataclass with the component's settings."""
    home: str
    """`package.module:name` of its class, or of the function that builds it."""


@dataclass(frozen=True)
class NamesOf(Line):
    """Annotation of a setting whose values are names of a registry, which belongs to a layer above the settings."""

    home: str
    """`package.module:NAME` of the registry."""

    def names(self) -> tuple[str, ...]:
        """Every name of the registry, in its order. Imports it."""
        return tuple(self.load())


@dataclass(frozen=True)
class Choice:
    """A component that can be chosen."""

    base: type[Any]
    """Dataclass of the settings that all its choices have."""
    field: str
    """The setting that names the choice, e.g. `source`."""
    registry: Mapping[str, Entry[Any]]
    """Its choices by name."""

    @property
    def options(self) -> dict[str, type[Any]]:
        """Dataclass of the settings of each choice, by name."""
        return {name: entry.settings for name, entry in self.registry.items()}
