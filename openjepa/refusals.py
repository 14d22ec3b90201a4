"""Refusal: an error that the user can mend, told apart from faults of the program."""

from collections.abc import Callable, Iterable, Sequence


class Refusal(ValueError):
    """Something that cannot be done as asked; the message names the setting or file, its value and what would fit.

    The command line prints the message alone and exits with 2. Every other error is a fault of the program: it keeps its
    traceback and exits with 1.
    """


def refused(checks: Iterable[Callable[[], object]]) -> list[str]:
    """The messages of those of `checks` that refuse, each once. All of them run."""
    found: dict[str, None] = {}
    for check in checks:
        try:
            check()
        except Refusal as error:
            found[str(error)] = None
    return list(found)


def refuse(problems: Sequence[str]) -> None:
    """Raises one Refusal that names all `problems`, so that nobody mends one to meet the next. Does nothing without any."""
    problems = list(dict.fromkeys(problems))
    if len(problems) == 1:
        raise Refusal(problems[0])
    if problems:
        raise Refusal("\n- ".join([f"{len(problems)} things cannot work:", *problems]))


def examples(names: Sequence[str], most: int = 3) -> str:
    """The first names as examples: `a, b, c, ...`."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def few(names: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are: `a, b and 5 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
