"""Options of a dataclass of settings: their names, their explanations, and the words of a command line that belong to them.

Names and types of options come from the fields of the dataclass, and explanations from the strings under the fields.
"""

import ast
import inspect
import math
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.protocols import evaluation_settings
from openjepa.settings.ranges import Range, rules_of
from openjepa.settings.registry import NamesOf
from openjepa.settings.run import CHOICES


@dataclass(frozen=True)
class Option:
    """A setting as an option of the command line."""

    name: str
    """Dotted name with underscores: `data.image_size`."""
    kind: Any
    """Annotation of the field, without the extras that tyro reads."""
    default: Any
    """Default value; None also if there is no instance with values."""
    owner: Any
    """Dataclass that has the field."""
    metavar: str = ""
    """Name of a positional argument in the help. Empty for an option."""
    aliases: tuple[str, ...] = ()

    @property
    def explanation(self) -> str:
        """The string under the field. It is read only for help, because this takes longer than all other parsing."""
        return explanations(self.owner).get(self.name.rpartition(".")[2], "")

    @property
    def limits(self) -> str:
        """Words for the range of its numbers; empty if there is none."""
        rules = rules_of(self.owner).get(self.name.rpartition(".")[2], ())
        return next((rule.words for rule in rules if isinstance(rule, Range)), "")

    def flag(self, is_on: bool = True) -> str:
        """The option as it is written: `--data.image-size`. `is_on`: False gives `--data.no-horizontal-flip` for a switch."""
        group, dot, name = self.name.replace("_", "-").rpartition(".")
        return f"--{group}{dot}{'' if is_on else 'no-'}{name}"


def options_of(cls: type[Any], values: object = None) -> Iterator[Option]:
    """Yields every option of `cls`. `values`: an instance with the defaults; None: the options of all choices of components."""
    yield from _options(cls, values, "")


def _options(cls: type[Any], values: object, prefix: str) -> Iterator[Option]:
    hints = get_type_hints(cls, include_extras=True)
    for item in fields(cls):
        kind, extras = _without_extras(hints[item.name])
        value = getattr(values, item.name, None)
        if is_dataclass(kind):
            is_bare = any(getattr(extra, "name", None) == "" for extra in extras)
            for part in [type(value)] if value is not None else _choices(kind):  # type: ignore[arg-type]
                yield from _options(part, value, prefix if is_bare else f"{prefix}{item.name}.")
        else:
            metavar = next((extra.metavar for extra in extras if getattr(extra, "metavar", None)), "")
            aliases = next((extra.aliases for extra in extras if getattr(extra, "aliases", None)), ())
            yield Option(f"{prefix}{item.name}", kind, value, cls, metavar, tuple(aliases))


def _choices(cls: type[Any]) -> list[type[Any]]:
    if cls is EvaluationSettings:
        return [evaluation_settings()]
    return next((list(choice.options.values()) for choice in CHOICES.values() if choice.base is cls), [cls])


