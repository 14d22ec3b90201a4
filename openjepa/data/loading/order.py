"""Which samples a step uses, as a pure function of (seed, epoch, position), for any number of processes and microbatches."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openjepa.data.source import ShardRecord, ShardSource
from openjepa.refusals import Refusal
from openjepa.seeds import derive, derive_samples
from openjepa.types import LoaderPosition

LIST_SPARES = 256
"""Samples of the order behind a chunk that may replace unreadable ones in it (lists: only their numbers are passed on)."""
STREAM_SPARES = 16
"""The same for streams, of which the bytes themselves are passed on."""


@dataclass(frozen=True)
class BatchPlan:
    """How the batch of a step is divided into microbatches, and these over processes."""

    batch_size: int
    """Images per step over all processes."""
    microbatch_size: int
    """Images per forward and backward of one process."""
    rank: int = 0
    world_size: int = 1
    group_size: int | None = None
    """Images per mask group. None: the whole batch."""

    def __post_init__(self) -> None:
        """Raises Refusal unless the parts divide each other."""
        wave = self.microbatch_size * self.world_size
        if self.microbatch_size < 1 or self.batch_size < 1 or self.batch_size % wave:
            raise Refusal(
                f"optim.batch_size={self.batch_size} is not a multiple of optim.microbatch_size={self.microbatch_size} "
                f"times {self.world_size} processes; the nearest that fits is {max(1, round(self.batch_size / wave)) * wave}"
            )
        group = self.group_size or self.batch_size
        if group % self.microbatch_size or self.batch_size % group:
            raise Refusal(
                f"masks.group_size={self.group_size} must be a multiple of the microbatch ({self.microbatch_size}) and divide "
                f"the batch ({self.batch_size})"
            )

    @property
    def num_microbatches(self) -> int:
        """Microbatches per step of this process."""
        return self.batch_size // (self.microbatch_size * self.world_size)

    def first_slot(self, microbatch: int) -> int:
        """First slot, within the step, of a microbatch of this process."""
        return (microbatch * self.world_size + self.rank) * self.microbatch_size

    def group(self, microbatch: int) -> int:
        """Number, within the step, of the mask group that a microbatch belongs to."""
        return self.first_slot(microbatch) // (self.group_size or self.batch_size)


@dataclass(frozen=True)
class Samples:
    """The slots of one step, followed by spares that replace what cannot be read."""

    step: int
    position: LoaderPosition
    """Position at which the step starts."""
    ids: NDArray[np.int64]
    """Sample of each slot, then the spares [batch size + spares]."""
    records: tuple[ShardRecord, ...] | None = None
    """Streams: what was read for each of them."""


def permutation(seed: int, epoch: int, num: int, part: int = 0) -> NDArray[np.int64]:
    """The order of `num` samples in an epoch: sorted by a hash of (seed, epoch, part, sample)."""
    keys = derive_samples("order", derive("order", seed, part), np.array([epoch]), np.arange(num))
    return np.argsort(keys, kind="stable").astype(np.int64)


def list_steps(num_samples: int, batch_size: int, seed: int, start: LoaderPosition, first_step: int) -> Iterator[Samples]:
    """The steps over a list, without end: each epoch uses every sample at most once and drops what does not fill a step."""
    step, epoch, offset = first_step, start.epoch, start.offset
    while True:
        order = permutation(seed, epoch, num_samples)
        while offset + batch_size <= num_samples:
            slots = np.arange(offset, offset + batch_size + LIST_SPARES) % num_samples
            yield Samples(step, LoaderPosition(epoch, offset), order[slots])
            step, offset = step + 1, offset + batch_size
        epoch, offset = epoch + 1, 0


def shard_steps(
    source: ShardSource, window: int, batch_size: int, seed: int, start: LoaderPosition, first_step: int
) -> Iterator[Samples]:
    """The steps over shards, without end, by the same rule; the number of a sample is its place in the epoch's order."""
    step, epoch, offset = first_step, start.epoch, start.offset
    while True:
        pending: list[ShardRecord] = []
        for record in _shuffled_records(source, window, seed, epoch, offset):
            pending.append(record)
            if len(pending) == batch_size + STREAM_SPARES:
                yield _stream_samples(step, epoch, offset, pending)
                del pending[:batch_size]
                step, offset = step + 1, offset + batch_size
        while len(pending) >= batch_size:  # the end of the epoch: spares wrap to the step's own start
            wrapped = pending + pending[:batch_size] * (STREAM_SPARES // batch_size + 1)
            yield _stream_samples(step, epoch, offset, wrapped[: batch_size + STREAM_SPARES])
            del pending[:batch_size]
            step, offset = step + 1, offset + batch_size
        if offset == 0:
            raise Refusal(f"an epoch of the stream has fewer images than optim.batch_size={batch_size}: use a smaller batch")
        epoch, offset = epoch + 1, 0


def _stream_samples(step: int, epoch: int, offset: int, records: list[ShardRecord]) -> Samples:
    ids = np.arange(offset, offset + len(records), dtype=np.int64)
    return Samples(step, LoaderPosition(epoch, offset), ids, tuple(records))


def _shuffled_records(source: ShardSource, window: int, seed: int, epoch: int, skip: int) -> Iterator[ShardRecord]:
    """Records of the epoch from number `skip` on: shards in random order, and records in random order within each window."""
    first_window, skip_inside = divmod(skip, window)
    to_skip = first_window * window
    number, held = first_window, []
    for shard in permutation(seed, epoch, len(source)).tolist():
        for record in source.read_shard(shard):
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
