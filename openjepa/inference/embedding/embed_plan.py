"""The plan of an embedding: the encoder, the images of a data source's splits, and their parts.

The manifest records all of it, so that a repeated command is recognized.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from openjepa.config import difference, load_run_config, readable_object, to_dict
from openjepa.data.folders.folder import left_out_folders as other_folders
from openjepa.data.source import ListSource, ShardSource, data_set_name, open_splits, source_hash, stamps_hash
from openjepa.data.tables.huggingface import left_out_splits as other_splits
from openjepa.data.tables.huggingface import split_names
from openjepa.engine.device import resolve_device, resolve_precision, set_threads
from openjepa.inference.embedding.table import Manifest, manifest_from_json, parquet_manifest
from openjepa.inference.encoder import Encoder
from openjepa.refusals import Refusal
from openjepa.settings.fields import as_option
from openjepa.settings.inference import EmbedSettings
from openjepa.settings.models import check_patch_divides, height_and_width
from openjepa.settings.sources import ONLY_TRAINING, DataSettings, FolderSettings, HuggingFaceSettings
from openjepa.system.machine import available_cores, local_processes
from openjepa.weights.contents import weights_hash
from openjepa.weights.formats import WeightsChoice, load_any

COMPARED = (
    "weights",
    "images",
    "files",
    "kind",
    "shape",
    "dtype",
    "pooling",
    "view",
    "size",
    "precision",
    "heads",
)
"""Entries of the manifest that features depend on. Weights and images are compared by their hashes, not by their paths."""


@dataclass(frozen=True)
class Part:
    """Consecutive records of a list, or one shard of a stream. One process computes a part at a time."""

    number: int
    split: str
    first: int
    """Number of the first record, or of the shard of a stream."""
    num_records: int | None
    """None for a shard, whose length is only known once it has been read."""


@dataclass(frozen=True)
class EmbedPlan:
    """All parts of a table, in the order of its rows."""

    manifest: Manifest
    parts: tuple[Part, ...]
    part_images: int

    @property
    def num_records(self) -> int | None:
        """Number of all images, readable or not; None if the length of a stream is not known."""
        counts = [part.num_records for part in self.parts]
        return None if None in counts else sum(count or 0 for count in counts)

    def entries(self) -> dict[str, Any]:
        """Entries that parts of the same plan have in common."""
        return compared_entries(self.manifest) | {"part_images": self.part_images}

    def to_json(self) -> str:
        """The plan as JSON. It also holds the manifest, for anyone who finds the parts."""
        return json.dumps({"entries": self.entries(), "manifest": asdict(self.manifest)}, indent=1)


def make_embed_plan(manifest: Manifest, sources: Mapping[str, ListSource | ShardSource], part_images: int) -> EmbedPlan:
    """Divides each list of `sources` into parts of `part_images` records. Each shard of a stream is one part."""
    pieces: list[tuple[str, int, int | None]] = []
    for split, source in sources.items():
        if isinstance(source, ShardSource):
            pieces += [(split, shard, None) for shard in range(len(source))]
            continue
        for first in range(0, len(source), part_images):
            pieces.append((split, first, min(part_images, len(source) - first)))
    parts = tuple(Part(number, *piece) for number, piece in enumerate(pieces))
    return EmbedPlan(manifest, parts, part_images)


def compared_entries(manifest: Manifest) -> dict[str, Any]:
    """The entries that features depend on, in the types that JSON reads back."""
    entries: dict[str, Any] = json.loads(json.dumps({name: getattr(manifest, name) for name in COMPARED}))
    return entries


def plan_entries(path: Path) -> dict[str, Any] | None:
    """The entries of the plan in the file `path`; None if it is missing or damaged."""
    entries = (readable_object(path) or {}).get("entries")
    return entries if isinstance(entries, dict) else None


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences, one a line; empty if there are none. Entries that older versions did not note are not compared."""
    known = {name: value for name, value in now.items() if name != "files" or before.get("files")}
    before = {name: value for name, value in before.items() if name in known or name != "files"}
    return "\n".join(f"  {name}: {_short(old)}, now {_short(new)}" for name, old, new in difference(before, known))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) != 64 or not text.isalnum() else f"{text[:12]}..."  # a hash


def finished_manifest(output: Path) -> Manifest | None:
    """The manifest of the table at `output`; None if there is no table. Raises Refusal if openjepa did not write it."""
    if not output.exists():
        return None
    if output.suffix == ".npy":
        described = output.with_suffix(".json")
        return manifest_from_json(described.read_bytes(), str(described))
    return parquet_manifest(output)


Source = ListSource | ShardSource


