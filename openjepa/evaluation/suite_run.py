"""Evaluates an encoder on the rows of a suite: benchmarks below one folder, beside published numbers.

A row that is missing or fails says so in its result. A row that was finished before is not computed again.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from openjepa.data.datasets.benchmarks import BENCHMARKS, find_benchmark
from openjepa.data.selection import low_shot_rows
from openjepa.data.source import ListSource, Splits, file_stamp
from openjepa.engine import distributed
from openjepa.engine.device import resolve_device
from openjepa.evaluation.evaluation_run import (
    blank_result,
    evaluate_seeds,
    find_subject,
    load_subject,
    pooled_configs,
    pooled_settings,
    view_size,
)
from openjepa.evaluation.probes.closed_sweep import shared_components
from openjepa.evaluation.tasks import (
    PUBLISHED,
    SUITES,
    TASKS,
    SuiteRow,
    fitting_protocols,
    folder_key,
    suite_rows,
    variant_name,
    with_current_names,
)
from openjepa.records import Result, read_result
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings, LowShotSettings
from openjepa.settings.models import EncoderConfig
from openjepa.settings.protocols import PROTOCOLS, check_evaluation, published_protocols
from openjepa.system.console import Say, silent
from openjepa.weights.contents import weights_hash

PUBLISHED_LIST = 12_811
"""Number of images in the published list of 1 % of ImageNet's labels."""
NOT_OF_A_ROW = ("tasks", "workers", "device", "feature_batch_size")
"""Settings that do not change the numbers of a row, so that a finished row is reused if only these differ."""


@shared_components()
def evaluate_suite(
    subject: Path,
    suite: str,
    data_root: Path,
    settings: EvaluationSettings,
    say: Say = silent,
    each: Callable[[Result], None] = silent,
    again: bool = False,
) -> list[Result]:
    """Evaluates an encoder or a run on every row of a suite whose benchmark is in a folder below `data_root`.

    Writes `<subject>/eval/suite-<row>.json` and calls `each` with the result as soon as a row is finished. If a benchmark is
    missing or a row fails, its Result says why, and the other rows are still evaluated. Rows finished earlier with the same
    weights, settings and data are read instead of computed, unless `again` is True. Raises Refusal before anything is computed
    if a benchmark is broken (a missing split, a list of absent files), if the suite, a row or the device is unknown, if the
    list of labeled images is missing or names other images, or if there is no benchmark at all.
    """
    settings = with_current_names(settings, say)
    check_evaluation(settings)
    resolve_device(settings.device)
    rows = suite_rows(suite, settings.tasks)
    root = data_root.expanduser()
    if not root.is_dir():
        raise Refusal(f"data_root={str(data_root)!r} is no folder; it must hold one folder per data set: {_expected(rows)}")
    found = find_subject(Path(subject).expanduser(), settings, None)
    encoder, config = load_subject(found, settings.heads)
    view_size(settings, config)
    weights = weights_hash(encoder)
    opened = {name: find_benchmark(name, root) for name in dict.fromkeys(row.benchmark for row in rows)}
    if all(isinstance(splits, str) for splits in opened.values()):
        raise Refusal(f"data_root={str(data_root)!r} holds none of the data sets of the rows asked for: {_expected(rows)}")
    planned = [plan for row in rows for plan in _plans(row, opened[row.benchmark], settings, config)]
    for row, own, _ in planned:
        _check_list(row, opened[row.benchmark], own)
    images = {name: _images_key(splits) for name, splits in opened.items() if not isinstance(splits, str)}
    results = []
    for number, (row, own, pooled) in enumerate(planned, start=1):
        splits = opened[row.benchmark]
        result = _described(blank_result(row.task, found, own, splits), row, own)
        if not isinstance(splits, str):
            variant, key = _row_variant(row, own, config, found.encoder_name), folder_key(root / row.benchmark)
            result = replace(result, variant=variant, data_key=key, departures=_departures(row, own, config), weights=weights)
            called = BENCHMARKS[row.benchmark].title
            result = replace(result, images=_with_list(images[row.benchmark], own.low_shot), data_name=called)
            result = distributed.from_main(partial(result.placed, found.output / "eval"))
            told = partial(_prefixed, say, f"[{number}/{len(planned)}] {result.title}: ")
            kept = None if again else distributed.from_main(partial(_finished, result, found.output / "eval"))
            if kept is not None:
                older = "" if kept.images else " by a version that did not note whether images were overwritten in place"
                told(f"done before{older}: {kept.file_name} (--again computes it anew)")
            result = kept or _guarded(
                result, partial(evaluate_seeds, result, splits, found, encoder, pooled, own, told, row.benchmark)
            )
        if result.skipped is not None:
            result = replace(result, variant="", data_key="")
            distributed.from_main(partial(result.write, found.output / "eval"))
        results.append(result)
        each(result)
    return results


