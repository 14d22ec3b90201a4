"""Runs an ablation: trains and evaluates one run after the other and rewrites the tables. Processes share the runs.

An encoder is judged by probes on the run's own images and on scenes, and by the rank of its features.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from openjepa.checks import check
from openjepa.config import read_object
from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.experiments.ablations.ablation_lengths import (
    PlannedRun,
    Speed,
    base_config,
    kept_speeds,
    measure_speeds,
    planned_runs,
)
from openjepa.experiments.ablations.ablation_tables import (
    PROTOCOLS_OF_ROWS,
    Numbers,
    RunResult,
    claimed_work,
    print_plan,
    print_tables,
    read_results,
    read_run_result,
    write_page,
    write_result,
    write_tables,
)
from openjepa.recipes.ablations import ablation_named, ablation_rows
from openjepa.records import Result, read_summary
from openjepa.refusals import Refusal, needed_for
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.experiments import AblationSettings
from openjepa.settings.protocols import PROTOCOLS
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import ScenesSettings
from openjepa.system.console import format_seconds
from openjepa.system.interrupts import Interrupted
from openjepa.training.loop import train

SCENE_TASKS = ("clevr_count", "clevr_dist")
NO_SCENES = "none"
RANK = "RankMe"


def run_ablation(config: RunConfig, settings: AblationSettings) -> int:
    """Trains and evaluates the rows of an ablation of `config`, writes its tables, and returns the number of failed runs.

    Finished runs are not repeated. Runs that failed in an earlier call are tried again. Runs that another process is working on
    are left to it. Raises Refusal before anything is run if the settings cannot work.
    """
    started = time.time()
    ablation, output = ablation_named(settings.ablation), settings.output
    base = base_config(config, settings)
    rows = ablation_rows(settings.ablation, base, settings.rows)
    for row in rows.values():
        check(row)
    runs = planned_runs(rows, _speeds(output, base, settings, rows), settings)
    for run in runs:
        check(run.config)
    print_plan(ablation, runs, read_results(output))
    if settings.dry_run:
        return 0
    failed = 0
    for run in runs:
        with claimed_work(output, run.name) as ours:
            result = _result(run, settings, started) if ours else None
        if result is not None:
            failed += result.status == "failed"
            write_tables(output, settings.ablation)
    print_tables(output, settings.ablation)
    write_page(output, [run.name for run in runs])
    try:
        if picture := _picture(output, settings.ablation):
            print(picture)
    except Refusal as error:
        print(f"note: no picture: {error}")
    return failed


def _picture(output: Path, name: str) -> Path | None:
    """Writes the picture of the ablation. Raises Refusal if a package of the report is missing."""
    with needed_for("the picture"):
        from openjepa.experiments.ablations.ablation_picture import write_picture

        return write_picture(output, name)


def _speeds(output: Path, base: RunConfig, settings: AblationSettings, rows: Mapping[str, RunConfig]) -> dict[str, Speed]:
    """The speed of each row. The first process measures it and the others wait, so that all processes plan the same runs."""

    def measured(missing: Mapping[str, RunConfig]) -> dict[str, Speed]:
        print(f"measuring the speed of {', '.join(missing)}", flush=True)
        return measure_speeds(missing, settings.rounds)

    with claimed_work(output, "plan", wait=True):
        return kept_speeds(output, base, settings, rows, measured)


def _result(run: PlannedRun, settings: AblationSettings, started: float) -> RunResult:
    """The result of the run, read from its file or computed now. If an error ends the run, the result holds the error."""
    known = read_run_result(settings.output, run.name)
    if known is not None and (known.status == "finished" or known.written >= started):
        return known
    print(f"\n{run.row}, seed {run.seed}: {run.images:,} images, about {format_seconds(run.seconds)}", flush=True)
    blank = RunResult(
        name=run.name,
        row=run.row,
        seed=run.seed,
        budgets=run.budgets,
        status="failed",
        planned_seconds=round(run.seconds, 1),
        images_per_second=run.speed.images_per_second,
        flops=run.speed.flops,
    )
    try:
        result = _completed(run, settings, blank)
    except Interrupted:
        raise
    except Exception as error:  # one run must not end the others, so its result records any error
        result = replace(blank, error=f"{type(error).__name__}: {error}")
        print(f"failed: {run.name}: {result.error}", flush=True)
    result = replace(result, written=time.time())
    write_result(settings.output, result)
    return result


def _completed(run: PlannedRun, settings: AblationSettings, blank: RunResult) -> RunResult:
    folder = train(run.config)
    assert folder is not None  # only a dry run has no folder
    begun = time.monotonic()
    found = evaluate_encoder(folder, run.config, settings)
    baselines = evaluate_baselines(folder, run.config, settings) if run.has_baselines else {}
    summary = read_summary(read_object(folder / "summary.json") or {})
    assert summary.step is not None and summary.images_seen is not None and summary.flops_per_image is not None
    assert summary.step_seconds is not None and summary.seconds is not None
    return replace(
        blank,
        status="finished",
        steps=summary.step,
        images=summary.images_seen,
        seconds=summary.step_seconds,
        total_seconds=summary.seconds,
        flops=summary.flops_per_image,
        evaluation_seconds=round(time.monotonic() - begun, 1),
        numbers=found.numbers,
        errors=found.errors,
        references=baselines,
    )


@dataclass(frozen=True)
class Found:
    """The numbers that judge one encoder."""

    numbers: Numbers
    """Probe accuracies between 0 and 1 by `<task>/<protocol>`, and `rank`."""
    errors: Numbers
    """Standard errors of the accuracies."""


def evaluate_encoder(folder: Path, config: RunConfig, ablation: AblationSettings) -> Found:
    """Evaluates the encoder of a run."""
    results = _results(folder, config, ablation.scenes, _settings(config, ablation))
    return _found(results, "encoder")


def evaluate_baselines(folder: Path, config: RunConfig, ablation: AblationSettings) -> Mapping[str, Numbers]:
    """Evaluates the run's encoder before training (`untrained`) and raw pixels (`pixels`) by the same probes."""
    settings = replace(_settings(config, ablation), baselines=("pixels",))
    results = _results(folder / "encoder_initial", config, ablation.scenes, settings)
    return {"untrained": _found(results, "encoder").numbers, "pixels": _found(results, "pixels").numbers}


