"""Evaluates an encoder on its run's own images, or on other images, and writes the results.

`evaluate_run` finds the subject, a run folder or an encoder in any readable format, and evaluates one task after the other. For
each task, `evaluate_seeds` runs every seed that was asked for, beside the baselines: the untrained encoder and, if the run
started from weights, the encoder at the start.
"""

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from openjepa.checks import check_patch_divides
from openjepa.config import load_run_config, readable_object, to_dict
from openjepa.data.selection import for_probes
from openjepa.data.source import Splits, data_set_name, open_splits
from openjepa.engine import distributed
from openjepa.engine.device import seed_generator
from openjepa.evaluation.probes.closed_sweep import shared_components
from openjepa.evaluation.task_run import Subjects, evaluate_task
from openjepa.evaluation.tasks import (
    TASKS,
    Task,
    chosen_tasks,
    data_key,
    data_name,
    fitting_protocols,
    variant_name,
    with_current_names,
)
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.records import Metric, Result, SubjectResult
from openjepa.refusals import Refusal
from openjepa.seeds import derive
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.fields import as_option
from openjepa.settings.models import EncoderConfig, height_and_width
from openjepa.settings.protocols import PROTOCOLS, check_evaluation
from openjepa.settings.sources import DataSettings
from openjepa.system.console import Say, absent, hub_name, say, silent
from openjepa.weights.formats import WeightsChoice, load_any
from openjepa.weights.native import load_encoder

ELSEWHERE = Path("evaluations")
"""Folder below the working directory for results of encoders in places where nothing can be written."""


@dataclass(frozen=True)
class Subject:
    """A run's encoder, or an encoder alone, with all that its evaluation needs."""

    output: Path
    """Folder that holds eval/: the run's, or that of `_output` if the encoder belongs to no run."""
    kind: str
    """run or encoder."""
    encoder_path: Path
    """Path of the encoder: a folder, a file, or a name on the Hub."""
    initial_folder: Path | None
    """Folder of the untrained encoder, if the run started from random weights and kept them."""
    predictor_folder: Path | None
    """Folder of the predictor, if there is one."""
    data: DataSettings | None
    """The images to evaluate on; None for an encoder without a run if no images were named."""
    seed: int
    """Seed of the run, which decides the data's split and subset."""
    encoder_name: str
    """Part of the results' file names; empty for the run's own encoder."""
    names: tuple[str, ...]
    """Parts of the results' file names for encoder and data; empty for the run's own."""
    masks_mode: str | None = None
    step: int | None = None
    """The run's step at which the encoder was exported."""
    which: Literal["target", "context"] = "target"
    """The encoder that is evaluated if a file holds both."""
    start_folder: Path | None = None
    """Folder of the encoder before training, if the run started from weights (`run.init`) and kept it."""


@shared_components()
def evaluate_run(
    subject: Path, settings: EvaluationSettings, data: DataSettings | None = None, say: Say = silent
) -> list[Result]:
    """Evaluates a run folder, or an encoder on `data`, and writes one file to `<subject>/eval` for every task.

    The run's own evaluation is `<task>.json`. Other data, settings or baselines give `<task>-<variant>.json`. Results of an
    encoder folder inside a run stand beside the run's own evaluations, because the next export replaces the encoder folder.
    `data` replaces the run's own data; the probes are trained on its training split. If the data has no labels for a task, the
    task's Result says so. Every step is reported to `say`. Raises Refusal if there is no encoder, if there is no data for it,
    or if the data has labels for none of the tasks asked for.
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
        blank = replace(blank_result(name, found, own, splits), variant=_task_variant(name, own, config, found), data_key=key)
        blank = distributed.from_main(partial(blank.placed, found.output / "eval"))
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


def _task_variant(task: str, settings: EvaluationSettings, config: EncoderConfig, subject: Subject) -> str:
    """The words by which the evaluation of a task differs from the run's own; empty if it does not differ."""
    own, usual = (
        replace(item, protocols=fitting_protocols(TASKS[task], item.protocols)) for item in (settings, type(settings)())
    )
    return variant_name(own, config.image_size, view_size(settings, config), *subject.names, usual=usual)


