"""Waiting for what other processes do."""

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_for(condition: Callable[[], Found], seconds: float, said: Callable[[], str] = lambda: "") -> Found:
    """The first result of `condition` that is true or not empty. Asserts that it comes within `seconds`.

    `said()` is added to the words of the failure. A condition may assert as well, such as that a process is still alive.
    """
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"nothing came within {seconds:g} s\n{said()}"
        time.sleep(0.005)
    return found
