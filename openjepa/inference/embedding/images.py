"""Which images are embedded: the splits of a data source, all of their images."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from openjepa.config import to_dict
from openjepa.data import open_splits
from openjepa.data.fingerprint import source_hash, stamps_hash
from openjepa.data.folders.folder import left_out as other_folders
from openjepa.data.source import ListSource, ShardSource
from openjepa.data.tables.huggingface import left_out as other_splits
from openjepa.data.tables.huggingface import split_names
from openjepa.inference.embedding.table_checks import WITHOUT_EFFECT
from openjepa.refusals import Refusal
from openjepa.settings.sources import DataSettings, FolderSettings, HuggingFaceSettings

Source = ListSource | ShardSource


@dataclass(frozen=True)
class Images:
    """What is embedded."""

    sources: Mapping[str, Source]
    """By split, in the order of the rows: `train`, `test`, and what else there is."""
    settings: DataSettings
    """With which the data source is opened again to find the images."""
    not_used: tuple[str, ...] = ()
    """What lies beside them and is not embedded, in words."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Of the labels, where the data names them."""
        # a split with classes of its own has them behind those of the others
        return max((source.class_names for source in self.sources.values() if source.class_names), key=len, default=None)

    def summary(self) -> str:
        """What they are, to be printed."""
        counts = {
            name: _counted(len(source), "image" if isinstance(source, ListSource) else "shard")
            for name, source in self.sources.items()
        }
        listed = (
            ", ".join(f"{name} {count}" for name, count in counts.items()) if len(counts) > 1 else next(iter(counts.values()))
        )
        return f"{self.settings.name()}: {listed}"

    def described(self) -> str:
        """Splits, numbers of images and a hash of their names and of some of their bytes: other images are told by it."""
        return ", ".join(f"{name} {_length(source)} ({_hash(source)})" for name, source in self.sources.items())

    def stamped(self) -> str:
        """A hash of sizes and modification times of all files: images that were overwritten in place are told by it."""
        digest = hashlib.sha256()
        for source in self.sources.values():
            digest.update(stamps_hash(source).encode() if isinstance(source, ListSource) else source.stamp)
        return digest.hexdigest()[:12]

    def entries(self) -> dict[str, Any]:
        """The settings for the manifest: those with an effect, the path absolute."""
        kept = {name: value for name, value in to_dict(self.settings).items() if name not in WITHOUT_EFFECT}
        if kept.get("path") and (Path(kept["path"]).exists() or "*" in kept["path"]):
            kept["path"] = str(Path(kept["path"]).absolute())
        return kept


def open_images(settings: DataSettings, splits: Literal["all", "train", "test"], seed: int) -> Images:
    """The images of the splits. `all`: every image there is, in whatever split, labeled or not; nothing is held out.

    Raises Refusal where a split is wanted that there is not.
    """
    if splits == "all" and isinstance(settings, FolderSettings | HuggingFaceSettings):
        settings = replace(settings, test_fraction=0.0)
    if splits == "all" and isinstance(settings, HuggingFaceSettings):
        settings = _without_training_split(settings)
    opened = open_splits(settings, seed)
    sources: dict[str, Source] = {"train": opened.train}
    if opened.test is not None:
        sources["test"] = opened.test
    if splits != "all":
        if splits not in sources:
            raise Refusal(f"splits={splits!r}: the images have no test split ({opened.description}); use 'all' or 'train'")
        sources = {splits: sources[splits]}
    else:
        sources |= _others(settings, sources)
    return Images(sources, settings, opened.left_out if splits == "all" else opened.not_used)


def _without_training_split(settings: HuggingFaceSettings) -> HuggingFaceSettings:
    """Where nobody has asked for a training split and there is none: the first split stands for it."""
    if settings.train_split != HuggingFaceSettings.train_split:
        return settings
    names = split_names(settings)
    return settings if not names or settings.train_split in names else replace(settings, train_split=names[0])


def _others(settings: DataSettings, sources: Mapping[str, Source]) -> dict[str, Source]:
    """Splits beside those that training and probes use. A name that means another split here gets a mark."""
    found: dict[str, Source] = {}
    if isinstance(settings, FolderSettings):
        found |= other_folders(settings)
    elif isinstance(settings, HuggingFaceSettings):
        found |= other_splits(settings)
    return {f"{name} (other)" if name in sources else name: source for name, source in found.items()}


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _length(source: Source) -> str:
    if isinstance(source, ListSource):
        return str(len(source))
    return f"{len(source)} shards"


def _hash(source: Source) -> str:
    if isinstance(source, ListSource):
        return source_hash(source)[:12]
    digest = hashlib.sha256(f"{len(source)} {source.num_records}".encode())
    for record in islice(source.read_shard(0), 1):
        digest.update(record.name.encode(errors="surrogateescape") + record.data)
    return digest.hexdigest()[:12]
