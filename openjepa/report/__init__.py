"""The report: run folders -> one self-contained HTML page. Knows no torch, only files."""

from pathlib import Path
from typing import TYPE_CHECKING

from openjepa.refusals import require_package

if TYPE_CHECKING:
    from collections.abc import Sequence


def write_report(runs: "Sequence[Path]", output: Path | None = None) -> Path:
    """Writes one HTML page on one run, or on several side by side; see `openjepa.report.page.write_report`."""
    _check_packages()
    from openjepa.report.page import write_report as write

    return write(runs, output)


def write_scaling(runs: "Sequence[Path]", output: Path | None = None) -> Path:
    """Writes one HTML page of accuracy against what several runs used; see `openjepa.report.scaling.write_scaling`."""
    _check_packages()
    from openjepa.report.scaling import write_scaling as write

    return write(runs, output)


def _check_packages() -> None:
    for package in ("jinja2", "markupsafe"):
        require_package(package, "the report")
