"""Helpers for tests of benchmarks: miniatures below a data root, and what was found in them."""

from pathlib import Path

import numpy as np

from openjepa.data.datasets.benchmarks import find_benchmark
from openjepa.data.source import ListSource, Splits
from tests.helpers.images import shape_image


def put(root: Path, *files: str) -> Path:
    """Small images at these paths below `root`."""
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shape_image(number, 16).save(root / file)
    return root


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def opened(name: str, data_root: Path) -> Splits:
    splits = find_benchmark(name, data_root)
    assert isinstance(splits, Splits), splits
    return splits


def table(source: object) -> list[tuple[str, int]]:
    """Name and label of every record."""
    assert isinstance(source, ListSource) and source.labels is not None and source.labels.dtype == np.int64
    return [(source.name(row), int(source.labels[row])) for row in range(len(source))]
