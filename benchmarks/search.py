"""Searching a million images on a CPU: `python -m benchmarks.search`.

A file of generated features (a common mean and noise, fp16; 1.5 GB at the default size) is written to a temporary folder and
removed at the end. `warm` means that the file's pages are in memory. `cold` means that they were dropped (posix_fadvise) before
each search, so that the disk is read. The alternatives compute the same products in other ways, without selecting the best
matches. The index is built from a smaller table of clustered images, which takes minutes.
"""

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.records import keep, load, origin
from openjepa.inference.embedding.table import COLUMNS, FeatureTable, Manifest, Tally, open_table
from openjepa.inference.search.approximate import index_paths, open_index
from openjepa.inference.search.exact import nearest
from openjepa.inference.search.pairs import compare_all
from openjepa.inference.search.vectors import Vectors, raw_blocks, rows_per_block, table_mean, tensor_of

QUERIES = (1, 4, 16, 64)


@dataclass(frozen=True)
class Options:
    """What is searched."""

    images: int = 1_000_000
    """Rows of the table."""
    width: int = 768
    """Numbers of each, as many as a ViT-B has."""
    index_images: int = 50_000
    """Rows of the table that the index is made of, and of which all pairs are compared."""
    repeats: int = 7
    """Rounds; of cold searches 3."""
    threads: int | None = None
    """None: all cores."""
    folder: Path | None = None
    """Where the file is written. None: the system's temporary folder."""
    output: Path | None = None
    """JSON file."""


def main() -> None:
    """Runs and prints."""
    options = tyro.cli(Options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        **origin(),
        "load": load(),
        "table": [options.images, options.width],
    }
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        large = write_table(folder / "large.npy", options.images, options.width, clusters=0)
        result |= {"cold": cold(large), "exact": exact(open_table(large), options.repeats)}
        result |= {"alternatives": alternatives(open_table(large), options.repeats)}
        small = open_table(write_table(folder / "small.npy", options.index_images, options.width, clusters=500))
        result |= {"pairs": pairs(small), "index": index(small, options.repeats), "load_at_the_end": load()}
    finally:
        shutil.rmtree(folder)
    keep(result, options.output)


def write_table(path: Path, images: int, width: int, clusters: int) -> Path:
    """A table of openjepa embed's format."""
    manifest = Manifest(
        subject="generated",
        weights="none",
        kind="pooled",
        shape=(width,),
        dtype="float16",
        pooling="average",
        view="crop",
        size=(224, 224),
        precision="fp32",
    )
    tally = Tally(manifest, images)
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(width, generator=generator)
    centers = torch.randn(max(1, clusters), width, generator=generator) * (clusters > 0)
    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(images, width))
    for first in range(0, images, 10_000):
        number = min(10_000, images - first)
        own = centers[torch.randint(len(centers), (number,), generator=generator)]
        stored[first : first + number] = (mean + own + torch.randn(number, width, generator=generator)).half().numpy()
        tally.add(stored[first : first + number].tobytes())
    stored.flush()
    del stored
    rows = (f"{number:07d}.jpg,train,{number}," for number in range(images))
    path.with_suffix(".csv").write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    path.with_suffix(".json").write_text(replace(manifest, mean=tally.mean()).to_json())
    return path


def timed(call: Callable[[], object], repeats: int, before: Callable[[], object] = lambda: None) -> dict[str, float]:
    """Seconds of a call: median, and the shortest, which other programs disturbed least."""
    times = []
    for _ in range(repeats):
        before()
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return {"median": statistics.median(times), "shortest": min(times)}


def cold(path: Path) -> dict[str, Any]:
    """Seconds of a search of the ten nearest with nothing of the file in memory, and of opening the table with its names."""
    start = time.perf_counter()
    opened = open_table(path)
    seconds: dict[str, Any] = {"open_seconds": time.perf_counter() - start}
    manifest, rows, query = opened.manifest, opened.rows, torch.randn(1, opened.manifest.shape[0])
    del opened  # mapped pages are not dropped

    def drop() -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def search() -> None:
        nearest(Vectors(FeatureTable(path, manifest, rows, np.load(path, mmap_mode="r"))), query, 10)

    found = timed(search, 3, drop)
    return {**seconds, "search_seconds": found, "gigabytes_per_second": path.stat().st_size / found["median"] / 1e9}