def _settings(config: RunConfig, ablation: AblationSettings) -> EvaluationSettings:
    """The evaluation's settings. They are equal for all runs, so that the report can compare their numbers in one figure."""
    return EvaluationSettings(
        protocols=PROTOCOLS_OF_ROWS,
        baselines=(),
        max_train_images=ablation.probe_images,
        device=config.run.device,
        precision=config.run.precision,
        workers=config.system.workers,
    )


def _results(subject: Path, config: RunConfig, scenes: str | None, settings: EvaluationSettings) -> list[Result]:
    """Results on the run's own images, then on the scenes in the folder `scenes` (None: the packaged ones; `none`: not)."""
    results = evaluate_run(subject, settings, config.data)
    if scenes == NO_SCENES or (isinstance(config.data, ScenesSettings) and config.data.path == scenes):
        return results
    # the run's own image size; only the images and the labels differ
    data = ScenesSettings(path=scenes, image_size=config.data.image_size)
    return [*results, *evaluate_run(subject, replace(settings, tasks=SCENE_TASKS), data)]


def _found(results: Sequence[Result], subject: str) -> Found:
    """The numbers of one subject. If two results have the same task, the later one counts, which is on the named scenes."""
    names = {PROTOCOLS[name].metric: name for name in PROTOCOLS_OF_ROWS}
    metrics = {
        f"{result.task}/{names[probe]}": metric
        for result in results
        if subject in result.subjects
        for probe, metric in result.subjects[subject].metrics.items()
    }
    ranks = [result.measures[subject][RANK] for result in results if RANK in result.measures.get(subject, {})]
    values = {name: metric.value for name, metric in metrics.items()}
    errors = {name: metric.standard_error for name, metric in metrics.items() if metric.standard_error is not None}
    return Found(values | ({"rank": ranks[0]} if ranks else {}), errors)
