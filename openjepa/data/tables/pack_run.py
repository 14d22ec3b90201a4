"""Packs a folder of images as shards: workers read and decode the images, this process writes one shard after the other."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.filesize import decimal

from openjepa.data.decode import decode_image, reason_of
from openjepa.data.folders.folder import FolderSource
from openjepa.data.loading.workers import parallel_map
from openjepa.data.tables.local_files import UNFINISHED_PACK
from openjepa.data.tables.pack_plan import PackPlan, PlannedShard, make_plan
from openjepa.data.tables.shard_files import TAR_BYTES_PER_FILE, WRITERS, PackedImage
from openjepa.data.tables.shard_manifest import (
    LEFT_OUT_FILE,
    Journal,
    LeftOut,
    ShardFacts,
    ShardManifest,
    claimed_journal,
    digest_of,
    read_manifest,
    settings_of_bytes,
    size_problems,
    write_records,
)
from openjepa.refusals import Refusal, few
from openjepa.settings.sources import PackSettings
from openjepa.system.console import Say, command, progress
from openjepa.system.shared_files import require_space, whole_file

FEW_LEFT_OUT = 10
"""Number of images that may be left out of a shard whatever their share, because a shard may be small."""
UNLISTED = "the list of its split does not name it"

ReadTask = tuple[str, NDArray[np.int64]]
"""Name of a split, and the indices in its source of the images to read."""


@dataclass(frozen=True)
class Packed:
    """Result of `pack_folder`."""

    manifest: ShardManifest
    num_written: int
    """Number of shards that this call has written. The others were there."""

    def lines(self, output: Path) -> Iterator[str]:
        """What was written to `output`, line by line, for the terminal."""
        manifest = self.manifest
        counts = ", ".join(f"{name} {number:,}" for name, number in manifest.splits.items())
        size = decimal(sum(shard.bytes for shard in manifest.shards))
        there = (
            "" if self.num_written else " (there already, made of the same images and settings; --verify compares every byte)"
        )
        yield f"{output}: {len(manifest.shards):,} shard{'s' * (len(manifest.shards) != 1)}, {size}{there}"
        yield f"images: {counts}" + (f"; {len(manifest.classes):,} classes" if manifest.classes else "; without labels")
        if manifest.left_out:
            reasons = few([f"{count:,} {reason}" for reason, count in manifest.left_out.items()], most=3)
            number = sum(manifest.left_out.values())
            yield f"left out: {number:,} image{'s' * (number != 1)} ({reasons}), listed in {output / LEFT_OUT_FILE}"
        yield from (f"also in the folder: {words}" for words in manifest.other_entries)
        yield f"next: {command('openjepa', 'train', 'RECIPE', '--data.source', 'huggingface', '--data.path', output)}"


def pack_folder(folder: Path, output: Path, settings: PackSettings, workers: int, say: Say) -> Packed:
    """Writes the images of `folder` as shards into `output`, with a manifest and a list of the images left out.

    A shard appears under its name when it is complete. An interrupted call is continued by repeating it. A call for a finished
    folder writes again the shards that are missing or have another size. The same folder and settings give the same bytes,
    whatever the number of `workers`. Raises Refusal if `output` lies in `folder` or holds anything else, the disk is too
    small, or too many images cannot be used.
    """
    _check_places(folder, output)
    say(f"looking through {folder}")
    plan = make_plan(folder, settings)
    is_unfinished = (output / UNFINISHED_PACK).exists()
    manifest = read_manifest(output)
    if manifest is not None:
        _check_same(manifest, plan, output)
        if not is_unfinished and not size_problems(output, manifest):
            return Packed(manifest, 0)
    elif not is_unfinished and output.exists() and any(output.iterdir()):
        raise Refusal(f"--output {output} is not empty: name a new folder")
    with claimed_journal(output, plan) as journal:
        if manifest is not None:
            journal.adopt(plan, manifest)
        missing = [shard for shard in plan.shards if not journal.has(shard.name)]
        say(_outlook(plan, missing))
        require_space(output, sum(map(_needed, missing)), f"the {len(missing):,} shards")
        _write_missing(plan, missing, output, journal, workers)
        unlisted = [LeftOut(file.relative_to(folder).as_posix(), "", "", UNLISTED) for file in plan.whole.unlisted]
        shards = [journal.shards[shard.name] for shard in plan.shards]
        left_out = [item for shard in plan.shards for item in journal.left_out[shard.name]]
        manifest = write_records(output, plan, shards, left_out + unlisted)
        journal.remove()
    return Packed(manifest, len(missing))


def _check_places(folder: Path, output: Path) -> None:
    if output.resolve().is_relative_to(folder.resolve()):
        raise Refusal(
            f"--output {output} lies in the folder that is packed, whose images it would join: name a place elsewhere"
        )


def _check_same(manifest: ShardManifest, plan: PackPlan, output: Path) -> None:
    if manifest.content == plan.content:
        return
    before = manifest.settings
    changed = [
        f"{name}={before.get(name)} instead of {value}"
        for name, value in settings_of_bytes(plan).items()
        if before.get(name) != value
    ]
    what = f"with {', '.join(changed)}" if changed else "of other images"
    raise Refusal(f"--output {output} holds shards {what}: name a new folder, or remove it")


def _outlook(plan: PackPlan, missing: list[PlannedShard]) -> str:
    images = sum(len(split.order) for split in plan.splits)
    size = decimal(sum(int(split.sizes.sum()) for split in plan.splits))
    classes = f" in {len(plan.class_names)} classes" if plan.class_names else ", without labels"
    number = len(plan.shards)
    there = f", of which {number - len(missing):,} are there" if len(missing) < number else ""
    return f"{images:,} images{classes} ({size}): {number:,} shard{'s' * (number != 1)}{there}"


def _needed(shard: PlannedShard) -> int:
    """Upper bound on the bytes of a shard's file: each image may have a label."""
    return shard.num_bytes + 2 * TAR_BYTES_PER_FILE * len(shard.indices)


