"""The memory of a stream stays as it is, however long it runs."""

import gc
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan
from openjepa.data.source import ShardSource
from openjepa.data.tables.shard_files import WRITERS, PackedImage
from openjepa.settings.sources import HuggingFaceSettings
from openjepa.system.machine import available_cores
from tests.helpers.loading import CPU, INPUTS, SEED, START, RecordingSampler
from tests.helpers.tables import offline as offline
from tests.helpers.tables import opened, png

pytestmark = [
    pytest.mark.usefixtures("offline"),
    pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux: memory is read from /proc"),
]
MEGABYTE = 10**6
BATCH = 64
NUM_IMAGES, NUM_SHARDS = 2048, 4
MINUTES = float(os.environ.get("STREAM_MINUTES", "4"))
PAUSE = float(os.environ.get("STREAM_PAUSE", "0"))
"""For the slow test: minutes of each kind, and seconds of pause after each epoch (the machine may be needed by others)."""


def write_shards(folder: Path, kind: str) -> Path:
    """2048 tiny images in four shards."""
    folder.mkdir()
    images = [png(seed) for seed in range(32)]
    for shard in range(NUM_SHARDS):
        rows = (PackedImage(f"{shard}-{row}.png", images[row % 32], row % 2) for row in range(NUM_IMAGES // NUM_SHARDS))
        WRITERS[kind](folder / f"train-{shard}.{kind}", rows, ("square", "disk"))
    return folder


def used_megabytes() -> float:
    """Memory of this process and its workers."""
    gc.collect()
    children = [child for file in Path("/proc/self/task").glob("*/children") for child in file.read_text().split()]
    pages = [int(Path(f"/proc/{process}/statm").read_text().split()[1]) for process in ("self", *children)]
    return sum(pages) * 4096 / MEGABYTE


def memory_by_epoch(source: ShardSource, num_epochs: int, workers: int) -> Iterator[float]:
    """Megabytes in use after each epoch."""
    settings = HuggingFaceSettings(image_size=16, window=1024)
    loader = TrainingLoader(source, settings, INPUTS, RecordingSampler(), BatchPlan(BATCH, BATCH), SEED, workers, CPU)
    per_epoch = NUM_IMAGES // BATCH
    try:
        for number, batch in enumerate(loader.iterate(0, START, num_epochs * per_epoch)):
            assert len(batch.sample_ids) == BATCH
            if (number + 1) % per_epoch == 0:
                yield used_megabytes()
    finally:
        loader.close()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_memory_stays_over_epochs(tmp_path: Path, kind: str) -> None:
    source = opened(write_shards(tmp_path / "shards", kind), streaming=True).train
    assert isinstance(source, ShardSource)
    used = list(memory_by_epoch(source, 4, workers=0))
    assert used[-1] - used[1] < 50, f"{used} MB"


@pytest.mark.slow
@pytest.mark.timeout(60 * (MINUTES + 10))
@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_memory_stays_for_minutes(tmp_path: Path, kind: str) -> None:
    """Prints what docs/results/scale/streaming-memory.txt holds (`pytest -s -m slow` on this file)."""
    source = opened(write_shards(tmp_path / "shards", kind), streaming=True).train
    assert isinstance(source, ShardSource)
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    processor = found[1] if found else platform.processor()
    print(f"\n{kind}: {NUM_IMAGES:,} images in {NUM_SHARDS} shards, one worker; {processor}, {available_cores()} cores")
    started, used = time.monotonic(), list[float]()
    for number, megabytes in enumerate(memory_by_epoch(source, 10**6, workers=1), start=1):
        seconds = time.monotonic() - started
        used.append(megabytes)
        if number <= 5 or number % 20 == 0:
            print(f"{seconds:6.0f} s  epoch {number:4d}  {number * NUM_IMAGES:9,} images  {megabytes:7.1f} MB", flush=True)
        if seconds > 60 * MINUTES:
            break
        time.sleep(PAUSE)
    more, most = used[-1] - used[2], max(used) - used[2]
    print(
        f"{number * NUM_IMAGES:,} images in {seconds:.0f} s: {more:.1f} MB more than after epoch 3, at most {most:.1f} MB more"
    )
    assert most < 50
