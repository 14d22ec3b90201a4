"""One command for a machine with GPUs: runs the GPU tests, then times the step of S/16, B/16, L/16 and H/14 at 224 px.

    python benchmarks/gpu_suite.py [--output FOLDER] [--minutes 8.5]

If there are several GPUs, B/16 and H/14 are also trained by one of them and by all, replicated and divided, from images to log
(`benchmarks.processes`), which takes up to 17 minutes more. Needs no network and no data. Prints each result and writes
`<output>/<date>_<hardware>/gpu_suite.json` after the tests and after every measurement, so that finished measurements are kept
if the time runs out. Tests and measurements run in processes of their own, which are ended when the time is up. Rates are also
given as a share of the rate of a 4096-cubed bf16 matrix product timed in the same rounds. `--quick` runs
the same code at toy sizes on any device. Exits with 2 if there is no GPU, and with 1 if the tests failed.

    python benchmarks/gpu_suite.py --ablations ~/imagenet [--output FOLDER]

trains the paper's Tables 6 to 10 at their real size instead: ViT-B/16 for 300 epochs (Table 7: ViT-L/16, 500 epochs), two
seeds, probes with 1 % of the labels. Start it once for each GPU (CUDA_VISIBLE_DEVICES): the processes share the runs, and a
stopped one goes on. This has not been run yet.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

START = time.monotonic()
"""Before torch is imported, which can take half a minute from a slow disk."""


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.processes import Options as ProcessOptions  # noqa: E402
from benchmarks.processes import compare  # noqa: E402
from openjepa.engine.device import resolve_device, resolve_precision  # noqa: E402
from openjepa.engine.run_folder import environment  # noqa: E402
from openjepa.experiments.step_times import bench_step, print_step, step_config  # noqa: E402 - works from a checkout that is not installed
from openjepa.settings.experiments import StepBench  # noqa: E402
from openjepa.settings.models import Size  # noqa: E402

MOST_SECONDS = 180.0
"""Of the tests, and of one measurement: one that hangs leaves time to the others."""
SHARED_RUN_SECONDS = 110.0
"""Of each of the two runs of one GPU and of all. Such a measurement is begun only if there is time for both."""
TIMED_OUT = 124
"""Exit code of a process that was ended because its time was up, as of `timeout`."""


@dataclass(frozen=True)
class Case:
    """One model whose step is timed, eager and compiled."""

    size: Size
    patch_size: int
    batch_size: int
    predictor_depth: int
    predictor_width: int = 384
    image_size: int = 224

    def name(self, compiled: bool) -> str:
        """Key of the result."""
        return f"{self.size}/{self.patch_size} {'compiled' if compiled else 'eager'}"


@dataclass(frozen=True)
class SharedCase:
    """One recipe that is trained by one GPU and by all, in turns."""

    recipe: str
    strategy: Literal["ddp", "fsdp2"]
    images_per_gpu: int
    steps: int = 36

    @property
    def name(self) -> str:
        """Key of the result."""
        return f"{self.recipe} on several, {self.strategy}"


STRATEGIES: tuple[Literal["ddp", "fsdp2"], ...] = ("ddp", "fsdp2")
SHARED = tuple(
    SharedCase(recipe, strategy, images)
    for recipe, images in (("ijepa-vitb16", 64), ("ijepa-vith14", 16))
    for strategy in STRATEGIES
)
QUICK_SHARED = tuple(SharedCase("cpu-32", strategy, 4, steps=6) for strategy in STRATEGIES)
IMAGENET = 1_281_167
"""Training images of ImageNet-1K."""
REAL_TABLES = {
    "masks": ("ijepa-vitb16", 300),
    "target-scale": ("ijepa-vitb16", 300),
    "context-scale": ("ijepa-vitb16", 300),
    "num-targets": ("ijepa-vitb16", 300),
    "target-space": ("ijepa-vitl16", 500),
}
"""Recipe and epochs of each ablation at its real size."""
CASES = (Case("small", 16, 256, 6), Case("base", 16, 256, 6), Case("large", 16, 128, 12), Case("huge", 14, 64, 12))
QUICK = (Case("test", 8, 8, 1, 24, 64),)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs everything; returns the exit code."""
    options = parse(argv)
    if options.ablations is not None:
        return max(subprocess.run(command, check=False).returncode for command in ablation_commands(options))
    cases = {case.name(compiled): (case, compiled) for case in (*CASES, *QUICK) for compiled in (False, True)}
    shared = {case.name: case for case in (*SHARED, *QUICK_SHARED)}
    if options.only in shared:
        measure_shared(shared[options.only], options.output)
        return 0
    if options.only is not None:
        measure(*cases[options.only], options.device, options.output)
        return 0
    try:
        device = resolve_device(options.device or ("auto" if options.quick else "cuda"))
    except ValueError as error:
        print(f"gpu_suite: {error}; --quick checks the suite itself without a GPU", file=sys.stderr)
        return 2
    deadline = START + 60 * options.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started ends too
    results: dict[str, Any] = asdict(environment(device, resolve_precision("auto", device)))
    del results["command"]  # may name folders of this machine
    hardware = re.sub(r"[^A-Za-z0-9]+", "-", results["device_name"]).strip("-")
    file = options.output / f"{time.strftime('%Y-%m-%d')}_{hardware}" / "gpu_suite.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    if not options.no_tests:
        results["tests"] = run_tests(min(MOST_SECONDS, deadline - time.monotonic()))
        write(results, file)
    for name in [name for name, (case, _) in cases.items() if (case in QUICK) == options.quick]:
        results[name] = run_case(name, str(device), min(MOST_SECONDS, deadline - time.monotonic()))
        write(results, file)
    for name in [case.name for case in (QUICK_SHARED if options.quick else SHARED)]:
        results[name] = run_shared(name, options.quick, deadline - time.monotonic())
        write(results, file)
    print(f"written to {file}")
    return 1 if results.get("tests", {}).get("exit_code", 0) else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--minutes", type=float, default=8.5, help="everything ends at this time")
    parser.add_argument("--no-tests", action="store_true", help="skip the GPU-marked tests")
    parser.add_argument("--quick", action="store_true", help="toy sizes on any device, to check the suite itself")
    parser.add_argument("--device", help="cuda, cuda:N, cpu or mps; default: cuda, with --quick the best there is")
    parser.add_argument("--ablations", type=Path, help="folder of ImageNet: train the paper's Tables 6 to 10 instead")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # one measurement, in this process; --output is then its file
    return parser.parse_args(argv)


