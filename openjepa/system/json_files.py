"""Reads JSON files that may be damaged or written by other programs. Returns their content or raises a Refusal.

Free of torch. Files are UTF-8 throughout.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from openjepa.config import from_dict
from openjepa.refusals import Refusal

Settings = TypeVar("Settings")

RESTORE = "bring it back as it was, or delete it"
"""Default advice on how to repair a damaged file: that for files of a run folder."""


def value_in(text: str, where: object, mend: str = RESTORE) -> Any:
    """The value of `text` as JSON. Raises Refusal, which names `where` and ends with `mend`, if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{where} is not valid JSON ({error}); {mend}") from error


def object_in(text: str, where: object, mend: str = RESTORE) -> dict[str, Any]:
    """The object in `text`, read as JSON. Raises Refusal, which names `where` and ends with `mend`, if it is anything else."""
    found = value_in(text, where, mend)
    if not isinstance(found, dict):
        raise Refusal(f"{where} is no JSON object, but a {type(found).__name__}; {mend}")
    return found


def read_object(path: Path, mend: str = RESTORE) -> dict[str, Any] | None:
    """The JSON object in a file; None if there is no such file.

    Raises Refusal, which ends with `mend`, if the file cannot be read or holds anything else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Refusal(f"{path} cannot be read ({error.strerror or error}); {mend}") from error
    except ValueError as error:
        raise Refusal(f"{path} is not valid JSON ({error}); {mend}") from error
    return object_in(text, path, mend)


def readable_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None if the file is missing, cannot be read or holds anything else."""
    try:
        return read_object(path)
    except Refusal:
        return None


def readable(text: str) -> dict[str, Any] | None:
    """The JSON object in `text`, such as a line of a log; None if it is anything else."""
    try:
        return object_in(text, "the text")
    except Refusal:
        return None


def log_lines(path: Path) -> list[str]:
    """The lines of a log, including damaged ones; empty if there is no such file."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def number(value: object) -> float | None:
    """`value` if it is a finite number; None for anything else, including true and false."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def typed(kind: type[Settings], entries: Mapping[str, Any], where: object, mend: str = RESTORE) -> Settings:
    """Makes an instance of the dataclass `kind` from `entries`. Ignores entries that are not fields.

    Raises Refusal, which names `where` and ends with `mend`, if a field without a default is missing or an entry has the wrong
    type.
    """
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    needed = [name for name, item in known.items() if item.default is MISSING and item.default_factory is MISSING]
    if missing := [name for name in needed if name not in entries]:
        raise Refusal(f"{where} lacks {', '.join(missing)}; {mend}")
    try:
        return from_dict(kind, {name: value for name, value in entries.items() if name in known})
    except ValueError as error:
        raise Refusal(f"{where} is damaged: {error}; {mend}") from error


DROPPED = object()
"""Marks an entry that does not have its field's type."""


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def lenient(kind: type[Settings], content: object, blank: Settings | None = None) -> Settings | None:
    """Makes an instance of the dataclass `kind` from `content`. Drops entries that do not have their field's type.

    A missing or dropped entry is taken from `blank`, or is the field's default. Returns None if a field has neither, or if
    `content` is not a mapping.
    """
    if not isinstance(content, Mapping):
        return None
    values: dict[str, Any] = {} if blank is None else dict(vars(blank))
    hints = _hints(kind)  # type: ignore[arg-type]
    for item in fields(kind):  # type: ignore[arg-type]
        value = _value(hints[item.name], content[item.name]) if item.name in content else DROPPED
        if value is not DROPPED:
            values[item.name] = value
        elif blank is None and item.default is MISSING and item.default_factory is MISSING:
            return None
    return kind(**values)


def _value(hint: Any, value: object) -> Any:
    """`value` if it has the type `hint`, else DROPPED. Entries inside it are read the same way."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, UnionType):
        return next((found for kind in arguments if (found := _value(kind, value)) is not DROPPED), DROPPED)
    if origin is Literal:
        return value if isinstance(value, str) and value in arguments else DROPPED
    if origin is tuple and arguments[-1] is not ...:
        return _list(arguments[0], value, len(arguments))
    if origin in (Sequence, tuple):
        return _list(arguments[0], value)
    if origin is Mapping:
        return _mapping(arguments[1], value)
    if is_dataclass(hint):
        found = lenient(hint, value)  # type: ignore[arg-type]
        return DROPPED if found is None else found
    return _plain(hint, value)


def _list(hint: Any, values: object, length: int | None = None) -> Any:
    """The entries of a list that have the right type. A list of numbers is DROPPED as a whole if one of them is missing."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        return DROPPED
    found = tuple(item for item in (_value(hint, value) for value in values) if item is not DROPPED)
    is_whole = len(found) == len(values) if hint in (int, float) else True
    return found if is_whole and length in (None, len(found)) else DROPPED


def _mapping(hint: Any, values: object) -> Any:
    if not isinstance(values, Mapping):
        return DROPPED
    found = {str(name): _value(hint, value) for name, value in values.items()}
    return {name: value for name, value in found.items() if value is not DROPPED}


def _plain(hint: Any, value: object) -> Any:
    if hint is NoneType:
        return None if value is None else DROPPED
    if hint in (str, bool):
        return value if isinstance(value, hint) else DROPPED
    finite = number(value)
    if finite is None or (hint is int and not finite.is_integer()):
        return DROPPED
    return int(finite) if hint is int else value
