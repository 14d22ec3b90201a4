"""Memory of the probes on a feature matrix that is mapped from disk: `python -m benchmarks.feature_memory`.

The features are a scaled-down ImageNet: 200,000 x 1024 in bf16 (410 MB; a copy in float32 would be 819 MB). The memory that the
process itself holds is sampled every 10 ms (Linux: RssAnon). Pages of the mapped file are not included, because the system
takes them back when it needs them.
"""

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.records import keep, origin
from openjepa.evaluation.feature_store import RowWriter
from openjepa.evaluation.probes import closed_sweep as limits
from openjepa.evaluation.probes.linear import prepare
from openjepa.measures.features import knn_predictions


@dataclass(frozen=True)
class Options:
    """The matrix."""

    images: int = 200_000
    """Rows."""
    width: int = 1024
    """Columns."""
    classes: int = 10
    """Of the linear heads."""
    iterations: int = 3
    """Of the solver; the memory does not depend on them."""
    output: Path | None = None
    """JSON file."""


def main() -> None:
    """Writes the matrix to a temporary file, probes it, prints."""
    options = tyro.cli(Options)
    with tempfile.TemporaryDirectory() as folder:
        matrix = stored(options, Path(folder))
        labels = torch.arange(options.images) % options.classes
        limits.LARGE_BYTES = 2**28  # as if it were larger than the limit, which it is not
        result = {
            **origin(),
            "matrix": [options.images, options.width, str(matrix.dtype)],
            "mb_of_the_matrix": round(matrix.nbytes / 1e6),
            "mb_of_a_float32_copy": round(matrix.numel() * 4 / 1e6),
            "linear, in place": measured(lambda: probe(matrix, labels, options, None)),
            "k-NN, 2,000 queries": measured(lambda: knn_predictions(matrix, labels, matrix[:2000], (10, 100))),
            "linear, copied": measured(lambda: probe(matrix, labels, options, False)),
        }
    keep(result, options.output)


def stored(options: Options, folder: Path) -> torch.Tensor:
    """The matrix, written in parts and mapped."""
    shape = (options.images, options.width)
    with RowWriter(folder / "features", shape, torch.bfloat16) as writer:
        generator = torch.Generator().manual_seed(0)
        for first in range(0, options.images, 10_000):
            num = min(10_000, options.images - first)
            labels = (torch.arange(num) + first) % options.classes
            rows = torch.randn(num, options.width, generator=generator)
            rows[torch.arange(num), labels] += 2
            writer.append(rows)
        return writer.finish()


def probe(matrix: torch.Tensor, labels: torch.Tensor, options: Options, in_place: bool | None) -> None:
    """The eight heads of the usual sweep, on 90 % of the rows, asked about the others."""
    prepared = prepare(matrix, labels, "batch_norm", in_place=in_place)
    split = options.images * 9 // 10
    heads = prepared.solve(torch.arange(split), [10.0**power for power in range(-6, 2)], options.iterations)
    heads.predict(prepared.rotated.rows.select(torch.arange(split, options.images)))


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """Seconds, and by how many MB the process's own memory grew at most."""
    before, peak, done = own_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    return {"seconds": round(seconds, 1), "mb_of_growth": round((peak - before) / 1e6)}


def own_memory() -> int:
    """Bytes of the process that belong to no file."""
    (line,) = [text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("RssAnon")]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
