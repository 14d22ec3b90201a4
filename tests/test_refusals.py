"""Packages of extras: a missing one is one message that names the extra, wherever it is imported."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

import openjepa.commands.report
from openjepa.cli import main
from openjepa.refusals import EXTRAS, Refusal, needed_for, require_package

ROOT = Path(__file__).parents[1]
PACKAGES = [(extra, package) for extra, packages in EXTRAS.items() for package in packages]


def test_the_table_is_that_of_pyproject() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) == set(extras) - {"dev", "docs"}
    for name, packages in EXTRAS.items():
        required = [re.split(r"[><=\[]", item)[0] for item in extras[name]]
        assert set(required) <= set(packages)


@pytest.mark.parametrize(("extra", "package"), PACKAGES)
def test_a_command_names_the_extra(
    extra: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(argv: object, prog: str) -> None:
        __import__(f"{package}.part")

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(openjepa.commands.report, "report", command)
    with pytest.raises(SystemExit) as stopped:
        main(["report"])
    words = f"openjepa: openjepa report needs the package {package}: pip install 'openjepa[{extra}]'\n"
    assert stopped.value.code == 2 and capsys.readouterr().err == words
    with pytest.raises(Refusal, match=re.escape(f"x needs the package {package}: pip install 'openjepa[{extra}]', or y")):
        require_package(package, "x", "y")


@pytest.mark.parametrize("error", [ModuleNotFoundError("no", name="openjepa.nothing"), ImportError("broken", name="pyarrow")])
def test_other_errors_of_imports_keep_their_traceback(error: ImportError) -> None:
    with pytest.raises(type(error)) as found, needed_for("x"):
        raise error
    assert found.value is error


@pytest.mark.parametrize("error", [ValueError("shapes differ"), RuntimeError("no"), KeyError("x"), ZeroDivisionError()])
def test_faults_of_the_program_are_no_refusals(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def command(argv: object, prog: str) -> None:
        raise error

    monkeypatch.setattr(openjepa.commands.report, "report", command)
    with pytest.raises(type(error)) as found:
        main(["report"])
    assert found.value is error


def test_no_other_file_says_which_extra_brings_a_package() -> None:
    """Except the help of `data scenes` and the note on the check that convert leaves out."""
    files = {path.name for path in (ROOT / "openjepa").rglob("*.py") if "pip install 'openjepa[" in path.read_text()}
    assert files == {"refusals.py", "conversion.py", "data.py"}