# ---------------------------------------------------------------------------------------------------------------------- writing


@dataclass(frozen=True)
class _ImageReader:
    """The work of a worker: reads images, and decodes them if asked to."""

    sources: dict[str, FolderSource]
    decode: bool

    def __call__(self, task: ReadTask) -> list[bytes | str]:
        """The bytes of each image, or why it cannot be used."""
        split, indices = task
        return [self._read(self.sources[split], index) for index in indices.tolist()]

    def _read(self, source: FolderSource, index: int) -> bytes | str:
        try:
            data = source.read(index)
            if self.decode:
                decode_image(data)
            return data or "empty file"
        except (Refusal, OSError) as error:
            return reason_of(error)


class _ShardImages:
    """The images of a shard, as the workers deliver them. Keeps a list of those that cannot be used."""

    def __init__(
        self, plan: PackPlan, shard: PlannedShard, results: Iterator[list[bytes | str]], advance: Callable[[int], None]
    ) -> None:
        """`results`: what `_ImageReader` gives for each task of the shard, and then for those of later shards."""
        self._plan = plan
        self._shard = shard
        self._results = results
        self._advance = advance
        self.left_out: list[LeftOut] = []

    def __iter__(self) -> Iterator[PackedImage]:
        """The images that can be used, in their order in the shard."""
        source = self._shard.split.source
        for indices in self._shard.tasks():
            for read, index in zip(next(self._results), indices.tolist(), strict=True):
                label = None if source.labels is None else int(source.labels[index])
                if isinstance(read, bytes):
                    yield PackedImage(source.name(index), read, label)
                else:
                    self._leave_out(index, label, read)
            self._advance(len(indices))

    def _leave_out(self, index: int, label: int | None, reason: str) -> None:
        """Adds an image to the list. Raises Refusal if they are too many."""
        split, names = self._shard.split, self._shard.split.source.class_names
        class_name = "" if label is None or names is None else names[label]
        found = LeftOut(self._plan.path_of(split, index), split.name, class_name, reason)
        self.left_out.append(found)
        share = self._plan.settings.max_skipped
        if len(self.left_out) > max(FEW_LEFT_OUT, share * len(self._shard.indices)):
            raise Refusal(
                f"more than --max-skipped {share:g} of the {len(self._shard.indices):,} images of {self._shard.name} cannot "
                f"be used; the last: {found.path} ({reason}). `openjepa data check` lists all: repair or remove them and pack "
                "into a new folder, or raise --max-skipped and repeat the command, which then continues"
            )


def _write_missing(plan: PackPlan, missing: list[PlannedShard], output: Path, journal: Journal, workers: int) -> None:
    reader = _ImageReader({split.name: split.source for split in plan.splits}, plan.settings.decode)
    tasks = ((shard.split.name, indices) for shard in missing for indices in shard.tasks())
    total = sum(len(split.order) for split in plan.splits)
    done = total - sum(len(shard.indices) for shard in missing)
    write = WRITERS[plan.settings.format]
    with closing(parallel_map(reader, tasks, workers)) as results, progress("packing", total, done) as advance:
        for shard in missing:
            images = _ShardImages(plan, shard, results, advance)
            with whole_file(output / shard.name) as unfinished:
                write(unfinished, images, shard.split.source.class_names)
                num_images = len(shard.indices) - len(images.left_out)
                size, digest = unfinished.stat().st_size, digest_of(unfinished)
            journal.add(ShardFacts(shard.name, shard.split.name, num_images, size, digest), images.left_out)
