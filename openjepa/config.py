"""Reads settings and JSON files into dataclasses, with Refusals for what they cannot hold; writes and compares settings.

Works for any tree of frozen dataclasses. Only `load_run_config` depends on our own classes. YAML is read only as plain data.
JSON files may be damaged or written by other programs. Free of torch. Files are UTF-8 throughout.
"""

import difflib
import json
import math
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from openjepa.refusals import Refusal
from openjepa.settings.fields import Choice
from openjepa.settings.run import CHOICES, RunConfig

ConfigType = TypeVar("ConfigType")
Change = tuple[str, object, object]
"""Dotted name of a setting, old value and new value. A value is ABSENT if its side does not have the setting."""
ABSENT = "(absent)"


def nearest_names(name: str, valid: Iterable[str]) -> str:
    """The end of an error message: the valid names most similar to `name`, or all of them if none is similar."""
    names = sorted(valid)
    wanted = name.lower().replace("-", "_")
    alike = {item: difflib.SequenceMatcher(None, wanted, item.lower().replace("-", "_")).ratio() for item in names}
    best = max(alike.values(), default=0.0)
    matches = [repr(item) for item in names if alike[item] == best >= 0.6]
    return f"did you mean {' or '.join(matches)}?" if matches else f"valid: {', '.join(names)}"


def to_dict(config: object) -> dict[str, Any]:
    """Turns a dataclass into a nested dict of plain values. Tuples become lists, and paths become strings."""
    return {name: _plain(value) for name, value in _items(config)}


def _plain(value: object) -> object:
    if is_dataclass(value):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _items(config: object) -> Iterator[tuple[str, Any]]:
    if not is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"not a settings dataclass: {config!r}")
    for item in fields(config):
        yield item.name, getattr(config, item.name)


def from_dict(cls: type[ConfigType], data: object, choices: Mapping[str, Choice] | None = None, prefix: str = "") -> ConfigType:
    """The inverse of `to_dict`: builds `cls` from a nested mapping. Missing settings keep their defaults.

    `choices`: the dataclass of each choice of a component. `prefix`: comes before the names of settings in errors. Raises
    Refusal if a name is unknown (with the nearest valid one) or a value has the wrong type, with the setting's dotted name.
    """
    if not isinstance(data, Mapping):
        raise Refusal(f"{prefix.rstrip('.') or 'the configuration'} must be a mapping of settings, not {data!r}")
    hints = get_type_hints(cls)
    names = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name not in names:
            raise Refusal(
                f"unknown setting {prefix}{name}: {nearest_names(f'{prefix}{name}', (prefix + item for item in names))}"
            )
        choice = (choices or {}).get(name)
        kind = _chosen(choice, value, f"{prefix}{name}") if choice and isinstance(value, Mapping) else hints[name]
        values[name] = _convert(value, kind, f"{prefix}{name}", choices)
    return cls(**values)


def _chosen(choice: Choice, value: Mapping[str, Any], path: str) -> type[Any]:
    name = value.get(choice.field)
    if name is None:
        raise Refusal(f"{path}.{choice.field} is missing; one of: {', '.join(sorted(choice.options))}")
    if not isinstance(name, str) or name not in choice.options:
        raise Refusal(f"{path}.{choice.field}={name!r} does not exist; {nearest_names(str(name), choice.options)}")
    return choice.options[name]


def _convert(value: object, kind: Any, path: str, choices: Mapping[str, Choice] | None) -> object:
    """`value` converted to the annotation `kind`. Raises Refusal, naming the setting `path`, if that is not possible."""
    if is_dataclass(kind) and isinstance(kind, type):
        return from_dict(kind, value, choices, prefix=f"{path}.")
    origin = get_origin(kind)
    if origin is Literal:
        return _convert_literal(value, get_args(kind), path)
    if origin in (Union, types.UnionType):
        return _convert_union(value, get_args(kind), path, choices)
    if origin is tuple:
        return _convert_tuple(value, get_args(kind), path, choices)
    return _convert_scalar(value, dict if origin is dict else kind, path)


def _convert_literal(value: object, allowed: tuple[object, ...], path: str) -> object:
    if value in allowed and type(value) in {type(item) for item in allowed}:
        return value
    raise Refusal(f"{path}={value!r} is not one of {', '.join(map(str, allowed))}")


def _convert_union(value: object, kinds: tuple[Any, ...], path: str, choices: Mapping[str, Choice] | None) -> object:
    if value is None and type(None) in kinds:
        return None
    problems = []
    for kind in kinds:
        try:
            return _convert(value, kind, path, choices)
        except ValueError as error:
            problems.append(str(error))
    raise Refusal(problems[0])


def _convert_tuple(value: object, kinds: tuple[Any, ...], path: str, choices: Mapping[str, Choice] | None) -> object:
    if not isinstance(value, list | tuple):
        raise Refusal(f"{path}={value!r} must be a list")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise Refusal(f"{path}={value!r} must have {len(kinds)} values")
    return tuple(_convert(item, kind, f"{path}[{i}]", choices) for i, (item, kind) in enumerate(zip(value, kinds, strict=True)))


