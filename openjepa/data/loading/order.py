"""The samples of each step, as a pure function of (seed, epoch, position), for any number of processes and microbatches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openjepa.data.source import ShardRecord, ShardSource
from openjepa.refusals import Refusal
from openjepa.seeds import derive, derive_samples
from openjepa.settings.derived import division_problem
from openjepa.types import LoaderPosition

SPARES = 256
"""Number of samples after a chunk that may replace unreadable ones in it."""
STREAM_SPARES = 16
"""Number of them that are sent to workers for streams, whose records may hold images: the first ones that have one."""


@dataclass(frozen=True)
class BatchPlan:
    """Division of a step's batch into microbatches, and of these over processes."""

    batch_size: int
    """Images per step, over all processes."""
    microbatch_size: int
    """Images per forward and backward pass of one process."""
    rank: int = 0
    world_size: int = 1
    group_size: int | None = None
    """Images per mask group. None means the whole batch."""

    def __post_init__(self) -> None:
        """Raises Refusal unless the parts divide each other."""
        if problem := division_problem(self.batch_size, self.world_size, self.microbatch_size):
            raise Refusal(problem)
        group = self.group_size or self.batch_size
        if group % self.microbatch_size or self.batch_size % group:
            raise Refusal(
                f"masks.group_size={self.group_size} must be a multiple of the microbatch ({self.microbatch_size}) and divide "
                f"the batch ({self.batch_size})"
            )

    @property
    def num_microbatches(self) -> int:
        """Number of microbatches per step of this process."""
        return self.batch_size // (self.microbatch_size * self.world_size)

    def first_slot(self, microbatch: int) -> int:
        """First slot, within the step, of a microbatch of this process."""
        return (microbatch * self.world_size + self.rank) * self.microbatch_size

    def group(self, microbatch: int) -> int:
        """Number, within the step, of the mask group that a microbatch belongs to."""
        return self.first_slot(microbatch) // (self.group_size or self.batch_size)


@dataclass(frozen=True)
class Samples:
    """The slots of one step, followed by spare samples that replace unreadable ones."""

    step: int
    position: LoaderPosition
    """Position at which the step starts."""
    ids: NDArray[np.int64]
    """The sample of each slot, then the spares [batch size + spares]."""
    records: tuple[ShardRecord, ...] | None = None
    """The record of each of `ids`, if the source is a stream."""

    def candidates(self, start: int, num: int, num_spares: int) -> tuple[NDArray[np.int64], tuple[ShardRecord, ...] | None]:
        """The samples of the slots from `start` to `start + num`, and the spares after them, as they are sent to a worker."""
        stop = start + num + num_spares
        if self.records is None:
            return self.ids[start:stop], None
        records, places = [record.to_send() for record in self.records[start : start + num]], list(range(start, start + num))
        for place in range(start + num, stop):
            spare = self.records[place].to_send()
            if spare.problem is None:
                records.append(spare)
                places.append(place)
            if len(places) == num + STREAM_SPARES:
                break
        return self.ids[places], tuple(records)


def permutation(seed: int, epoch: int, num: int, part: int = 0) -> NDArray[np.int64]:
    """The order of `num` samples in an epoch. They are sorted by a hash of (seed, epoch, part, sample)."""
    keys = derive_samples("order", derive("order", seed, part), np.array([epoch]), np.arange(num))
    return np.argsort(keys, kind="stable").astype(np.int64)


def list_steps(num_samples: int, batch_size: int, seed: int, start: LoaderPosition, first_step: int) -> Iterator[Samples]:
    """The steps over a list, without end. An epoch uses every sample at most once and drops those that do not fill a step."""
    step, epoch, offset = first_step, start.epoch, start.offset
    while True:
        order = permutation(seed, epoch, num_samples)
        while offset + batch_size <= num_samples:
            slots = np.arange(offset, offset + batch_size + SPARES) % num_samples
            yield Samples(step, LoaderPosition(epoch, offset), order[slots])
            step, offset = step + 1, offset + batch_size
        epoch, offset = epoch + 1, 0


def shard_steps(
    source: ShardSource, window: int, batch_size: int, seed: int, start: LoaderPosition, first_step: int
) -> Iterator[Samples]:
    """The steps over shards, without end, by the same rule. The id of a sample is its place in the order of the epoch."""
    step, epoch, offset = first_step, start.epoch, start.offset
    while True:
        pending: list[ShardRecord] = []
        for record in _shuffled_records(source, window, seed, epoch, offset):
            pending.append(record)
            if len(pending) == batch_size + SPARES:
                yield _stream_samples(step, epoch, offset, pending)
                del pending[:batch_size]
                step, offset = step + 1, offset + batch_size
        while len(pending) >= batch_size:  # the end of the epoch: the step's own first samples serve as spares
            wrapped = pending + pending[:batch_size] * (SPARES // batch_size + 1)
            yield _stream_samples(step, epoch, offset, wrapped[: batch_size + SPARES])
            del pending[:batch_size]
            step, offset = step + 1, offset + batch_size
        if offset == 0:
            raise Refusal(f"an epoch of the stream has fewer images than optim.batch_size={batch_size}: use a smaller batch")
        epoch, offset = epoch + 1, 0


def _stream_samples(step: int, epoch: int, offset: int, records: list[ShardRecord]) -> Samples:
    ids = np.arange(offset, offset + len(records), dtype=np.int64)
    return Samples(step, LoaderPosition(epoch, offset), ids, tuple(records))


def _shuffled_records(source: ShardSource, window: int, seed: int, epoch: int, skip: int) -> Iterator[ShardRecord]:
    """Records of the epoch from number `skip` on. Shards are in random order, and so are the records within each window."""
    first_window, skip_inside = divmod(skip, window)
    to_skip = first_window * window
    number, held = first_window, []
    shards = permutation(seed, epoch, len(source)).tolist()
    for place in range(len(shards)):
        for record in _records(source, *shards[place : place + 2]):
            if to_skip:
                to_skip -= 1
                continue
            held.append(record)
            if len(held) == window:
                order = permutation(seed, epoch, window, part=number + 1)
                yield from (held[index] for index in order[skip_inside:].tolist())
                number, held, skip_inside = number + 1, [], 0
    order = permutation(seed, epoch, len(held), part=number + 1)
    yield from (held[index] for index in order[skip_inside:].tolist())


def _records(source: ShardSource, shard: int, following: int | None = None) -> Iterator[ShardRecord]:
    """The records of a shard. Prepares the `following` one as soon as this one is here.

    Raises Refusal if the shard cannot be reached, because to go on without it would change the order.
    """
    try:
        for number, record in enumerate(source.read_shard(shard)):
            if number == 0 and following is not None:
                source.prepare(following)
            yield record
    except OSError as error:
        raise Refusal(
            f"a shard of the data cannot be reached ({error}). Start the run again when it is back: it continues from its last "
            "checkpoint"
        ) from error
