"""Turns command-line arguments into settings, and checks paths before anything is loaded. Free of torch.

tyro cannot choose another dataclass of a union that has a default. So the choice of each component (`--data.source`,
`--masks.strategy`, `--method.name`) is read first and selects its dataclass. Then tyro parses everything over those defaults.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import tyro

from openjepa.commands.parsing.help import help_text
from openjepa.commands.parsing.options import normalized, options_of, positionals_first
from openjepa.config import expand_home, load_run_config, nearest
from openjepa.refusals import Refusal
from openjepa.settings.inference import MARK
from openjepa.settings.ranges import as_option, check_ranges
from openjepa.settings.run import CHOICES
from openjepa.settings.sources import DataSettings, FolderSettings
from openjepa.system.shared_files import is_writable
from openjepa.system.shell import absent, command, hub_name

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
        raise Refusal(f"--{option} {name} does not exist: {nearest(name, choice.options)}")
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
        chosen = [name for name, choice in CHOICES.items() if f"{name}.{choice.field}" in map(normalized, argv)]
        text = "\n\n".join(filter(None, (description, details if ALL in argv else "")))
        print(help_text(prog, text, default, () if ALL in argv else common, chosen))
        sys.exit(0)
    options, unknown = tyro.cli(cls, args=without_choices(argv), prog=prog, default=default, return_unknown_args=True)
    for item in unknown:
        if item.startswith("-"):
            name = item.split("=", maxsplit=1)[0]
            raise Refusal(f"unknown option {name}: {nearest(name, option_names(default))} (see {prog} --help)")
    if unknown:
        raise Refusal(f"{prog} does not know what to do with {unknown[0]!r}{_about_switches(unknown[0], argv, prog)}")
    check_ranges(options, said=as_option, groups=False)  # groups are checked where they are used
    return expand_home(options)


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
        raise Refusal(f"{problem}: {nearest(path.name, names)}")
    problem = problem if path.exists() else f"{path} {absent(path, hub)}"
    raise Refusal(f"{problem}: name a folder that `openjepa train` has written")


def check_evaluated(path: Path) -> None:
    """Raises Refusal unless `path` can be a run, an encoder folder, a converted folder, a file or a name on the Hub."""
    if not (path.is_file() or (path / MARK).is_file() or hub_name(path) is not None):
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
