"""An index beside the table, for tables that are searched often. usearch makes it: a hierarchical navigable small world graph.

`X.npy.usearch` holds the directions of all images in fp16. `X.npy.usearch.json` records what the index was made of, and the
share of the ten nearest images that it found on a sample. Cosines of the answers are computed again in fp64: only the choice
of images is approximate, never a cosine.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from rich.filesize import decimal
from torch import Tensor

from openjepa.config import read_object, typed
from openjepa.inference.embedding.table import FeatureTable, evenly_spread
from openjepa.inference.search.exact import Neighbors, nearest, ranked
from openjepa.inference.search.vectors import Vectors, cosines, table_mean
from openjepa.refusals import Refusal, needed_for
from openjepa.system.console import Say, progress
from openjepa.system.shared_files import is_writable, whole_file

CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 32, 128, 256
"""Edges per image, and candidates that are compared when an image is added and when an image is searched for."""
SAMPLE, SAMPLE_TOP = 100, 10
"""Number of evenly spread images on which the index is compared with the exact search, and number of neighbors of each."""
ADDED = 1024
"""Number of images added at a time. In between, Ctrl-C takes effect and the progress is shown."""


@dataclass(frozen=True)
class Made:
    """Record of what an index was made of. If anything but recall and mean differs, the index is made again."""

    table_bytes: int
    table_modified: int
    """Modification time of the table's file, in nanoseconds."""
    images: int
    weights: str
    centered: bool
    library: str
    """Version of usearch."""
    recall: float = 0.0
    """Share of the ten nearest images that the index found, over the sample."""
    mean: tuple[float, ...] = ()
    """Mean of the table if it is centered, else empty. Kept because computing it would take longer than the search."""

    def is_of(self, other: "Made") -> bool:
        """True if both indexes were made of the same table, in the same way."""
        return replace(self, recall=0.0, mean=()) == replace(other, recall=0.0, mean=())


class ApproximateIndex:
    """The opened index of a table."""

    def __init__(self, vectors: Vectors, index: Any, recall: float) -> None:
        """`index`: the index of usearch, mapped. `recall`: as in `Made`."""
        self.vectors, self._index = vectors, index
        self.recall = recall

    def nearest(self, queries: Float[Tensor, "Q D"], top: int, skip: Sequence[int | None] | None = None) -> list[Neighbors]:
        """Most of the `top` nearest images of each query, with cosines in fp64. Arguments as in `search.exact.nearest`."""
        skips = list(skip) if skip is not None else [None] * len(queries)
        wanted = min(len(self.vectors), 2 * top + 1)
        found = []
        for query, own in zip(queries, skips, strict=True):
            keys = self._index.search(query.float().numpy(), wanted).keys
            rows = torch.from_numpy(np.sort(keys.astype(np.int64)))
            rows = rows[rows != own] if own is not None else rows
            found.append(ranked(rows, [cosines(self.vectors.rows(rows.tolist()), query)], top))
        return found


def open_index(table: FeatureTable, centered: bool, say: Say) -> ApproximateIndex:
    """Opens the index beside the table. Makes it first if there is none of these features.

    `centered`: takes the table's mean off all vectors. `say`: called with a line about what is made. Raises Refusal if usearch
    is missing, the index is damaged, or the folder of a new index cannot be written to.
    """
    with needed_for("--approximate", "leave it out"):
        from usearch import __version__ as version
        from usearch.index import Index
    path, about = index_paths(table)
    wanted, made = _made_of(table, centered, version), _read(about, table.manifest.shape[-1])
    if made is None or not made.is_of(wanted) or not path.is_file():
        if not is_writable(path.parent):
            raise Refusal(
                f"--approximate makes the index {path}, but its folder cannot be written to: copy the table elsewhere, or "
                "leave --approximate out"
            )
        if path.is_file():
            say(f"{path} was made of other features, or by another version: it is made anew")
        made = _build(Vectors(table, table_mean(table) if centered else None), Index, wanted)
        say(f"{path}: {decimal(path.stat().st_size)}; it finds {made.recall:.1%} of the nearest {SAMPLE_TOP} of a sample")
    index = _opened(Index, path)
    if index is None or len(index) != len(table):
        raise Refusal(f"{path} is damaged: delete it, and it will be made anew")
    return ApproximateIndex(
        Vectors(table, torch.tensor(made.mean, dtype=torch.float64) if centered else None), index, made.recall
    )


