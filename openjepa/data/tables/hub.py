"""Data sets on the Hub, read by the `datasets` library: lists, which it prepares once and maps into memory, and streams."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from openjepa.data.source import ListSource, ShardRecord, ShardSource
from openjepa.data.tables.arrow import NUM_EXAMPLES, ArrowSource, Columns, ImageRows, SplitReader, choose_columns, row_name
from openjepa.data.tables.labels import LabelColumn, from_arrow, stream_label
from openjepa.refusals import Refusal
from openjepa.settings.sources import HuggingFaceSettings
from openjepa.system.shell import hub_name


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
            dataset.features.arrow_schema, self._settings, lambda name: table.column(name)[:NUM_EXAMPLES].to_pylist()
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
