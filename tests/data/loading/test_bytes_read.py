"""How much of a stream each process reads: the images of its own slots, not those of the others."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan
from openjepa.data.source import ShardSource, open_splits
from openjepa.settings.sources import HuggingFaceSettings
from tests.helpers.loading import CPU, INPUTS, SEED, START, RecordingSampler
from tests.helpers.tables import offline as offline
from tests.helpers.tables import pa, pq, write_members

pytestmark = [
    pytest.mark.usefixtures("offline"),
    pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts the bytes that a process reads"),
]
IMAGES, PROCESSES, WINDOW = 256, 4, 64


def bytes_read() -> int:
    """Bytes that this process has read so far, from the disk or from its cache."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def noise(seed: int) -> bytes:
    """An image file of about 28 kB, which cannot be compressed."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(
        buffer, "PNG", compress_level=0
    )
    return buffer.getvalue()


def write_shards(folder: Path, kind: str) -> int:
    """256 images of noise in four shards. Returns their bytes."""
    images = [noise(seed) for seed in range(IMAGES)]
    for shard in range(4):
        own = range(64 * shard, 64 * shard + 64)
        if kind == "tar":
            write_members(folder / f"{shard}.tar", {f"{number:03d}.png": images[number] for number in own})
        else:
            table = pa.table({"image": pa.array([images[number] for number in own])})
            pq.write_table(table, folder / f"{shard}.parquet", row_group_size=8, compression="none", use_dictionary=False)
    return sum(map(len, images))


def read_by(source: ShardSource, plan: BatchPlan, window: int, num_steps: int, first: int = 0) -> int:
    settings = HuggingFaceSettings(image_size=16, window=window)
    loader = TrainingLoader(source, settings, INPUTS, RecordingSampler(), plan, SEED, 0, CPU)
    before = bytes_read()
    batches = loader.iterate(first, replace(START, offset=first * plan.batch_size), num_steps)
    assert len(list(batches)) == num_steps * plan.num_microbatches
    return bytes_read() - before


def test_each_of_four_processes_reads_a_quarter_of_the_tars(tmp_path: Path) -> None:
    total = write_shards(tmp_path, "tar")
    source = open_splits(HuggingFaceSettings(path=str(tmp_path), streaming=True), 0).train
    assert isinstance(source, ShardSource)
    shares = [read_by(source, BatchPlan(32, 8, rank, PROCESSES), WINDOW, 8) / total for rank in range(PROCESSES)]
    assert all(0.24 < share < 0.3 for share in shares), shares
    assert read_by(source, BatchPlan(32, 8, 0, PROCESSES), WINDOW, 1, first=7) / total < 1 / 32 + 0.05, "resumed at the end"


def test_row_groups_of_parquet_that_a_process_does_not_need_are_not_read(tmp_path: Path) -> None:
    """In the order of the file, eight processes need one of eight groups each, and two for their spares."""
    total = write_shards(tmp_path, "parquet")
    source = open_splits(HuggingFaceSettings(path=str(tmp_path), streaming=True), 0).train
    assert isinstance(source, ShardSource)
    plans = [BatchPlan(64, 8, rank, PROCESSES * 2) for rank in range(2)]
    shares = [read_by(source, plan, 1, 4) / total for plan in plans]
    assert all(share < 1 / 8 + 2 / 8 + 0.06 for share in shares), shares
    assert np.isclose(read_by(source, BatchPlan(64, 64), 1, 4) / total, 1, atol=0.1)
