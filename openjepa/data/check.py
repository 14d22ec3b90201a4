"""Reads every image of a data set once and reports how each file is used."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from enum import Enum
from itertools import islice
from operator import itemgetter
from pathlib import Path

from openjepa.data.decode import check_side, decode_image, reason_of, remark
from openjepa.data.folders.entries import EntryKind, existing_path, walk
from openjepa.data.folders.folder import FolderSource
from openjepa.data.selection import Subset
from openjepa.data.source import NO_LABEL, ListSource, ShardRecord, ShardSource, Splits
from openjepa.refusals import Refusal
from openjepa.settings.sources import DataSettings, FolderSettings
from openjepa.system.shared_files import UNFINISHED, own_name, whole_file

MAX_LISTED = 20
"""Largest number of unusable images whose names are shown on the screen."""
MAX_EXAMPLES = 3
"""Largest number of names shown on the screen for each kind of unused file."""
CHUNK = 256
"""Number of images decoded at a time."""

CheckedSource = ListSource | ShardSource
Record = int | ShardRecord
"""An index into a ListSource, or a record of a shard."""


class Outcome(Enum):
    """How a file is used."""

    USED = "used"
    SKIPPED = "skipped"
    """An image of a split that cannot be used. Training uses another one in its place and counts it."""
    UNUSED = "not used"
    """An image outside the splits that are used."""
    LEFT_OUT = "left out"
    """Not an image, or not to be used as one."""


@dataclass(frozen=True)
class CheckedFile:
    """How one file is used: a row of the list that `--list` writes."""

    path: str
    """Path below `data.path`, or the source's name of the record."""
    outcome: Outcome
    split: str = ""
    """`train` or `test`."""
    class_name: str = ""
    reason: str = ""
    """Why the file is not used."""
    width: int | None = None
    height: int | None = None
    remark: str = ""
    """A note for the user about an image that is used."""


@dataclass(frozen=True)
class _Usable:
    """An image that can be used."""

    width: int
    height: int
    remark: str


@dataclass
class _Split:
    """The findings of one split."""

    num_images: int = 0
    sides: list[int] = field(default_factory=list)
    """Short side of each usable image, in pixels."""
    classes: Counter[str] = field(default_factory=Counter)
    bad: list[CheckedFile] = field(default_factory=list)
    """The first images that cannot be used, at most MAX_LISTED."""


