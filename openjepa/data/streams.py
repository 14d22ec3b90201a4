"""Streams: the shards of a data set, read front to back through the `datasets` library."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from openjepa.data.arrow import Columns, choose_columns
from openjepa.data.decode import DecodeError, decode_image
from openjepa.data.skipping import NUM_CHECKED
from openjepa.data.source import ShardRecord, ShardSource
from openjepa.refusals import Refusal
from openjepa.settings.data import HuggingFaceSettings


class DatasetShards(ShardSource):
    """The shards of a `datasets.IterableDataset` with undecoded images. The library only reads: order and position are ours."""

    def __init__(self, dataset: Any, columns: Columns, title: str, num_records: int | None) -> None:
        """`dataset` must not be shuffled; `title` is what its records are called in messages."""
        self._dataset = dataset
        self._columns = columns
        self._title = title
        self.class_names = columns.class_names
        self.num_records = num_records

    def __len__(self) -> int:
        """Number of shards."""
        return int(self._dataset.num_shards)

    def read_shard(self, shard: int) -> Iterator[ShardRecord]:
        """The records of a shard; one without an image has no bytes, which decoding reports."""
        part = self._dataset.shard(num_shards=len(self), index=shard)
        for row, example in enumerate(part):
            image = example[self._columns.image]
            data = image if isinstance(image, bytes) else (image or {}).get("bytes")
            path = image.get("path") if isinstance(image, dict) else None
            label = example[self._columns.label] if self._columns.label else None
            name = f"{self._title} shard {shard} row {row}" + (f" ({path})" if path else "")
            yield ShardRecord(name, data or b"", label if isinstance(label, int) and label >= 0 else None)


def open_stream(dataset: Any, settings: HuggingFaceSettings, title: str, num_records: int | None) -> DatasetShards:
    """The shards of a `datasets.IterableDataset`. Raises Refusal where none of the first images can be used."""
    from datasets import Image

    if dataset.features is None:
        dataset = dataset._resolve_features()
    columns = choose_columns(dataset.features.arrow_schema, settings)
    if type(dataset.features[columns.image]).__name__ == "Image":
        dataset = dataset.cast_column(columns.image, Image(decode=False))
    source = DatasetShards(dataset, columns, title, num_records)
    _check_first(source)
    return source


def _check_first(source: DatasetShards) -> None:
    first = ""
    for record in islice(source.read_shard(0), NUM_CHECKED):
        try:
            decode_image(record.data)
            return
        except DecodeError as error:
            first = first or f"{record.name}: {error}"
    raise Refusal(f"none of the first {NUM_CHECKED} images of the stream can be used; the first is {first or 'missing'}")
