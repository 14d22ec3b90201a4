"""What is to be computed: features of all images in parts, and how the same command is recognized. Free of torch."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openjepa.config import difference
from openjepa.data.source import ListSource, ShardSource
from openjepa.inference.embedding.table import Manifest, manifest_from_json, parquet_manifest
from openjepa.system.json_files import readable_object

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
"""Entries of the manifest that features depend on; weights and images by their hashes, not by where they lie."""


@dataclass(frozen=True)
class Part:
    """Consecutive records of a split, or a shard of a stream: what one process computes at a time."""

    number: int
    split: str
    first: int
    """Number of the first record; of a stream, of the shard."""
    num_records: int | None
    """None: a shard, whose length is only known once it has been read."""


@dataclass(frozen=True)
class Plan:
    """All parts of a table, in the order of its rows."""

    manifest: Manifest
    parts: tuple[Part, ...]
    part_images: int

    @property
    def num_records(self) -> int | None:
        """Images in all, readable or not; None where a stream does not tell."""
        counts = [part.num_records for part in self.parts]
        return None if None in counts else sum(count or 0 for count in counts)

    def entries(self) -> dict[str, Any]:
        """What parts of the same plan agree in."""
        return compared(self.manifest) | {"part_images": self.part_images}

    def to_json(self) -> str:
        """As text; the manifest stands there for whoever finds the parts."""
        return json.dumps({"entries": self.entries(), "manifest": asdict(self.manifest)}, indent=1)


def make_plan(manifest: Manifest, sources: Mapping[str, ListSource | ShardSource], part_images: int) -> Plan:
    """Parts of `part_images` records of each list, and every shard of a stream."""
    pieces: list[tuple[str, int, int | None]] = []
    for split, source in sources.items():
        if isinstance(source, ShardSource):
            pieces += [(split, shard, None) for shard in range(len(source))]
            continue
        for first in range(0, len(source), part_images):
            pieces.append((split, first, min(part_images, len(source) - first)))
    parts = tuple(Part(number, *piece) for number, piece in enumerate(pieces))
    return Plan(manifest, parts, part_images)


def compared(manifest: Manifest) -> dict[str, Any]:
    """The entries that features depend on, as JSON gives them back."""
    entries: dict[str, Any] = json.loads(json.dumps({name: getattr(manifest, name) for name in COMPARED}))
    return entries


def plan_entries(path: Path) -> dict[str, Any] | None:
    """The entries of a plan that was written to `path`; None where there is none that is whole."""
    entries = (readable_object(path) or {}).get("entries")
    return entries if isinstance(entries, dict) else None


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, one line each; empty where nothing does. What older versions have not noted is not compared."""
    known = {name: value for name, value in now.items() if name != "files" or before.get("files")}
    before = {name: value for name, value in before.items() if name in known or name != "files"}
    return "\n".join(f"  {name}: {_short(old)}, now {_short(new)}" for name, old, new in difference(before, known))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) != 64 or not text.isalnum() else f"{text[:12]}..."  # a hash


def finished_manifest(output: Path) -> Manifest | None:
    """The manifest of the table at `output`; None where there is none. Raises Refusal where it is none of ours."""
    if not output.exists():
        return None
    if output.suffix == ".npy":
        described = output.with_suffix(".json")
        return manifest_from_json(described.read_bytes(), str(described))
    return parquet_manifest(output)
