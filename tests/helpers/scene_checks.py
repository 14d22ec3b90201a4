"""What several tests of scenes share."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def scene_with_depths(*depths: float) -> dict[str, Any]:
    return {"objects": [{"pixel_coords": [1, 1, depth]} for depth in depths]}


def assert_counts_uniform(counts: NDArray[np.int64]) -> None:
    """Chi-squared over eight classes below its 99.99 % point (7 degrees of freedom: 29.9)."""
    observed = np.bincount(counts, minlength=8)
    expected = len(counts) / 8
    assert len(observed) == 8
    assert ((observed - expected) ** 2 / expected).sum() < 29.9


def assert_bins_filled(distances: NDArray[np.int64]) -> None:
    shares = np.bincount(distances, minlength=6) / len(distances)
    assert len(shares) == 6 and shares.min() >= 0.05, shares


def write_clevr(root: Path, depths: dict[str, list[list[float]]]) -> None:
    for split, scenes in depths.items():
        (root / "images" / split).mkdir(parents=True)
        (root / "scenes").mkdir(exist_ok=True)
        entries = []
        for index, scene in enumerate(scenes):
            name = f"CLEVR_{split}_{index:06d}.png"
            Image.new("RGB", (24, 16), (index, 0, 0)).save(root / "images" / split / name)
            entries.append({"image_filename": name, "image_index": index} | scene_with_depths(*scene))
        (root / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps({"info": {}, "scenes": entries}))


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}
