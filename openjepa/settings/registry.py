"""One line of a registry: the settings of a component and where its code stands.

Registries are dict literals in the `__init__.py` of their package (METHODS, MASKS, SOURCES, PROTOCOLS, FORMATS, OUTPUTS). They
stay torch-free: the code is imported when `load` is called, so that `--help` and the report never pay for it.
"""

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

SettingsType = TypeVar("SettingsType")


def imported(home: str) -> Any:
    """What stands at `home`, which is `package.module:name`. Imports the module."""
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class Entry(Generic[SettingsType]):
    """What a registry knows of one component."""

    settings: type[SettingsType]
    """Frozen dataclass with the component's settings."""
    home: str
    """`package.module:name` of its class, or of the function that builds it."""

    def load(self) -> Any:
        """Imports the component's class or builder."""
        return imported(self.home)


@dataclass(frozen=True)
class NamesOf:
    """Annotation of a setting whose values are names of a registry. The registry belongs to a layer above the settings."""

    registry: str
    """`package.module:NAME` of the dict. Imported when the names are needed."""

    def names(self) -> tuple[str, ...]:
        """Every name of the registry, in its order."""
        return tuple(imported(self.registry))
