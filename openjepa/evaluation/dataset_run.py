"""Evaluates an encoder on its run's own images or on others, and writes what comes out.

Evaluations of a data set and rows of a suite share what stands first: one task with every seed that is asked for, and the
vectors per image that are evaluated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from openjepa.checks import check_patch_divides
from openjepa.checks.protocol_settings import check_evaluation
from openjepa.config import to_dict
from openjepa.data import open_splits
from openjepa.data.selection import for_probes
from openjepa.data.source import Splits
from openjepa.evaluation import PROTOCOLS, with_current_names
from openjepa.evaluation.probes.closed_sweep import shared_components
from openjepa.evaluation.results import data_key, over_seeds, variant_name
from openjepa.evaluation.subject import Subject, baselines, find_subject, load_subject
from openjepa.evaluation.task_run import Subjects, evaluate_task
from openjepa.evaluation.tasks import TASKS, Task, chosen_tasks, fitting_protocols
from openjepa.models.vit import VisionTransformer
from openjepa.records import Result
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.settings.ranges import as_option
from openjepa.settings.sources import DataSettings, height_and_width
from openjepa.system.console import Say, silent


def blank_result(task: str, subject: Subject, settings: EvaluationSettings, splits: Splits | str) -> Result:
    """A Result without numbers. `splits`: the data, or in words why it is not there."""
    which = settings.encoder if subject.kind == "run" else "external"
    return Result(
        task,
        TASKS[task].title,
        subject.kind,
        which,
        settings.selection,
        settings=to_dict(settings),
        data="" if isinstance(splits, str) else splits.description,
        data_facts=None if isinstance(splits, str) else splits.facts(),
        data_name="" if subject.data is None else subject.data.name(),
        skipped=splits if isinstance(splits, str) else None,
        masks_mode=subject.masks_mode,
        step=subject.step,
    )


def evaluate_seeds(
    blank: Result,
    splits: Splits,
    subject: Subject,
    encoder: VisionTransformer,
    config: EncoderConfig,
    settings: EvaluationSettings,
    say: Say,
    benchmark: str = "",
) -> Result:
    """`blank` with numbers; written after every protocol, so that an interruption keeps what is done."""
    folder = subject.output / "eval"
    outcomes = []
    for number in range(settings.seeds):
        seed = settings.seed + number
        networks: Mapping[str, VisionTransformer] = {"encoder": encoder}
        if "untrained" in settings.baselines:
            own = subject.seed if number == 0 else seed
            networks = {**networks, **baselines(subject, config, own, number == 0)}
        size = view_size(settings, config)
        subjects = Subjects(
            networks, config, "pixels" in settings.baselines, size, folder / "features", subject.predictor_folder
        )
        own_settings = replace(settings, seed=seed, low_shot=replace(settings.low_shot, seed=settings.low_shot.seed + number))
        words = f"seed {seed}: " if settings.seeds > 1 else ""
        outcomes.append(
            evaluate_task(
                blank,
                splits,
                subjects,
                own_settings,
                benchmark,
                say=lambda text, words=words: say(words + text),  # type: ignore[misc]
                keep=(lambda result: result.write_partial(folder)) if settings.seeds == 1 else None,
            )
        )
    result = over_seeds(outcomes)
    result.write(folder)
    return result


def view_size(settings: EvaluationSettings, config: EncoderConfig) -> tuple[int, int]:
    """Height and width of the views. Raises Refusal if the encoder's patches do not divide them."""
    size = height_and_width(settings.image_size or config.image_size)
    check_patch_divides(config.patch_size, size, "image_size", of="the encoder", said=as_option)
    return size


def pooled_configs(task: Task, settings: EvaluationSettings, config: EncoderConfig) -> tuple[EncoderConfig, ...]:
    """The encoder's settings with each pooling that is asked for, its own first; as they are where only patches matter.

    `both` of an encoder without a class token is the average alone. Raises Refusal where only the class token is asked for
    and there is none.
    """
    wanted = settings.pooling
    if wanted == "own" or not any(PROTOCOLS[name].pools for name in fitting_protocols(task, settings.protocols)):
        return (config,)
    if wanted == "class_token" and not config.class_token:
        raise Refusal("evaluation.pooling='class_token': this encoder has no class token; use --pooling average")
    if wanted != "both":
        return (replace(config, pooling=wanted),)
    other = replace(config, pooling="average" if config.pooling == "class_token" else "class_token")
    return (config, other) if config.class_token else (config,)


def pooled_settings(settings: EvaluationSettings, config: EncoderConfig, pooled: EncoderConfig) -> EvaluationSettings:
    """The settings of one evaluation of an encoder by the pooling of `pooled`: `own` where that is the encoder's."""
    return replace(settings, pooling="own" if pooled.pooling == config.pooling else pooled.pooling)


@shared_components()
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
    settings = with_current_names(settings, say)
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
            lambda text, title=blank.title: say(f"{title}: {text}"),  # type: ignore[misc]
        )
        results.append(result)
    return results


def _variant(task: str, settings: EvaluationSettings, config: EncoderConfig, subject: Subject) -> str:
    """What sets the evaluation of a task apart from the run's own."""
    own, usual = (
        replace(item, protocols=fitting_protocols(TASKS[task], item.protocols)) for item in (settings, type(settings)())
    )
    return variant_name(own, config.image_size, view_size(settings, config), *subject.names, usual=usual)


def _check_labels(tasks: Sequence[str], splits: Splits) -> None:
    """Raises Refusal where the data has labels for none of the tasks."""
    reasons = {name: labels for name in tasks if isinstance(labels := TASKS[name].labels(splits), str)}
    if len(reasons) == len(set(tasks)):
        able = [name for name, task in TASKS.items() if not isinstance(task.labels(splits), str)]
        hint = f"leave out --tasks, or use {', '.join(able)}" if able else "give other data (--data.path)"
        raise Refusal(f"tasks={' '.join(tasks)}: {'; '.join(dict.fromkeys(reasons.values()))}; {hint}")
