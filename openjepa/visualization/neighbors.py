"""Nearest neighbors of a few images as a picture."""

import numpy as np
from jaxtyping import Float, UInt8

from openjepa.visualization.features import nearest
from openjepa.visualization.fonts import printable
from openjepa.visualization.pictured import Pictured
from openjepa.visualization.sheet import BAD, GOOD, GRAY, Sheet, enlarge

NUM_NEIGHBORS = 5
_HEAD, _LABEL, _GAP, _GROUP_GAP = 44, 30, 6, 34

Features = dict[str, tuple[Float[np.ndarray, "Q D"], Float[np.ndarray, "G D"]]]
"""By encoder: unit vectors of the queries and of the gallery."""


def neighbor_sheet(
    queries: Pictured, gallery: Pictured, features: Features, cell: tuple[int, int]
) -> tuple[Sheet, dict[str, list[list[int]]]]:
    """One row per query: the query, then its neighbors by each encoder; and the neighbors' numbers in the gallery."""
    num_queries = len(next(iter(features.values()))[0])
    own = _own_places(queries, gallery, num_queries)
    found = {name: nearest(both[0], both[1], NUM_NEIGHBORS, own) for name, both in features.items()}
    height, width = round(cell[0] * 0.78), round(cell[1] * 0.78)
    labeled = _LABEL if queries.labels is not None else 0
    group = NUM_NEIGHBORS * (width + _GAP) - _GAP
    lefts = [width + _GROUP_GAP + index * (group + _GROUP_GAP) for index in range(len(found))]
    sheet = Sheet(lefts[-1] + group, _HEAD + num_queries * (height + labeled + 12) - 12)
    sheet.words("query", 0, 18, size=22, bold=True)
    for left, name in zip(lefts, found, strict=True):
        sheet.words(f"nearest, {name} encoder", left, 18, size=22, bold=True)
    for row in range(num_queries):
        top = _HEAD + row * (height + labeled + 12)
        _thumbnail(sheet, queries, row, (0, top), (height, width), None)
        for left, name in zip(lefts, found, strict=True):
            for place, index in enumerate(found[name][row]):
                corner = (left + place * (width + _GAP), top)
                _thumbnail(sheet, gallery, index, corner, (height, width), _is_right(queries, row, gallery, index))
    return sheet, found


def purity(queries: Pictured, gallery: Pictured, found: dict[str, list[list[int]]]) -> dict[str, float]:
    """Share of the neighbors that have their query's class, by encoder; empty without labels."""
    shares = {}
    for name, rows in found.items():
        right = [_is_right(queries, row, gallery, index) for row, indices in enumerate(rows) for index in indices]
        known = [answer for answer in right if answer is not None]
        if known:
            shares[name] = sum(known) / len(known)
    return shares


def _own_places(queries: Pictured, gallery: Pictured, num_queries: int) -> list[int | None]:
    """Where the gallery holds the query itself."""
    if queries.split != gallery.split:
        return [None] * num_queries
    places = {int(index): place for place, index in enumerate(gallery.indices)}
    return [places.get(int(index)) for index in queries.indices[:num_queries]]


def _is_right(queries: Pictured, row: int, gallery: Pictured, index: int) -> bool | None:
    if queries.labels is None or gallery.labels is None:
        return None
    return bool(queries.labels[row] == gallery.labels[index])


def _thumbnail(
    sheet: Sheet, pictured: Pictured, index: int, corner: tuple[int, int], size: tuple[int, int], right: bool | None
) -> None:
    pixels: UInt8[np.ndarray, "h w 3"] = pictured.images[index].permute(1, 2, 0).numpy()
    sheet.image(enlarge(pixels, size), *corner)
    if right is not None:
        sheet.frame(*corner, size[1], size[0], GOOD if right else BAD, 5)
    if pictured.labels is not None:
        label = int(pictured.labels[index])
        name = pictured.class_names[label] if pictured.class_names and label < len(pictured.class_names) else str(label)
        words = printable(name)
        words = words if len(words) <= 16 else words[:15] + "…"
        color = GOOD if right else GRAY
        sheet.words(words, corner[0] + size[1] / 2, corner[1] + size[0] + 15, size=16, align="center", color=color)
