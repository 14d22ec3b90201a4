"""What holds for every test, and the option `--fast`."""

import multiprocessing.process
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

os.fsync = lambda descriptor: None  # the machine outlives the tests: a killed process leaves what it has written all the same


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="skip every test as soon as it trains or starts a process")


def skips(what: str) -> Callable[..., Any]:
    def skip(*_: object, **__: object) -> None:
        pytest.skip(f"--fast: {what}")

    return skip


@pytest.fixture(autouse=True)
def _fast(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--fast`, whatever reaches one of these is skipped: no list of slow tests goes out of date."""
    if not request.config.getoption("--fast"):
        yield
        return
    from openjepa.training import loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_method", skips("it trains"))
        for owner, name in ((subprocess, "Popen"), (multiprocessing.process.BaseProcess, "start"), (os, "fork")):
            patch.setattr(owner, name, skips("it starts a process"))
        yield