def _check_labels(tasks: Sequence[str], splits: Splits) -> None:
    """Raises Refusal if the data has labels for none of the tasks."""
    reasons = {name: labels for name in tasks if isinstance(labels := TASKS[name].labels(splits), str)}
    if len(reasons) == len(set(tasks)):
        able = [name for name, task in TASKS.items() if not isinstance(task.labels(splits), str)]
        hint = f"leave out --tasks, or use {', '.join(able)}" if able else "give other data (--data.path)"
        raise Refusal(f"tasks={' '.join(tasks)}: {'; '.join(dict.fromkeys(reasons.values()))}; {hint}")


# --------------------------------------------------------------------------------------------------------------------- one task


def blank_result(task: str, subject: Subject, settings: EvaluationSettings, splits: Splits | str) -> Result:
    """A Result without numbers. `splits` is the data, or the reason in words why the data is missing."""
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
        data_name="" if subject.data is None else data_set_name(subject.data),
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
    """`blank` with the numbers of all seeds. Writes the file of the result, in the main process.

    With one seed, the file is also written after every protocol, so that an interruption keeps finished protocols.
    """
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
                keep=(lambda result: distributed.from_main(partial(result.write_partial, folder)))
                if settings.seeds == 1
                else None,
            )
        )
    result = over_seeds(outcomes)
    distributed.from_main(lambda: result.write(folder))
    return result


def view_size(settings: EvaluationSettings, config: EncoderConfig) -> tuple[int, int]:
    """Height and width of the views in pixels. Raises Refusal if they are not multiples of the encoder's patch size."""
    size = height_and_width(settings.image_size or config.image_size)
    check_patch_divides(config.patch_size, size, "image_size", of="the encoder", said=as_option)
    return size


def pooled_configs(task: Task, settings: EvaluationSettings, config: EncoderConfig) -> tuple[EncoderConfig, ...]:
    """The encoder's settings with each pooling asked for, its own first. Unchanged if no protocol of the task pools.

    `both` means only the average if the encoder has no class token. Raises Refusal if only the class token is asked for and
    the encoder has none.
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
    """The settings for one evaluation with the pooling of `pooled`, written as `own` if it is the encoder's own pooling."""
    return replace(settings, pooling="own" if pooled.pooling == config.pooling else pooled.pooling)


def over_seeds(results: Sequence[Result]) -> Result:
    """Combines the results of one task over seeds: means, spreads, all heads with their seed's index, and summed seconds."""
    if len(results) == 1 or results[0].skipped is not None:
        return results[0]
    first = results[0]
    subjects = {
        subject: SubjectResult(
            {name: _mean([result.subjects[subject].metrics[name] for result in results]) for name in numbers.metrics}
        )
        for subject, numbers in first.subjects.items()
    }
    heads = [{**head, "repeat": repeat} for repeat, result in enumerate(results) for head in result.heads]
    return replace(first, subjects=subjects, heads=heads, seconds=round(sum(result.seconds for result in results), 1))


def _mean(metrics: Sequence[Metric]) -> Metric:
    values = [metric.value for metric in metrics]
    extra = {name: statistics.fmean(metric.extra[name] for metric in metrics) for name in metrics[0].extra}
    spread = statistics.stdev(values)
    return replace(metrics[0], value=statistics.fmean(values), spread=spread, seeds=len(values), extra=extra)


# ----------------------------------------------------------------------------------------------------------------- the subject


