"""Records of the parts that this process has claimed -> uint8 views, in order.

On a CPU the encoder leaves no core idle, and its threads wait for one another: a decoder beside it slows all of them. So the
same threads decode a chunk, then encode it. Beside a GPU, processes decode ahead.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from openjepa.data.loading.workers import available_cores, check_shared_memory, parallel_map
from openjepa.data.source import NO_LABEL, ListSource, ShardRecord, ShardSource
from openjepa.data.splits import CHUNK, Record, evaluation_views
from openjepa.engine.threads import thread_pool
from openjepa.inference.embedding.images import Source
from openjepa.inference.embedding.plan import Part
from openjepa.types import Skipped


@dataclass(frozen=True)
class Task:
    """Some consecutive records of a part."""

    part: int
    split: str
    first: int
    """Number of the first record in the part."""
    numbers: range
    """Numbers of the records in their list; of a shard in that shard."""
    records: tuple[ShardRecord, ...] | None
    """Of a stream, what was read."""
    is_last: bool
    """Whether the part ends with them."""


@dataclass(frozen=True)
class Decoded:
    """What a task has given."""

    part: int
    is_last: bool
    num_records: int
    images: UInt8[Tensor, "n 3 h w"]
    rows: list[tuple[int, int | None, str]]
    """Of each image: number of its record in the part, label, name."""
    skipped: list[Skipped]


@dataclass(frozen=True)
class Decoder:
    """Decodes and resizes the records of a task, in this process or in a worker."""

    sources: dict[str, Source]
    size: tuple[int, int]
    view: str

    def __call__(self, task: Task, every: Callable[..., Any] = map) -> Decoded:
        """`every` as in `evaluation_views`."""
        source = self.sources[task.split]
        records, labels = _records(source, task)
        images, places, skipped = evaluation_views(records, self.size, self.view, every)
        rows = [(task.first + place, labels[place], records[place].name) for place in places]
        return Decoded(task.part, task.is_last, len(records), images, rows, skipped)


def _records(source: Source, task: Task) -> tuple[list[Record], list[int | None]]:
    if task.records is not None:
        return [Record(item.name, item.read) for item in task.records], [item.label for item in task.records]
    assert isinstance(source, ListSource)
    records = [Record(source.name(index), partial(source.read, index)) for index in task.numbers]
    labels = source.known_labels
    if labels is None:
        return records, [None] * len(records)
    return records, [None if label == NO_LABEL else label for label in labels[task.numbers.start : task.numbers.stop].tolist()]


def tasks_of(part: Part, source: Source) -> Iterator[Task]:
    """The records of a part, a chunk at a time; an empty shard gives one empty task."""
    if isinstance(source, ShardSource):
        yield from _shard_tasks(part, source)
        return
    assert part.num_records is not None
    for start in range(0, part.num_records, CHUNK):
        stop = min(start + CHUNK, part.num_records)
        numbers = range(part.first + start, part.first + stop)
        yield Task(part.number, part.split, start, numbers, None, is_last=stop == part.num_records)


def _shard_tasks(part: Part, source: ShardSource) -> Iterator[Task]:
    records = iter(source.read_shard(part.first))
    first, chunk = 0, tuple(islice(records, CHUNK))
    while True:
        following = tuple(islice(records, CHUNK))
        numbers = range(first, first + len(chunk))
        yield Task(part.number, part.split, first, numbers, chunk, is_last=not following)
        if not following:
            return
        first, chunk = first + len(chunk), following


def choose_workers(workers: int | None, device: torch.device, processes: int) -> int:
    """Processes that decode for this one, of so many on the machine."""
    if workers is not None:
        return workers
    return 0 if device.type == "cpu" else max(1, min(16, available_cores() // processes - 1))


def decode(tasks: Iterable[Task], decoder: Decoder, workers: int, batch_size: int) -> Generator[Decoded, None, None]:
    """The results of the tasks in their order. Beyond what is in flight nothing is decoded, nor taken from `tasks`."""
    if workers:
        ahead = 2 * -(-batch_size // CHUNK)
        per_task = CHUNK * 3 * decoder.size[0] * decoder.size[1]
        check_shared_memory(workers, max(2 * workers, ahead) * per_task, "workers")
        yield from parallel_map(decoder, tasks, workers, ahead)
        return
    with _mapping(torch.get_num_threads()) as every:
        for task in tasks:
            yield decoder(task, every)


@contextmanager
def _mapping(number: int) -> Iterator[Callable[..., Any]]:
    """A `map` over so many threads."""
    if number == 1:
        yield map
        return
    with thread_pool(number, "decode") as pool:
        yield pool.map
