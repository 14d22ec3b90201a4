"""Tables and tars of images: Parquet files and WebDataset tars on disk, data sets on the Hub, and streams of shards.

Files on disk are read by pyarrow and the standard library. Data sets on the Hub are read by the `datasets` library. Images stay
encoded. Order and position in a stream are managed by openjepa.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from openjepa.data.decode import NUM_CHECKED, check_usable, decode_image
from openjepa.data.selection import Subset, held_out
from openjepa.data.source import NO_LABEL, ListSource, ShardRecord, ShardSource, Splits, data_set_name
from openjepa.data.tables.arrow import EXAMPLE_ROWS, ArrowSource, Columns, ImageRows, SplitReader, choose_columns, row_name
from openjepa.data.tables.labels import LabelColumn, Numbering, from_arrow, stream_label
from openjepa.data.tables.local_files import SPLIT_WORDS, LocalFiles, find_files
from openjepa.data.tables.shard_manifest import check_sizes
from openjepa.refusals import Refusal, examples, require_package
from openjepa.settings.sources import HuggingFaceSettings
from openjepa.system.console import hub_name

TEST_SPLITS = ("test", "validation", "val")
"""Splits that probes may be tested on, the preferred one first."""


def open_huggingface(settings: HuggingFaceSettings, seed: int) -> Splits:
    """Training and test split of local files or of a data set on the Hub. If `streaming`, the training split is a stream.

    Local files belong to the split that their name or folder says (`train-00000-of-00004.parquet`, `val/0.tar`). If no file
    says any, all are training images. If there is no labeled test split, `test_fraction` of each class of a labeled training
    list is held out, chosen by `seed`. Raises Refusal if something is missing, and names what exists.
    """
    data = _Labeled(settings)
    what = f"the split {data.train!r} of data.path={settings.path!r}"
    unused, others = data.unused, data.reader.left_out
    if settings.streaming:
        stream = data.reader.open_stream(data.train)
        _check_first(stream, what)
        test = None if data.test is None else data.open_list(data.test)
        description = "; ".join([f"{data_set_name(settings)}: {_shards(stream)}{_tested(test)}", *unused, *others])
        return Splits(stream, test, description, data_set_name(settings), left_out=others, unused=unused)
    source = data.open_list(data.train)
    check_usable(source, what)
    train, test, how = source, None, ""
    if data.test is not None:
        test = data.open_list(data.test)
        if not len(test):
            raise Refusal(
                f"the split {data.test!r} of data.path={settings.path!r} holds no rows: choose another data.test_split"
            )
    elif settings.test_fraction and (is_held := held_out(source.known_labels, settings.test_fraction, seed)) is not None:
        train, test = Subset(source, np.flatnonzero(~is_held)), Subset(source, np.flatnonzero(is_held))
        how = " (held out of each class)"
    remarks = _remarks(train, test)
    description = "; ".join([f"{data_set_name(settings)}: {_listed(train)}{_tested(test)}{how}", *remarks, *unused, *others])
    return Splits(train, test, description, data_set_name(settings), remarks=remarks, left_out=others, unused=unused)


def split_names(settings: HuggingFaceSettings) -> list[str]:
    """Names of the splits of local files or of a data set on the Hub, as `train_split` and `test_split` expect them."""
    return list(_open_reader(settings).splits)


def left_out_splits(settings: HuggingFaceSettings) -> dict[str, ListSource]:
    """Splits that `open_huggingface` does not open (unlabeled or further ones), by name. Empty if the data is streamed."""
    if settings.streaming:
        return {}
    data = _Labeled(settings)
    return {name: data.open_list(name) for name in data.reader.splits if name not in (data.train, data.test)}


def require_library() -> None:
    """Raises Refusal if the packages of the extra `data` are missing."""
    for package in ("datasets", "pyarrow"):
        require_package(package, "data.source=huggingface")


def _open_reader(settings: HuggingFaceSettings) -> SplitReader:
    require_library()
    files = find_files(settings.path)
    if files is None:
        return HubReader(settings)
    if (folder := Path(settings.path).expanduser()).is_dir():
        check_sizes({folder, *(Path(file).parent for found in files.splits.values() for file in found)}, settings.path)
    reader = _file_reader(files, settings)
    reader.left_out = files.left_out
    return reader


def _file_reader(files: LocalFiles, settings: HuggingFaceSettings) -> SplitReader:
    if files.kind == "tars":
        from openjepa.data.tables.tars import TarReader

        return TarReader(files.splits, settings)
    from openjepa.data.tables.parquet import ParquetReader

    return ParquetReader(files.splits, settings)


class _Labeled:
    """A data set whose splits share their classes. Chooses the training and the test split, and numbers the classes."""

    def __init__(self, settings: HuggingFaceSettings) -> None:
        """Chooses the splits. Raises Refusal if one does not exist, both are the same, or `label_column` has no labels."""
        self.reader = _open_reader(settings)
        self._settings = settings
        self._columns: dict[str, LabelColumn | None] = {}
        self.train = self._split(settings.train_split, "train_split")
        self.test = self._test_split()
        if settings.label_column is not None and not settings.streaming and self._column(self.train) is None:
            raise Refusal(
                f"data.label_column={settings.label_column!r} holds no labels of the split {self.train!r}: classes are whole "
                "numbers or words; of tars, name the ending of the files that hold one of them, or json.KEY"
            )
        # the labels of a stream are not known before it is read, so its numbers stay as they are
        used = [self.train] if self.test is None else [self.train, self.test]
        used = [self.test or ""] if settings.streaming else used
        columns = [column for name in used if name and (column := self._column(name)) is not None]
        self._numbering = Numbering(columns, as_they_are=settings.streaming)

    @property
    def unused(self) -> tuple[str, ...]:
        """The splits that are not used, in words."""
        names = [name for name in self.reader.splits if name not in (self.train, self.test)]
        return (f"splits that are not used: {', '.join(names)}",) if names else ()

    def open_list(self, split: str) -> ListSource:
        """The images of a split, with their classes."""
        source = self.reader.open_list(split)
        if (column := self._column(split)) is not None:
            source.set_labels(self._numbering.labels(column), self._numbering.class_names)
        return source

    def _column(self, split: str) -> LabelColumn | None:
        if split not in self._columns:
            self._columns[split] = self.reader.label_column(split)
        return self._columns[split]

    def _split(self, wanted: str, setting: str) -> str:
        for name in (wanted, SPLIT_WORDS.get(wanted, wanted)):
            if name in self.reader.splits:
                return name
        raise Refusal(f"data.{setting}={wanted!r} is not a split; there are {sorted(self.reader.splits)}")

    def _test_split(self) -> str | None:
        """The test split: the chosen one, or else the first usual one with labels. None if there is none."""
        wanted = self._settings.test_split
        if wanted is None:
            usual = [name for name in TEST_SPLITS if name in self.reader.splits and name != self.train]
            return next((name for name in usual if self._is_labeled(name)), None)
        test = self._split(wanted, "test_split")
        if test == self.train:
            others = sorted(set(self.reader.splits) - {self.train})
            held_out = "leave it out, and data.test_fraction of each class is held out"
            if self._settings.streaming:
                held_out = "leave it out: of a stream nothing is held out, which needs data.streaming=false"
            rest = f"choose one of {others}" if others else held_out
            raise Refusal(
                f"data.test_split={wanted!r} is the training split: probes would be tested on what they learn; {rest}"
            )
        return test

    def _is_labeled(self, split: str) -> bool:
        """True if a split has labels to test on. The library writes -1 for labels that are kept secret."""
        column = self._column(split)
        return column is not None and bool((Numbering([column]).labels(column) != NO_LABEL).any())


def _check_first(source: ShardSource, what: str) -> None:
    """Raises Refusal if none of the first records of a stream can be used. `what` names the stream in messages."""
    reasons: list[str] = []
    records = chain.from_iterable(source.read_shard(shard) for shard in range(len(source)))
    for record in islice(records, NUM_CHECKED):
        try:
            decode_image(record.read())
            return
        except (Refusal, OSError) as error:
            reasons.append(f"{record.name}: {error}")
    if not reasons:
        raise Refusal(f"{what} holds no rows")
    raise Refusal(f"none of the first {len(reasons)} images of {what} can be used; the first is {reasons[0]}")


# ------------------------------------------------------------------------------------------------------------ in words


def _shards(stream: ShardSource) -> str:
    classes = f" in {len(stream.class_names)} classes" if stream.class_names else ""
    return f"a stream of {len(stream)} shards to train{classes}"


def _listed(train: ListSource) -> str:
    if (labels := train.known_labels) is None:
        return f"{len(train):,} images to train"
    found = len(train.class_names) if train.class_names else len(np.unique(labels[labels != NO_LABEL]))
    return f"{len(train):,} images to train in {found:,} classes"


def _tested(test: ListSource | None) -> str:
    return "" if test is None else f", {len(test):,} to test"


def _remarks(train: ListSource, test: ListSource | None) -> tuple[str, ...]:
    """What probes leave out, and what they cannot get right, in words."""
    remarks = []
    for name, source in (("training", train), ("test", test)):
        if source is not None and source.partial_labels is not None:
            number = int((source.partial_labels == NO_LABEL).sum())
            remarks.append(f"{_counted(number, name)} without a label, which probes leave out")
    known, asked = train.known_labels, None if test is None else test.known_labels
    if known is None or asked is None:
        return tuple(remarks)
    is_new = ~np.isin(asked, known) & (asked != NO_LABEL)
    if classes := np.unique(asked[is_new]).tolist():
        names = examples([train.class_names[label] if train.class_names else str(label) for label in classes], most=5)
        number = int(is_new.sum())
        remarks.append(f"{_counted(number, 'test')} of classes without training images ({names}), which probes get wrong")
    return tuple(remarks)


def _counted(number: int, split: str) -> str:
    return f"{number:,} {split} image{'' if number == 1 else 's'}"


# --------------------------------------------------------------------------------------------------------- data sets on the Hub


class HubReader(SplitReader):
    """The splits of a data set on the Hub."""

    def __init__(self, settings: HuggingFaceSettings) -> None:
        """Raises Refusal if the Hub cannot be reached or has no such data set."""
        from datasets import get_dataset_split_names

        self._settings = settings
        self._name = hub_name(settings.path, one_part=True)
        self._lists: dict[str, Any] = {}
        try:
            self.splits = tuple(get_dataset_split_names(self._name, settings.subset))
        except Exception as error:  # the library and its connections raise many kinds
            raise Refusal(
                f"data.path={settings.path!r} is neither a folder here nor a data set on the Hub that can be reached "
                f"({type(error).__name__}: {error})"
            ) from error

    def open_list(self, split: str) -> ListSource:
        """The images of a split, mapped from the library's Arrow files."""
        dataset = self._list(split)
        return ArrowSource(partial(_rows_of, dataset, self._columns(dataset).image), split, _stamp(dataset))

    def label_column(self, split: str) -> LabelColumn | None:
        """The labels of a split, or None. Reads only their column."""
        dataset = self._list(split)
        columns = self._columns(dataset)
        if columns.label is None:
            return None
        title = f"data.label_column={columns.label!r} of the split {split!r}"
        return from_arrow(title, dataset.data.table.column(columns.label), columns.class_names)

    def open_stream(self, split: str) -> ShardSource:
        """The shards of a split, as the library divides them."""
        return stream_of(self._load(split, streaming=True), self._settings, split)

    def _list(self, split: str) -> Any:
        if split not in self._lists:
            self._lists[split] = self._load(split, streaming=False)
        return self._lists[split]

    def _load(self, split: str, streaming: bool) -> Any:
        from datasets import load_dataset

        return load_dataset(self._name, self._settings.subset, split=split, streaming=streaming)

    def _columns(self, dataset: Any) -> Columns:
        table = dataset.data.table
        return choose_columns(
            dataset.features.arrow_schema, self._settings, lambda name: table.column(name)[:EXAMPLE_ROWS].to_pylist()
        )


