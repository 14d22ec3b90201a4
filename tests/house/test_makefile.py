"""`make install` installs what is missing or out of date, and nothing twice; `make fast` does without what exists."""

import os
import pkgutil
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.fast import FOLDERS, SLOW

ROOT = Path(__file__).parents[2]
OLD, NEW, NEWER = 1_000_000_000, 1_100_000_000, 1_200_000_000


def at(path: Path, when: int) -> None:
    path.touch()
    os.utime(path, (when, when))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the Makefile beside lists of dependencies, with a Python that only notes what it is called with."""
    if shutil.which("make") is None:
        pytest.skip("no make here")
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("pyproject.toml", "constraints.txt"):
        at(tmp_path / name, NEW)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> calls\n')
    python.chmod(0o755)
    return tmp_path


def installed(checkout: Path, target: str) -> list[str]:
    """What `make target` asks pip for."""
    calls = checkout / "calls"
    calls.write_text("")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of an outer `make test`
    command = ["make", target, "PYTHON=python3"]
    subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True, timeout=60)
    return [line.split()[-1] for line in calls.read_text().splitlines()]


def test_a_first_installation_takes_what_the_quickstart_needs_and_only_once(checkout: Path) -> None:
    assert installed(checkout, "install") == [".[eval,report]"]
    assert installed(checkout, "install") == []


def test_a_current_development_installation_is_enough(checkout: Path) -> None:
    at(checkout / ".venv" / ".installed-dev", NEWER)
    assert installed(checkout, "install") == []


@pytest.mark.parametrize("other", [None, OLD])
def test_a_stale_development_installation_is_renewed(checkout: Path, other: int | None) -> None:
    at(checkout / ".venv" / ".installed-dev", OLD)
    if other is not None:
        at(checkout / ".venv" / ".installed", other)
    assert installed(checkout, "install") == [".[dev]"]
    assert installed(checkout, "install") == installed(checkout, "install-dev") == []


def test_what_fast_tests_do_without_is_there() -> None:
    """`pytest --fast` leaves out these folders, and puts something in the place of these names."""
    assert all((ROOT / "tests" / name).is_dir() for name in FOLDERS)
    assert all(callable(pkgutil.resolve_name(name)) for name in SLOW)