def exact(table: FeatureTable, repeats: int) -> dict[str, Any]:
    """Seconds of a search of the ten nearest, of one query and several at once, and centered."""
    queries = torch.randn(max(QUERIES), table.manifest.shape[0])
    seconds = {
        f"seconds_{number}_queries": timed(lambda number=number: nearest(Vectors(table), queries[:number], 10), repeats)
        for number in QUERIES
    }
    bare = FeatureTable(table.path, replace(table.manifest, mean={}), table.rows, np.load(table.path, mmap_mode="r"))
    for name, of in (("centered", table), ("centered_without_the_kept_mean", bare)):
        seconds[f"seconds_1_query_{name}"] = timed(lambda of=of: nearest(Vectors(of, table_mean(of)), queries[:1], 10), repeats)
    return seconds


def alternatives(table: FeatureTable, repeats: int) -> dict[str, Any]:
    """Seconds of the products of one query with all images in other ways; the threads share every operation."""
    query, rows = torch.randn(table.manifest.shape[0]), rows_per_block(table)

    def products(kind: torch.dtype, number: int = rows) -> None:
        other, buffer = query.to(kind)[:, None], torch.empty(number, len(query), dtype=kind)
        found = torch.empty(len(table), 1, dtype=kind)
        for first, block in table.blocks(number):
            values = tensor_of(block)
            if kind != values.dtype:
                values = buffer[: len(block)].copy_(values)
            torch.mm(values, other, out=found[first : first + len(block)])

    def in_numpy() -> None:
        for _, block in table.blocks(rows):
            _ = block.astype(np.float32) @ query.numpy()

    def with_norms() -> None:
        other, found = query[:, None], torch.empty(len(table), 1)
        for first, block in raw_blocks(table):
            part = found[first : first + len(block)]
            torch.mm(block, other, out=part).div_(torch.linalg.vector_norm(block, dim=1, keepdim=True))

    calls: dict[str, Callable[[], object]] = {
        "fp32_with_norms": with_norms,
        "fp32_without_norms": lambda: products(torch.float32),
        "fp32_without_norms_blocks_16_times_as_large": lambda: products(torch.float32, 16 * rows),
        "fp16_without_norms": lambda: products(torch.float16),
        "bf16_without_norms": lambda: products(torch.bfloat16),
        "numpy_without_norms": in_numpy,
    }
    return {name: timed(call, min(3, repeats)) for name, call in calls.items()}


def pairs(table: FeatureTable) -> dict[str, Any]:
    """Seconds of comparing all pairs: for near-duplicates, and with the ten nearest of each image."""
    duplicates = timed(lambda: compare_all(Vectors(table), threshold=0.98), 1)
    both = timed(lambda: compare_all(Vectors(table), threshold=0.98, neighbors=10), 1)
    return {"images": len(table), "seconds_duplicates": duplicates, "seconds_duplicates_and_outliers": both}


def index(table: FeatureTable, repeats: int) -> dict[str, Any]:
    """Seconds of building the index and of a search with it, and its recall."""
    said: list[str] = []
    build = timed(lambda: open_index(table, True, said.append), 1)
    opened = open_index(table, True, said.append)
    query = Vectors(table, opened.vectors.mean).rows([7])
    return {
        "images": len(table),
        "build_seconds": build,
        "megabytes": index_paths(table)[0].stat().st_size / 1e6,
        "recall_of_ten": opened.recall,
        "search_seconds": timed(lambda: opened.nearest(query, 10), 10 * repeats),
        "exact_seconds": timed(lambda: nearest(opened.vectors, query, 10), repeats),
    }


if __name__ == "__main__":
    main()
