"""SUITES: named lists of rows; a row is protocols on one task of one benchmark, beside published numbers. Free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from openjepa.config import nearest
from openjepa.refusals import Refusal
from openjepa.settings.evaluation import ProtocolName


@dataclass(frozen=True)
class SuiteRow:
    """One evaluation of a suite."""

    name: str
    """What its file is called."""
    title: str
    """For tables."""
    benchmark: str
    """Which of BENCHMARKS holds the images."""
    protocols: tuple[ProtocolName, ...]
    """Run unless --protocols says otherwise."""
    task: str = "classification"
    """Which of TASKS."""
    is_low_shot: bool = False
    """Only some of the training images have labels: 1 % of each class unless --low-shot says otherwise."""


PROBES: tuple[ProtocolName, ...] = ("linear_full", "linear", "knn")
CACHED: tuple[ProtocolName, ...] = ("linear", "knn")
DENSE: tuple[ProtocolName, ...] = ("dense_linear", "dense_knn")


def _rows(probes: tuple[ProtocolName, ...]) -> tuple[SuiteRow, ...]:
    return (
        SuiteRow("imagenet1k", "ImageNet-1K", "imagenet1k", probes),
        SuiteRow("cifar100", "CIFAR100", "cifar100", probes),
        SuiteRow("cifar10", "CIFAR10", "cifar10", probes),
        SuiteRow("places205", "Places205", "places205", probes),
        SuiteRow("inat18", "iNat18", "inat18", probes),
        SuiteRow("clevr_count", "Clevr/Count", "clevr", probes, "clevr_count"),
        SuiteRow("clevr_dist", "Clevr/Dist", "clevr", probes, "clevr_dist"),
    )


def _low_shot(protocols: tuple[ProtocolName, ...]) -> SuiteRow:
    return SuiteRow("imagenet1k-1pct", "ImageNet-1%", "imagenet1k", protocols, is_low_shot=True)


SUITES: dict[str, tuple[SuiteRow, ...]] = {
    "paper": (
        *_rows(PROBES),
        _low_shot(("linear", "logistic", "finetune")),
        SuiteRow("imagenet1k-finetune", "ImageNet-1K fine-tuned", "imagenet1k", ("finetune",)),
    ),
    "cached": (*_rows(CACHED), _low_shot(("linear", "logistic"))),
    "dense": (
        SuiteRow("scene_shapes", "Scenes/shape of patches", "scenes", DENSE, "scene_shapes"),
        SuiteRow("scene_colors", "Scenes/color of patches", "scenes", DENSE, "scene_colors"),
    ),
}
"""`paper`: every evaluation of the paper. `cached`: the same benchmarks by probes on features that are computed once. `dense`:
single patches of scenes with instance masks, as `openjepa data scenes` renders them."""


def suite_rows(suite: str, names: Sequence[str]) -> list[SuiteRow]:
    """The rows of a suite that are asked for; all where none is named. Raises Refusal for an unknown suite or row."""
    if suite not in SUITES:
        raise Refusal(f"suite={suite!r} does not exist: {nearest(suite, SUITES)}")
    rows = {row.name: row for row in SUITES[suite]}
    if unknown := [name for name in names if name not in rows]:
        raise Refusal(f"tasks={unknown[0]!r} is no row of the suite {suite!r}: {nearest(unknown[0], rows)}")
    return [row for row in rows.values() if not names or row.name in names]