def _without_extras(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    """The annotation without its extras, and the extras. Names of a registry become a Literal."""
    if get_origin(kind) is not Annotated:
        return kind, ()
    alone, extras = get_args(kind)[0], kind.__metadata__
    for registry in (extra for extra in extras if isinstance(extra, NamesOf)):
        name: Any = Literal[registry.names()]
        alone = tuple[name, ...] if get_origin(alone) is tuple else name | None
    return alone, extras


@cache
def explanations(cls: type[Any]) -> dict[str, str]:
    """The string under each field of a dataclass and of its base classes, as one line.

    Empty if the source code is not available, as in a bundle of compiled files.
    """
    found: dict[str, str] = {}
    for base in reversed([item for item in cls.__mro__ if is_dataclass(item)]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except OSError:
            continue
        assert isinstance(body, ast.ClassDef)
        for line, below in pairwise(body.body):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            if isinstance(line, ast.AnnAssign) and is_text:
                found[ast.unparse(line.target)] = " ".join(str(below.value.value).split())  # type: ignore[attr-defined]
    return found


def leaves(kind: Any) -> tuple[Any, ...]:
    """The plain types and literal values in an annotation, in order: `int | tuple[float, ...]` -> int, float."""
    if get_origin(kind) in (Union, types.UnionType, tuple):
        return tuple(dict.fromkeys(leaf for part in get_args(kind) if part is not Ellipsis for leaf in leaves(part)))
    return get_args(kind) if get_origin(kind) is Literal else (kind,)


def most_words(kind: Any) -> float:
    """Most words of a command line that a value of this annotation takes: 0 for a switch, infinity for a list."""
    if kind is bool:
        return 0
    if get_origin(kind) in (Union, types.UnionType):
        return max(most_words(part) for part in get_args(kind))
    if get_origin(kind) is tuple:
        return math.inf if Ellipsis in get_args(kind) else len(get_args(kind))
    return 1


def is_value(word: str, kind: Any) -> bool:
    """True if `word` can be a value, or one of several values, of an option with this annotation."""
    return any(_fits(word, leaf) for leaf in leaves(kind))


def _fits(word: str, leaf: Any) -> bool:
    if leaf is types.NoneType:
        return word.lower() == "none"
    if leaf in (int, float):
        return _is_number(word, leaf)
    return True if leaf in (str, Path) else word.replace("_", "-") == str(leaf).replace("_", "-")


def _is_number(word: str, kind: Callable[[str], object]) -> bool:
    try:
        kind(word)
    except ValueError:
        return False
    return True


def positionals_first(cls: type[Any], argv: Sequence[str], is_needed: bool = True) -> list[str]:
    """`argv` with the words that belong to no option of `cls` moved to the front.

    `is_needed`: if there is no such word, takes the last word of a list of any length, as in `--image cat.jpg features.npy`.
    """
    options = {**_kinds(cls), "h": [bool], "help": [bool], "help_all": [bool]}
    free: list[str] = []
    rest: list[str] = []
    lists: list[int] = []  # positions in `rest` of the last word of each list
    for piece in _pieces(argv, options):
        if len(piece) > 2 and max(map(most_words, options.get(normalized(piece[0]), [str]))) == math.inf:
            lists.append(len(rest) + len(piece) - 1)
        (rest if _is_option(piece[0]) else free).extend(piece)
    if is_needed and not free and lists:
        free.append(rest.pop(lists[-1]))
    return [*free, *rest]


def split_options(cls: type[Any], argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options of `cls` in `argv` with their values, and all other words."""
    options = _kinds(cls)
    own: list[str] = []
    others: list[str] = []
    for piece in _pieces(argv, options):
        (own if _is_option(piece[0]) and normalized(piece[0]) in options else others).extend(piece)
    return own, others


def _kinds(cls: type[Any]) -> dict[str, list[Any]]:
    """The annotations of each option of `cls`, by its normalized name."""
    kinds: dict[str, list[Any]] = {}
    for option in options_of(cls):
        off = (option.flag(is_on=False),) if option.kind is bool else ()
        for name in (option.flag(), *off, *option.aliases):
            kinds.setdefault(normalized(name), []).append(option.kind)
    return kinds


def _pieces(argv: Sequence[str], options: Mapping[str, list[Any]]) -> Iterator[Sequence[str]]:
    """Yields each option with its values, and each other word alone. An option that `options` lacks takes one value."""
    position = 0
    while position < len(argv):
        end = position + 1
        if _is_option(argv[position]):
            end += _num_values(argv, position, options.get(normalized(argv[position]), [str]))
        yield argv[position:end]
        position = end


def _is_option(word: str) -> bool:
    return word.startswith("--") or word == "-h"


def normalized(option: str) -> str:
    """The form in which options are compared: `--data.image-size=3` -> `data.image_size`."""
    return option.lstrip("-").split("=", maxsplit=1)[0].replace("-", "_")


def _num_values(argv: Sequence[str], position: int, kinds: Sequence[Any]) -> int:
    """Number of words after the option at `position` that are its values. At least one, unless the option is a switch."""
    following = argv[position + 1 : position + 2]
    if "=" in argv[position] or not following or _is_option(following[0]):
        return 0
    most = max(map(most_words, kinds))
    if most == 0:  # the value of a switch is refused later, with the name of the switch
        return int(following[0].lower() in ("true", "false"))
    number = 1
    for word in argv[position + 2 :]:
        if number >= most or _is_option(word) or not any(is_value(word, kind) for kind in kinds):
            break
        number += 1
    return number
