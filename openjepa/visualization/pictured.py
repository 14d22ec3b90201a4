"""Which images the pictures show."""

import warnings
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from openjepa.data import open_splits
from openjepa.data.source import ListSource, ShardRecord, ShardSource
from openjepa.data.splits import EvalBatch, evaluation_batches
from openjepa.refusals import Refusal
from openjepa.seeds import derive_samples
from openjepa.settings.run import RunConfig
from openjepa.types import Skipped


@dataclass(frozen=True)
class Pictured:
    """Images in the view of their evaluation: a scene whole, so that all the objects its label counts are seen."""

    images: UInt8[Tensor, "n 3 h w"]
    labels: Int[np.ndarray, " n"] | None
    class_names: tuple[str, ...] | None
    indices: Int[np.ndarray, " n"]
    """Their numbers in their split."""
    split: str
    """training or test"""


class _Records(ListSource):
    """The first records of a stream."""

    def __init__(self, records: list[ShardRecord], class_names: tuple[str, ...] | None) -> None:
        self._records = records
        self.class_names = class_names
        labels = [record.label for record in records if record.label is not None]
        self.labels = np.array(labels, dtype=np.int64) if records and len(labels) == len(records) else None

    def __len__(self) -> int:
        return len(self._records)

    def read(self, index: int) -> bytes:
        return self._records[index].read()

    def name(self, index: int) -> str:
        return self._records[index].name


def choose_images(
    config: RunConfig, size: tuple[int, int], num_shown: int, num_gallery: int, seed: int
) -> tuple[Pictured, Pictured]:
    """`num_shown` images of the test split (training split where there is none), and a gallery from the training split."""
    splits = open_splits(config.data, config.run.seed)
    for what in splits.not_used:
        warnings.warn(what, UserWarning, stacklevel=2)
    train = splits.train if isinstance(splits.train, ListSource) else _head(splits.train, num_gallery)
    fit = "squash" if splits.extra_labels else "crop"  # as the tasks of `openjepa evaluate` see scenes and other images
    gallery = _read(train, size, num_gallery, seed, "training", fit)
    source, split = (splits.test, "test") if splits.test is not None and len(splits.test) > 0 else (train, "training")
    several = _read(source, size, 8 * num_shown, seed + 1, split, fit)
    if len(several.images) == 0:
        raise Refusal(f"none of the {split} images that were drawn can be read: check data.path")
    return _varied(several, num_shown, seed), gallery


def _head(source: ShardSource, num_records: int) -> _Records:
    records = (record for shard in range(len(source)) for record in source.read_shard(shard))
    return _Records(list(islice(records, num_records)), source.class_names)


def _read(source: ListSource, size: tuple[int, int], number: int, seed: int, split: str, fit: str) -> Pictured:
    unreadable: list[Skipped] = []
    batches: list[EvalBatch] = list(
        evaluation_batches(source, size, 256, 0, fit=fit, max_images=number, seed=seed, unreadable=unreadable)
    )
    images = torch.cat([batch.images for batch in batches]) if batches else torch.empty((0, 3, *size), dtype=torch.uint8)
    labels = [batch.labels for batch in batches if batch.labels is not None]
    return Pictured(
        images=images,
        labels=torch.cat(labels).numpy() if batches and len(labels) == len(batches) else None,
        class_names=source.class_names,
        indices=torch.cat([batch.indices for batch in batches]).numpy() if batches else np.empty(0, np.int64),
        split=split,
    )


def _varied(several: Pictured, number: int, seed: int) -> Pictured:
    """`number` of the images in a random order, one of each class before a second of any."""
    order = np.argsort(derive_samples("subset", seed, np.array([3]), several.indices), kind="stable")
    if several.labels is not None:
        seen: dict[int, int] = {}
        rounds = []
        for index in order:
            label = int(several.labels[index])
            rounds.append(seen.get(label, 0))
            seen[label] = rounds[-1] + 1
        order = order[np.argsort(rounds, kind="stable")]
    order = order[:number]
    labels = None if several.labels is None else several.labels[order]
    return Pictured(several.images[torch.from_numpy(order)], labels, several.class_names, several.indices[order], several.split)