def ablation_commands(options: argparse.Namespace) -> list[list[str]]:
    """The commands of the paper's Tables 6 to 10. Those with one recipe share a folder, and so the runs of equal rows."""
    start, images = [sys.executable, "-m", "openjepa", "ablate"], ["--data.path", str(options.ablations), "--images"]
    protocol = ["--seeds", "2", "--seconds", "none", "--scenes", "none", "--probe-images", "12811"]
    commands = []
    for name, (recipe, epochs) in REAL_TABLES.items():
        output = str(options.output / "ablations" / recipe)
        commands.append([*start, name, "--recipe", recipe, *images, str(epochs * IMAGENET), *protocol, "--output", output])
    return commands


def write(results: dict[str, Any], file: Path) -> None:
    """The results so far."""
    file.write_text(json.dumps(results, indent=2) + "\n")


def run_limited(command: Sequence[str], seconds: float, log: Path) -> int:
    """Exit code of `command`, whose output goes to `log`; TIMED_OUT if it and all that it started had to be ended."""
    if seconds <= 0:
        return TIMED_OUT
    with log.open("w") as output:
        # a session of its own: the workers of a compiler are ended with it
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return TIMED_OUT
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run_tests(seconds: float) -> dict[str, Any]:
    """pytest -m gpu, and its last line."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/house/test_gpu.py"]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        code = run_limited(command, seconds, log)
        lines = read(log).strip().splitlines()
    print("\n".join(lines[-60:]), flush=True)
    summary = f"no end within {max(0, seconds):.0f} s" if code == TIMED_OUT else lines[-1] if lines else ""
    return {"exit_code": code, "summary": summary, "seconds": time.monotonic() - start}


def run_case(name: str, device: str, seconds: float) -> dict[str, Any]:
    """The step of one model, timed in a process of its own; or why there is no figure."""
    if seconds <= 0:
        return {"skipped": "no time left"}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        log, file = Path(folder) / "log", Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--only", name, "--device", device, "--output", str(file)]
        code = run_limited(command, seconds, log)
        printed = read(log).strip()
        print(f"{name}:\n{printed[-4000:]}", flush=True)
        if code == TIMED_OUT:
            return {"failed": f"no end within {seconds:.0f} s"}
        if code or not file.exists():
            return {"failed": printed[-2000:], "exit_code": code}
        result: dict[str, Any] = json.loads(file.read_text())
    return {**result, "wall_seconds": time.monotonic() - start}


def run_shared(name: str, quick: bool, seconds: float) -> dict[str, Any]:
    """One recipe on one GPU and on all, or why there is no figure."""
    gpus = torch.cuda.device_count()
    if gpus < 2 and not quick:
        return {"skipped": f"needs several GPUs, and there {'is one' if gpus == 1 else 'is none'}"}
    most = 2 * SHARED_RUN_SECONDS + 40  # the runs end by themselves: to kill torchrun would leave its workers alone
    return run_case(name, "cpu" if quick else "cuda", most if seconds >= most else 0)


def read(log: Path) -> str:
    """What a process has printed."""
    return log.read_text(errors="replace") if log.exists() else ""


def measure(case: Case, compiled: bool, device: str, file: Path) -> None:
    """Times the step of one model, prints it and writes it to `file`."""
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
    result = bench_step(step_config(options), product_size=256 if case in QUICK else 4096)
    print_step(result)
    write(result, file)


def measure_shared(case: SharedCase, file: Path) -> None:
    """Trains a recipe with one process and with all, one for each GPU (two on the CPU at toy size), and writes the rates."""
    quick = case in QUICK_SHARED
    number = 2 if quick else torch.cuda.device_count()
    options = ProcessOptions(
        processes=number,
        recipe=case.recipe,
        strategy=case.strategy,
        device="cpu" if quick else "cuda",
        batch_size=number * case.images_per_gpu,
        steps=case.steps,
        rounds=1,
        limit=SHARED_RUN_SECONDS,
    )
    result = compare(options)
    print(f"{result['ratio']:.2f} times the images/s of one process: {result['images_per_second']}")
    write(result, file)


if __name__ == "__main__":
    sys.exit(main())
