"""Ends a loop after the current step on Ctrl-C, SIGTERM or SIGUSR1. A second Ctrl-C ends it at once.

A scheduler sends SIGUSR1 some time before it ends a job. The program then exits with REQUEUE, so that the job is started again.
"""

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType

REQUEUE = 75
"""Exit code after SIGUSR1: a temporary failure (EX_TEMPFAIL of sysexits.h), the same command goes on."""
CAUGHT = ("SIGINT", "SIGTERM", "SIGUSR1")
"""Signals that end a loop. If processes get different ones, the later in this list counts. Windows has no SIGUSR1."""


class Interrupted(Exception):
    """A signal has stopped the training, and its state is saved. The same command continues it."""

    def __init__(self, signal_name: str, step: int, folder: Path) -> None:
        """`step`: number of steps done. `folder`: the run folder."""
        super().__init__(f"stopped by {signal_name} after step {step}; saved in {folder}. The same command continues the run.")
        self.exit_code = REQUEUE if signal_name == "SIGUSR1" else 128 + int(signal.Signals[signal_name])


class Interrupts:
    """Context manager that catches signals. `requested` is the name of the signal, or None before one has come."""

    def __init__(self) -> None:
        """Signals are caught only inside the `with` block."""
        self.requested: str | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "Interrupts":
        """Takes over the signals of CAUGHT. Does nothing outside the main thread, where this is not possible."""
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in CAUGHT if hasattr(signal, name)):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Restores the previous handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
