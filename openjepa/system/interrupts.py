"""Ctrl-C and SIGTERM end a loop after the step in progress; a second Ctrl-C ends it at once."""

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType


class Interrupted(Exception):
    """Training was asked to stop by a signal and has saved its state; the same command continues it."""

    def __init__(self, signal_name: str, step: int, folder: Path) -> None:
        """`folder` is the run folder, `step` the number of steps done."""
        super().__init__(f"stopped by {signal_name} after step {step}; saved in {folder}. The same command continues the run.")
        self.exit_code = 128 + int(signal.Signals[signal_name])


class Interrupts:
    """Context manager; `requested` names the signal once one has come."""

    def __init__(self) -> None:
        """Nothing is caught before the `with` block."""
        self.requested: str | None = None
        self._before: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "Interrupts":
        """Takes over SIGINT and SIGTERM (only possible in the main thread; elsewhere nothing is caught)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Gives the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = signal.Signals(number).name
