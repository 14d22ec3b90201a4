"""The command `openjepa evaluate`."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from openjepa.checks.protocol_settings import evaluation_remarks
from openjepa.commands.parsing.arguments import EvaluateOptions, parse_evaluate
from openjepa.commands.parsing.paths import check_evaluated
from openjepa.config import nearest
from openjepa.evaluation import PROTOCOLS, usual_protocols, with_current_names
from openjepa.refusals import Refusal

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


def _evaluate_help() -> tuple[str, str]:
    """What the help says of the command, and what else with --help-all."""
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


def evaluate(argv: Sequence[str], prog: str) -> None:
    """Probes an encoder."""
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
    """Every protocol that may run."""
    from openjepa.evaluation.tasks import suite_rows

    if options.evaluation.protocols or options.suite is None:
        return set(options.evaluation.protocols or (*usual_protocols(on_maps=False), *usual_protocols(on_maps=True)))
    return {name for row in suite_rows(options.suite, options.evaluation.tasks) for name in row.protocols}


def _check_evaluation_options(options: EvaluateOptions, has_data: bool) -> None:
    """Refusal: a suite without its data, or beside other data; or a task that is none of its rows."""
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
