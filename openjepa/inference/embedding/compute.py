"""Computes the parts that no other process has: decodes, encodes, and writes each batch while the next one is computed.

On a CPU the encoder leaves no core idle, and its threads wait for one another, so a decoder beside it would slow all of them.
Therefore the same threads first decode a chunk and then encode it. Beside a GPU, processes decode ahead.

On a CPU that computes in bf16, the encoder gets packed layers. Under autocast every forward converts all weights, torch copies
the bias into the result before it multiplies, and the GELU reads and writes the widest activations once more. oneDNN does all
of this in one call. Numbers differ from those of autocast by rounding: the GELU sees fp32 instead of bf16.
"""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from openjepa.data.loading.workers import parallel_map
from openjepa.data.passes import EVALUATION_CHUNK, ImageRecord, check_shared_memory, choose_workers, evaluation_views
from openjepa.data.source import NO_LABEL, ListSource, ShardRecord, ShardSource
from openjepa.engine.device import Moving, supports_bf16, thread_pool
from openjepa.inference.embedding.embed_plan import EmbedPlan, Part, Source
from openjepa.inference.embedding.parts import PartsFolder, PartWriter
from openjepa.inference.embedding.table import Manifest
from openjepa.inference.encoder import Encoder
from openjepa.models.transformer import Block, attention, scaled
from openjepa.models.vit import VisionTransformer
from openjepa.operators import fused_linear, has_fused_linear, has_tile_products
from openjepa.refusals import Refusal
from openjepa.system.shared_files import Claim
from openjepa.types import Skipped

LARGEST_BATCH_BYTES = 2**28
"""Most bytes of the features of a batch in fp32, on the device and on the host."""
FEATURE_DTYPES = {"float16": torch.float16, "float32": torch.float32}
SECONDS_BETWEEN_LOOKS = 1.0
"""Seconds between two checks for parts that other processes have finished."""


@dataclass(frozen=True)
class EmbedTask:
    """Some consecutive records of a part, to be decoded together."""

    part: int
    split: str
    first: int
    """Number of the first record in the part."""
    numbers: range
    """Numbers of the records in their list or shard."""
    records: tuple[ShardRecord, ...] | None
    """Records that were read from a stream; None for a list."""
    is_last: bool
    """True if the part ends with these records."""


@dataclass(frozen=True)
class Decoded:
    """Result of a task."""

    part: int
    is_last: bool
    num_records: int
    images: UInt8[Tensor, "n 3 h w"]
    rows: list[tuple[int, int | None, str]]
    """For each image: number of its record in the part, label, name."""
    skipped: list[Skipped]


@dataclass(frozen=True)
class RecordDecoder:
    """Decodes and resizes the records of a task, in this process or in a worker."""

    sources: dict[str, Source]
    size: tuple[int, int]
    view: str

    def __call__(self, task: EmbedTask, every: Callable[..., Any] = map) -> Decoded:
        """Decodes the records of `task`. `every`: as in `evaluation_views`."""
        source = self.sources[task.split]
        records, labels = _records(source, task)
        images, places, skipped = evaluation_views(records, self.size, self.view, every)
        rows = [(task.first + place, labels[place], records[place].name) for place in places]
        return Decoded(task.part, task.is_last, len(records), images, rows, skipped)


def _records(source: Source, task: EmbedTask) -> tuple[list[ImageRecord], list[int | None]]:
    if task.records is not None:
        return [ImageRecord(item.name, item.read) for item in task.records], [item.label for item in task.records]
    assert isinstance(source, ListSource)
    records = [ImageRecord(source.name(index), partial(source.read, index)) for index in task.numbers]
    labels = source.known_labels
    if labels is None:
        return records, [None] * len(records)
    return records, [None if label == NO_LABEL else label for label in labels[task.numbers.start : task.numbers.stop].tolist()]


def tasks_of(part: Part, source: Source) -> Iterator[EmbedTask]:
    """Yields the records of a part, a chunk at a time. An empty shard gives one empty task."""
    if isinstance(source, ShardSource):
        yield from _shard_tasks(part, source)
        return
    assert part.num_records is not None
    for start in range(0, part.num_records, EVALUATION_CHUNK):
        stop = min(start + EVALUATION_CHUNK, part.num_records)
        numbers = range(part.first + start, part.first + stop)
        yield EmbedTask(part.number, part.split, start, numbers, None, is_last=stop == part.num_records)


