"""Which image of a folder goes into which shard: a pure function of the folder and the settings, made before any is read."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openjepa.data.decode import check_usable
from openjepa.data.folders.folder import FolderSource, WholeFolder, open_whole
from openjepa.data.loading.order import permutation
from openjepa.data.tables.local_files import SPLIT_WORDS
from openjepa.refusals import Refusal
from openjepa.settings.sources import FolderSettings, PackSettings

MEGABYTE = 10**6
TASK_BYTES = 8 * MEGABYTE
"""Bytes of images that a worker reads at a time."""
TASK_IMAGES = 64
"""Largest number of images that a worker reads at a time."""
MAX_SHARDS = 99_999
"""Largest number of shards of a split, whose names have five digits."""


@dataclass(frozen=True)
class PackedSplit:
    """The images of a split in the order of its shards."""

    name: str
    """Name of the split in the names of the shards: `train`, `validation` or `test`."""
    source: FolderSource
    order: NDArray[np.int64]
    """Indices of the images in `source` [n], shard after shard."""
    sizes: NDArray[np.int64]
    """Number of bytes of each image [n], in that order."""
    firsts: NDArray[np.int64]
    """Places in `order` at which the shards begin, then n [shards + 1]."""

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.firsts) - 1


@dataclass(frozen=True)
class PlannedShard:
    """One file to write."""

    name: str
    """File name, such as train-00000-of-00004.tar."""
    split: PackedSplit
    number: int

    @property
    def indices(self) -> NDArray[np.int64]:
        """Indices in the split's source of the images, in their order in the shard."""
        return self.split.order[self._places()]

    @property
    def num_bytes(self) -> int:
        """Number of bytes of the images."""
        return int(self.split.sizes[self._places()].sum())

    def tasks(self) -> Iterator[NDArray[np.int64]]:
        """The indices in parts that a worker reads at a time: at most TASK_IMAGES, and about TASK_BYTES."""
        indices, sizes = self.indices, self.split.sizes[self._places()]
        first = 0
        while first < len(indices):
            below = np.searchsorted(np.cumsum(sizes[first : first + TASK_IMAGES]), TASK_BYTES)
            last = first + min(TASK_IMAGES, int(below) + 1)
            yield indices[first:last]
            first = last

    def _places(self) -> slice:
        return slice(int(self.split.firsts[self.number]), int(self.split.firsts[self.number + 1]))


@dataclass(frozen=True)
class PackPlan:
    """All shards of a folder."""

    settings: PackSettings
    root: Path
    """The folder that is packed."""
    splits: tuple[PackedSplit, ...]
    whole: WholeFolder
    content: str
    """Hash of the settings and of the names, classes and sizes of all images."""
    stamps: str
    """Hash of the modification times of all images."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes, which all splits share."""
        return self.splits[0].source.class_names

    @property
    def shards(self) -> list[PlannedShard]:
        """All shards, in the order in which they are written."""
        return [
            PlannedShard(shard_name(split.name, number, split.num_shards, self.settings), split, number)
            for split in self.splits
            for number in range(split.num_shards)
        ]

    def path_of(self, split: PackedSplit, index: int) -> str:
        """Path of an image below the folder that is packed."""
        return split.source.path(index).relative_to(self.root).as_posix()


def shard_name(split: str, number: int, total: int, settings: PackSettings) -> str:
    """File name of shard `number` of `total`."""
    return f"{split}-{number:05d}-of-{total:05d}.{settings.format}"


def make_plan(folder: Path, settings: PackSettings) -> PackPlan:
    """The shards of `folder`. Reads the size of every image, and the first image that can be decoded.

    Raises Refusal if there is no usable image, or two folders mean the same split.
    """
    whole = open_whole(FolderSettings(path=str(folder)))
    check_usable(whole.splits["train"], f"the folder {str(folder)!r}")
    names = {name: SPLIT_WORDS[name.lower()] for name in whole.splits}
    for name, word in names.items():
        if same := [other for other, meant in names.items() if meant == word and other != name]:
            raise Refusal(f"{str(folder)!r} holds {name!r} and {same[0]!r}, which mean the same split: move one of them away")
    content = hashlib.sha256(json.dumps(asdict(replace(settings, max_skipped=0))).encode())
    times = hashlib.sha256()
    splits = []
    for name, source in whole.splits.items():
        stamps = [source.stamp(index).split() for index in range(len(source))]
        sizes = np.array([0 if len(stamp) < 2 else int(stamp[0]) for stamp in stamps], dtype=np.int64)
        times.update(b" ".join(stamp[-1] for stamp in stamps))
        content.update(_described(names[name], source, sizes))
        splits.append(_shards(names[name], source, sizes, settings))
    return PackPlan(settings, folder, tuple(splits), whole, content.hexdigest(), times.hexdigest())


def _described(name: str, source: FolderSource, sizes: NDArray[np.int64]) -> bytes:
    digest = hashlib.sha256(f"{name} {len(source)} {source.class_names}".encode(errors="surrogateescape"))
    for index in range(len(source)):
        digest.update(source.name(index).encode(errors="surrogateescape") + b"\0")
    digest.update(sizes.tobytes())
    if source.labels is not None:
        digest.update(source.labels.tobytes())
    return digest.digest()


def _shards(name: str, source: FolderSource, sizes: NDArray[np.int64], settings: PackSettings) -> PackedSplit:
    """Cuts a split into shards of about the same size.

    Equal shards, rather than full ones and a small rest, so that processes that read whole shards all get about as much.
    """
    order = permutation(settings.seed, 0, len(source)) if settings.shuffle else np.arange(len(source))
    sizes = sizes[order]
    ends = np.arange(1, len(source) + 1) if settings.shard_images else np.cumsum(sizes)
    limit = settings.shard_images or settings.shard_mb * MEGABYTE
    num_shards = min(max(1, int(-(-ends[-1] // limit))), len(source))
    if num_shards > MAX_SHARDS:
        raise Refusal(f"{name}: {num_shards:,} shards are too many, at most {MAX_SHARDS:,}: use a larger --shard-mb")
    # a shard ends with the image that reaches its share of the whole
    cuts = np.searchsorted(ends, ends[-1] * np.arange(1, num_shards) / num_shards) + 1
    firsts = np.unique(np.concatenate([[0], cuts, [len(source)]])).astype(np.int64)  # one large image may reach several shares
    return PackedSplit(name, source, order, sizes, firsts)
