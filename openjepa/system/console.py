"""The terminal: lines, tables and one progress bar while something runs; and words of command lines. Free of torch.

Text from users (paths, classes, reasons) is shown unchanged. Sizes in bytes are formatted by `rich.filesize`. Words of a
command line are paths or names on the Hugging Face Hub. The Hub is asked only for words that cannot be a mistyped path of
ours. In commands that are printed, recorded or shown on pages, every word is quoted that a shell would read differently.
"""

import difflib
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Column
from rich.text import Text

from openjepa.system.machine import is_first_here

Style = Literal["auto", "live", "plain", "none"]
"""How progress is shown: `live` is a bar, `plain` one line per interval. `auto` is `live` on a terminal."""
Say = Callable[[str], None]
"""Called with a line about each step that may take long."""


def plain_console(*, stderr: bool = False, width: int | None = None, file: IO[str] | None = None) -> Console:
    """A console that prints text unchanged, without reading markup or emoji in it and without coloring numbers.

    Paths, names of classes and reasons may hold `[bold]`, `[/]` or `:house:`. Give styles as `style=`, or in a `Text`.
    """
    return Console(stderr=stderr, width=width, file=file, markup=False, emoji=False, highlight=False)


def say(text: str) -> None:
    """Prints a line to standard error, once on each machine."""
    if is_first_here():
        print(text, file=sys.stderr, flush=True)


def silent(_: object) -> None:
    """Does nothing: takes the place of a `Say` or of a progress bar."""


def format_seconds(seconds: float) -> str:
    """A duration as text: `45s`, `3m05s`, `2h07m`, `3d04h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def format_count(number: float) -> str:
    """A number as text: `512`, `12.3k`, `21.6M`, `1.4G`, `3.2T`."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(number) < 1000:
            return f"{number:.0f}" if unit == "" else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f}P"


class _TimeLeft(ProgressColumn):
    """Shows the task's field `left` in seconds if it has one, else an estimate from its speed; `?` if neither is known."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        left = task.fields.get("left", task.time_remaining)
        return Text("? left" if left is None else f"{format_seconds(left)} left")


class _Line(ProgressColumn):
    """Shows the task's field `line` if it has one, else its speed; empty at the start."""

    def render(self, task: Task) -> Text:
        rate = "" if task.speed is None else f"{task.speed:,.0f} {task.fields.get('unit')}/s"
        return Text(task.fields.get("line", rate))


