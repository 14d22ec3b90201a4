"""The command line: finds the command, and turns a refusal into one message. Does not import tyro or torch itself."""

import contextlib
import io
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import openjepa
from openjepa.refusals import Refusal, RepeatedRefusal, needed_for
from openjepa.system.interrupts import Interrupted
from openjepa.system.machine import is_first_process, launched

USAGE = """openjepa {version}: train I-JEPA encoders on your images, probe and look at them.

usage: openjepa COMMAND [OPTIONS]

{commands}

openjepa COMMAND --help explains a command, --help-all every setting of it.

examples:
  openjepa quickstart                            train and probe on small scenes
  openjepa train cpu-64 --data.path ~/photos     a recipe on a folder of images
  openjepa evaluate runs/cpu-64-default-photos   k-NN and linear probes
  openjepa visualize runs/cpu-64-default-photos  masks, features and neighbors
  openjepa report runs/cpu-64-default-photos     one HTML file with everything"""

COMMANDS = {
    "quickstart": "train, evaluate and report on packaged scenes in minutes",
    "train": "train an encoder on your images",
    "plan": "what a run needs on any number of GPUs: memory, time, data",
    "recipes": "the named runs that train starts from, or all settings of one",
    "launch slurm": "train on the nodes of a cluster with Slurm",
    "runs": "which runs train, are finished or stuck, and how far they are",
    "evaluate": "k-NN and linear probes of an encoder",
    "visualize": "pictures of what an encoder has learned",
    "report": "one HTML file on one run or several",
    "embed": "features of all images as one NumPy or Parquet file",
    "search": "nearest images, near-duplicates, outliers in what embed wrote",
    "convert": "weights for transformers, timm, ONNX, released I-JEPA program",
    "ablate": "compare runs that differ in one thing, e.g. the method",
    "bench step": "time a training step and its parts",
    "bench data": "time decoding, cropping and loading",
    "bench energy": "whether the energy tells pairs that belong together",
    "data check": "read every image of a data set once",
    "data pack": "write a folder of images as tars or Parquet files",
    "data masks": "draw masks and how often they cover each patch",
    "data scenes": "render labeled scenes in CLEVR's format",
}
"""One line of help for each command. The command `data check` is the function `data_check` in openjepa/commands/data.py."""

ABOUT_EXPERIMENTS = ("ablate", "bench", "plan", "launch", "runs")
"""First words of the commands that are functions in openjepa/commands/experiments/."""
SHARED_COMMANDS = ("train", "evaluate", "embed")
"""Commands whose work the processes of torchrun share."""
SECONDS_OF_THE_FIRST = 3.0
"""How long the other processes wait before they tell a fault that they may all have found."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of `openjepa`: runs one command. `argv`: the words after the program; None: those of this process.

    After a refusal or an error of the file system, prints one message and exits with 2. If interrupted, exits with 130, 143
    or 75, by the signal. Any other error is a fault of the program and keeps its traceback.
    """
    warnings.formatwarning = _format_warning
    _print_any_name()
    try:
        with contextlib.nullcontext() if is_first_process() else _silence():
            _dispatch(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Interrupted as error:
        if is_first_process():  # all processes have stopped after the same step
            print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # `openjepa ... | head` closed the pipe: Python must not flush its buffer into it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except RepeatedRefusal:
        sys.exit(2)
    except (Refusal, OSError) as error:
        if os.environ.get("OPENJEPA_DEBUG"):
            raise
        if not is_first_process() and not getattr(error, "is_for_all", False):
            time.sleep(SECONDS_OF_THE_FIRST)  # torchrun ends this process meanwhile if the first one has found the same fault
        print(f"openjepa: {error}", file=sys.stderr)
        sys.exit(2)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drops what is printed in the block: of the processes that torchrun has started, only the first one prints."""
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _print_any_name() -> None:
    """Makes printing write bytes and letters as escapes if the terminal's encoding lacks them, as file names may need."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as text. Our own warnings are for users, so they name no file and no line of code."""
    return f"note: {message}\n" if category is UserWarning else f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _dispatch(argv: list[str]) -> None:
    if argv[:1] == ["help"]:  # `openjepa help train` is `openjepa train --help`
        argv = [*argv[1:], "--help"] if argv[1:] != ["help"] else ["--help"]
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] in ("--version", "version"):
        print(openjepa.__version__)
        return
    group = [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]
    words = 2 if group else 1
    if group and (len(argv) == 1 or argv[1] in ("-h", "--help")):
        print(usage(group))
        return
    name = " ".join(argv[:words])
    if name not in COMMANDS:
        from openjepa.config import nearest_names

        raise Refusal(f"unknown command {name!r}: {nearest_names(name, COMMANDS)} (see openjepa --help)")
    if launched() > 1 and name not in SHARED_COMMANDS:
        raise Refusal(
            f"openjepa {name} runs in one process, and torchrun has started {launched()}, which would all do the same: only "
            f"{', '.join(SHARED_COMMANDS)} share their work"
        )
    folder = "experiments." if argv[0] in ABOUT_EXPERIMENTS else ""
    function = getattr(import_module(f"openjepa.commands.{folder}{argv[0]}"), name.replace(" ", "_"))
    with needed_for(f"openjepa {name}"):
        function(argv[words:], f"openjepa {name}")


def usage(names: Sequence[str] = tuple(COMMANDS)) -> str:
    """The help of `openjepa`. `names`: the commands to list; for a group of them, no examples."""
    lines = "\n".join(f"  {name:<14}{COMMANDS[name]}" for name in names)
    if len(names) == len(COMMANDS):
        return USAGE.format(version=openjepa.__version__, commands=lines)
    group = f"openjepa {names[0].partition(' ')[0]}"
    explained = f"{group} COMMAND --help explains a command, --help-all every setting."
    return f"usage: {group} COMMAND [OPTIONS]\n\n{lines}\n\n{explained}"
