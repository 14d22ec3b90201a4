"""What stands on a field of settings: its range, or the registry that it chooses from. Free of torch.

A range is written on its field, as in `lr: Annotated[float, POSITIVE]`, and one check walks any dataclass. Rules between
several settings are in openjepa.checks.

Registries are dict literals. A line holds the settings of a component and the location of its code. METHODS, MASKS, SOURCES and
PROTOCOLS are beside the settings that choose from them; FORMATS and OUTPUTS are in the `__init__.py` of their package. The code
is imported only if `load` is called, so that `--help` and the report do not wait for it.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from importlib import import_module
from typing import Annotated, Any, Generic, TypeVar, get_args, get_origin, get_type_hints

from openjepa.refusals import refuse


@dataclass(frozen=True)
class Range:
    """Finite numbers from `low` to `high`. If a field has several values, each must be in range. None and words always are."""

    low: float
    high: float
    words: str
    """Words for the range in errors, e.g. `at least 1`."""
    also: tuple[float, ...] = ()
    """Numbers outside of the range that are allowed because they have a special meaning."""

    def problems(self, value: object, default: object) -> Iterator[tuple[object, str]]:
        """Yields each number of `value` that is out of range, infinite or NaN, with the words that follow it in the error."""
        items: tuple[Any, ...] = tuple(dict.fromkeys(value)) if isinstance(value, tuple) else (value,)
        for item in items:
            is_number = isinstance(item, int | float) and not isinstance(item, bool)
            if is_number and item not in self.also and not (self.low <= item <= self.high and math.isfinite(item)):
                yield item, f" must be {self.words}"


@dataclass(frozen=True)
class SmallestFirst:
    """Marks a field with two numbers: the smallest, then the largest."""

    def problems(self, value: object, default: object) -> Iterator[tuple[object, str]]:
        """Yields `value` if its numbers are in the wrong order."""
        if isinstance(value, tuple) and value[0] > value[1]:
            yield value, f": smallest first, then largest: {value[1]} {value[0]}"


@dataclass(frozen=True)
class Swept:
    """Marks a field with values of a sweep. They name the results, so none may repeat.

    An empty default means that the usual values are defined elsewhere. With any other default, an empty field would try
    nothing, so it is refused.
    """

    def problems(self, value: object, default: object) -> Iterator[tuple[object, str]]:
        """Yields `value` if a number repeats, or if it is empty and the default is not."""
        if isinstance(value, tuple) and not value and default:
            yield value, f" is empty: give at least one number, or leave it out for {_words(default)}"
        if isinstance(value, tuple) and len(set(value)) < len(value):
            yield value, f" repeats a value: give each once, {_words(tuple(dict.fromkeys(value)))}"


Rule = Range | SmallestFirst | Swept


def at_least(low: float) -> Range:
    """The range of all numbers from `low` on."""
    return Range(low, math.inf, f"at least {low:g}")


def between(low: float, high: float) -> Range:
    """The range of all numbers from `low` to `high`."""
    return Range(low, high, f"between {low:g} and {high:g}")


ABOVE_0, BELOW_1 = math.nextafter(0, 1), math.nextafter(1, 0)
FINITE = Range(-math.inf, math.inf, "a finite number")
POSITIVE = Range(ABOVE_0, math.inf, "above 0")
NOT_NEGATIVE = at_least(0)
AT_LEAST_1 = at_least(1)
AT_LEAST_2 = at_least(2)
SHARE = between(0, 1)
SHARE_ABOVE_0 = Range(ABOVE_0, 1.0, "above 0 and at most 1")
SHARE_BELOW_1 = Range(0.0, BELOW_1, "at least 0 and below 1")
SMALLEST_FIRST = SmallestFirst()
SWEPT = Swept()

Said = Callable[[str, object], str]
"""Formats a setting and its value for an error."""


def as_setting(name: str, value: object) -> str:
    """A setting and its value as in Python: `optim.lr=0.0`."""
    return f"{name}={_words(value)}"


def as_option(name: str, value: object) -> str:
    """A setting and its value as on the command line: `--optim.lr 0.0`."""
    return f"--{name.replace('_', '-')} {_words(value)}"


def out_of_range(settings: Any, prefix: str = "", said: Said = as_setting, groups: bool = True) -> list[tuple[str, str]]:
    """The dotted name of each setting that breaks a rule of its field, and the error.

    `settings`: an instance of any dataclass. `prefix`: comes before the names, e.g. `evaluation.`. `said`: formats a setting
    and its value. `groups`: also checks fields that are dataclasses.
    """
    found: list[tuple[str, str]] = []
    cls: Any = type(settings)
    rules = rules_of(cls)
    for item in fields(settings):
        name, value = f"{prefix}{item.name}", getattr(settings, item.name)
        default = None if item.default is MISSING else item.default
        if groups and is_dataclass(value):
            found += out_of_range(value, f"{name}.", said)
        for rule in rules.get(item.name, ()):
            found += [(name, said(name, wrong) + words) for wrong, words in rule.problems(value, default)]
    return found


def check_ranges(settings: Any, prefix: str = "", said: Said = as_setting, groups: bool = True) -> None:
    """Raises one Refusal that names all settings found by `out_of_range`, if there are any."""
    refuse([words for _, words in out_of_range(settings, prefix, said, groups)])


@cache
def rules_of(cls: type[Any]) -> dict[str, tuple[Rule, ...]]:
    """The rules of each field of a dataclass. Fields without rules are left out."""
    found: dict[str, tuple[Rule, ...]] = {}
    for name, kind in get_type_hints(cls, include_extras=True).items():
        if get_origin(kind) is Annotated:
            rules = tuple(item for item in get_args(kind)[1:] if isinstance(item, Rule))
            found |= {name: rules} if rules else {}
    return found


def _words(value: object) -> str:
    return (" ".join(map(str, value)) or "()") if isinstance(value, tuple) else str(value)


# ------------------------------------------------------------------------------------------------------------------- registries


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