def _bar(console: Console, transient: bool) -> Progress:
    """The bar that all commands use: description, bar, number done of all, time left, and the task's line or speed."""
    whole = Column(no_wrap=True)
    return Progress(
        TextColumn("{task.description}", "bold", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _TimeLeft(whole.copy()),
        _Line(whole.copy()),
        console=console,
        transient=transient,
        expand=True,
    )


@contextmanager
def progress(
    description: str, total: int | None, done: int = 0, *, unit: str = "images", style: Style = "auto"
) -> Iterator[Callable[[int], None]]:
    """Shows a bar with speed and time left, on a terminal and once on each machine.

    Yields a function to call with the number done since its last call. The bar appears at the first call and is removed at the
    end. `total`: number of all units; None if it is not known. `done`: number of units done before the start.
    """
    console = plain_console(stderr=True)
    if not (style == "live" or (style == "auto" and console.is_terminal and is_first_here())):
        yield silent
        return
    with _bar(console, transient=True) as bar:
        task = bar.add_task(description, total=total, completed=done, unit=unit, visible=False)
        yield lambda number: bar.update(task, advance=number, visible=True)


class Display:
    """Shows the progress of a loop: a bar on a terminal, one line per interval elsewhere."""

    def __init__(self, total_steps: int, start_step: int, style: Style = "auto", plain_seconds: float = 10.0) -> None:
        """The loop goes from `start_step` to `total_steps`. `plain_seconds`: least time between two plain lines."""
        self._console = plain_console(stderr=True)
        self._style = ("live" if self._console.is_terminal else "plain") if style == "auto" else style
        self._total = total_steps
        self._plain_seconds, self._last_plain = plain_seconds, -float("inf")
        self._bar = _bar(self._console, transient=False) if self._style == "live" else None
        if self._bar is not None:
            self._task = self._bar.add_task("train", total=total_steps, completed=start_step, line="", left=None)
            self._bar.start()

    def update(self, step: int, values: Mapping[str, str], seconds_left: float | None) -> None:
        """Shows the step, the time left and `values` (name -> formatted value). `seconds_left`: None if not known yet."""
        line = "  ".join(f"{name} {value}" for name, value in values.items())
        if self._bar is not None:
            self._bar.update(self._task, completed=step, line=line, left=seconds_left)
        elif self._style == "plain":
            now = time.monotonic()
            if now - self._last_plain >= self._plain_seconds or step == self._total:
                self._last_plain = now
                left = "?" if seconds_left is None else format_seconds(seconds_left)
                print(f"step {step}/{self._total}  {left} left  {line}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Prints a line above the display."""
        if self._style != "none":
            self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Removes the bar from the terminal."""
        if self._bar is not None:
            self._bar.stop()


# ------------------------------------------------------------------------------------------------------- words of command lines


HUB_MARK = "hf:"
"""Prefix that makes words a name on the Hub, even if a path of that name exists: hf:owner/name."""
PART = r"\w[\w.-]*"
WRITTEN = ("runs", "evaluations", "scenes", "ablations", "checkpoints", "encoder", "features")
KEPT = ("data", "datasets", "weights", "models", "output", "outputs", "results", "experiments", "images", "photos")
USUAL = ("log", "logs", "out", "exp", "train", "test", "val", "tmp", "scratch", "src", "home", "mnt", "work")
FOLDERS = frozenset({*WRITTEN, *KEPT, *USUAL})
"""Usual names of folders. They are never taken for an owner on the Hub, even if no such folder exists."""
FILES = (".pth", ".pt", ".tar", ".ckpt", ".bin", ".safetensors", ".onnx", ".npy", ".parquet", ".yaml", ".json", ".zip", ".gz")
"""Endings of files. Words with one of them are not a name on the Hub."""
ALIKE = 0.75
"""Similarity from which the first part of a name is taken for a mistyped folder."""
MOST_SHOWN = 8


def hub_name(words: Path | str, one_part: bool = False) -> str | None:
    """The name on the Hub, owner/name, that `words` mean; None if they mean a path.

    Without `hf:`, `words` are a name on the Hub if no such path exists and their first part does not resemble a folder here or
    one of FOLDERS. USUAL names are short, so they must match exactly: `mnist` is not `mnt`. `one_part`: also accepts names
    without an owner, which some data sets have.
    """
    text = str(words)
    if Path(text).expanduser().exists():
        return None
    if text.startswith(HUB_MARK):
        return text.removeprefix(HUB_MARK) or None
    parts = text.split("/")
    is_name = len(parts) == 2 or (one_part and len(parts) == 1 and "." not in text)
    if not is_name or not all(re.fullmatch(PART, part) for part in parts) or parts[-1].lower().endswith(FILES):
        return None
    is_folder = parts[0].lower() in USUAL or _alike(parts[0], [*WRITTEN, *KEPT, *_held(Path())], ALIKE)
    return None if is_folder else text


def absent(words: Path | str, hub: bool = True, files: bool = True) -> str:
    """The end of an error about a path that does not exist: names the nearest path that exists.

    `hub`: also says how a name on the Hub is written, in case one was meant. `files`: also names files, not only folders.
    """
    text = str(words)
    path = Path(text).expanduser()
    parent = next((item for item in path.parents if item.is_dir()), Path())
    missing = path.relative_to(parent).parts or ("",)
    held = sorted(name for name in _held(parent) if not name.startswith(".") and (files or (parent / name).is_dir()))
    if near := _alike(missing[0], held, 0.5):
        rest = parent.joinpath(near, *missing[1:])
        hint = f"did you mean {str(rest if rest.exists() else parent / near)!r}?"
    else:
        folders = [name for name in held if (parent / name).is_dir()]
        more = f" and {len(folders) - MOST_SHOWN} more" if len(folders) > MOST_SHOWN else ""
        hint = f"{str(parent)!r} exists and holds: {', '.join(folders[:MOST_SHOWN]) or 'no folders'}{more}"
    parts = text.split("/")
    is_name = len(parts) == 2 and all(re.fullmatch(PART, part) for part in parts) and parts[0] not in FOLDERS
    return f"does not exist; {hint}" + (
        f" (a name on the Hugging Face Hub is written {HUB_MARK}{text})" if hub and is_name else ""
    )


def command(*words: object) -> str:
    """`words` as a command line. Each word is quoted if a shell would otherwise read it differently."""
    return shlex.join(map(str, words))


def this_command() -> str:
    """The command that is running, without the folder of its program."""
    program = Path(sys.argv[0]).name
    return command(*(("python", "-m", "openjepa") if program == "__main__.py" else (program,)), *sys.argv[1:])


def _alike(name: str, others: Iterable[str], likeness: float) -> str:
    """The most similar of `others` to `name`, ignoring case; empty if none is similar enough."""
    by_word = {other.lower(): other for other in others}
    found = difflib.get_close_matches(name.lower(), by_word, n=1, cutoff=likeness)
    return by_word[found[0]] if found else ""


def _held(folder: Path) -> list[str]:
    """Names in a folder; empty if it cannot be read."""
    try:
        return [item.name for item in folder.iterdir()]
    except OSError:
        return []
