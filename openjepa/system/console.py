"""The console of everything that is printed in tables and colors: what a user named is shown as it is.

What a person sees while a loop runs: a live display on a terminal, one plain line per interval elsewhere.

What is said and shown while a pass over many images takes its time.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def plain_console(*, stderr: bool = False, width: int | None = None, file: IO[str] | None = None) -> Console:
    """A console that takes no text for markup, an emoji or a number to be colored.

    Paths, names of classes and reasons may hold `[bold]`, `[/]` or `:house:`. Styles are given as `style=`, or in a `Text`.
    """
    return Console(stderr=stderr, width=width, file=file, markup=False, emoji=False, highlight=False)


def text_column(name: str, style: str = "none") -> TextColumn:
    """The column of a progress bar that shows `name` of the task as it is."""
    return TextColumn(f"{{task.{name}}}", style, markup=False)


Style = Literal["auto", "live", "plain", "none"]


def format_seconds(seconds: float) -> str:
    """`45s`, `3m05s`, `2h07m`, `3d04h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def format_count(number: float) -> str:
    """`512`, `12.3k`, `21.6M`, `1.4G`, `3.2T`."""
    for unit in ("", "k", "M", "G", "T"):
        if abs(number) < 1000:
            return f"{number:.0f}" if unit == "" else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f}P"


class Counter:
    """Counts items with a bar, a rate and the time left, on a terminal only; a context manager and a callback."""

    def __init__(self, description: str, style: Style = "auto") -> None:
        """Nothing is shown before the first call."""
        console = plain_console(stderr=True)
        shown = style == "live" or (style == "auto" and console.is_terminal)
        columns = (
            text_column("description", "bold"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True, disable=not shown)
        self._description = description
        self._task: TaskID | None = None

    def __enter__(self) -> "Counter":
        """Nothing yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Removes the bar."""
        self._progress.stop()

    def __call__(self, done: int, total: int) -> None:
        """Shows that `done` of `total` are done."""
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task(self._description, total=total)
        self._progress.update(self._task, completed=done)


class Display:
    """Shows the progress of a loop of `total_steps` that starts at `start_step`."""

    def __init__(self, total_steps: int, start_step: int, style: Style = "auto", plain_seconds: float = 10.0) -> None:
        """`plain_seconds` is the least time between two plain lines."""
        self._console = plain_console(stderr=True)
        if style == "auto":
            style = "live" if self._console.is_terminal else "plain"
        self._style = style
        self._total = total_steps
        self._plain_seconds, self._last_plain = plain_seconds, -float("inf")
        self._progress: Progress | None = None
        if style == "live":
            columns = (text_column("description", "bold"), BarColumn(bar_width=None), TaskProgressColumn())
            self._progress = Progress(*columns, text_column("fields[line]"), console=self._console, expand=True)
            self._task = self._progress.add_task("train", total=total_steps, completed=start_step, line="")
            self._progress.start()

    def update(self, step: int, values: Mapping[str, str], seconds_left: float | None) -> None:
        """Shows step, time left (None: not known yet) and `values` (name -> formatted value)."""
        left = "?" if seconds_left is None else format_seconds(seconds_left)
        line = "  ".join(f"{name} {value}" for name, value in values.items())
        if self._progress is not None:
            self._progress.update(self._task, completed=step, line=f"{step}/{self._total}  {left} left  {line}")
        elif self._style == "plain":
            now = time.monotonic()
            if now - self._last_plain >= self._plain_seconds or step == self._total:
                self._last_plain = now
                print(f"step {step}/{self._total}  {left} left  {line}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Prints a line above the display."""
        if self._style != "none":
            self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()


Say = Callable[[str], None]
"""Told what is being done, once per step that may take long."""


def silent(_: object) -> None:
    """Says nothing."""


class _Rate(ProgressColumn):
    """Images per second of the last half minute."""

    def render(self, task: Task) -> Text:
        """Empty at the start."""
        return Text("" if task.speed is None else f"{task.speed:,.0f} images/s")


@contextmanager
def progress(description: str, total: int | None, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left, on a terminal only; call it with the number of images done since the last call.

    `total`, `done`: images in all (None: not known), and those of them that are done at the start.
    """
    console = plain_console(stderr=True)
    columns = (
        text_column("description"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total, completed=done)
        yield lambda number: bar.advance(task, number)
