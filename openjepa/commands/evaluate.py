"""The command `openjepa evaluate`."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from openjepa.checks.protocol_settings import evaluation_remarks
from openjepa.commands.parsing.arguments import Unprefixed, check_evaluated, data_of, given_settings, parse, require, subject_of
from openjepa.config import nearest
from openjepa.evaluation import PROTOCOLS, usual_protocols, with_current_names
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.sources import DataSettings, FolderSettings

EVALUATE_HELP = """Probes of an encoder, beside the same on the untrained encoder and on raw pixels. ENCODER: an encoder folder,
a file of published weights, a Hugging Face folder or a name on the Hub.

examples:
  openjepa evaluate runs/cpu-64-default-photos
  openjepa evaluate runs/cpu-64-default-photos --neighbors 10 20
  openjepa evaluate runs/mine/encoder --data.source folder --data.path ~/labeled
  openjepa evaluate runs/mine --suite cached --data-root ~/datasets
  openjepa evaluate IN1K-vit.h.14-300e.pth.tar --suite paper \\
      --data-root ~/datasets

protocols (--protocols; linear and knn unless said otherwise):
{protocols}

tasks (all that the data has labels for, unless --tasks names some):
{tasks}"""

EVALUATE_DETAILS = """suites (--suite, with --data-root) and their rows, which --tasks can choose from:
{suites}

folders below --data-root (those that are missing are skipped):
{benchmarks}"""


EVALUATE_COMMON = (
    *("data.path", "data.source", "tasks", "protocols", "suite", "data_root", "again", "selection", "seeds"),
    *("image_size", "neighbors", "max_train_images", "encoder", "device", "workers"),
)
"""The options that the help shows without --help-all, in this order."""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """The arguments of `openjepa evaluate`."""

    subject: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN|ENCODER")] = Path()
    """Run folder, encoder folder, file of published weights, Hugging Face folder, or name on the Hub."""
    suite: str | None = None
    """Evaluate on the rows of a suite instead of the run's own images: `paper`, `cached` or `dense` (see above)."""
    data_root: str | None = None
    """Folder that holds one folder per data set, as unpacked from its archive (see above). Needed by --suite."""
    again: bool = False
    """Compute all rows of a suite again, even those already finished with the same weights, settings and data."""
    evaluation: Annotated[EvaluationSettings, Unprefixed] = field(default_factory=EvaluationSettings)
    data: DataSettings = field(default_factory=FolderSettings)


def _evaluate_help() -> tuple[str, str]:
    """The help of the command, and the text that --help-all adds."""
    from openjepa.data.datasets.benchmarks import BENCHMARKS
    from openjepa.evaluation.tasks import SUITES, TASKS

    text = EVALUATE_HELP.format(
        protocols="\n".join(f"  {name:<16}{entry.summary}" for name, entry in PROTOCOLS.items()),
        tasks="\n".join(f"  {name:<16}{task.title}" for name, task in TASKS.items()),
    )
    details = EVALUATE_DETAILS.format(
        suites="\n".join(f"  {name:<16}{', '.join(row.name for row in rows)}" for name, rows in SUITES.items()),
        benchmarks="\n".join(f"  {item.folders[0]:<16}{item.layout}" for item in BENCHMARKS.values()),
    )
    return text, details


def parse_evaluate(
    argv: Sequence[str], prog: str, description: str, details: str = "", check: Callable[[Path], object] = Path
) -> tuple[EvaluateOptions, DataSettings | None]:
    """The options of `openjepa evaluate`, and its data settings. These are None, for the run's own, if none is given.

    Given data settings override those of the run's `config.yaml`, if there is one. `check`: may refuse the subject before the
    options are read, because they depend on its data.
    """
    argv = require(EvaluateOptions, argv, "a run folder or the folder of an encoder", prog)
    defaults = EvaluateOptions(data=data_of(subject_of(argv, check), argv))
    options = parse(EvaluateOptions, argv, prog, description, defaults, details, EVALUATE_COMMON)
    return options, options.data if any(name.startswith("data.") for name in given_settings(argv)) else None


def evaluate(argv: Sequence[str], prog: str) -> None:
    """Runs `openjepa evaluate`: probes an encoder."""
    from openjepa.system.console import say

    options, data = parse_evaluate(argv, prog, *_evaluate_help(), check=check_evaluated)
    _check_evaluation_options(options, data is not None)
    options = replace(options, evaluation=with_current_names(options.evaluation, say))
    reads = {name: entry.reads for name, entry in PROTOCOLS.items()}
    unpooled = [name for name, entry in PROTOCOLS.items() if not entry.pools]
    for remark in evaluation_remarks(options.evaluation, _protocols(options), reads, unpooled):
        say(f"note: {remark}")
    from openjepa.evaluation.evaluation_run import evaluate_run, evaluate_suite
    from openjepa.evaluation.tables import print_results, print_row

    if options.suite is None:
        results = evaluate_run(options.subject, options.evaluation, data, say)
    else:
        assert options.data_root is not None
        results = evaluate_suite(
            options.subject,
            options.suite,
            Path(options.data_root),
            options.evaluation,
            say,
            print_row,
            options.again,
        )
    print_results(results)
    if any(result.failed for result in results):
        sys.exit(1)
    if all(result.skipped is not None for result in results):
        sys.exit(2)


def _protocols(options: EvaluateOptions) -> set[str]:
    """All protocols that may run."""
    from openjepa.evaluation.tasks import suite_rows

    if options.evaluation.protocols or options.suite is None:
        return set(options.evaluation.protocols or (*usual_protocols(on_maps=False), *usual_protocols(on_maps=True)))
    return {name for row in suite_rows(options.suite, options.evaluation.tasks) for name in row.protocols}


def _check_evaluation_options(options: EvaluateOptions, has_data: bool) -> None:
    """Raises Refusal if a suite lacks its data or is combined with other data, or if a task is not among its rows."""
    from openjepa.evaluation.tasks import SUITES, TASKS, suite_rows

    if options.suite is None and options.data_root is not None:
        raise Refusal(f"--data-root {options.data_root} has no effect without --suite ({' or '.join(SUITES)})")
    if options.suite is None and options.again:
        raise Refusal("--again has no effect without --suite: other evaluations are always computed anew")
    if options.suite is not None and options.data_root is None:
        raise Refusal("--suite needs --data-root, the folder that holds one folder per data set (see --help)")
    if options.suite is not None and has_data:
        raise Refusal("--suite and --data.* both say what to evaluate on: leave out one")
    if options.suite is not None:
        suite_rows(options.suite, options.evaluation.tasks)
    elif unknown := [name for name in options.evaluation.tasks if name not in TASKS]:
        raise Refusal(f"--tasks {unknown[0]} does not exist: {nearest(unknown[0], TASKS)}")
