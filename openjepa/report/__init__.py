"""The report: run folders -> one self-contained HTML page. Knows no torch, only files."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def write_report(runs: "Sequence[Path]", output: Path | None = None) -> Path:
    """Writes one HTML page on one run, or on several side by side; see `openjepa.report.page.write_report`."""
    try:
        import markupsafe  # noqa: F401
    except ImportError:
        raise ValueError("the report needs the package jinja2: pip install 'openjepa[report]'") from None
    from openjepa.report.page import write_report as write

    return write(runs, output)