def _stamp(dataset: Any) -> bytes:
    """The folders, names and sizes of the library's Arrow files. The folders are named after the commit on the Hub."""
    prepared = [Path(entry["filename"]) for entry in dataset.cache_files]
    return "".join(f"{file.parent.name} {file.name} {file.stat().st_size} " for file in prepared).encode()


def _rows_of(dataset: Any, image: str) -> Iterator[ImageRows]:
    for chunk in dataset.data.table.column(image).chunks:
        yield ImageRows(chunk)


def stream_of(dataset: Any, settings: HuggingFaceSettings, title: str) -> "DatasetShards":
    """The shards of a `datasets.IterableDataset`. `title` is its split."""
    from datasets import Image

    known = (dataset.info.splits or {}).get(title)
    if dataset.features is None:
        dataset = dataset._resolve_features()
    columns = choose_columns(dataset.features.arrow_schema, settings, lambda name: ())
    if type(dataset.features[columns.image]).__name__ == "Image":
        dataset = dataset.cast_column(columns.image, Image(decode=False))
    return DatasetShards(dataset, columns, title, None if known is None else known.num_examples)


class DatasetShards(ShardSource):
    """The shards of a `datasets.IterableDataset` with undecoded images.

    The library only reads. Order and position are managed by openjepa.
    """

    def __init__(self, dataset: Any, columns: Columns, title: str, num_records: int | None) -> None:
        """`dataset` must not be shuffled. `title` is the name of its records in messages."""
        self._dataset = dataset
        self._columns = columns
        self._title = title
        self.class_names = columns.class_names
        self.num_records = num_records

    def __len__(self) -> int:
        """Number of shards."""
        return int(self._dataset.num_shards)

    def read_shard(self, shard: int) -> Iterator[ShardRecord]:
        """The records of a shard."""
        part = self._dataset.shard(num_shards=len(self), index=shard)
        for row, example in enumerate(part):
            image = example[self._columns.image]
            data, path, problem = _parts(image)
            label = example[self._columns.label] if self._columns.label else None
            name = row_name(f"{self._title} shard {shard}", row, path)
            yield ShardRecord(name, data, stream_label(label), problem)


def _parts(image: object) -> tuple[bytes, str | None, str | None]:
    """The encoded image of a value of the image column, its path, and why there is no image."""
    fields = image if isinstance(image, dict) else {"path" if isinstance(image, str) else "bytes": image}
    data, path = fields.get("bytes"), fields.get("path")
    path = path if isinstance(path, str) else None
    if isinstance(data, bytes) and data:
        return data, path, None
    if data is not None and not isinstance(data, bytes):
        return b"", path, f"the image column holds values of the type {type(data).__name__}: images are bytes"
    return (
        b"",
        path,
        "the row names a file, which is not looked for in a stream from the Hub" if path else "the row has no image",
    )
