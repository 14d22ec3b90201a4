"""Evaluates an encoder on its run's own images or on others, and writes what comes out."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from openjepa.checks.protocol_settings import check_evaluation
from openjepa.data import open_splits
from openjepa.data.selection import for_probes
from openjepa.data.source import Splits
from openjepa.evaluation.pooling import pooled_configs, pooled_settings
from openjepa.evaluation.repeats import blank_result, evaluate_seeds, view_size
from openjepa.evaluation.results import Result
from openjepa.evaluation.subject import Subject, find_subject, load_subject
from openjepa.evaluation.task_run import KnownComponents
from openjepa.evaluation.tasks import TASKS, chosen_tasks, fitting_protocols
from openjepa.evaluation.variants import data_key, variant_name
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.settings.sources import DataSettings
from openjepa.system.progress import Say, silent


def evaluate_run(
    subject: Path, settings: EvaluationSettings, data: DataSettings | None = None, say: Say = silent
) -> list[Result]:
    """Evaluates a run folder, or an encoder on `data`, and writes a file of `<subject>/eval` for every task.

    The run's own evaluation is `<task>.json`; other data, another selection, encoder, pooling or size, fewer images, probes,
    settings or baselines give `<task>-<variant>.json`. An encoder folder inside a run is written beside the run's own
    evaluations, because the next export replaces it. `data` replaces the run's own data (its training split trains the
    probes). Tasks that the data has no labels for give a Result that says so. `say` is told of every step. Raises Refusal
    where there is no encoder, no data for it, or no label for any of the tasks that were asked for.
    """
    check_evaluation(settings)
    found = find_subject(Path(subject).expanduser(), settings, data)
    if found.data is None:
        raise Refusal(
            f"{subject} is an encoder without a run, so the images must be named: give --data.source and --data.path, "
            "or --suite and --data-root"
        )
    splits = for_probes(open_splits(found.data, found.seed))
    for remark in (*splits.remarks, *splits.not_used):
        say(f"note: {remark}")
    tasks = chosen_tasks(settings.tasks, splits)
    if settings.tasks:
        _check_labels(tasks, splits)
    encoder, config = load_subject(found, settings.heads)
    planned = [(name, pooled) for name in tasks for pooled in pooled_configs(TASKS[name], settings, config)]
    key = data_key(found.data) if found.names[-1] else ""  # other images than the run's own
    known: dict[str, KnownComponents] = {}
    results = []
    for name, pooled in planned:
        own = pooled_settings(settings, config, pooled)
        blank = replace(blank_result(name, found, own, splits), variant=_variant(name, own, config, found), data_key=key)
        blank = blank.placed(found.output / "eval")
        result = evaluate_seeds(
            blank,
            splits,
            found,
            encoder,
            pooled,
            own,
            known.setdefault(pooled.pooling, {}),
            lambda text, title=blank.title: say(f"{title}: {text}"),  # type: ignore[misc]
        )
        results.append(result)
    return results


def _variant(task: str, settings: EvaluationSettings, config: EncoderConfig, subject: Subject) -> str:
    """What sets the evaluation of a task apart from the run's own."""
    own, usual = (
        replace(item, protocols=fitting_protocols(TASKS[task], item.protocols)) for item in (settings, EvaluationSettings())
    )
    return variant_name(own, config.image_size, view_size(settings, config), *subject.names, usual=usual)


def _check_labels(tasks: Sequence[str], splits: Splits) -> None:
    """Raises Refusal where the data has labels for none of the tasks."""
    reasons = {name: labels for name in tasks if isinstance(labels := TASKS[name].labels(splits), str)}
    if len(reasons) == len(set(tasks)):
        able = [name for name, task in TASKS.items() if not isinstance(task.labels(splits), str)]
        hint = f"leave out --tasks, or use {', '.join(able)}" if able else "give other data (--data.path)"
        raise Refusal(f"tasks={' '.join(tasks)}: {'; '.join(dict.fromkeys(reasons.values()))}; {hint}")
