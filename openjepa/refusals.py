"""Refusal, an error that the user can fix, as opposed to faults of the program."""

import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

EXTRAS: dict[str, tuple[str, ...]] = {
    "data": ("datasets", "pyarrow", "fsspec"),
    "scenes": ("mitsuba", "drjit"),
    "eval": ("scipy",),
    "report": ("matplotlib", "jinja2", "markupsafe"),
    "tracking": ("tensorboard",),
    "hub": ("huggingface_hub",),
    "transformers": ("transformers",),
    "onnx": ("onnx", "onnxruntime", "onnxscript", "onnx_ir"),
    "search": ("usearch",),
}
"""The modules that each extra provides, including those of indirect dependencies."""


class Refusal(ValueError):
    """A request cannot be fulfilled. The message names the setting or file, its value and what would fit.

    The command line prints only the message and exits with 2. Any other error is a fault of the program: it keeps its traceback
    and exits with 1.
    """

    is_for_all = False
    """True if this process tells it for all processes of a run, which know of it."""


class RepeatedRefusal(Refusal):
    """The refusal of another process of the same run, which prints it itself. The command line does not print it again."""


class Lost(Refusal):
    """Another process of the run has ended, or does not come. This one has no error of its own."""

    def __init__(self, words: str, waited_in: str) -> None:
        """`waited_in`: what this process was doing, in words for users."""
        super().__init__(words)
        self.waited_in = waited_in


def refused(checks: Iterable[Callable[[], object]]) -> list[str]:
    """Runs all `checks` and returns the messages of those that raise Refusal, each message once."""
    found: dict[str, None] = {}
    for check in checks:
        try:
            check()
        except Refusal as error:
            found[str(error)] = None
    return list(found)


def refuse(problems: Sequence[str]) -> None:
    """Raises one Refusal that names all `problems`, so that the user can fix them at once. Does nothing if there are none."""
    problems = list(dict.fromkeys(problems))
    if len(problems) == 1:
        raise Refusal(problems[0])
    if problems:
        raise Refusal("\n- ".join([f"{len(problems)} things cannot work:", *problems]))


def examples(names: Sequence[str], most: int = 3) -> str:
    """The first names as examples: `a, b, c, ...`."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def few(names: Sequence[str], most: int = 8) -> str:
    """The first names and the number of others: `a, b and 5 more`."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def require_package(package: str, what: str, instead: str = "") -> None:
    """Raises Refusal unless `package` is installed. Imports nothing.

    `what`: what needs the package. `instead`: advice on what to do without it.
    """
    if importlib.util.find_spec(package) is None:
        raise _missing(package, what, instead)


@contextmanager
def needed_for(what: str, instead: str = "") -> Iterator[None]:
    """Turns the error of a missing package of an extra into a Refusal. All other errors pass.

    `what`: what needs the package. `instead`: advice on what to do without it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if not any(package in packages for packages in EXTRAS.values()):
            raise
        raise _missing(package, what, instead) from None


def _missing(package: str, what: str, instead: str) -> Refusal:
    extra = next(name for name, packages in EXTRAS.items() if package in packages)
    return Refusal(f"{what} needs the package {package}: pip install 'openjepa[{extra}]'{instead and f', or {instead}'}")
