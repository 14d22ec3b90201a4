"""Records of a folder of shards: the journal while they are written, the manifest afterwards, and the list of what is missing.

The journal marks a folder as unfinished. It has one line for the plan and one for each finished shard, so that an interrupted
command continues where it was stopped. It is also the lock that keeps a second process away.
"""

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from openjepa.config import read_object, readable, readable_object, typed
from openjepa.data.tables.local_files import UNFINISHED_PACK
from openjepa.data.tables.pack_plan import PackPlan
from openjepa.refusals import Refusal, few
from openjepa.system.console import progress
from openjepa.system.shared_files import UNFINISHED, file_digest, take, whole_file

MANIFEST_FILE = "manifest.json"
LEFT_OUT_FILE = "left-out.csv"
"""The list of the images that are in no shard: path, split, class and reason."""
VERSION = 1
"""Version of the manifest's form."""
MEND = "copy the shards again with their manifest, or pack into a new folder"
REPEAT = "repeat the command that packed them, which writes again what is missing or has another size"


@dataclass(frozen=True)
class LeftOut:
    """An image that is in no shard."""

    path: str
    """Path below the folder that is packed."""
    split: str
    class_name: str
    reason: str


@dataclass(frozen=True)
class ShardFacts:
    """A finished shard, as journal and manifest describe it."""

    name: str
    split: str
    images: int
    bytes: int
    """Size of the file."""
    sha256: str


@dataclass(frozen=True)
class ShardManifest:
    """A finished folder of shards."""

    version: int
    content: str
    """`PackPlan.content`: the same folder and settings have the same hash."""
    settings: dict[str, Any]
    classes: tuple[str, ...]
    """Names of the labels 0, 1, ... Empty if the images have no labels."""
    splits: dict[str, int]
    """Number of images by split."""
    shards: tuple[ShardFacts, ...]
    left_out: dict[str, int]
    """Number of images in no shard, by reason."""
    other_entries: tuple[str, ...]
    """Counts of what was found beside the images, in words."""


def read_manifest(output: Path) -> ShardManifest | None:
    """The manifest of a folder of shards. None if it has none. Raises Refusal if it cannot be read."""
    file = output / MANIFEST_FILE
    content = read_object(file, MEND)
    if content is None:
        return None
    shards = tuple(typed(ShardFacts, entry, file, MEND) for entry in content.get("shards", ()))
    return ShardManifest(**{**vars(typed(ShardManifest, {**content, "shards": ()}, file, MEND)), "shards": shards})


def read_left_out(output: Path) -> dict[str, LeftOut]:
    """The list of the images left out, by path. Without rows that are damaged; empty if there is no list."""
    file = output / LEFT_OUT_FILE
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as opened:
        rows = [row for row in csv.reader(opened) if len(row) == len(fields(LeftOut))]
    return {row[0]: LeftOut(*row) for row in rows[1:]}


def settings_of_bytes(plan: PackPlan) -> dict[str, Any]:
    """The settings that decide the bytes of the shards, by name."""
    return {name: value for name, value in asdict(plan.settings).items() if name != "max_skipped"}


def write_records(output: Path, plan: PackPlan, shards: Sequence[ShardFacts], left_out: Sequence[LeftOut]) -> ShardManifest:
    """Writes the list of images left out, then the manifest. `shards` and `left_out` are in the order of the plan."""
    if left_out:
        with (
            whole_file(output / LEFT_OUT_FILE) as unfinished,
            unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="") as opened,
        ):
            writer = csv.writer(opened)
            writer.writerow(["path", "split", "class", "reason"])
            writer.writerows(vars(item).values() for item in left_out)
    images = Counter({split.name: 0 for split in plan.splits})
    for shard in shards:
        images[shard.split] += shard.images
    manifest = ShardManifest(
        version=VERSION,
        content=plan.content,
        settings=settings_of_bytes(plan),
        classes=plan.class_names or (),
        splits=dict(images),
        shards=tuple(shards),
        left_out=dict(Counter(item.reason for item in left_out).most_common()),
        other_entries=tuple(plan.whole.others.described()),
    )
    with whole_file(output / MANIFEST_FILE) as unfinished:
        unfinished.write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
    return manifest


# ---------------------------------------------------------------------------------------------------------------------- journal


