"""Published numbers that ours are printed beside. Percent; each with the table it was read in. Free of torch.

All from the I-JEPA paper (arXiv 2301.08243v3). Its Table 1 has 77.5 for L/16 (600 epochs, linear), its Table 13 77.8 for the
same run.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One number of a table."""

    method: str
    architecture: str
    epochs: str
    """Epochs of pretraining, on ImageNet-1K where nothing else is said; empty where the table does not say."""
    value: float
    """Top-1 accuracy in percent."""
    source: str
    """Table it stands in."""
    protocol: str = "linear"
    """Name of the number in our tables that it compares with; `any`: the better of linear and fine-tuned."""


def _rows(source: str, protocol: str, *rows: tuple[str, str, str, float]) -> tuple[Published, ...]:
    return tuple(
        Published(method, architecture, epochs, value, source, protocol) for method, architecture, epochs, value in rows
    )


def _transfer(
    source: str, data2vec: float, mae: float, ijepa: float, dino: float, ibot: float, wide: tuple[float, float]
) -> tuple[Published, ...]:
    """A column of Tables 3 or 4, and of Table 5 (pretraining on ImageNet-22K)."""
    return _rows(
        source,
        "linear",
        ("data2vec", "L/16", "", data2vec),
        ("MAE", "H/14", "", mae),
        ("I-JEPA", "H/14", "300", ijepa),
        ("DINO", "B/8", "", dino),
        ("iBOT", "L/16", "", ibot),
    ) + _rows("Table 5", "linear", ("I-JEPA", "H/14", "IN22K, 900", wide[0]), ("I-JEPA", "G/16", "IN22K, 600", wide[1]))


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "imagenet1k": _rows(
        "Table 1",
        "linear",
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
    "imagenet1k-1pct": _rows(
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
    "imagenet1k-finetune": _rows(
        "Table 15", "fine-tuned", ("MAE", "H/14-448", "1600", 87.8), ("I-JEPA", "H/16-448", "300", 87.1)
    ),
    "cifar100": _transfer("Table 3", 81.6, 77.3, 87.5, 84.9, 88.3, (89.5, 89.5)),
    "places205": _transfer("Table 3", 54.6, 55.0, 58.4, 57.9, 60.4, (57.8, 59.1)),
    "inat18": _transfer("Table 3", 28.1, 32.9, 47.6, 55.9, 57.3, (50.5, 55.3)),
    "clevr_count": _transfer("Table 4", 85.3, 90.5, 86.7, 86.6, 85.7, (88.6, 86.7)),
    "clevr_dist": _transfer("Table 4", 71.3, 72.4, 72.4, 53.4, 62.8, (75.0, 73.0)),
}
"""By the name of a suite's row."""
