"""What is said and shown while a pass over many images takes its time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TimeRemainingColumn
from rich.text import Text

from openjepa.system.console import plain_console, text_column

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
