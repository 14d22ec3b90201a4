"""One line of a registry: the settings of a component and how to import it.

Registries are dict literals in the `__init__.py` of their package (METHODS, MASKS, SOURCES, PROTOCOLS). They stay torch-free:
`load` imports the class only when it is called, so that `--help` and the report never pay for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

SettingsType = TypeVar("SettingsType")


@dataclass(frozen=True)
class Entry(Generic[SettingsType]):
    """What a registry knows of one component."""

    settings: type[SettingsType]
    """Frozen dataclass with the component's settings."""
    load: Callable[[], Callable[..., Any]]
    """Imports and returns the component's class (or builder)."""
