"""Lists for cleaning a data set: near-duplicates and outliers, as CSV files and contact sheets."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch.nn.functional import normalize

from openjepa.engine.device import resolve_device
from openjepa.inference.embedding.table import FeatureTable, Row, evenly_spread
from openjepa.inference.search.gallery import Gallery
from openjepa.inference.search.pairs import File, Group, Member, Pairs, compare_all, groups_of
from openjepa.inference.search.search_run import Opened, open_for_search
from openjepa.inference.search.sheets import COLUMNS, KEPT, REMOVED, Line, Picture, draw, save, shortened
from openjepa.inference.search.vectors import Vectors, table_mean
from openjepa.settings.inference import SearchSettings
from openjepa.system.console import Say, progress, silent
from openjepa.system.shared_files import whole_file

GROUPS_SHOWN, OUTLIERS_SHOWN = 16, 48
"""Most groups and most outliers on the contact sheets."""
SAMPLE = 1000
"""Number of images whose pairs show which cosines are typical."""
_IMAGE_COLUMNS = ("path", "split", "index", "row", "label")
_FILE_COLUMNS = ("width", "height", "bytes")
_COPY_COLUMNS = ("duplicate_of", "duplicate_of_row", "cosine", "identical")
GROUP_COLUMNS = ("group", "keep", *_IMAGE_COLUMNS, *_FILE_COLUMNS, *_COPY_COLUMNS)
OUTLIER_COLUMNS = ("rank", "distance", *_IMAGE_COLUMNS)


@dataclass(frozen=True)
class Outlier:
    """An image far from all others."""

    row: int
    distance: float
    """1 minus the mean cosine to its nearest images."""


@dataclass(frozen=True)
class Cleaning:
    """Near-duplicates and outliers that were found."""

    opened: Opened
    groups: tuple[Group, ...] | None
    """Groups of near-duplicates; None if they were not searched for."""
    outliers: tuple[Outlier, ...] | None
    complete: bool
    """False if there were more pairs of near-duplicates than the limit allows."""
    threshold: float
    typical: tuple[float, float] | None
    """Median and 99th percentile of the cosines of sampled pairs; None if there are no pairs."""

    @property
    def table(self) -> FeatureTable:
        """The table that was searched."""
        return self.opened.table

    def crossing(self) -> int:
        """Number of groups with images of more than one split. With them, an encoder is tested on what it was trained on."""
        return sum(len({self.table.rows[item.row].split for item in group.members}) > 1 for group in self.groups or ())

    def contradicting(self) -> int:
        """Number of groups with more than one label."""
        labels = [{self.table.rows[item.row].label for item in group.members} - {None} for group in self.groups or ()]
        return sum(len(found) > 1 for found in labels)


def find_to_clean(settings: SearchSettings, say: Say = silent) -> Cleaning:
    """Finds near-duplicates and outliers by comparing all pairs of images once. Raises Refusal if they cannot be compared."""
    opened = open_for_search(settings, say)
    table = opened.table
    vectors = Vectors(table, table_mean(table) if opened.centered else None)
    typical = typical_cosines(vectors)
    if settings.duplicates and typical is not None and typical[1] >= settings.threshold:
        or_center = "" if opened.centered else ", or take off what all images share with --center yes"
        say(
            f"more than one of 100 pairs drawn at random have a cosine of {settings.threshold:g} or more: raise --threshold"
            f"{or_center}"
        )
    with progress("compare", len(table)) as advance:
        pairs, means = compare_all(
            vectors,
            threshold=settings.threshold if settings.duplicates else None,
            neighbors=settings.neighbors if settings.outliers else 0,
            max_pairs=settings.max_pairs,
            device=resolve_device(settings.device, "--device"),
            advance=advance,
        )
    groups = _groups(pairs, opened) if settings.duplicates else None
    outliers = farthest(means, settings.outliers) if settings.outliers else None
    return Cleaning(opened, groups, outliers, pairs.complete, settings.threshold, typical)


def typical_cosines(vectors: Vectors) -> tuple[float, float] | None:
    """Median and 99th percentile of the cosines of all pairs of at most SAMPLE evenly spread images; None for one image."""
    rows = evenly_spread(len(vectors), SAMPLE)
    if len(rows) < 2:
        return None
    units = normalize(vectors.rows(rows), dim=1)
    first, second = torch.triu_indices(len(rows), len(rows), 1).unbind()
    median, high = np.percentile((units @ units.T)[first, second].numpy(), (50, 99))
    return float(median), float(high)


def _groups(pairs: Pairs, opened: Opened) -> tuple[Group, ...]:
    gallery, rows = opened.gallery, opened.table.rows

    def file_of(row: int) -> File | None:
        return None if gallery is None else gallery.file(rows[row])

    return tuple(groups_of(pairs, file_of))


def farthest(means: Float[np.ndarray, " n"] | None, number: int) -> tuple[Outlier, ...]:
    """The `number` images with the smallest mean cosine to their nearest images, the farthest first.

    `means`: mean cosine of each image; None, as for a table of a single image, gives no outliers.
    """
    if means is None:
        return ()
    order = np.argsort(means, kind="stable")[:number]
    return tuple(Outlier(int(row), 1 - float(means[row])) for row in order)


def write_lists(found: Cleaning, folder: Path) -> list[Path]:
    """Writes duplicates.csv and outliers.csv to `folder`, each only if it was searched for. Returns their paths."""
    written = []
    if found.groups is not None:
        written.append(_write(folder / "duplicates.csv", GROUP_COLUMNS, group_rows(found)))
    if found.outliers is not None:
        written.append(_write(folder / "outliers.csv", OUTLIER_COLUMNS, outlier_rows(found)))
    return written


def _write(path: Path, columns: Sequence[str], rows: Iterable[dict[str, object]]) -> Path:
    with whole_file(path) as unfinished, unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def _about(row: Row) -> dict[str, object]:
    return {"path": row.path, "split": row.split, "index": row.index, "label": row.label}


def group_rows(found: Cleaning) -> Iterable[dict[str, object]]:
    """Yields one row of duplicates.csv per image of a group."""
    for number, group in enumerate(found.groups or (), start=1):
        for member in group.members:
            file = member.file
            yield {
                "group": number,
                "keep": "yes" if member.keep else "no",
                **_about(found.table.rows[member.row]),
                "row": member.row,
                "width": None if file is None else file.width,
                "height": None if file is None else file.height,
                "bytes": None if file is None else file.bytes,
                "duplicate_of": None if member.duplicate_of is None else found.table.rows[member.duplicate_of].path,
                "duplicate_of_row": member.duplicate_of,
                "cosine": None if member.cosine is None else round(member.cosine, 6),
                "identical": None if member.identical is None else ("yes" if member.identical else "no"),
            }


def outlier_rows(found: Cleaning) -> Iterable[dict[str, object]]:
    """Yields one row of outliers.csv per outlier."""
    for rank, outlier in enumerate(found.outliers or (), start=1):
        about = _about(found.table.rows[outlier.row])
        yield {"rank": rank, "distance": round(outlier.distance, 6), **about, "row": outlier.row}


def draw_lists(found: Cleaning, folder: Path) -> list[Path]:
    """Draws duplicates.png and outliers.png if there is something to show. Returns their paths.

    Raises Refusal if matplotlib is missing.
    """
    gallery = found.opened.gallery
    assert gallery is not None  # without a gallery there are no images to draw
    drawn = []
    if found.groups:
        drawn.append(save(draw(_group_lines(found.groups, found, gallery)), folder / "duplicates.png"))
    if found.outliers:
        shown = found.outliers[:OUTLIERS_SHOWN]
        pictures = tuple(
            Picture(gallery.thumbnail(row), (f"{rank} · distance {item.distance:.3f}", shortened(row.path)))
            for rank, (item, row) in enumerate(((item, found.table.rows[item.row]) for item in shown), start=1)
        )
        line = Line(f"farthest from their nearest images, {len(shown)} of {len(found.table):,}", pictures)
        drawn.append(save(draw([line]), folder / "outliers.png"))
    return drawn


def _group_lines(groups: Sequence[Group], found: Cleaning, gallery: Gallery) -> list[Line]:
    """Lines for the most similar groups and for those nearest to the threshold, which show if the threshold is right."""
    half = GROUPS_SHOWN // 2
    shown = list(range(min(half, len(groups))))
    by_threshold = sorted(range(half, len(groups)), key=lambda number: groups[number].lowest)
    border = sorted(by_threshold[:half], key=lambda number: -groups[number].lowest)
    lines = [Line(f"most alike, of {len(groups):,} groups", ())]
    lines += [_group_line(number, groups[number], found, gallery) for number in shown]
    if border:
        lines.append(Line(f"nearest to the threshold of {found.threshold:g}", ()))
        lines += [_group_line(number, groups[number], found, gallery) for number in border]
    return lines


def _group_line(number: int, group: Group, found: Cleaning, gallery: Gallery) -> Line:
    shown = group.members[:COLUMNS]
    more = f", {len(shown)} of {len(group.members)}" if len(shown) < len(group.members) else ""
    return Line(f"group {number + 1}{more}", tuple(_member_picture(item, found, gallery) for item in shown))


def _member_picture(member: Member, found: Cleaning, gallery: Gallery) -> Picture:
    row = found.table.rows[member.row]
    size = "" if member.file is None else f" · {member.file.width} x {member.file.height}"
    words = f"keep{size}" if member.cosine is None else f"{member.cosine:.3f}{' same file' if member.identical else size}"
    captions = (words, shortened(row.path), row.split) if found.crossing() else (words, shortened(row.path))
    return Picture(gallery.thumbnail(row), captions, color=KEPT if member.keep else REMOVED)
