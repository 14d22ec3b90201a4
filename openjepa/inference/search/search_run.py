"""Finds the nearest images of queries: from settings to answers and their contact sheet."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from openjepa.engine.device import resolve_device, set_threads
from openjepa.inference.embedding.table import FeatureTable, Row, open_table
from openjepa.inference.search.approximate import open_index
from openjepa.inference.search.exact import Neighbors, nearest, nearest_windows
from openjepa.inference.search.gallery import Gallery, label_name, open_gallery
from openjepa.inference.search.queries import (
    Box,
    Query,
    box_of_window,
    image_query,
    matching_encoder,
    row_number,
    row_query,
    stacked,
)
from openjepa.inference.search.sheets import Line, Picture, draw, query_picture, save, shortened
from openjepa.inference.search.vectors import Vectors, place_means, table_mean
from openjepa.refusals import Refusal
from openjepa.settings.inference import SearchSettings
from openjepa.system.console import Say, progress, silent

EMBED_AGAIN = "openjepa embed --again embeds all anew"
LARGE = 100_000_000
"""Size of a table, in bytes, from which a search shows its progress."""


@dataclass(frozen=True)
class Opened:
    """A table, and its images if they are needed and still exist."""

    table: FeatureTable
    centered: bool
    gallery: Gallery | None


@dataclass(frozen=True)
class Answer:
    """The neighbors of one query."""

    query: Query
    neighbors: Neighbors
    rows: tuple[Row, ...]
    """The images of the neighbors."""


@dataclass(frozen=True)
class Answers:
    """The answers to all queries."""

    opened: Opened
    answers: tuple[Answer, ...]
    how: str
    """Short description: number of images searched, exact or by an index, and the time it took."""


def open_for_search(settings: SearchSettings, say: Say = silent) -> Opened:
    """Opens the table of the settings. If its images are not found, says that no pictures can be drawn.

    Raises Refusal if the table cannot be opened or holds no images.
    """
    table = open_table(settings.table)
    if len(table) == 0:
        raise Refusal(f"{table.path} holds no images")
    set_threads(settings.threads)
    gallery = None
    if settings.picture or settings.region is not None or settings.duplicates:
        try:
            gallery = open_gallery(table, settings.data_path)
        except (ValueError, OSError) as error:
            unknown = ", and which near-duplicate is the largest is not known" if settings.duplicates else ""
            say(
                f"note: no pictures{unknown}: the images of {table.path} cannot be found any more ({error}). Say where they "
                "lie: --data-path PATH"
            )
    if gallery is not None and gallery.change == "number":
        say(f"images were added or removed since {table.path} was made, which knows those of then ({EMBED_AGAIN})")
    if gallery is not None and gallery.change == "files":
        say(
            f"the images' files have other sizes or times than when {table.path} was made: pictures, sizes and exact copies "
            f"are those of now, features those of then ({EMBED_AGAIN})"
        )
    if settings.region is not None and table.manifest.kind == "pooled" and table.manifest.pooling == "class_token":
        say(
            f"{table.path} holds class tokens, with which the patches of a region have little in common: embed the images with "
            "--pooling average or --features patches for it"
        )
    return Opened(table, settings.centers(len(table), table.manifest.kind), gallery)


def find_neighbors(settings: SearchSettings, say: Say = silent) -> Answers:
    """Answers every query of the settings. Raises Refusal if a query or the table cannot be used."""
    opened = open_for_search(settings, say)
    queries = _queries(settings, opened)
    skip = [None if settings.keep_self else query.row for query in queries]
    if settings.approximate:
        found, how, seconds = _by_index(settings, opened, queries, skip, say)
    else:
        start = time.perf_counter()
        found, how = _exactly(settings, opened, queries, skip), "exact"
        seconds = time.perf_counter() - start
    for query, item in zip(queries, found, strict=True):
        if len(item.rows) > 0 and not item.cosines.any():
            say(
                f"every cosine to {query.name} is 0, so the order means nothing: its features are zero, or the mean of the "
                "table, as all are where an encoder has collapsed"
            )
    answers = tuple(
        Answer(query, item, tuple(opened.table.rows[int(row)] for row in item.rows))
        for query, item in zip(queries, found, strict=True)
    )
    centered = "centered" if opened.centered else "not centered"
    return Answers(opened, answers, f"{len(opened.table):,} images, {how}, {centered}, {seconds:.2f} s")


def _queries(settings: SearchSettings, opened: Opened) -> list[Query]:
    rows = [row_number(opened.table, text) for text in settings.row]
    needs_encoder = settings.image or settings.region is not None
    if not needs_encoder:
        return [row_query(opened.table, row) for row in rows]
    for path in settings.image:
        if not path.is_file():
            raise Refusal(f"--image {path} is not there" if not path.exists() else f"--image {path} is no file")
    encoder = matching_encoder(opened.table, settings.subject).to(resolve_device(settings.device, "--device"))
    manifest = opened.table.manifest
    queries = [image_query(encoder, manifest, path, str(path), settings.region) for path in settings.image]
    if settings.region is None:
        return queries + [row_query(opened.table, row) for row in rows]
    for row in rows:
        if opened.gallery is None:
            raise Refusal(f"--region of --row {row} needs its image, which cannot be found any more: see the note above")
        pixels, name = opened.gallery.pixels(opened.table.rows[row]), opened.table.rows[row].path
        queries.append(replace(image_query(encoder, manifest, pixels, name, settings.region), row=row))
    return queries


def _exactly(settings: SearchSettings, opened: Opened, queries: Sequence[Query], skip: Sequence[int | None]) -> list[Neighbors]:
    table = opened.table
    large = table.path.stat().st_size >= LARGE
    query = queries[0]
    with progress("search", len(table), style="auto" if large else "none") as advance:
        if query.places is not None and query.window is not None:  # of a single query
            means = place_means(table) if opened.centered else None
            vector = query.vector if means is None else query.vector - means[query.places].mean(dim=(0, 1))
            return [nearest_windows(table, vector, query.window, settings.top, means, skip[0], advance)]
        vectors = Vectors(table, table_mean(table) if opened.centered else None)
        return nearest(vectors, stacked(queries, vectors), settings.top, skip, advance)


def _by_index(
    settings: SearchSettings, opened: Opened, queries: Sequence[Query], skip: Sequence[int | None], say: Say
) -> tuple[list[Neighbors], str, float]:
    """Neighbors of each query, how they were found, and the seconds of the search without making the index."""
    if any(query.window is not None for query in queries):
        raise Refusal("--approximate finds whole images, not regions in a table of patches: leave it out")
    index = open_index(opened.table, opened.centered, say)
    start = time.perf_counter()
    found = index.nearest(stacked(queries, index.vectors), settings.top, skip)
    return found, f"by an index that finds {index.recall:.1%} of the nearest ten", time.perf_counter() - start


def hit_box(answers: Answers, answer: Answer, number: int, size: tuple[int, int]) -> Box | None:
    """Box of the best window in neighbor `number`; None if whole images were compared.

    `size`: height and width of the neighbor's image in pixels.
    """
    places, window = answer.neighbors.places, answer.query.window
    if places is None or window is None:
        return None
    place = (int(places[number][0]), int(places[number][1]))
    return box_of_window(answers.opened.table.manifest, size, place, window)


def draw_neighbors(answers: Answers, output: Path) -> Path:
    """Draws the contact sheet of all answers. Raises Refusal if matplotlib is missing."""
    gallery = answers.opened.gallery
    assert gallery is not None  # without a gallery there are no images to draw
    lines = []
    for answer in answers.answers:
        query = answer.query
        pixels = query.pixels
        if pixels is None and query.row is not None:
            pixels = gallery.thumbnail(answers.opened.table.rows[query.row])
        lead = query_picture(query.name.split(": ", 1)[-1], pixels, query.region)
        pictures = tuple(_neighbor(answers, answer, number, gallery) for number in range(len(answer.rows)))
        lines.append(Line("", pictures, lead))
    save(draw(lines), output)
    return output


def _neighbor(answers: Answers, answer: Answer, number: int, gallery: Gallery) -> Picture:
    row = answer.rows[number]
    pixels = gallery.thumbnail(row)
    box = None if pixels is None else hit_box(answers, answer, number, (pixels.shape[0], pixels.shape[1]))
    captions = [f"{number + 1} · {answer.neighbors.cosines[number]:.3f}", shortened(row.path)]
    if label := label_name(answers.opened.table.manifest, row):
        captions.append(shortened(label))
    return Picture(pixels, tuple(captions), box)
