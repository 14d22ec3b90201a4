"""Turns command-line arguments into settings, and checks paths before anything is loaded. Free of torch.

Names and types of options come from the fields of a dataclass, and explanations from the strings under the fields. tyro cannot
choose another dataclass of a union that has a default. So the choice of each component (`--data.source`, `--masks.strategy`,
`--method.name`) is read first and selects its dataclass. Then tyro parses everything over those defaults.
"""

import ast
import inspect
import math
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

from openjepa.config import expand_home, load_run_config, nearest_names
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.fields import NamesOf, Range, as_option, check_ranges, rules_of
from openjepa.settings.inference import CONVERTED_MARK
from openjepa.settings.protocols import evaluation_settings
from openjepa.settings.run import CHOICES
from openjepa.settings.sources import DataSettings, FolderSettings
from openjepa.system.console import absent, command, hub_name
from openjepa.system.machine import told_by_first_process
from openjepa.system.shared_files import is_writable

OptionsType = TypeVar("OptionsType")
Loaded = TypeVar("Loaded")
Unprefixed = tyro.conf.arg(name="")
"""Marks a group of settings whose options have no prefix."""
ALL = "--help-all"
"""The option that asks for help on every option."""


def given_settings(argv: Sequence[str]) -> set[str]:
    """Dotted names of the settings that `argv` sets. A switch counts if it is set, on or off."""
    names = {normalized(item) for item in argv if item.startswith("--")}
    return {".".join(part.removeprefix("no_") for part in name.split(".")) for name in names}


def require(cls: type[Any], argv: Sequence[str], what: str, prog: str) -> list[str]:
    """`argv` with the words in front that do not belong to options of `cls`. `what`: what must be given, for the error.

    Raises Refusal if there is no such word, unless help is asked for.
    """
    ordered = positionals_first(cls, argv)
    if is_help(ordered) or (ordered and not ordered[0].startswith("-")):
        return ordered
    raise Refusal(f"{prog} needs {what} (see {prog} --help)")


def is_help(argv: Sequence[str]) -> bool:
    """True if `argv` asks for help."""
    return not {"--help", "-h", ALL}.isdisjoint(argv)


def unless_help(argv: Sequence[str], load: Callable[[], Loaded], shown: Callable[[], Loaded]) -> Loaded:
    """The result of `load`. If `load` raises Refusal but `argv` asks for help, which is always given: the result of `shown`."""
    try:
        return load()
    except Refusal:
        if is_help(argv):
            return shown()
        raise


def option_value(argv: Sequence[str], name: str) -> str | None:
    """The last value of the option `name` (dotted, with underscores) in `argv`; None if it is not given."""
    found = None
    for position, item in enumerate(argv):
        if not item.startswith("--") or normalized(item) != name:
            continue
        if "=" in item:
            found = item.split("=", maxsplit=1)[1]
        elif position + 1 < len(argv):
            found = argv[position + 1]
    return found


def without_choices(argv: Sequence[str]) -> list[str]:
    """`argv` without the choices of components, because `select_component` has read them and tyro must not."""
    names = {f"{component}.{choice.field}" for component, choice in CHOICES.items()}
    kept, position = [], 0
    while position < len(argv):
        chooses = argv[position].startswith("--") and normalized(argv[position]) in names
        if not chooses:
            kept.append(argv[position])
        position += 1 if not chooses or "=" in argv[position] else 2
    return kept


def select_component(settings: Any, component: str, argv: Sequence[str]) -> Any:
    """`settings`, or those of another choice of `component` if `argv` names one. Common fields are copied to it."""
    choice = CHOICES[component]
    option = f"{component}.{choice.field}"
    name = option_value(argv, option)
    if name is None and option in map(normalized, argv):
        raise Refusal(f"--{option} needs a value: one of {', '.join(choice.options)}")
    if name is None or name == getattr(settings, choice.field):
        return settings
    if name not in choice.options:
        raise Refusal(f"--{option} {name} does not exist: {nearest_names(name, choice.options)}")
    cls = choice.options[name]
    common = {item.name for item in fields(choice.base)} - {choice.field}
    return cls(**{item: getattr(settings, item) for item in common})


def subject_of(argv: Sequence[str], check: Callable[[Path], object]) -> Path | None:
    """The run or encoder with which `argv` begins, or None. `check`: may refuse it, unless help is asked for."""
    if argv[0].startswith("-"):
        return None
    path = Path(argv[0]).expanduser()
    if not is_help(argv):
        check(path)
    return path


def data_of(subject: Path | None, argv: Sequence[str]) -> DataSettings:
    """The data settings of the run `subject`, or default ones if it is not a run. `argv` may choose another source."""
    data: DataSettings = FolderSettings()
    if subject is not None and (subject / "config.yaml").exists():
        data = unless_help(argv, lambda: load_run_config(subject).data, FolderSettings)
    chosen: DataSettings = select_component(data, "data", argv)
    return chosen