@dataclass(frozen=True)
class EmbeddedImages:
    """The images to embed."""

    sources: Mapping[str, Source]
    """Source of each split, in the order of the rows: `train`, `test`, then any others."""
    settings: DataSettings
    """Settings that open the data source again, to find the images."""
    not_used: tuple[str, ...] = ()
    """Descriptions of other images of the source, which are not embedded."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the labels, if the data has them."""
        # a split with its own classes lists them after those of the others
        return max((source.class_names for source in self.sources.values() if source.class_names), key=len, default=None)

    def summary(self) -> str:
        """A line for people: the number of images or shards of each split."""
        counts = {
            name: _counted(len(source), "image" if isinstance(source, ListSource) else "shard")
            for name, source in self.sources.items()
        }
        listed = (
            ", ".join(f"{name} {count}" for name, count in counts.items()) if len(counts) > 1 else next(iter(counts.values()))
        )
        return f"{data_set_name(self.settings)}: {listed}"

    def described(self) -> str:
        """Splits, numbers of images, and hashes of their names and of some of their bytes. Differs for other images."""
        return ", ".join(f"{name} {_length(source)} ({_hash(source)})" for name, source in self.sources.items())

    def stamped(self) -> str:
        """A hash of sizes and modification times of all files. Differs if files were overwritten in place."""
        digest = hashlib.sha256()
        for source in self.sources.values():
            digest.update(stamps_hash(source).encode() if isinstance(source, ListSource) else source.stamp)
        return digest.hexdigest()[:12]

    def entries(self) -> dict[str, Any]:
        """The settings for the manifest: only those that have an effect, and with an absolute path."""
        kept = {name: value for name, value in to_dict(self.settings).items() if name not in ONLY_TRAINING}
        if kept.get("path") and (Path(kept["path"]).exists() or "*" in kept["path"]):
            kept["path"] = str(Path(kept["path"]).absolute())
        return kept


def open_images(settings: DataSettings, splits: Literal["all", "train", "test"], seed: int) -> EmbeddedImages:
    """The images of `splits`. `all`: every image of every split, labeled or not, with nothing held out.

    Raises Refusal if a requested split does not exist.
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
    return EmbeddedImages(sources, settings, opened.left_out if splits == "all" else opened.not_used)


def _without_training_split(settings: HuggingFaceSettings) -> HuggingFaceSettings:
    """Replaces the training split by the first split if it has its default name and does not exist."""
    if settings.train_split != HuggingFaceSettings.train_split:
        return settings
    names = split_names(settings)
    return settings if not names or settings.train_split in names else replace(settings, train_split=names[0])


def _others(settings: DataSettings, sources: Mapping[str, Source]) -> dict[str, Source]:
    """Splits that training and probes do not use. A name that already means another split here gets a mark."""
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
        digest.update(record.name.encode(errors="surrogateescape"))
        with suppress(ValueError, OSError):
            digest.update(record.read())
    return digest.hexdigest()[:12]


def load_on_device(subject: Path | str, settings: EmbedSettings) -> Encoder:
    """Loads the encoder onto its device and sets the threads. Raises Refusal if it is missing or does not fit the settings."""
    device, processes = resolve_device(settings.device, "--device"), local_processes()
    if settings.threads is not None or processes > 1:
        set_threads(settings.threads or max(1, available_cores() // processes))
    choice = WeightsChoice(encoder=settings.encoder, heads=settings.heads, predictor=False)
    encoder = Encoder(load_any(subject, choice))
    if settings.pooling == "class_token" and not encoder.config.class_token:
        raise Refusal("--pooling class_token: this encoder has no class token; leave --pooling out, or use average")
    return encoder.to(device)


def find_images(subject: Path, data: DataSettings | None, settings: EmbedSettings) -> tuple[EmbeddedImages, int]:
    """The images and the seed that opens them, by default those of the run. Raises Refusal if no images are named."""
    places = (subject, subject.absolute().parent) if subject.is_dir() else ()  # a run, or an encoder in a run
    folder = next((item for item in places if (item / "config.yaml").is_file()), None)
    run = None if folder is None else load_run_config(folder)
    used = data or (None if run is None else run.data)
    if used is None:
        raise Refusal(
            f"{subject} is no run, so the images must be named: give --data.path FOLDER (or --data.source huggingface "
            "--data.path ..., or --data.source scenes)"
        )
    seed = settings.seed if settings.seed is not None else 0 if run is None else run.run.seed
    return open_images(used, settings.splits, seed), seed


def make_manifest(
    subject: Path | str, encoder: Encoder, images: EmbeddedImages, seed: int, settings: EmbedSettings
) -> Manifest:
    """The manifest of the table to be written. Raises Refusal if the patch size does not divide the image size."""
    config, place = encoder.config, Path(subject).expanduser()
    size = height_and_width(settings.image_size or config.image_size)
    check_patch_divides(config.patch_size, size, "image_size", of="the encoder", said=as_option)
    is_pooled = settings.features == "pooled"
    return Manifest(
        subject=str(place.absolute() if place.exists() else subject),
        encoder=settings.encoder,
        heads=settings.heads,
        weights=weights_hash(encoder.network),
        kind=settings.features,
        shape=(config.width,) if is_pooled else (*config.grid(size), config.width),
        dtype=settings.dtype,
        pooling=config.pooling if settings.pooling == "own" else settings.pooling,
        view=settings.view,
        size=size,
        precision=resolve_precision(settings.precision, encoder.device),  # type: ignore[arg-type]
        data=images.entries(),
        splits=tuple(images.sources),
        seed=seed,
        images=images.described(),
        files=images.stamped(),
        class_names=images.class_names or (),
    )
