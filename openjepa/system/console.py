"""The console of everything that is printed in tables and colors: what a user named is shown as it is."""

from typing import IO

from rich.console import Console
from rich.progress import TextColumn


def plain_console(*, stderr: bool = False, width: int | None = None, file: IO[str] | None = None) -> Console:
    """A console that takes no text for markup, an emoji or a number to be colored.

    Paths, names of classes and reasons may hold `[bold]`, `[/]` or `:house:`. Styles are given as `style=`, or in a `Text`.
    """
    return Console(stderr=stderr, width=width, file=file, markup=False, emoji=False, highlight=False)


def text_column(name: str, style: str = "none") -> TextColumn:
    """The column of a progress bar that shows `name` of the task as it is."""
    return TextColumn(f"{{task.{name}}}", style, markup=False)