def parse(
    cls: type[OptionsType],
    argv: Sequence[str],
    prog: str,
    description: str,
    default: OptionsType,
    details: str = "",
    common: Sequence[str] = (),
) -> OptionsType:
    """Parses `argv` by tyro. Options that are not given have the values of `default`. Expands `~`.

    Prints help and exits if `argv` asks for it. `prog`: the command in help and errors. `description`: help text on the
    command. `details`: text that --help-all adds. `common`: the options that help shows without --help-all, in this order;
    empty: all. Raises Refusal if an option is unknown, and names the nearest.
    """
    if is_help(argv):
        from openjepa.commands.parsing.help import help_text

        chosen = [name for name, choice in CHOICES.items() if f"{name}.{choice.field}" in map(normalized, argv)]
        text = "\n\n".join(filter(None, (description, details if ALL in argv else "")))
        print(help_text(prog, text, default, () if ALL in argv else common, chosen))
        sys.exit(0)
    with told_by_first_process():
        options, unknown = tyro.cli(cls, args=without_choices(argv), prog=prog, default=default, return_unknown_args=True)
    for item in unknown:
        if item.startswith("-"):
            name = item.split("=", maxsplit=1)[0]
            advice = _of_another_choice(name, default) or nearest_names(name, option_names(default))
            raise Refusal(f"unknown option {name}: {advice} (see {prog} --help)")
    if unknown:
        raise Refusal(f"{prog} does not know what to do with {unknown[0]!r}{_about_switches(unknown[0], argv, prog)}")
    check_ranges(options, said=as_option, groups=False)  # groups are checked where they are used
    return expand_home(options)


def _of_another_choice(name: str, options: object) -> str:
    """Which choices of a component have the setting `name`, if that of `options` lacks it: the end of a message, or nothing."""
    component, _, setting = normalized(name).partition(".")
    chosen, choice = getattr(options, component, None), CHOICES.get(component)
    if choice is None or chosen is None:
        return ""
    owners = ", ".join(item for item, cls in choice.options.items() if setting in {part.name for part in fields(cls)})
    return f"only for {component}.{choice.field}={owners}, not {getattr(chosen, choice.field)}" if owners else ""


def _about_switches(item: str, argv: Sequence[str], prog: str) -> str:
    """Advice on an unknown word: what to write instead of `--model.class-token False`, or how to get help."""
    before = argv[argv.index(item) - 1] if item in argv[1:] else ""
    if item.lower() not in ("true", "false") or not before.startswith("--"):
        return f" (see {prog} --help)"
    group, dot, name = before.removeprefix("--").rpartition(".")
    name = name.removeprefix("no-")
    return f": a setting that is on or off takes no value; write --{group}{dot}{name} or --{group}{dot}no-{name}"


def option_names(options: object) -> list[str]:
    """All options that `parse` accepts for this dataclass, without positional arguments."""
    return [option.flag() for option in options_of(type(options), options) if not option.metavar]


def check_subject(path: Path, *marks: str) -> None:
    """Raises Refusal, naming the nearest folder that fits, unless `path` is a folder with one of the files `marks`."""
    _check_subject(path, marks, hub=False)


def _check_subject(path: Path, marks: tuple[str, ...], hub: bool) -> None:
    if any((path / mark).is_file() for mark in marks):
        return
    around = path if path.is_dir() else path.parent
    names = sorted({item.parent.name for mark in marks for item in around.glob(f"*/{mark}")})
    problem = f"{path} holds no {' or '.join(marks)}" if path.exists() else f"{path} does not exist"
    if names:
        raise Refusal(f"{problem}: {nearest_names(path.name, names)}")
    problem = problem if path.exists() else f"{path} {absent(path, hub)}"
    raise Refusal(f"{problem}: name a folder that `openjepa train` has written")


def check_evaluated(path: Path) -> None:
    """Raises Refusal unless `path` can be a run, an encoder folder, a converted folder, a file or a name on the Hub."""
    if not (path.is_file() or (path / CONVERTED_MARK).is_file() or hub_name(path) is not None):
        _check_subject(path, ("config.yaml", "config.json"), hub=True)


def check_output_file(path: Path | None, ending: str, any_ending: bool = True, option: str = "--output") -> None:
    """Raises Refusal if `path` is a folder, cannot be written to, or does not end in `ending`.

    `any_ending`: accepts other endings too. `option`: the option that gives the path, for errors.
    """
    if path is None:
        return
    if path.is_dir():
        raise Refusal(f"{option} {path} is a folder: name a file, e.g. {command(option, path / f'openjepa{ending}')}")
    if not path.parent.is_dir():
        raise Refusal(f"{option} {path}: there is no folder {path.parent}; make it first, or name a file elsewhere")
    if not any_ending and path.suffix.lower() != ending:
        raise Refusal(f"{option} {path} must end in {ending}, e.g. {command(option, path.with_suffix(ending))}")
    _check_writable(path, path.parent, option)


def check_output_folder(path: Path) -> None:
    """Raises Refusal if `path`, from --output, is a file or lies in one, or cannot be written to. It need not exist."""
    existing = next(item for item in (path, *path.parents) if item.exists())
    if not existing.is_dir():
        raise Refusal(f"--output {path}: {existing} is a file, but a folder is needed; name another one")
    _check_writable(path, existing, "--output")


def _check_writable(path: Path, folder: Path, option: str) -> None:
    if not is_writable(folder):
        raise Refusal(f"{option} {path}: {folder.absolute()} cannot be written to; name a place elsewhere")


# ------------------------------------------------------------------------------------------------------- options of a dataclass


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
