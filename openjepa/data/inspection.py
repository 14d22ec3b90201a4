"""Reads every image of a data set once and says what is there."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from openjepa.data.decode import decode_image
from openjepa.data.source import NO_LABEL, ListSource, ShardRecord, ShardSource, Splits

MAX_LISTED = 20
CHUNK = 256
"""Images in flight."""


@dataclass
class Inspection:
    """What was found in one split."""

    num_images: int = 0
    sides: list[int] = field(default_factory=list)
    """Short side of each usable image in pixels."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of each image that cannot be used."""


def inspect(splits: Splits) -> Iterator[str]:
    """Lines for the terminal, as the splits are read."""
    yield splits.description
    for name, source in (("train", splits.train), ("test", splits.test)):
        if source is not None:
            yield from _lines(name, source, read_all(source))


def read_all(source: ListSource | ShardSource) -> Inspection:
    """Decodes every image, in threads (decoders release Python's lock)."""
    records, found = _records(source), Inspection()
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(records, CHUNK)):
            outcomes = list(pool.map(lambda record: _outcome(source, record), chunk))
            found.num_images += len(chunk)
            found.sides += [outcome for outcome in outcomes if isinstance(outcome, int)]
            pairs = zip(chunk, outcomes, strict=True)
            found.bad += [(_name(source, record), outcome) for record, outcome in pairs if isinstance(outcome, str)]
    return found


Record = int | ShardRecord
"""Index in a list of records, or a record of a shard."""


def _records(source: ListSource | ShardSource) -> Iterator[Record]:
    if isinstance(source, ListSource):
        yield from range(len(source))
        return
    for shard in range(len(source)):
        yield from source.read_shard(shard)


def _name(source: ListSource | ShardSource, record: Record) -> str:
    if isinstance(record, ShardRecord):
        return record.name
    assert isinstance(source, ListSource)
    return source.name(record)


def _outcome(source: ListSource | ShardSource, record: Record) -> int | str:
    """Short side of the image, or why it cannot be used."""
    try:
        if isinstance(record, ShardRecord):
            data = record.read()
        else:
            assert isinstance(source, ListSource)
            data = source.read(record)
        pixels = decode_image(data)
        return int(min(pixels.shape[0], pixels.shape[1]))
    except (ValueError, OSError) as error:
        return str(error)


def _lines(name: str, source: ListSource | ShardSource, found: Inspection) -> Iterator[str]:
    sides = sorted(found.sides)
    yield f"{name}: {len(sides)} of {found.num_images} images can be used"
    if sides:
        yield f"  short side: {sides[0]} to {sides[-1]} pixels, median {sides[len(sides) // 2]}"
    if isinstance(source, ListSource) and source.is_labeled:
        yield _class_sizes(source)
    for bad, reason in found.bad[:MAX_LISTED]:
        yield f"  cannot be used: {bad}: {reason}"
    if len(found.bad) > MAX_LISTED:
        yield f"  and {len(found.bad) - MAX_LISTED} more"


def _class_sizes(source: ListSource) -> str:
    labels = source.labels if source.labels is not None else source.partial_labels
    assert labels is not None
    counts = Counter(labels.tolist())
    without = counts.pop(NO_LABEL, 0)
    sizes = f"  {len(counts)} classes with {min(counts.values())} to {max(counts.values())} images"
    return sizes + (f"; {without} images without a label" if without else "")
