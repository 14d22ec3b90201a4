"""What holds for every test, and the option `--fast`."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.fast import FOLDERS, SLOW

os.fsync = lambda descriptor: None  # the machine outlives the tests: a killed process leaves what it has written all the same


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="no whole stages; skip what trains or starts a process")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    inside = collection_path.relative_to(Path(__file__).parent).as_posix()
    return True if config.getoption("--fast") and inside in FOLDERS else None


def _skip(what: str) -> Callable[..., Any]:
    def skip(*_: object, **__: object) -> None:
        pytest.skip(f"--fast: it {what}")

    return skip


@pytest.fixture(scope="session", autouse=True)
def fast(request: pytest.FixtureRequest) -> Iterator[None]:
    """With `--fast`, a test or fixture that reaches one of SLOW is skipped there: no list of slow tests goes out of date."""
    with pytest.MonkeyPatch.context() as patch:
        for name, what in SLOW.items() if request.config.getoption("--fast") else ():
            patch.setattr(name, _skip(what))
        yield