@dataclass
class CheckSummary:
    """Counts of the findings."""

    splits: dict[str, _Split] = field(default_factory=dict)
    others: Counter[tuple[Outcome, str]] = field(default_factory=Counter)
    """Number of files outside the splits, by outcome and reason. Also used images with a remark, by outcome and remark."""
    examples: dict[tuple[Outcome, str], list[str]] = field(default_factory=dict)

    def add(self, found: CheckedFile) -> None:
        """Adds a file to the counts."""
        if found.remark:
            self._count(found, found.remark)
        if not found.split:
            self._count(found, found.reason)
            return
        split = self.splits.setdefault(found.split, _Split())
        split.num_images += 1
        if found.class_name:
            split.classes[found.class_name] += 1
        if found.width is not None and found.height is not None and found.outcome is Outcome.USED:
            split.sides.append(min(found.width, found.height))
        elif len(split.bad) < MAX_LISTED:
            split.bad.append(found)

    def _count(self, found: CheckedFile, why: str) -> None:
        kind = found.outcome, why
        self.others[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if len(shown) < MAX_EXAMPLES:
            shown.append(found.path)

    def lines(self) -> Iterator[str]:
        """The summary, line by line, for the terminal."""
        for name, split in self.splits.items():
            yield from _lines(name, split)
        for outcome in Outcome:
            for (kind, reason), number in self.others.most_common():
                if kind is outcome:
                    shown = self.examples[kind, reason]
                    more = ", ..." if number > len(shown) else ""
                    yield f"{outcome.value}: {number:,} {reason}: {', '.join(shown)}{more}"


def _lines(name: str, split: _Split) -> Iterator[str]:
    sides = sorted(split.sides)
    yield f"{name}: {len(sides)} of {split.num_images} images can be used"
    if sides:
        yield f"  short side: {sides[0]} to {sides[-1]} pixels, median {sides[len(sides) // 2]}"
    if counts := split.classes.values():
        without = split.num_images - sum(counts)
        unlabeled = f"; {without:,} {'image' if without == 1 else 'images'} without a label" if without else ""
        yield f"  {len(counts)} classes with {min(counts)} to {max(counts)} images{unlabeled}"
    for bad in split.bad:
        yield f"  cannot be used: {bad.path}: {bad.reason}"
    if (rest := split.num_images - len(sides) - len(split.bad)) > 0:
        yield f"  and {rest} more"


def num_records(splits: Splits) -> int | None:
    """Number of images that will be read. None if a split is a stream."""
    sources = [source for source in (splits.train, splits.test) if source is not None]
    return None if any(isinstance(source, ShardSource) for source in sources) else sum(map(len, sources))


def inspect(settings: DataSettings, splits: Splits, min_side: int, written: Path | None = None) -> Iterator[CheckedFile]:
    """Reads every record of the splits and reports how it is used. For a folder, also reports every other file in it.

    Images with a side below `min_side` pixels count as unusable, just as training skips images smaller than a patch.
    `written` is the list being written meanwhile (see `csv_list`); it does not count as a file.
    """
    base = existing_path(settings.path) if isinstance(settings, FolderSettings) else None
    seen: set[str] = set()
    for split, source in (("train", splits.train), ("test", splits.test)):
        if source is None:
            continue
        for found in _read_all(source, split, base, min_side):
            seen.add(found.path)
            yield found
    if base is not None:
        yield from _others(base, seen, splits.train, written)


def _others(base: Path, seen: set[str], train: CheckedSource, written: Path | None) -> Iterator[CheckedFile]:
    """The files of a folder that are in no split, sorted by path, except the list `written`."""
    own = set() if written is None else {written.resolve(), own_name(written.resolve(), UNFINISHED)}
    own_names = {file.name for file in own}
    drawn = train.whole if isinstance(train, Subset) else None
    for path, kind in sorted(walk(base, enter_all=True), key=itemgetter(0)):
        if path.rpartition("/")[2] in own_names and (base / path).resolve() in own:
            continue
        if kind is not EntryKind.IMAGE:
            yield CheckedFile(path, Outcome.LEFT_OUT, reason=kind.value)
        elif path not in seen:
            is_beyond = isinstance(drawn, FolderSource) and (base / path).is_relative_to(drawn.root)
            yield CheckedFile(
                path, Outcome.UNUSED, reason="not among data.max_images" if is_beyond else "in no split that is used"
            )


def _read_all(source: CheckedSource, split: str, base: Path | None, min_side: int) -> Iterator[CheckedFile]:
    """Decodes every image of a split in threads (decoders release Python's global lock)."""
    records = _records(source)
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(records, CHUNK)):
            outcomes = list(pool.map(lambda record: _read(source, record, min_side), chunk))
            for record, outcome in zip(chunk, outcomes, strict=True):
                yield _finding(source, record, split, base, outcome)


def _records(source: CheckedSource) -> Iterator[Record]:
    if isinstance(source, ListSource):
        yield from range(len(source))
        return
    for shard in range(len(source)):
        yield from (record.to_send() for record in source.read_shard(shard))


def _read(source: CheckedSource, record: Record, min_side: int) -> _Usable | str:
    """The size of an image and a remark about it, or the reason why it cannot be used."""
    try:
        if isinstance(record, ShardRecord):
            data = record.read()
        else:
            assert isinstance(source, ListSource)
            data = source.read(record)
        pixels = decode_image(data)
        check_side(pixels.shape[0], pixels.shape[1], min_side)
        return _Usable(pixels.shape[1], pixels.shape[0], remark(data, pixels) or "")
    except (Refusal, OSError) as error:
        return reason_of(error)


def _finding(source: CheckedSource, record: Record, split: str, base: Path | None, outcome: _Usable | str) -> CheckedFile:
    path, label = _path_and_label(source, record, base)
    class_name = "" if label is None else str(label if source.class_names is None else source.class_names[label])
    if isinstance(outcome, str):
        return CheckedFile(path, Outcome.SKIPPED, split, class_name, outcome)
    return CheckedFile(path, Outcome.USED, split, class_name, width=outcome.width, height=outcome.height, remark=outcome.remark)


def _path_and_label(source: CheckedSource, record: Record, base: Path | None) -> tuple[str, int | None]:
    if isinstance(record, ShardRecord):
        return record.name, record.label
    assert isinstance(source, ListSource)
    labels = source.known_labels
    label = None if labels is None or labels[record] == NO_LABEL else int(labels[record])
    path = source.name(record)
    inner = source.whole if isinstance(source, Subset) else source
    if base is not None and isinstance(inner, FolderSource):
        path = (inner.root / path).relative_to(base).as_posix()
    return path, label


@contextmanager
def csv_list(file: Path) -> Iterator[Callable[[CheckedFile], None]]:
    """Yields a function that writes a finding as a row of the CSV file `file`. The file appears once it is complete.

    Names that are not valid UTF-8 keep their bytes.
    """
    names = [item.name for item in fields(CheckedFile)]
    with whole_file(file) as unfinished, unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(names)
        yield lambda found: writer.writerow(
            [found.outcome.value if name == "outcome" else getattr(found, name) for name in names]
        )