class Journal:
    """The shards of an unfinished folder, by name, and the images left out of each."""

    def __init__(self, output: Path, plan: PackPlan) -> None:
        """Reads the journal of an interrupted command. Raises Refusal if it was made from other images or settings."""
        self._output = output
        self._file = output / UNFINISHED_PACK
        self.shards: dict[str, ShardFacts] = {}
        self.left_out: dict[str, list[LeftOut]] = {}
        head = {"content": plan.content, "stamps": plan.stamps}
        lines = self._whole_lines()
        if not lines:
            self._append(head)
        elif readable(lines[0]) != head:
            raise Refusal(
                f"{output} holds shards of an interrupted `openjepa data pack` of other images or with other settings (or the "
                "images have changed since): repeat its settings, or remove the folder"
            )
        for line in lines[1:]:
            entry = readable(line) or {}
            shard = typed(ShardFacts, entry, self._file)
            self.shards[shard.name] = shard
            self.left_out[shard.name] = [typed(LeftOut, item, self._file) for item in entry.get("left_out", ())]

    def has(self, name: str) -> bool:
        """True if a shard is finished and there."""
        file = self._output / name
        return name in self.shards and file.is_file() and file.stat().st_size == self.shards[name].bytes

    def adopt(self, plan: PackPlan, manifest: ShardManifest) -> None:
        """Writes down the shards of a finished folder, so that those that are there are not written again.

        Passes by a shard if it has left images out that the list of them lacks.
        """
        listed, known = read_left_out(self._output), {facts.name: facts for facts in manifest.shards}
        for shard in plan.shards:
            facts = known.get(shard.name)
            if facts is None or shard.name in self.shards:
                continue
            number = len(shard.indices) - facts.images
            paths = [plan.path_of(shard.split, index) for index in shard.indices.tolist()] if number else []
            left_out = [listed[path] for path in paths if path in listed]
            if len(left_out) == number:
                self.add(facts, left_out)

    def add(self, shard: ShardFacts, left_out: Sequence[LeftOut]) -> None:
        """Writes down a finished shard."""
        self._append({**asdict(shard), "left_out": [asdict(item) for item in left_out]})
        self.shards[shard.name], self.left_out[shard.name] = shard, list(left_out)

    def remove(self) -> None:
        """Removes the file: the folder is finished."""
        self._file.unlink()

    def _whole_lines(self) -> list[str]:
        """The lines that were written whole. Cuts off the rest of a line in which a process was killed."""
        content = self._file.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        os.truncate(self._file, len(whole))
        return whole.decode().splitlines()

    def _append(self, entry: dict[str, Any]) -> None:
        with self._file.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(entry) + "\n")
            opened.flush()
            os.fsync(opened.fileno())


@contextmanager
def claimed_journal(output: Path, plan: PackPlan) -> Iterator[Journal]:
    """Yields the journal of `output`, locked. Makes the folder, and removes leftovers of killed processes.

    Raises Refusal if another process is packing into the folder.
    """
    output.mkdir(parents=True, exist_ok=True)
    claim = take(output / UNFINISHED_PACK, forked=False)
    if claim is None:
        raise Refusal(f"another process is packing into {output}: wait for it, or choose another --output")
    try:
        for left in output.glob(f".*.{UNFINISHED}"):
            left.unlink()
        yield Journal(output, plan)
    finally:
        claim.release()


# ---------------------------------------------------------------------------------------------------------------------- digests


def digest_of(file: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    return file_digest(file, "sha256")


def compare(output: Path, workers: int) -> ShardManifest:
    """Compares the shards of a folder with its manifest, `workers` of them at a time.

    Raises Refusal that names every shard that is missing, damaged, or not in the manifest.
    """
    if (output / UNFINISHED_PACK).exists():
        raise Refusal(f"{output} is not finished: repeat the command that packs it")
    manifest = read_manifest(output)
    if manifest is None:
        raise Refusal(f"{output} holds no {MANIFEST_FILE}: name the folder that `openjepa data pack` has written")
    known = {shard.name for shard in manifest.shards}
    ending = f".{manifest.settings.get('format')}"
    problems = [
        f"{name} is not in the manifest" for name in sorted(_names(output)) if name.endswith(ending) and name not in known
    ]
    with progress("comparing", len(manifest.shards), unit="shards") as advance, ThreadPoolExecutor(max(1, workers)) as pool:
        for found in pool.map(lambda shard: _problem(output, shard), manifest.shards):
            problems += [found] if found else []
            advance(1)
    if problems:
        raise Refusal(
            f"{output}: {len(problems)} of {len(known)} shards are not as packed: {', '.join(problems)}; copy them again, or "
            f"delete those that have other bytes, cannot be read or are not in the manifest, then {REPEAT}"
        )
    return manifest


def check_sizes(folders: Iterable[Path], path: str) -> None:
    """Raises Refusal that names the shards that the manifests of `folders` name and that are missing or have another size.

    Passes by folders without a manifest, and manifests of other programs. `path`: the setting `data.path`, for the error.
    """
    for folder in folders:
        content = readable_object(folder / MANIFEST_FILE) or {}
        if not {item.name for item in fields(ShardManifest)} <= content.keys():
            continue
        manifest = read_manifest(folder)
        assert manifest is not None
        if problems := size_problems(folder, manifest):
            raise Refusal(
                f"data.path={path!r}: {len(problems)} of {len(manifest.shards)} shards of {folder / MANIFEST_FILE} are not as "
                f"packed: {few(problems)}; copy them again, or {REPEAT}. To use only what is there, give a pattern (*.tar)"
            )


def size_problems(output: Path, manifest: ShardManifest) -> list[str]:
    """The shards of a manifest that are missing or have another size, in words."""
    return [problem for shard in manifest.shards if (problem := _size_problem(output, shard))]


def _size_problem(output: Path, shard: ShardFacts) -> str:
    try:
        size = (output / shard.name).stat().st_size
    except FileNotFoundError:
        return f"{shard.name} is missing"
    except OSError as error:
        return f"{shard.name} cannot be read ({error.strerror})"
    return "" if size == shard.bytes else f"{shard.name} has {size:,} bytes instead of {shard.bytes:,}"


def _names(output: Path) -> Iterable[str]:
    return (file.name for file in output.iterdir())


def _problem(output: Path, shard: ShardFacts) -> str:
    """How a shard differs from the manifest, in words. Empty if it does not."""
    if problem := _size_problem(output, shard):
        return problem
    try:
        return "" if digest_of(output / shard.name) == shard.sha256 else f"{shard.name} has other bytes (SHA-256)"
    except OSError as error:
        return f"{shard.name} cannot be read ({error.strerror})"
