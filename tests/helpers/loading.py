"""What the tests of the loader share: sources of generated images, and batches in a comparable form."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from openjepa.data.folders.folder import open_folder
from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan
from openjepa.data.source import ListSource, ShardRecord, ShardSource
from openjepa.settings.sources import FolderSettings, HuggingFaceSettings
from openjepa.types import Batch, BlockMasks, InputSpec, LoaderPosition, ViewSpec
from tests.helpers.images import shape_image, write_folder

CPU = torch.device("cpu")
SEED = 5
VIEW = ViewSpec((16, 16), horizontal_flip=True)
INPUTS = InputSpec({"image": VIEW}, ("image",))
START = LoaderPosition()


@dataclass(frozen=True)
class RecordingSampler:
    """Masks that say which seeds they were drawn with."""

    grid: tuple[int, int] = (4, 4)

    def __call__(self, sample_seeds: NDArray[np.int64], group_seed: int, step: int) -> BlockMasks:
        seeds = torch.from_numpy(sample_seeds)
        group = torch.full((len(seeds), 1, 1), group_seed)
        return BlockMasks(seeds[:, None], group, self.grid, redrawn=step)


class Shards(ShardSource):
    """Folders' images as shards of uneven length."""

    def __init__(self, source: ListSource, lengths: tuple[int, ...]) -> None:
        self._source = source
        self._ends = np.cumsum(lengths).tolist()
        self._lengths = lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def read_shard(self, shard: int) -> Iterator[ShardRecord]:
        for index in range(self._ends[shard] - self._lengths[shard], self._ends[shard]):
            yield ShardRecord(self._source.name(index), self._source.read(index), index)


def uneven_images(folder: Path) -> ListSource:
    """45 images of several sizes."""
    write_folder(folder, 45, 20)
    for number in range(0, 45, 3):
        place = folder / ("disk" if number % 2 else "square") / f"{number:04d}.png"
        shape_image(number, 32).crop((0, 0, 32, 19 + number % 5)).save(place)
    return opened(folder)


def spoiled_images(folder: Path) -> tuple[ListSource, dict[str, str]]:
    """40 images of which four cannot be used, and why."""
    write_folder(folder, 40, 20)
    whole = (folder / "disk" / "0001.png").read_bytes()
    (folder / "disk" / "0005.png").write_bytes(b"")
    (folder / "disk" / "0007.png").write_bytes(whole[: len(whole) // 2])
    (folder / "square" / "0008.png").write_bytes(b"this is a text")
    shape_image(0, 3).save(folder / "square" / "0010.png")
    reasons = {"disk/0005.png": "empty file", "disk/0007.png": "damaged PNG", "square/0008.png": "not an image"}
    return opened(folder), {**reasons, "square/0010.png": "3 x 3 pixels, smaller than a patch of 4"}


def opened(folder: Path) -> ListSource:
    source = open_folder(FolderSettings(path=str(folder), test_fraction=0), 0).train
    assert isinstance(source, ListSource)
    return source


def load(
    source: ListSource | ShardSource,
    num_steps: int,
    start_step: int = 0,
    position: LoaderPosition = START,
    *,
    plan: BatchPlan = BatchPlan(8, 8),  # noqa: B008 (frozen)
    workers: int = 0,
    cache: str = "none",
    inputs: InputSpec = INPUTS,
    seed: int = SEED,
    max_skipped: float = 0.5,
) -> list[Batch]:
    """The batches of a fresh loader."""
    settings = HuggingFaceSettings(image_size=16, cache=cache, window=7, max_skipped=max_skipped)  # type: ignore[arg-type]
    loader = TrainingLoader(source, settings, inputs, RecordingSampler(), plan, seed, workers, CPU)
    try:
        return list(loader.iterate(start_step, position, num_steps))
    finally:
        loader.close()


def rows(batches: list[Batch]) -> list[tuple[object, ...]]:
    """Everything about each sample of the batches, comparable."""
    found: list[tuple[object, ...]] = []
    for batch in batches:
        masks = batch.masks["image"]
        assert isinstance(masks, BlockMasks)
        for row, sample in enumerate(batch.sample_ids.tolist()):
            pixels = {name: view[:, row].numpy().tobytes() for name, view in batch.views.items()}
            label = None if batch.labels is None else int(batch.labels[row])
            found.append((sample, label, masks.context[row].item(), masks.targets[row].item(), masks.redrawn, pixels))
    return found


def same(first: list[Batch], second: list[Batch]) -> bool:
    return (
        rows(first) == rows(second)
        and [batch.next_position for batch in first] == [batch.next_position for batch in second]
        and [batch.skipped for batch in first] == [batch.skipped for batch in second]
    )