def _plans(
    row: SuiteRow, splits: Splits | str, settings: EvaluationSettings, config: EncoderConfig
) -> list[tuple[SuiteRow, EvaluationSettings, EncoderConfig]]:
    """The row with its settings, once for each pooling, or only once if its data is missing."""
    own = _row_settings(row, settings, row.name in settings.tasks)
    poolings = pooled_configs(TASKS[row.task], own, config)
    return [
        (row, pooled_settings(own, config, pooled), pooled) for pooled in poolings[: 1 if isinstance(splits, str) else None]
    ]


def _finished(blank: Result, folder: Path) -> Result | None:
    """The row's earlier result, if the row was finished with the same encoder, settings and data; else None."""
    found = read_result(folder / blank.file_name)
    if found is None or found.partial or found.skipped is not None or found.images not in ("", blank.images):
        return None
    same = ("weights", "data_key", "data", "encoder")
    settings = [{name: value for name, value in item.settings.items() if name not in NOT_OF_A_ROW} for item in (found, blank)]
    return found if settings[0] == settings[1] and all(getattr(found, n) == getattr(blank, n) for n in same) else None


def _images_key(splits: Splits) -> str:
    """Short hash of the images of both splits."""
    sources = [source for source in (splits.train, splits.test) if isinstance(source, ListSource)]
    known = "".join(source.fingerprint for source in sources)
    return hashlib.sha256(known.encode()).hexdigest()[:12]


def _with_list(images: str, shot: LowShotSettings) -> str:
    """Short hash of `images` and of the list of labeled images; `images` itself if there is no list."""
    listed = b"" if shot.list is None else file_stamp(Path(shot.list).expanduser())
    return hashlib.sha256(images.encode() + listed).hexdigest()[:12] if listed else images


def _prefixed(say: Say, prefix: str, text: str) -> None:
    say(prefix + text)


def _guarded(blank: Result, evaluate: Callable[[], Result]) -> Result:
    """The row's result. If an error ends it, returns `blank` with the error, so that the other rows still run.

    Of several processes, each must raise the error. Others may be in the middle of the row if it is no refusal, or if it is
    about memory, which one process alone may lack. It then ends all of them.
    """
    try:
        return evaluate()
    except Exception as error:
        may_be_alone = not isinstance(error, Refusal) or isinstance(error.__cause__, RuntimeError | MemoryError)
        if os.environ.get("OPENJEPA_DEBUG") or (distributed.world_size() > 1 and may_be_alone):
            raise
        kind = "" if isinstance(error, Refusal) else f"{type(error).__name__}: "
        return replace(blank, skipped=f"failed: {kind}{error}", failed=True)


def _check_list(row: SuiteRow, splits: Splits | str, settings: EvaluationSettings) -> None:
    """Raises Refusal if the list of labeled images names images that do not exist. Called before the first row is computed."""
    labels = None if isinstance(splits, str) else TASKS[row.task].labels(splits)
    if settings.low_shot.list is None or labels is None or isinstance(labels, str):
        return
    assert not isinstance(splits, str) and isinstance(splits.train, ListSource)
    low_shot_rows(splits.train, labels[0], settings.low_shot, settings.max_skipped)


