"""A range stands on its field: one check walks every dataclass of settings, and no number is without one.

Every line of a registry names code that is there.
"""

import math
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from typing import Annotated, Any, get_args, get_type_hints

import pytest

import openjepa.commands
import openjepa.settings
from openjepa.data.datasets.benchmarks import BENCHMARKS
from openjepa.masks import MASKS
from openjepa.methods import METHODS
from openjepa.refusals import Refusal
from openjepa.settings.fields import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SMALLEST_FIRST,
    SWEPT,
    Range,
    as_option,
    between,
    check_ranges,
    out_of_range,
    rules_of,
)
from openjepa.settings.protocols import PROTOCOLS
from openjepa.settings.sources import SOURCES
from openjepa.weights import FORMATS, OUTPUTS
from openjepa.weights.formats import Reader

UNCHECKED = {
    "Shape": "a row of the table of named sizes, or made of settings that have ranges",
    "DecoderConfig": "made of settings that have ranges, and never written",
    "LinearRecipe": "a row of a table of published values",
    "FinetuneRecipe": "a row of a table of published values, or made of settings that have ranges",
    "_Run": "what the rules of derived settings read",
    "Range": "what a range is made of",
}
"""Dataclasses with numbers that nobody sets, each with the reason."""


def dataclasses() -> Iterator[type[Any]]:
    """Every dataclass that a module of settings or commands defines."""
    for package in (openjepa.settings, openjepa.commands):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            for item in vars(import_module(module.name)).values():
                if isinstance(item, type) and is_dataclass(item) and item.__module__ == module.name:
                    yield item


def has_numbers(kind: Any) -> bool:
    return kind in (int, float) or any(has_numbers(part) for part in get_args(kind))


def test_every_number_has_a_range() -> None:
    bare, numbers, names = [], 0, set()
    for cls in dataclasses():
        hints = get_type_hints(cls)
        for item in (item for item in fields(cls) if has_numbers(hints[item.name])):
            numbers, names = numbers + 1, names | {cls.__name__}
            if cls.__name__ not in UNCHECKED and not any(isinstance(rule, Range) for rule in rules_of(cls).get(item.name, ())):
                bare.append(f"{cls.__name__}.{item.name}")
    assert not bare
    assert set(UNCHECKED) <= names and numbers > 200


@pytest.mark.parametrize("cls", [item for item in dataclasses() if item.__name__ not in UNCHECKED])
def test_defaults_are_in_range(cls: type[Any]) -> None:
    for item in fields(cls):
        for rule in rules_of(cls).get(item.name, ()):
            assert not list(rule.problems(item.default, item.default)), f"{cls.__name__}.{item.name}"


@dataclass(frozen=True)
class Inner:
    sides: Annotated[tuple[float, float], SHARE, SMALLEST_FIRST] = (0.2, 0.4)
    rates: Annotated[tuple[float, ...], POSITIVE, SWEPT] = (0.1,)
    usual: Annotated[tuple[float, ...], POSITIVE, SWEPT] = ()


@dataclass(frozen=True)
class Outer:
    steps: Annotated[int | None, AT_LEAST_1] = None
    seconds: Annotated[float | str, Range(1, 9, "from 1 to 9", also=(0,))] = "auto"
    flag: Annotated[bool, between(2, 3)] = False
    inner: Inner = field(default_factory=Inner)


def test_every_wrong_number_is_found_alone_and_in_groups() -> None:
    assert out_of_range(Outer()) == []
    wrong = Outer(steps=0, seconds=0.5, inner=Inner(sides=(0.5, 2.0), rates=(0.1, -1.0)))
    assert out_of_range(wrong, "run.") == [
        ("run.steps", "run.steps=0 must be at least 1"),
        ("run.seconds", "run.seconds=0.5 must be from 1 to 9"),
        ("run.inner.sides", "run.inner.sides=2.0 must be between 0 and 1"),
        ("run.inner.rates", "run.inner.rates=-1.0 must be above 0"),
    ]
    assert [name for name, _ in out_of_range(wrong, groups=False)] == ["steps", "seconds"]
    with pytest.raises(Refusal, match=r"2 things cannot work:\n- --steps 0 must be at least 1\n- --seconds 0\.5"):
        check_ranges(wrong, said=as_option, groups=False)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_no_range_holds_what_is_not_finite(value: float) -> None:
    for limits in (NOT_NEGATIVE, Range(-math.inf, math.inf, "a finite number")):
        assert [item for item, _ in limits.problems(value, None)] == [value]


def test_several_numbers_have_an_order_or_are_tried_once() -> None:
    said = [words for _, words in out_of_range(Inner(sides=(0.4, 0.2), rates=(2.0, 1.0, 2.0), usual=()))]
    assert said == [
        "sides=0.4 0.2: smallest first, then largest: 0.2 0.4",
        "rates=2.0 1.0 2.0 repeats a value: give each once, 2.0 1.0",
    ]
    assert [words for _, words in out_of_range(Inner(rates=()))] == [
        "rates=() is empty: give at least one number, or leave it out for 0.1"
    ]


REGISTRIES = (METHODS, MASKS, SOURCES, BENCHMARKS, PROTOCOLS, FORMATS, OUTPUTS)


def test_every_line_names_code_that_is_there() -> None:
    entries = [entry for registry in REGISTRIES for entry in registry.values()]  # type: ignore[attr-defined]
    assert len(entries) > 30
    for entry in entries:
        assert callable(entry.load()) or isinstance(entry.load(), Reader), entry.home
