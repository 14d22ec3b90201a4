"""Reads from file systems that may be away for a moment: with a time limit, repeated, and counted."""

import errno
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from openjepa.refusals import Refusal

Result = TypeVar("Result")

READ_SECONDS = 120.0
"""How long a read may take without an answer. With the repetition, less than the other processes of a run wait for this one."""
TRIES = 2
"""Number of times that a read without an answer is begun."""
PAUSES = (0.5, 2.0, 5.0)
"""Seconds before each repetition of a read that has failed."""
AHEAD = 8
"""Largest number of results that wait for their use."""
PASSING = tuple(
    number
    for name in (
        *("EIO", "ESTALE", "ETIMEDOUT", "EAGAIN", "ENOTCONN", "ECONNRESET", "ECONNABORTED", "ECONNREFUSED", "EPIPE"),
        *("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH", "EREMOTEIO", "ENFILE", "EMFILE"),
    )
    if (number := getattr(errno, name, None)) is not None
)
"""Errors that may pass: those of a disk or a network, not those of a file that is missing or forbidden."""


def may_pass(error: Exception) -> bool:
    """True if a read that ended with `error` may succeed later."""
    return isinstance(error, OSError) and (error.errno in PASSING or isinstance(error, ConnectionError))


@dataclass
class Patience:
    """How long reads are waited for and how often they are repeated, and what has become of them in this process.

    If a read was given up, the next ones are tried only once until one succeeds. A file system that is gone is thus noticed
    soon.
    """

    seconds: float = READ_SECONDS
    pauses: tuple[float, ...] = PAUSES
    num_repeated: int = 0
    """Number of repetitions so far."""
    gave_up: bool = False
    """True if the last read was given up."""

    def repeated(self, read: Callable[[], Result]) -> Result:
        """What `read` returns. If it raises an error that may pass, calls it again after each of `pauses`."""
        for pause in () if self.gave_up else self.pauses:
            try:
                return self._done(read())
            except OSError as error:
                if not may_pass(error):
                    raise
            self.num_repeated += 1
            time.sleep(pause)
        try:
            return self._done(read())
        except OSError as error:
            self.gave_up = may_pass(error)
            raise

    def _done(self, result: Result) -> Result:
        self.gave_up = False
        return result


class ReadAhead(Generic[Result]):
    """Reads a number of places in a thread, in order, while their results are used.

    If a read gives no answer in time, it is begun again in another thread. The old thread is abandoned, because nothing can
    end a read that a file system holds.
    """

    def __init__(self, read: Callable[[int], Result], num: int, name: Callable[[int], str], patience: Patience) -> None:
        """`read(place)` reads one of the places; the first `num` are read ahead. `name(place)` is its name in messages."""
        self._read, self._num, self._name, self._patience = read, num, name, patience
        self._next = 0
        self._reader = self._start(0, num)

    def __call__(self, place: int) -> Result:
        """The result of a place. Raises what its read raises, or TimeoutError if it gave no answer.

        Raises Refusal if the read before it was given up as well: the file system is then gone.
        """
        is_next = place == self._next < self._num
        if is_next:
            self._next += 1
        tries = 1 if self._patience.gave_up else TRIES
        for attempt in range(tries):
            if not is_next:
                reader = self._start(place, place + 1)
            elif attempt == 0:
                reader = self._reader
            else:
                reader = self._reader = self._start(place, self._num)
            try:
                result = reader.get(timeout=self._patience.seconds)
            except queue.Empty:
                self._patience.num_repeated += attempt + 1 < tries
                continue
            if isinstance(result, _Raised):
                raise result.error
            return result
        error = self._given_up(place, tries)
        if is_next:
            self._reader = self._start(self._next, self._num)
        raise error

    def _given_up(self, place: int, tries: int) -> Exception:
        words = f"reading it gave no answer for {self._patience.seconds:g} s" + (f", {tries} times" if tries > 1 else "")
        if tries == 1:
            return Refusal(
                f"{self._name(place)}: {words}, and the read before was given up as well. Is the file system still there?"
            )
        self._patience.gave_up = True
        return TimeoutError(errno.ETIMEDOUT, words)

    def _start(self, first: int, stop: int) -> "queue.Queue[Result | _Raised]":
        results: queue.Queue[Result | _Raised] = queue.Queue(AHEAD)
        if first < stop:
            threading.Thread(target=self._work, args=(first, stop, results), daemon=True).start()
        return results

    def _work(self, first: int, stop: int, results: "queue.Queue[Result | _Raised]") -> None:
        for place in range(first, stop):
            try:
                results.put(self._patience.repeated(lambda place=place: self._read(place)))  # type: ignore[misc]  # place has no type
            except Exception as error:  # raised where the result is used
                results.put(_Raised(error))


@dataclass(frozen=True)
class _Raised:
    error: Exception


def read_patiently(read: Callable[[], Result], name: str) -> Result:
    """What `read` returns. It runs in a thread with a time limit, and is repeated if it fails by an error that may pass.

    Raises what `read` raises, or TimeoutError if it gives no answer.
    """
    return ReadAhead(lambda _: read(), 1, lambda _: name, Patience())(0)