def _convert_scalar(value: object, kind: Any, path: str) -> object:
    if kind is type(None) and value is None:
        return None
    if kind is float and not isinstance(value, bool):
        try:  # strings too, because YAML 1.1 reads `1e-3` (without a point) as a string
            return float(value)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            raise Refusal(f"{path}={value!r} must be a number") from None
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise Refusal(f"{path}={value!r} must be {_KIND_NAMES.get(kind, str(kind))}")


_KIND_NAMES = {
    float: "a number",
    int: "a whole number",
    str: "a string",
    bool: "true or false",
    type(None): "null",
    Path: "a path",
    dict: "a mapping",
}


def save_yaml(config: object, path: Path) -> None:
    """Writes all settings to a YAML file, in the order of the dataclasses."""
    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, width=120), encoding="utf-8")


class _UniqueKeys(yaml.SafeLoader):
    """A YAML loader that refuses a mapping with a repeated key. YAML would silently take the last value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)  # before `<<` is expanded
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                places = f"line {line}" if lines[key.value] == line else f"lines {lines[key.value]} and {line}"
                raise Refusal(f"{key.value!r} stands twice in the same group, in {places}: leave out one")
            lines[key.value] = line
        return node


def load_yaml(path: Path) -> dict[str, Any]:
    """Reads a nested mapping from a YAML file. Raises Refusal, which names the file, if that is not possible."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except OSError as error:
        raise Refusal(f"{path} cannot be read: {error.strerror}") from None
    except Refusal as error:
        raise Refusal(f"{path}: {error}") from None
    except Exception as error:  # yaml also lets through errors of dates, numbers, encodings and recursion
        raise Refusal(f"{path} is no YAML file: {error}") from None
    if not isinstance(data, dict):
        raise Refusal(f"{path} must hold a mapping of settings, not {data!r}")
    return data


def flatten(config: object, prefix: str = "") -> dict[str, object]:
    """Dotted name -> value of every setting that is not a group. `config`: a dataclass, or the `to_dict` of one."""
    flat: dict[str, object] = {}
    for name, value in config.items() if isinstance(config, Mapping) else _items(config):
        if is_dataclass(value) or isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def difference(old: object, new: object) -> list[Change]:
    """All settings that differ, in the order of `new`. Settings that only `old` has come last.

    `old`, `new`: both dataclasses, or both results of `to_dict` or `load_yaml`.
    """
    before, after = flatten(old), flatten(new)
    names = [*after, *(name for name in before if name not in after)]
    pairs = [(name, before.get(name, ABSENT), after.get(name, ABSENT)) for name in names]
    return [(name, first, second) for name, first, second in pairs if first != second]


def expand_home(config: ConfigType) -> ConfigType:
    """The same settings with `~` replaced by the home folder, at the start of strings and paths, also inside tuples."""
    changes = {name: _expanded(value) for name, value in _items(config)}
    return replace(config, **changes)  # type: ignore[type-var]


def _expanded(value: Any) -> Any:
    if is_dataclass(value):
        return expand_home(value)
    if isinstance(value, tuple):
        return tuple(_expanded(item) for item in value)
    if isinstance(value, str | Path) and (str(value) == "~" or str(value).startswith("~/")):
        return type(value)(Path(value).expanduser())
    return value


def load_run_config(path: Path | str) -> RunConfig:
    """The settings of a run. `path`: its folder or a YAML file. Raises Refusal, naming the file, if they cannot be read."""
    path = Path(path).expanduser()
    file = path / "config.yaml" if path.is_dir() else path
    data = load_yaml(file)
    try:
        return from_dict(RunConfig, _as_it_was(data), CHOICES)
    except ValueError as error:
        raise Refusal(f"{file}: {error}") from None


def _as_it_was(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with the earlier defaults of settings that are missing and whose defaults have changed since.

    Earlier versions trained on all images of a table without a test split, so nothing may be held out of it afterwards. A file
    written by hand has fewer settings than that of a run (it lacks `window`), and means today's defaults.
    """
    tables = data.get("data")
    if isinstance(tables, dict) and tables.get("source") == "huggingface" and "window" in tables:
        return data | {"data": {"test_fraction": 0.0} | tables}
    return data


# ------------------------------------------------------------------------------------------------------------------- JSON files


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


def readable_yaml(text: str) -> dict[str, Any] | None:
    """The mapping in a YAML `text`; None if it is anything else. A repeated key has its last value."""
    for loader in (getattr(yaml, "CSafeLoader", yaml.SafeLoader), yaml.SafeLoader):  # C is ten times as fast, but reads less
        with suppress(Exception):  # yaml also lets through errors of dates, numbers, encodings and recursion
            found = yaml.load(text, loader)
            return found if isinstance(found, dict) else None
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
    return _plain_json(hint, value)


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


def _plain_json(hint: Any, value: object) -> Any:
    if hint is NoneType:
        return None if value is None else DROPPED
    if hint in (str, bool):
        return value if isinstance(value, hint) else DROPPED
    finite = number(value)
    if finite is None or (hint is int and not finite.is_integer()):
        return DROPPED
    return int(finite) if hint is int else value