def index_paths(table: FeatureTable) -> tuple[Path, Path]:
    """Paths of the index of a table, and of the record of what it was made of."""
    return table.path.with_name(f"{table.path.name}.usearch"), table.path.with_name(f"{table.path.name}.usearch.json")


def _made_of(table: FeatureTable, centered: bool, version: str) -> Made:
    status = table.path.stat()
    return Made(
        table_bytes=status.st_size,
        table_modified=status.st_mtime_ns,
        images=len(table),
        weights=table.manifest.weights,
        centered=centered,
        library=version,
    )


def _read(about: Path, width: int) -> Made | None:
    """The record in the file `about`; None if it is missing or damaged. `width`: length of a mean."""
    try:
        made = typed(Made, read_object(about) or {}, about)
    except Refusal:
        return None
    is_whole = len(made.mean) == (width if made.centered else 0) and all(map(isfinite, made.mean))
    return made if is_whole else None


def _opened(index_class: Any, path: Path) -> Any:
    try:
        return index_class.restore(str(path), view=True, expansion_search=EXPANSION_SEARCH)
    except (RuntimeError, ValueError):  # the library raises these for damaged files
        return None


def _build(vectors: Vectors, index_class: Callable[..., Any], made: Made) -> Made:
    """Makes an index and writes it and its record. An interrupted build leaves older files as they were."""
    path, about = index_paths(vectors.table)
    index = index_class(
        ndim=vectors.width,
        metric="cos",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
    )
    with progress("index", len(vectors)) as advance:
        for first, block, norms in vectors.blocks():
            _add(index, first, block / norms[:, None], advance)
    recall = _recall(ApproximateIndex(vectors, index, 0.0), vectors)
    made = replace(made, recall=recall, mean=() if vectors.mean is None else tuple(vectors.mean.tolist()))
    about.unlink(missing_ok=True)  # so that an old record never describes a new index
    with whole_file(path) as unfinished:
        index.save(str(unfinished))
    with whole_file(about) as unfinished:
        unfinished.write_text(json.dumps(asdict(made), indent=1), encoding="utf-8")
    return made


def _add(index: Any, first: int, directions: Float[Tensor, "b D"], advance: Callable[[int], None]) -> None:
    for part, rows in zip(torch.split(directions, ADDED), torch.split(torch.arange(len(directions)), ADDED), strict=True):
        try:
            index.add((rows + first).numpy(), part.numpy(), threads=torch.get_num_threads())
        except RuntimeError as error:
            if "terminated" in str(error):  # this is how the library reports Ctrl-C
                raise KeyboardInterrupt from None
            raise
        advance(len(part))


def _recall(index: ApproximateIndex, vectors: Vectors) -> float:
    """Share of the nearest images of a sample that the index finds, or replaces by others as near; 1 for an empty sample."""
    rows = evenly_spread(len(vectors), SAMPLE)
    queries = vectors.rows(rows)
    exact = nearest(vectors, queries, SAMPLE_TOP, rows)
    found = index.nearest(queries, SAMPLE_TOP, rows)
    pairs = [(a.cosines, b.cosines) for a, b in zip(exact, found, strict=True) if len(a.rows) > 0]
    right = sum(int((b >= a[-1] - 1e-9).sum()) for a, b in pairs)
    return right / sum(len(a) for a, _ in pairs) if pairs else 1.0
