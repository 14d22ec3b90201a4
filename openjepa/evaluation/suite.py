"""SUITES: named lists of rows; a row is protocols on one task of one benchmark, beside published numbers. Free of torch.

Published numbers that ours are printed beside. Percent; each with the table it was read in. Free of torch.

All from the I-JEPA paper (arXiv 2301.08243v3). Its Table 1 has 77.5 for L/16 (600 epochs, linear), its Table 13 77.8 for the
same run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from openjepa.config import nearest
from openjepa.records import Published
from openjepa.refusals import Refusal


@dataclass(frozen=True)
class SuiteRow:
    """One evaluation of a suite."""

    name: str
    """What its file is called."""
    title: str
    """For tables."""
    benchmark: str
    """Which of BENCHMARKS holds the images."""
    protocols: tuple[str, ...]
    """Run unless --protocols says otherwise."""
    task: str = "classification"
    """Which of TASKS."""
    is_low_shot: bool = False
    """Only some of the training images have labels: 1 % of each class unless --low-shot says otherwise."""


PROBES: tuple[str, ...] = ("linear-full", "linear", "knn")
CACHED: tuple[str, ...] = ("linear", "knn")
DENSE: tuple[str, ...] = ("dense-linear", "dense-knn")


def _rows(probes: tuple[str, ...]) -> tuple[SuiteRow, ...]:
    return (
        SuiteRow("imagenet1k", "ImageNet-1K", "imagenet1k", probes),
        SuiteRow("cifar100", "CIFAR100", "cifar100", probes),
        SuiteRow("cifar10", "CIFAR10", "cifar10", probes),
        SuiteRow("places205", "Places205", "places205", probes),
        SuiteRow("inat18", "iNat18", "inat18", probes),
        SuiteRow("clevr_count", "Clevr/Count", "clevr", probes, "clevr_count"),
        SuiteRow("clevr_dist", "Clevr/Dist", "clevr", probes, "clevr_dist"),
    )


def _low_shot(protocols: tuple[str, ...]) -> SuiteRow:
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


def _published_rows(source: str, protocol: str, *rows: tuple[str, str, str, float]) -> tuple[Published, ...]:
    return tuple(
        Published(method=method, architecture=architecture, epochs=epochs, value=value, source=source, protocol=protocol)
        for method, architecture, epochs, value in rows
    )


def _transfer(
    source: str, data2vec: float, mae: float, ijepa: float, dino: float, ibot: float, wide: tuple[float, float]
) -> tuple[Published, ...]:
    """A column of Tables 3 or 4, and of Table 5 (pretraining on ImageNet-22K)."""
    return _published_rows(
        source,
        "linear-full",
        ("data2vec", "L/16", "", data2vec),
        ("MAE", "H/14", "", mae),
        ("I-JEPA", "H/14", "300", ijepa),
        ("DINO", "B/8", "", dino),
        ("iBOT", "L/16", "", ibot),
    ) + _published_rows(
        "Table 5", "linear-full", ("I-JEPA", "H/14", "IN22K, 900", wide[0]), ("I-JEPA", "G/16", "IN22K, 600", wide[1])
    )


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "imagenet1k": _published_rows(
        "Table 1",
        "linear-full",
        ("data2vec", "L/16", "1600", 77.3),
        ("MAE", "B/16", "1600", 68.0),
        ("MAE", "L/16", "1600", 76.0),
        ("MAE", "H/14", "1600", 77.2),
        ("CAE", "B/16", "1600", 70.4),
        ("CAE", "L/16", "1600", 78.1),
        ("I-JEPA", "B/16", "600", 72.9),
        ("I-JEPA", "L/16", "600", 77.5),
        ("I-JEPA", "H/14", "300", 79.3),
        ("I-JEPA", "H/16-448", "300", 81.1),
        ("SimCLR v2", "RN152 (2x)", "800", 79.1),
        ("DINO", "B/8", "300", 80.1),
        ("iBOT", "L/16", "250", 81.0),
    ),
    "imagenet1k-1pct": _published_rows(
        "Table 2",
        "any",
        ("data2vec", "L/16", "", 73.3),
        ("MAE", "L/16", "", 67.1),
        ("MAE", "H/14", "", 71.5),
        ("I-JEPA", "L/16", "", 69.4),
        ("I-JEPA", "H/14", "", 73.3),
        ("I-JEPA", "H/16-448", "", 77.3),
        ("iBOT", "B/16", "400", 69.7),
        ("DINO", "B/8", "", 70.0),
        ("SimCLR v2", "RN151 (2x)", "", 70.2),
        ("BYOL", "RN200 (2x)", "", 71.2),
        ("MSN", "B/4", "300", 75.7),
    ),
    "imagenet1k-finetune": _published_rows(
        "Table 15", "fine-tuned", ("MAE", "H/14-448", "1600", 87.8), ("I-JEPA", "H/16-448", "300", 87.1)
    ),
    "cifar100": _transfer("Table 3", 81.6, 77.3, 87.5, 84.9, 88.3, (89.5, 89.5)),
    "places205": _transfer("Table 3", 54.6, 55.0, 58.4, 57.9, 60.4, (57.8, 59.1)),
    "inat18": _transfer("Table 3", 28.1, 32.9, 47.6, 55.9, 57.3, (50.5, 55.3)),
    "clevr_count": _transfer("Table 4", 85.3, 90.5, 86.7, 86.6, 85.7, (88.6, 86.7)),
    "clevr_dist": _transfer("Table 4", 71.3, 72.4, 72.4, 53.4, 62.8, (75.0, 73.0)),
}
"""By the name of a suite's row."""
