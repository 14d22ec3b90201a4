"""An index beside the table (usearch: a hierarchical navigable small world graph), for tables that are searched often.

`X.npy.usearch` holds the directions of all images in fp16, `X.npy.usearch.json` what it was made of and the share of the
nearest ten images that it found on a sample. Answers are compared again in fp64: a cosine is never approximate, only the choice
of images is.
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

from openjepa.inference.embedding.table import FeatureTable, evenly_spread
from openjepa.inference.search.exact import Neighbors, nearest, ranked
from openjepa.inference.search.vectors import Vectors, cosines, table_mean
from openjepa.refusals import Refusal, needed_for
from openjepa.system.console import Say, progress
from openjepa.system.json_files import read_object, typed
from openjepa.system.shared_files import is_writable, whole_file

CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 32, 128, 256
"""Edges per image, and candidates looked at when an image is added and when one is looked for."""
SAMPLE, SAMPLE_TOP = 100, 10
"""Images of the table, evenly spread, on which the index is compared with the exact search, and neighbors of each."""
ADDED = 1024
"""Images added at a time: between them, Ctrl-C is heard and the progress is shown."""


@dataclass(frozen=True)
class Made:
    """What an index was made of. If any of it differs, the index is made anew."""

    table_bytes: int
    table_modified: int
    """Modification time of the table's file, in nanoseconds."""
    images: int
    weights: str
    centered: bool
    library: str
    """Version of usearch."""
    recall: float = 0.0
    """Share of the nearest ten of the sample that were found."""
    mean: tuple[float, ...] = ()
    """Mean of the table if it is centered: another pass over the table would take longer than the search."""

    def is_of(self, other: "Made") -> bool:
        """Whether both were made of the same."""
        return replace(self, recall=0.0, mean=()) == replace(other, recall=0.0, mean=())


class ApproximateIndex:
    """The opened index of a table."""

    def __init__(self, vectors: Vectors, index: Any, recall: float) -> None:
        """`index`: usearch's, mapped."""
        self.vectors, self._index = vectors, index
        self.recall = recall

    def nearest(self, queries: Float[Tensor, "Q D"], top: int, skip: Sequence[int | None] | None = None) -> list[Neighbors]:
        """Most of the `top` nearest images of each query, their cosines in fp64. As `search.exact.nearest`."""
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
    """The index beside the table. It is made first if there is none of these features.

    Raises Refusal without usearch, and if the index is damaged.
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
    """The index of a table, and what it says of itself."""
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
    """What the file `about` says of an index; None if it is missing or damaged."""
    try:
        made = typed(Made, read_object(about) or {}, about)
    except Refusal:
        return None
    is_whole = len(made.mean) == (width if made.centered else 0) and all(map(isfinite, made.mean))
    return made if is_whole else None


def _opened(index_class: Any, path: Path) -> Any:
    try:
        return index_class.restore(str(path), view=True, expansion_search=EXPANSION_SEARCH)
    except (RuntimeError, ValueError):  # what the library raises at damaged files
        return None


def _build(vectors: Vectors, index_class: Callable[..., Any], made: Made) -> Made:
    """Writes both files. An interrupted build leaves what was there."""
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
    about.unlink(missing_ok=True)  # so that a new index is never described by an old file
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
            if "terminated" in str(error):  # what the library makes of Ctrl-C
                raise KeyboardInterrupt from None
            raise
        advance(len(part))


def _recall(index: ApproximateIndex, vectors: Vectors) -> float:
    """Share of the exact nearest images of a sample for which the index finds these or others as near; 1 without a sample."""
    rows = evenly_spread(len(vectors), SAMPLE)
    queries = vectors.rows(rows)
    exact = nearest(vectors, queries, SAMPLE_TOP, rows)
    found = index.nearest(queries, SAMPLE_TOP, rows)
    pairs = [(a.cosines, b.cosines) for a, b in zip(exact, found, strict=True) if len(a.rows) > 0]
    right = sum(int((b >= a[-1] - 1e-9).sum()) for a, b in pairs)
    return right / sum(len(a) for a, _ in pairs) if pairs else 1.0