def _shard_tasks(part: Part, source: ShardSource) -> Iterator[EmbedTask]:
    records = (record.to_send() for record in source.read_shard(part.first))
    first, chunk = 0, tuple(islice(records, EVALUATION_CHUNK))
    while True:
        following = tuple(islice(records, EVALUATION_CHUNK))
        numbers = range(first, first + len(chunk))
        yield EmbedTask(part.number, part.split, first, numbers, chunk, is_last=not following)
        if not following:
            return
        first, chunk = first + len(chunk), following


def choose_decoders(workers: int | None, device: torch.device) -> int:
    """Number of processes that decode for this one. `workers`: None leaves the choice to the program."""
    return 0 if workers is None and device.type == "cpu" else choose_workers(workers)


def decode(tasks: Iterable[EmbedTask], decoder: RecordDecoder, workers: int, batch_size: int) -> Generator[Decoded, None, None]:
    """Yields the results of the tasks in order. Takes a task from `tasks` only when it is about to be decoded.

    `workers`: processes that decode ahead, about two batches of `batch_size` images; 0 decodes in threads of this process.
    """
    if workers:
        ahead = 2 * -(-batch_size // EVALUATION_CHUNK)
        per_task = EVALUATION_CHUNK * 3 * decoder.size[0] * decoder.size[1]
        check_shared_memory(workers, max(2 * workers, ahead) * per_task, "workers")
        yield from parallel_map(decoder, tasks, workers, ahead)
        return
    with _mapping(torch.get_num_threads()) as every:
        for task in tasks:
            yield decoder(task, every)


@contextmanager
def _mapping(number: int) -> Iterator[Callable[..., Any]]:
    """A `map` over `number` threads."""
    if number == 1:
        yield map
        return
    with thread_pool(number, "decode") as pool:
        yield pool.map


class _OpenPart:
    """A part that is being computed."""

    def __init__(self, number: int, writer: PartWriter) -> None:
        """Starts with no records. `number`: that of the part. `writer`: writes the part."""
        self.number, self.writer = number, writer
        self.num_records = self.num_encoded = self.num_waiting = 0
        self.rows: list[tuple[int, int | None, str]] = []
        self.skipped: list[Skipped] = []
        self._waiting: list[Tensor] = []

    def add(self, decoded: Decoded) -> None:
        """Adds the next result of the decoder."""
        self.num_records += decoded.num_records
        self.rows += decoded.rows
        self.skipped += decoded.skipped
        self._waiting.append(decoded.images)
        self.num_waiting += len(decoded.images)

    def take(self, number: int) -> UInt8[Tensor, "B 3 h w"]:
        """Takes at most `number` of the images that wait to be encoded, in order."""
        images = torch.cat(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        self._waiting = [images[number:]]
        self.num_waiting -= len(images[:number])
        return images[:number]


class Watch:
    """Counts records of all processes: those of this one as they are done, those of others when they finish a part."""

    def __init__(self, plan: EmbedPlan, parts: PartsFolder, known: set[int], advance: Callable[[int], None]) -> None:
        """`known`: parts that are done and counted. `advance`: called with the number of new records."""
        self._plan, self._parts, self._known, self._advance = plan, parts, set(known), advance
        self._last_look = time.monotonic()

    def seen(self, num_records: int) -> None:
        """Counts `num_records` more records that this process has done."""
        if num_records:
            self._advance(num_records)
        self.look()

    def finished(self, part: int) -> None:
        """Notes a part that this process has finished. Its records have been counted already."""
        self._known.add(part)

    def look(self) -> None:
        """Counts the parts that other processes have finished. Checks at most once a second."""
        if time.monotonic() - self._last_look < SECONDS_BETWEEN_LOOKS:
            return
        new = self._parts.done() - self._known
        self._known |= new
        self._advance(sum(records_of(number, self._plan, self._parts) for number in new))
        self._last_look = time.monotonic()


def records_of(number: int, plan: EmbedPlan, parts: PartsFolder) -> int:
    """Number of records of a part that is done; 0 if the parts are gone."""
    planned = plan.parts[number].num_records
    if planned is not None:
        return planned
    try:
        return parts.note(number).num_records
    except (OSError, ValueError):  # the parts are gone: the table is finished
        return 0


class Computation:
    """Everything that one process does for a table, except putting it together."""

    def __init__(
        self,
        encoder: Encoder,
        plan: EmbedPlan,
        parts: PartsFolder,
        sources: dict[str, Source],
        batch_size: int,
        workers: int,
        watch: Watch,
    ) -> None:
        """`encoder`: already on its device. `watch`: counts every record."""
        self._encoder, self._plan, self._parts, self._sources = encoder, plan, parts, sources
        self._manifest: Manifest = plan.manifest
        self._workers, self._watch = workers, watch
        row_bytes = 4 * prod(plan.manifest.shape)
        self._batch_size = max(1, min(batch_size, LARGEST_BATCH_BYTES // row_bytes))
        self._claims: dict[int, Claim] = {}
        self._open: dict[int, _OpenPart] = {}
        self._waiting: list[tuple[_OpenPart, Moving | None, int]] = []  # None: the part is to be finished; first row
        self.num_images = 0
        """Number of images that this process has embedded."""

    def run(self) -> bool:
        """Computes parts until no free one is left. Returns False if there was none.

        Raises Refusal if features are not finite. Removes unfinished parts, also after an error.
        """
        if not self._is_any_free():
            return False
        decoder = RecordDecoder(self._sources, self._manifest.size, self._manifest.view)
        try:
            with closing(decode(self._tasks(), decoder, self._workers, self._batch_size)) as results:
                for decoded in results:
                    self._take_in(decoded)
            self._write()
        finally:
            self._let_go()
        return True

    def _is_any_free(self) -> bool:
        """True if a part is neither finished nor claimed by another process."""
        for part in self._plan.parts:
            if (claim := self._parts.claim(part)) is not None:
                claim.release()
                return True
        return False

    def _tasks(self) -> Iterator[EmbedTask]:
        """Yields the tasks of all free parts. Claims each part only when the decoder is about to need it.

        No part may be claimed before the workers start: if this process were killed, workers would keep inherited claims for
        seconds.
        """
        for part in self._plan.parts:
            if (claim := self._parts.claim(part)) is not None:
                self._claims[part.number] = claim
                yield from tasks_of(part, self._sources[part.split])

    def _take_in(self, decoded: Decoded) -> None:
        """Encodes decoded images in whole batches. At the end of a part it also encodes the rest."""
        part = self._open.get(decoded.part)
        if part is None:
            part = _OpenPart(decoded.part, self._parts.writer(self._plan.parts[decoded.part]))
            self._open[decoded.part] = part
        part.add(decoded)
        while part.num_waiting >= self._batch_size or (decoded.is_last and part.num_waiting):
            self._encode(part, part.take(self._batch_size))
        if decoded.is_last:
            self._waiting.append((part, None, 0))
        if self._encoder.device.type == "cpu":
            self._write()
        self._watch.seen(decoded.num_records)

    def _encode(self, part: _OpenPart, images: UInt8[Tensor, "B 3 h w"]) -> None:
        """Starts a batch. While the device computes it, the previous batch is written."""
        features = Moving(self._features(images))
        self._write()
        self._waiting.append((part, features, part.num_encoded))
        part.num_encoded += len(images)

    @torch.inference_mode()
    def _features(self, images: UInt8[Tensor, "B 3 h w"]) -> Shaped[Tensor, "B *shape"]:
        output = self._encoder.encode_pixels(images, self._manifest.precision)
        if self._manifest.kind == "pooled":
            return output.pooled(self._manifest.pooling).to(FEATURE_DTYPES[self._manifest.dtype])
        return output.patches.reshape(len(images), *self._manifest.shape).to(FEATURE_DTYPES[self._manifest.dtype])

    def _write(self) -> None:
        """Writes the features of all started batches, and finishes parts that are complete."""
        waiting, self._waiting = self._waiting, []
        for part, features, first in waiting:
            if features is None:
                self._finish(part)
                continue
            rows = features.arrived().numpy()
            self._check_finite(rows, part, first)
            part.writer.append(rows)
            self.num_images += len(rows)

    def _finish(self, part: _OpenPart) -> None:
        part.writer.finish(part.num_records, part.rows, part.skipped)
        self._watch.finished(part.number)
        del self._open[part.number]
        self._claims.pop(part.number).release()

    def _check_finite(self, rows: NDArray[Any], part: _OpenPart, first: int) -> None:
        """Raises Refusal if a feature is not finite. A search would find such an image for every query, or never."""
        finite = np.isfinite(rows).reshape(len(rows), -1).all(axis=1)
        if finite.all():
            return
        name = part.rows[first + int(np.argmin(finite))][2]
        fixes = []
        if self._manifest.precision == "bf16":
            fixes.append("--precision fp32")
        if self._manifest.dtype == "float16":
            fixes.append("--dtype float32")
        hint = f"try {' and '.join(fixes)}; where that does not help" if fixes else "probably"
        raise Refusal(f"features of {name} are not finite: {hint}, the weights are not finite or too large")

    def _let_go(self) -> None:
        """Removes unfinished parts and releases their claims, so that other processes can take them."""
        self._waiting = []
        for part in self._open.values():
            part.writer.abort()
        for claim in self._claims.values():
            claim.release()
        self._open, self._claims = {}, {}


def can_pack(device: torch.device, precision: str) -> bool:
    """True if `pack_encoder` makes a network on `device` that computes in `precision` faster."""
    is_fitting = device.type == "cpu" and precision == "bf16" and supports_bf16(device)
    return is_fitting and has_fused_linear()


def pack_encoder(network: VisionTransformer) -> None:
    """Makes the blocks of an encoder compute their linear layers in bf16. It cannot be trained afterwards.

    Call the packed network under autocast to bf16, without gradients.
    """
    network.eval().requires_grad_(False)
    for number, block in enumerate(network.blocks):
        network.blocks[number] = PackedBlock(block)  # type: ignore[arg-type]


class PackedLinear(nn.Module):
    """x W^T + b in bf16, summed in fp32, optionally with the exact GELU."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, gelu: bool = False) -> None:
        """Keeps a copy of the weights in bf16."""
        super().__init__()
        self.register_buffer("weight", linear.weight.detach().bfloat16())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().bfloat16())
        self._gelu = gelu

    def forward(self, x: Float[Tensor, "B S inputs"]) -> Float[Tensor, "B S outputs"]:
        """Applies the layer to every token."""
        return fused_linear(x.bfloat16(), self.weight, self.bias, self._gelu)


class PackedBlock(nn.Module):
    """A `Block` with packed layers. It adds the second branch in place, so it has no gradients."""

    def __init__(self, block: Block) -> None:
        """Takes the layers of `block`; the norms stay in fp32."""
        super().__init__()
        self._heads = block.attn.heads
        # with AMX the fused kernel takes 0.8 of the time of plain products (196 tokens, forward); without AMX it is slower
        self._fused = has_tile_products()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv, self.proj = PackedLinear(block.attn.qkv), PackedLinear(block.attn.proj)
        self.fc1, self.fc2 = PackedLinear(block.mlp.fc1, gelu=True), PackedLinear(block.mlp.fc2)
        self.gamma_1, self.gamma_2 = block.gamma_1, block.gamma_2

    def forward(self, x: Float[Tensor, "B S D"], bias: Float[Tensor, "#B #heads #S S"] | None = None) -> Float[Tensor, "B S D"]:
        """The sequences after this block. Does not change `x`, because `VisionTransformer.block_outputs` keeps it."""
        mixed = self.proj(attention(self.qkv(self.norm1(x)), self._heads, bias, fused=self._fused))
        x = x + scaled(mixed, self.gamma_1)
        x += scaled(self.fc2(self.fc1(self.norm2(x))), self.gamma_2)
        return x
