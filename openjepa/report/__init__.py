"""The report: run folders -> one self-contained HTML page. Knows no torch, only files."""

from pathlib import Path
from typing import TYPE_CHECKING

from openjepa.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence


def write_report(runs: "Sequence[Path]", output: Path | None = None) -> Path:
    """Writes one HTML page on one run, or on several side by side; see `openjepa.report.page.write_report`."""
    _check_packages()
    from openjepa.report.page import write_report as write

    return write(runs, output)


def write_scaling(runs: "Sequence[Path]", output: Path | None = None) -> Path:
    """Writes one HTML page of accuracy against what several runs used; see `openjepa.report.scaling_page.write_scaling`."""
    _check_packages()
    from openjepa.report.scaling_page import write_scaling as write

    return write(runs, output)


def _check_packages() -> None:
    try:
        import markupsafe  # noqa: F401
    except ImportError:
        raise Refusal("the report needs the package jinja2: pip install 'openjepa[report]'") from None