def find_subject(path: Path, settings: EvaluationSettings, data: DataSettings | None) -> Subject:
    """Finds out whether `path` is a run, an encoder folder, a file of weights or a name on the Hub, and which data it has.

    Raises Refusal if it can be none of these.
    """
    if (path / "config.yaml").is_file():
        run = load_run_config(path)
        folder = path / ("encoder" if settings.encoder == "target" else "context_encoder")
        if not folder.is_dir():
            hint = (
                "finish or stop the training first"
                if settings.encoder == "target"
                else "train with method.export_context_encoder"
            )
            raise Refusal(f"encoder={settings.encoder!r}: the run {path} has no folder {folder.name}; {hint}")
        used = data or run.data
        name: str = "" if settings.encoder == "target" else settings.encoder
        mode, step = _note(path / "predictor", "mask_mode"), _note(folder, "step")
        names = (name, data_name(run.data, used))
        initial, predictor = _existing(path / "encoder_initial"), _existing(path / "predictor")
        start, initial = (None, initial) if run.run.init is None else (initial, None)
        return Subject(path, "run", folder, initial, predictor, used, run.run.seed, name, names, mode, step, start_folder=start)
    name_on_hub = hub_name(path)
    if not path.exists() and name_on_hub is None:
        raise Refusal(f"{path} {absent(path)}; name a run folder, an encoder folder or a file of weights")
    if not ((path / "config.json").is_file() or path.is_file() or name_on_hub is not None):
        raise Refusal(
            f"{path} is neither a run folder (config.yaml) nor an encoder folder (config.json, model.safetensors) "
            "nor a file of weights"
        )
    inside = path.is_dir() and (path.resolve().parent / "config.yaml").is_file()
    output, name = (path.resolve().parent, path.resolve().name) if inside else (_output(path), "")
    # the run's seed, so that the images it was trained on are not in the test split
    seed = load_run_config(path.resolve().parent).run.seed if inside else settings.seed
    name = "-".join(part for part in (name, settings.encoder if settings.encoder == "context" else "") if part)
    names = (name, data_name(None, data) if data is not None else "")
    return Subject(
        output, "encoder", path, None, None, data, seed, name, names, step=_note(path, "step"), which=settings.encoder
    )


def load_subject(subject: Subject, heads: int | None) -> tuple[VisionTransformer, EncoderConfig]:
    """Loads the encoder. Prints what was found if it is not in openjepa's own format. Raises Refusal if it cannot be read."""
    loaded = load_any(subject.encoder_path, WeightsChoice(encoder=subject.which, heads=heads, predictor=False))
    if not loaded.is_own:
        say(f"{subject.encoder_path}: {loaded.what}; results in {subject.output / 'eval'}")
    for note in loaded.notes:
        say(f"note: {note}")
    return loaded.encoder, loaded.config


def baselines(subject: Subject, config: EncoderConfig, seed: int, is_first: bool = True) -> dict[str, VisionTransformer]:
    """The encoders to compare with: `start`, if the run started from weights, then `untrained`."""
    start = {} if subject.start_folder is None else {"start": load_encoder(subject.start_folder)[0]}
    return {**start, "untrained": untrained(subject, config, seed, is_first)}


def untrained(subject: Subject, config: EncoderConfig, seed: int, is_first: bool = True) -> VisionTransformer:
    """An encoder of the same shape with random weights. For the first seed it is the run's own, if the run kept it."""
    if subject.initial_folder is not None and is_first:
        return load_encoder(subject.initial_folder)[0]
    with torch.random.fork_rng(devices=[]):
        seed_generator(torch.device("cpu"), derive("weights", seed))  # not a GPU's generator
        return build_encoder(config)


def _output(path: Path) -> Path:
    """The folder for the results of an encoder that belongs to no run.

    It is the encoder's own folder, or X.results beside its file X. If that place is the Hub's cache or not writable, it is
    evaluations/<name> below the working directory.
    """
    place = path if path.is_dir() else path.parent
    cached = next((part for part in path.absolute().parts if part.startswith("models--")), None)
    if path.exists() and cached is None and os.access(place, os.W_OK):
        return path if path.is_dir() else path.with_name(f"{path.name}.results")
    if path.exists():
        return ELSEWHERE / (cached.removeprefix("models--") if cached else path.resolve().name)
    return ELSEWHERE / (hub_name(path) or str(path)).replace("/", "--")


def _existing(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def _note(network: Path, name: str) -> Any:
    """The entry `name` in the config.json of an exported network; None if there is none."""
    return (readable_object(network / "config.json") or {}).get(name)
