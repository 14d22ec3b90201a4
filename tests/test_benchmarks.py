"""The programs in benchmarks/: all can be imported, and the suite for a GPU ends in time and says what it lacks."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


def test_every_benchmark_can_be_imported() -> None:
    """In a process of their own: `gpu_suite` changes the search path."""
    code = "import importlib, sys; [importlib.import_module(f'benchmarks.{name}') for name in sys.argv[1:]]"
    command = [sys.executable, "-c", code, *PROGRAMS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert PROGRAMS and done.returncode == 0, done.stderr
