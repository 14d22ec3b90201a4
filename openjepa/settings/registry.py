"""Lines of a registry, which hold the settings of a component and the location of its code, and the choice among them.

Registries are dict literals. METHODS, MASKS and SOURCES are beside the settings that choose from them; PROTOCOLS, FORMATS and
OUTPUTS are in the `__init__.py` of their package. They are free of torch: the code is imported only if `load` is called, so
that `--help` and the report do not wait for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

SettingsType = TypeVar("SettingsType")


class Line:
    """One line of a registry. Abstract: each registry decides what its lines hold."""

    home: str
    """Location of the component: `package.module:name`."""

    def load(self) -> Any:
        """Imports the component and returns it."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(module), name)


@dataclass(frozen=True)
class Entry(Line, Generic[SettingsType]):
    """One line of a registry of components with settings."""

    settings: type[SettingsType]
    """Frozen dataclass with the component's settings."""
    home: str
    """Location of the component's class, or of the function that builds it: `package.module:name`."""


@dataclass(frozen=True)
class NamesOf(Line):
    """Annotates a setting whose values are names of a registry in a layer above the settings."""

    home: str
    """Location of the registry: `package.module:NAME`."""

    def names(self) -> tuple[str, ...]:
        """All names of the registry, in its order. Imports the registry."""
        return tuple(self.load())


@dataclass(frozen=True)
class Choice:
    """A component of a run that can be chosen from a registry."""

    base: type[Any]
    """Dataclass of the settings that all choices share."""
    field: str
    """The setting that names the choice, e.g. `source`."""
    registry: Mapping[str, Entry[Any]]
    """The choices, by name."""

    @property
    def options(self) -> dict[str, type[Any]]:
        """Dataclass of the settings of each choice, by name."""
        return {name: entry.settings for name, entry in self.registry.items()}
