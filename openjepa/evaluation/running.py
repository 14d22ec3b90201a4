"""Evaluates an encoder: on its run's own images, on others, or on the rows of a suite; and writes what comes out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from openjepa.checks import nearest_multiple
from openjepa.config import nearest, to_dict
from openjepa.data import open_splits
from openjepa.data.benchmarks import BENCHMARKS, find_benchmark
from openjepa.data.source import Splits
from openjepa.evaluation.probing import KnownComponents, Subjects, evaluate_task
from openjepa.evaluation.results import FAILED, Result, over_seeds
from openjepa.evaluation.subjects import Subject, find_subject, load_subject, untrained
from openjepa.evaluation.suite import SUITES, SuiteRow
from openjepa.evaluation.tables import print_results
from openjepa.evaluation.tasks import TASKS, chosen_tasks
from openjepa.evaluation.variants import data_key, variant_name
from openjepa.evaluation_checks import check_evaluation
from openjepa.models.vit import VisionTransformer
from openjepa.settings.data import DataSettings
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.low_shot import LowShotSettings
from openjepa.settings.models import EncoderConfig

__all__ = ["TASKS", "Result", "evaluate_run", "evaluate_suite", "print_results"]


def evaluate_run(subject: Path, settings: EvaluationSettings, data: DataSettings | None = None) -> list[Result]:
    """Evaluates a run folder, or an encoder on `data`, and writes a file of `<subject>/eval` for every task.

    The run's own evaluation is `<task>.json`; other data, another selection, encoder or size, fewer images, probes or
    baselines give `<task>-<variant>.json`. An encoder folder inside a run is written beside the run's own evaluations, because
    the next export replaces it. `data` replaces the run's own data (its training split trains the probes). Tasks that the data
    has no labels for give a Result that says so. Raises ValueError where there is no encoder, no data for it, no label for
    any of the tasks that were asked for, or no protocol.
    """
    check_evaluation(settings)
    found = find_subject(Path(subject).expanduser(), settings, data)
    if found.data is None:
        raise ValueError(
            f"{subject} is an encoder without a run, so the images must be named: give --data.source and --data.path, "
            "or --suite and --data-root"
        )
    splits = open_splits(found.data, found.seed)
    tasks = chosen_tasks(settings.tasks, splits)
    if settings.tasks:
        _check_labels(tasks, splits)
    encoder, config = load_subject(found, settings.heads)
    size = _image_size(settings, config)
    variant = variant_name(settings, config.image_size, size, *found.names)
    key = data_key(found.data) if found.names[-1] else ""  # other images than the run's own
    known: KnownComponents = {}
    results = []
    for name in tasks:
        blank = replace(_blank(name, found, settings, splits), variant=variant, data_key=key).placed(found.output / "eval")
        results.append(_evaluate(blank, splits, found, encoder, config, settings, known))
    return results


def evaluate_suite(subject: Path, suite: str, data_root: Path, settings: EvaluationSettings) -> list[Result]:
    """Evaluates an encoder or a run on every row of a suite whose benchmark lies below `data_root`.

    Writes `<subject>/eval/<row>.json`. A benchmark that is not there, or a row that cannot be evaluated on what is there (too
    few images of a class), gives a Result that says why. Raises ValueError before anything is computed for a benchmark that is
    there but broken (a missing split, a list of absent files), for an unknown suite or row, and where no benchmark is there.
    """
    check_evaluation(settings)
    rows = _suite_rows(suite, settings.tasks)
    root = data_root.expanduser()
    if not root.is_dir():
        raise ValueError(f"data_root={str(data_root)!r} is no folder; it must hold one folder per data set: {_expected(rows)}")
    found = find_subject(Path(subject).expanduser(), settings, None)
    encoder, config = load_subject(found, settings.heads)
    size = _image_size(settings, config)
    opened = {name: find_benchmark(name, root) for name in dict.fromkeys(row.benchmark for row in rows)}
    if all(isinstance(splits, str) for splits in opened.values()):
        raise ValueError(f"data_root={str(data_root)!r} holds none of the data sets of the rows asked for: {_expected(rows)}")
    known: dict[str, KnownComponents] = {}
    results = []
    for row in rows:
        own = _row_settings(row, settings, row.name in settings.tasks)
        splits = opened[row.benchmark]
        variant = variant_name(
            own, config.image_size, size, found.encoder_name, usual=_row_settings(row, EvaluationSettings(), False)
        )
        blank = replace(_blank(row.task, found, own, splits), **row.words(), variant=variant)
        if isinstance(splits, str):
            results.append(replace(blank, skipped=splits))
            results[-1].write(found.output / "eval")
            continue
        axes = known.setdefault(row.benchmark, {})
        try:
            results.append(_evaluate(blank, splits, found, encoder, config, own, axes, row.benchmark))
        except ValueError as error:  # the other rows need not suffer
            results.append(replace(blank, skipped=f"{FAILED}{error}"))
            results[-1].write(found.output / "eval")
    return results


def _suite_rows(suite: str, names: Sequence[str]) -> list[SuiteRow]:
    """The rows of a suite that are asked for; all where none is named."""
    if suite not in SUITES:
        raise ValueError(f"suite={suite!r} does not exist: {nearest(suite, SUITES)}")
    rows = {row.name: row for row in SUITES[suite]}
    if unknown := [name for name in names if name not in rows]:
        raise ValueError(f"tasks={unknown[0]!r} is no row of the suite {suite!r}: {nearest(unknown[0], rows)}")
    return [row for row in rows.values() if not names or row.name in names]


def _expected(rows: Sequence[SuiteRow]) -> str:
    return ", ".join(dict.fromkeys(BENCHMARKS[row.benchmark].folders[0] for row in rows))


def _row_settings(row: SuiteRow, settings: EvaluationSettings, is_named: bool) -> EvaluationSettings:
    """The settings with what the row prescribes where they leave it open.

    Low-shot settings are for the low-shot rows, and for other rows that are named in `tasks`.
    """
    shot = settings.low_shot
    if row.is_low_shot and not shot.is_set():
        shot = LowShotSettings(percent=1.0, seed=shot.seed)
    if not (row.is_low_shot or is_named):
        shot = LowShotSettings()
    return replace(settings, protocols=settings.protocols or row.protocols, low_shot=shot)


def _blank(task: str, subject: Subject, settings: EvaluationSettings, splits: Splits | str) -> Result:
    which = settings.encoder if subject.kind == "run" else "external"
    return Result(
        task,
        TASKS[task].title,
        subject.kind,
        which,
        settings.selection,
        settings=to_dict(settings),
        data="" if isinstance(splits, str) else splits.description,
        masks_mode=subject.masks_mode,
        step=subject.step,
    )


def _evaluate(
    blank: Result,
    splits: Splits,
    subject: Subject,
    encoder: VisionTransformer,
    config: EncoderConfig,
    settings: EvaluationSettings,
    known: KnownComponents,
    benchmark: str = "",
) -> Result:
    """One row with every seed; written as soon as it is there."""
    outcomes = []
    for number in range(settings.seeds):
        seed = settings.seed + number
        networks: Mapping[str, VisionTransformer] = {"encoder": encoder}
        if "untrained" in settings.baselines:
            own = subject.seed if number == 0 else seed
            networks = {**networks, "untrained": untrained(subject, config, own, number == 0)}
        size = _image_size(settings, config)
        cache, predictor = subject.output / "eval" / "features", subject.predictor_folder
        subjects = Subjects(networks, config, "pixels" in settings.baselines, size, cache, predictor)
        # axes of the untrained encoder belong to one seed
        axes = known if settings.seeds == 1 else {}
        own_settings = replace(settings, seed=seed, low_shot=replace(settings.low_shot, seed=settings.low_shot.seed + number))
        outcomes.append(evaluate_task(blank, splits, subjects, own_settings, axes, benchmark))
    result = over_seeds(outcomes)
    result.write(subject.output / "eval")
    return result


def _check_labels(tasks: Sequence[str], splits: Splits) -> None:
    """Raises ValueError where the data has labels for none of the tasks."""
    reasons = {name: labels for name in tasks if isinstance(labels := TASKS[name].labels(splits), str)}
    if len(reasons) == len(set(tasks)):
        able = [name for name, task in TASKS.items() if not isinstance(task.labels(splits), str)]
        hint = f"leave out --tasks, or use {', '.join(able)}" if able else "give other data (--data.path)"
        raise ValueError(f"tasks={' '.join(tasks)}: {'; '.join(dict.fromkeys(reasons.values()))}; {hint}")


def _image_size(settings: EvaluationSettings, config: EncoderConfig) -> tuple[int, int]:
    size = settings.image_size or config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    patch = config.patch_size
    if height % patch or width % patch:
        near = " ".join(str(nearest_multiple(side, patch)) for side in dict.fromkeys((height, width)))
        raise ValueError(f"image_size={size} is not divisible by the encoder's patch size {patch}; image_size={near} is")
    return height, width
