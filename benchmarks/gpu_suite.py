"""One command for a machine with a GPU: the GPU-marked tests, then the training step of S/16, B/16, L/16 and H/14 at 224 px.

    python benchmarks/gpu_suite.py [--output FOLDER] [--minutes 8.5]

Needs no network and no data. Writes `<output>/<date>_<hardware>/gpu_suite.json` after every measurement, so that what was
measured before a limit is kept, and prints each result. Rates are also a share of the rate of a 4096-cubed bf16 matrix product
timed in the same rounds. `--quick` runs the same code at toy sizes on any device.
"""

import argparse
import gc
import json
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from openjepa.bench import bench_step, print_step, step_config  # noqa: E402 - works from a checkout that is not installed
from openjepa.engine.device import device_name, resolve_device  # noqa: E402
from openjepa.settings.bench import StepBench  # noqa: E402
from openjepa.settings.models import Size  # noqa: E402


@dataclass(frozen=True)
class Case:
    """One model whose step is timed, eager and compiled."""

    size: Size
    patch_size: int
    batch_size: int
    predictor_depth: int
    predictor_width: int = 384
    image_size: int = 224


CASES = (Case("small", 16, 256, 6), Case("base", 16, 256, 6), Case("large", 16, 128, 12), Case("huge", 14, 64, 12))
QUICK = (Case("test", 8, 8, 1, 24, 64),)


def main() -> None:
    """Runs everything and exits with 1 if the tests failed."""
    options = parse()
    deadline = time.monotonic() + 60 * options.minutes
    device = resolve_device("auto" if options.quick else "cuda")
    folder = options.output / f"{time.strftime('%Y-%m-%d')}_{re.sub(r'[^A-Za-z0-9]+', '-', device_name(device)).strip('-')}"
    folder.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"torch": torch.__version__, "python": sys.version.split()[0], "device": device_name(device)}
    results["commit"] = commit()
    if not options.no_tests:
        results["tests"] = run_tests(min(180.0, 0.4 * (deadline - time.monotonic())))
    for case in QUICK if options.quick else CASES:
        for compiled in (False, True):
            name = f"{case.size}/{case.patch_size} {'compiled' if compiled else 'eager'}"
            results[name] = timed(case, compiled, str(device), deadline)
            (folder / "gpu_suite.json").write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {folder / 'gpu_suite.json'}")
    sys.exit(1 if results.get("tests", {}).get("exit_code", 0) else 0)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--minutes", type=float, default=8.5, help="no measurement starts after this time")
    parser.add_argument("--no-tests", action="store_true", help="skip the GPU-marked tests")
    parser.add_argument("--quick", action="store_true", help="toy sizes on any device, to check the suite itself")
    return parser.parse_args()


def run_tests(seconds: float) -> dict[str, Any]:
    """pytest -m gpu in a process of its own, so that its memory is free afterwards."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/test_gpu.py"]
    start = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"exit_code": 124, "summary": f"no end within {seconds:.0f} s"}
    print(done.stdout[-4000:], done.stderr[-2000:])
    lines = done.stdout.strip().splitlines()
    return {"exit_code": done.returncode, "summary": lines[-1] if lines else "", "seconds": time.monotonic() - start}


def timed(case: Case, compiled: bool, device: str, deadline: float) -> dict[str, Any]:
    """The step of one model, or why there is no figure."""
    if time.monotonic() > deadline:
        return {"skipped": "no time left"}
    options = StepBench(
        size=case.size,
        patch_size=case.patch_size,
        image_size=case.image_size,
        batch_size=case.batch_size,
        predictor_width=case.predictor_width,
        predictor_depth=case.predictor_depth,
        device=device,
        compile=compiled,
    )
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.monotonic()
    try:
        result = bench_step(step_config(options), product_size=256 if case.size == "test" else 4096)
    except (RuntimeError, ValueError) as error:  # out of memory, or no compiler: the other cases still count
        print(f"{case.size}/{case.patch_size}: {error}")
        return {"failed": str(error)[:2000]}
    finally:
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()
    print_step(result)
    return {**result, "wall_seconds": time.monotonic() - start}


def commit() -> str | None:
    """Commit of this checkout, where git is there."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


if __name__ == "__main__":
    main()
