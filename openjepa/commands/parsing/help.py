"""The help of a command: usage, description, examples and options. It fits a terminal of 80 columns.

Options are explained by the strings under the fields of the settings. Long commands show only common options; `--help-all`
shows all.
"""

import re
import shutil
import textwrap
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from openjepa.commands.parsing.arguments import Option, leaves, most_words, options_of
from openjepa.settings.run import CHOICES

NARROWEST, WIDEST = 60, 120
"""Fewest and most columns of the terminal that are used."""
COLUMN = 27
"""Column in which explanations begin."""
NAMES = {str: "TEXT", Path: "PATH", int: "N", float: "X", types.NoneType: "none"}


def width() -> int:
    """Number of columns of the terminal that are used."""
    return min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)


def folded(text: str) -> str:
    """`text` for the terminal: fills paragraphs, folds the second column of tables, and keeps commands unchanged."""
    return "\n\n".join("\n".join(_folded(block.splitlines())) for block in text.split("\n\n"))


def _folded(lines: Sequence[str]) -> Iterator[str]:
    plain: list[str] = []
    for line in lines:
        if not line.startswith(" "):
            plain.append(line)
            continue
        yield from _filled(" ".join(plain))
        plain = []
        gap = re.match(r"  +(?!openjepa|torchrun|pip)\S.*?  +", line)
        yield from _filled(line, " " * (gap.end() if gap else 4)) if gap or "openjepa " not in line else [line]
    yield from _filled(" ".join(plain))


def _filled(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, width(), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    )


def help_text(prog: str, text: str, options: object, common: Sequence[str], chosen: Sequence[str]) -> str:
    """The help of the command `prog`.

    `text`: description, examples and tables. `options`: an instance of the command's dataclass, with the defaults to show.
    `common`: names of the options that are shown; empty: all. `chosen`: components, e.g. `data`, whose options are shown too.
    """
    listed = list(options_of(type(options), options))
    positional = next((option for option in listed if option.metavar), None)
    usage = " ".join(["usage:", prog, *([positional.metavar] if positional else []), "[OPTIONS]"])
    rest = [option for option in listed if not option.metavar]
    first = [option for name in common for option in rest if option.name == name] if common else rest
    parts = [usage, folded(text)]
    listed = [positional, *first] if positional else first
    parts.append(f"{'common options' if common else 'options'}:\n{_lines(listed, is_whole=not common)}")
    for name in chosen if common else ():
        own = [option for option in rest if option.name.startswith(f"{name}.") and option not in first]
        parts.append(f"more options of the chosen {name}:\n{_lines(own, is_whole=True)}")
    if common:
        parts.append(folded(f"{prog} --help-all explains all {len(rest)} options."))
    return "\n\n".join(parts)


def _lines(options: Sequence[Option], is_whole: bool) -> str:
    return "\n".join(line for option in options for line in _explained(option, is_whole))


def _explained(option: Option, is_whole: bool) -> list[str]:
    """The lines of an option: name, values and explanation. Only the first sentence of the explanation unless `is_whole`."""
    left, indent = f"  {option.metavar or _usage(option)}", " " * COLUMN
    sentences = re.split(r"(?<=\.)\s+(?=[A-Z`])", option.explanation)
    shown = option.explanation
    if not is_whole:  # also the sentence on what the default means, if there is one
        start = "None:" if option.default is None else "Empty:"
        meaning = [item for item in sentences[1:] if item.startswith(start) and option.default in (None, ())]
        shown = " ".join([sentences[0], *meaning])
    text = f"{shown}{'' if option.metavar else _parenthesis(option, is_whole)}"
    words = textwrap.wrap(text, width() - COLUMN, break_long_words=False, break_on_hyphens=False) or [""]
    if len(left) + 2 > COLUMN:
        left = left.replace("|", "| ") if len(left) > width() else left
        names = textwrap.wrap(left, width(), subsequent_indent="      ", break_on_hyphens=False)
        return [*names, *(indent + line for line in words)]
    return [left.ljust(COLUMN) + words[0], *(indent + line for line in words[1:])]


def _usage(option: Option) -> str:
    if option.kind is bool:
        return f"{option.flag()} | {option.flag(is_on=False)}" if option.default else option.flag()
    choice = CHOICES.get(option.name.partition(".")[0])
    is_choice = choice is not None and option.name.endswith(f".{choice.field}")
    return f"{option.flag()} {'|'.join(choice.options) if choice and is_choice else _values(option.kind)}"


def _values(kind: Any) -> str:
    """The possible values of an option in short form: `N`, `bf16|fp32`, `X ...`."""
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    names = dict.fromkeys(NAMES.get(leaf, str(leaf)) for leaf in leaves(kind) if leaf is not types.NoneType)
    word = "|".join(names)
    return word if most_words(kind) <= 1 else f"{word} ..."


def _parenthesis(option: Option, is_whole: bool) -> str:
    """Range and default of an option: ` (at least 1; default: 64)`. Only the default unless `is_whole`.

    A default of None or empty is not shown, because the explanation says what it means.
    """
    words = [option.limits] if is_whole and option.limits else []
    values = option.default if isinstance(option.default, tuple) else (option.default,)
    if option.kind is bool:
        words += ["default: on"] if option.default else []
    elif option.default not in (None, "", ()):
        words.append(f"default: {' '.join(f'{item:g}' if isinstance(item, float) else str(item) for item in values)}")
    return f" ({'; '.join(words)})" if words else ""
