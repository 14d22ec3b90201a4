"""The programs in benchmarks/: all can be imported, and the suite for a GPU ends in time and says what it lacks."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.processes import in_clean_process

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


def import_all() -> None:
    for name in PROGRAMS:
        importlib.import_module(f"benchmarks.{name}")


def test_every_benchmark_can_be_imported(tmp_path: Path) -> None:
    """In a process of their own: `gpu_suite` changes the search path."""
    process = in_clean_process(import_all, log=tmp_path / "log")
    process.join(120)
    assert PROGRAMS and process.exitcode == 0, (tmp_path / "log").read_text()


def run_suite(*argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/gpu_suite.py", *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False, env=environment)


def results_in(folder: Path) -> dict[str, Any]:
    (file,) = folder.rglob("gpu_suite.json")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_the_suite_says_in_one_line_that_there_is_no_gpu(tmp_path: Path) -> None:
    done = run_suite("--output", str(tmp_path))
    assert done.returncode == 2 and done.stdout == "" and not list(tmp_path.iterdir())
    assert len(done.stderr.splitlines()) == 1 and "run.device='cuda' is not available" in done.stderr


def test_a_case_is_measured_in_a_process_of_its_own_or_says_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.gpu_suite import run_case

    result = run_case("test/8 eager", "cpu", 200)
    assert result["images_per_second"] > 0 and result["repeats"] == 7 and {"commit", "date", "torch"} <= set(result)
    assert "images/s" in capsys.readouterr().out
    failed = run_case("test/8 eager", "nonsense", 200)
    assert "run.device='nonsense'" in failed["failed"] and failed["exit_code"] == 1


def test_without_time_every_case_is_skipped_and_written(tmp_path: Path) -> None:
    done = run_suite("--quick", "--device", "cpu", "--output", str(tmp_path), "--minutes", "0")
    results = results_in(tmp_path)
    assert done.returncode == 1 and results["tests"]["exit_code"] == 124
    assert {"commit", "started", "torch"} <= set(results)
    assert results["test/8 eager"] == results["test/8 compiled"] == {"skipped": "no time left"}
    assert results["cpu-32 on several, fsdp2"] == {"skipped": "no time left"}


def test_on_a_single_gpu_the_part_for_several_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu_suite

    for number, words in ((0, "there is none"), (1, "there is one")):
        monkeypatch.setattr(gpu_suite.torch.cuda, "device_count", lambda number=number: number)
        assert gpu_suite.run_shared(gpu_suite.SHARED[0].name, quick=False, seconds=9)["skipped"].endswith(words)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpu-32 on several, ddp", "cpu-32 on several, fsdp2"])
def test_one_process_and_several_are_measured_beside_each_other(name: str) -> None:
    from benchmarks.gpu_suite import run_shared

    result = run_shared(name, quick=True, seconds=300)
    assert result["processes"] == 2 and result["ratio"] > 0 and {"commit", "machine", "data_wait"} <= set(result), result


def test_a_process_that_does_not_end_is_ended_with_all_it_started(tmp_path: Path) -> None:
    from benchmarks.gpu_suite import TIMED_OUT, run_limited

    child = "import time\nwhile True: print('still here', flush=True); time.sleep(0.1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    start, log = time.monotonic(), tmp_path / "log"
    assert run_limited([sys.executable, "-c", parent], 2, log) == TIMED_OUT
    assert time.monotonic() - start < 20
    printed = log.stat().st_size
    time.sleep(0.5)
    assert log.stat().st_size == printed > 0
    assert run_limited([sys.executable, "-c", "raise SystemExit(3)"], 60, tmp_path / "log") == 3


def test_the_real_tables_are_ablations_that_can_start() -> None:
    from benchmarks import gpu_suite
    from openjepa.checks import check
    from openjepa.commands.parsing.arguments import parse
    from openjepa.experiments.ablations.ablation_lengths import base_config
    from openjepa.recipes import load_recipe
    from openjepa.recipes.ablations import ABLATIONS, ablation_rows
    from openjepa.settings.experiments import AblationSettings

    commands = gpu_suite.ablation_commands(gpu_suite.parse(["--ablations", str(ROOT)]))
    assert len(commands) == 5
    for command in commands:
        recipe = load_recipe(command[command.index("--recipe") + 1])
        start = AblationSettings(data=recipe.data, model=recipe.model)
        settings = parse(AblationSettings, command[4:], "openjepa ablate", "", start)
        assert "I-JEPA (arXiv 2301.08243), Table" in ABLATIONS[settings.ablation].source
        base = base_config(recipe, settings)
        assert base.optim.total_steps == (settings.images or 0) // 2048 in (187_670, 312_784)
        for row in ablation_rows(settings.ablation, base).values():
            check(row)