def _expected(rows: Sequence[SuiteRow]) -> str:
    return ", ".join(dict.fromkeys(BENCHMARKS[row.benchmark].folders[0] for row in rows))


def _row_settings(row: SuiteRow, settings: EvaluationSettings, is_named: bool) -> EvaluationSettings:
    """The settings, with the row's own values for everything that `settings` leaves open.

    Low-shot settings apply to the low-shot rows, and to other rows if `tasks` names them (`is_named`).
    """
    shot = settings.low_shot
    if row.is_low_shot and not shot.is_set():
        shot = LowShotSettings(percent=1.0, seed=shot.seed)
    if not (row.is_low_shot or is_named):
        shot = LowShotSettings()
    return replace(settings, protocols=settings.protocols or row.protocols, low_shot=shot)


def _is_published_draw(row: SuiteRow, shot: LowShotSettings) -> bool:
    """True if the number of labels is that of the row's published numbers."""
    return shot.list is not None or shot.percent == 1.0 if row.is_low_shot else not shot.is_set()


def _described(blank: Result, row: SuiteRow, settings: EvaluationSettings) -> Result:
    """`blank` with the row's name, title and published numbers; without published numbers if the number of labels differs."""
    shot = settings.low_shot
    if _is_published_draw(row, shot):
        return replace(blank, row=row.name, title=row.title, published=PUBLISHED.get(row.name, ()))
    name = BENCHMARKS[row.benchmark].title if row.is_low_shot else row.title
    few = "list of labels" if shot.list is not None else f"{shot.images_per_class} per class"
    words = few if shot.percent is None else f"{shot.percent:g} % of the labels"
    return replace(blank, row=row.name, title=f"{name}, {words}")


def _row_variant(row: SuiteRow, settings: EvaluationSettings, config: EncoderConfig, encoder_name: str) -> str:
    """The words by which a row differs from the same row of the suite `paper`. They keep files of different suites apart."""
    paper = {item.name: item for item in SUITES["paper"]}.get(row.name, row)
    protocols = fitting_protocols(TASKS[row.task], settings.protocols)
    own = replace(settings, protocols=protocols or settings.protocols)
    usual = _row_settings(paper, type(settings)(), False)
    return variant_name(own, config.image_size, view_size(settings, config), encoder_name, usual=usual)


def _draw_words(shot: LowShotSettings) -> str:
    """The difference between a draw of labels and the published list, in words; empty if it may be that list."""
    if shot.list is None:
        return "1 % drawn per class, not the published list" if shot.percent == 1.0 else ""
    names = sum(bool(line.split("#")[0].strip()) for line in Path(shot.list).expanduser().read_text().splitlines())
    return "" if names == PUBLISHED_LIST else f"a list of {names:,} labels, not the published {PUBLISHED_LIST:,}"


def _departures(row: SuiteRow, settings: EvaluationSettings, config: EncoderConfig) -> tuple[str, ...]:
    """The settings that depart from the published protocol, in words. `evaluate_task` adds departures of the data."""
    usual = type(settings)()
    own = [name for entry in published_protocols() for name in entry.own]
    changed = [name for name in own if getattr(settings, name) != getattr(usual, name)]
    read = {name for protocol in settings.protocols for name in PROTOCOLS[protocol].own}
    size = view_size(settings, config)
    draw = _draw_words(settings.low_shot) if row.is_low_shot else ""
    return (
        *(f"{name}.* is changed" for name in changed if name in read),
        *((f"images of {size[0]}x{size[1]} px",) if size != config.image_size else ()),
        *((f"pooled by {settings.pooling.replace('_', ' ')}",) if settings.pooling != "own" else ()),
        *((f"at most {settings.max_train_images} training images",) if settings.max_train_images is not None else ()),
        *((draw,) if draw else ()),
    )
