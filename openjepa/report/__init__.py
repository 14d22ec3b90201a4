"""The report: makes one self-contained HTML page from run folders. Reads files only and does not import torch."""

from pathlib import Path
from typing import TYPE_CHECKING

from openjepa.refusals import require_package

if TYPE_CHECKING:
    from collections.abc import Sequence


def write_report(runs: "Sequence[Path]", output: Path | None = None) -> Path:
    """Writes an HTML page about one run, or about several side by side; see `openjepa.report.page.write_report`."""
    _check_packages()
    from openjepa.report.page import write_report as write

    return write(runs, output)


def write_scaling(runs: "Sequence[Path]", output: Path | None = None) -> Path:
    """Writes an HTML page of accuracy against the resources of several runs; see `openjepa.report.scaling.write_scaling`."""
    _check_packages()
    from openjepa.report.scaling import write_scaling as write

    return write(runs, output)


def _check_packages() -> None:
    for package in ("jinja2", "markupsafe"):
        require_package(package, "the report")
