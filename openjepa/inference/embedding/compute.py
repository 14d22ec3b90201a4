"""Computes the parts that no other process has: decodes, encodes, and writes each batch while the next one is computed."""

from collections.abc import Iterator
from contextlib import closing
from math import prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor

from openjepa.engine.moving import Moving
from openjepa.inference.embedding.decoding import Decoded, Decoder, Task, decode, tasks_of
from openjepa.inference.embedding.images import Source
from openjepa.inference.embedding.parts import PartsFolder, PartWriter
from openjepa.inference.embedding.plan import Plan
from openjepa.inference.embedding.table import Manifest
from openjepa.inference.embedding.watching import Watch
from openjepa.inference.encoder import Encoder
from openjepa.refusals import Refusal
from openjepa.system.claims import Claim
from openjepa.types import Skipped

LARGEST_BATCH_BYTES = 2**28
"""Of the features of a batch in fp32, on the device and on the host."""
DTYPES = {"float16": torch.float16, "float32": torch.float32}


class _OpenPart:
    """A part that is being computed."""

    def __init__(self, number: int, writer: PartWriter) -> None:
        """Nothing of it is there yet."""
        self.number, self.writer = number, writer
        self.num_records = self.num_encoded = self.num_waiting = 0
        self.rows: list[tuple[int, int | None, str]] = []
        self.skipped: list[Skipped] = []
        self._waiting: list[Tensor] = []

    def add(self, decoded: Decoded) -> None:
        """What the decoder has given next."""
        self.num_records += decoded.num_records
        self.rows += decoded.rows
        self.skipped += decoded.skipped
        self._waiting.append(decoded.images)
        self.num_waiting += len(decoded.images)

    def take(self, number: int) -> UInt8[Tensor, "B 3 h w"]:
        """The next images that wait to be encoded, at most so many."""
        images = torch.cat(self._waiting) if len(self._waiting) > 1 else self._waiting[0]
        self._waiting = [images[number:]]
        self.num_waiting -= len(images[:number])
        return images[:number]


class Computation:
    """Everything that one process does for a table but putting it together."""

    def __init__(
        self,
        encoder: Encoder,
        plan: Plan,
        parts: PartsFolder,
        sources: dict[str, Source],
        batch_size: int,
        workers: int,
        watch: Watch,
    ) -> None:
        """`encoder`: on its device. `watch`: is told of every record."""
        self._encoder, self._plan, self._parts, self._sources = encoder, plan, parts, sources
        self._manifest: Manifest = plan.manifest
        self._workers, self._watch = workers, watch
        row_bytes = 4 * prod(plan.manifest.shape)
        self._batch_size = max(1, min(batch_size, LARGEST_BATCH_BYTES // row_bytes))
        self._claims: dict[int, Claim] = {}
        self._open: dict[int, _OpenPart] = {}
        self._waiting: list[tuple[_OpenPart, Moving | None, int]] = []  # None: the part is to be finished; first row
        self.num_images = 0
        """Images this process has embedded."""

    def run(self) -> bool:
        """Computes parts until no free one is left. Returns whether there was any.

        Raises Refusal for features that are not finite. Whatever ends it, nothing of unfinished parts stays.
        """
        if not self._is_any_free():
            return False
        decoder = Decoder(self._sources, self._manifest.size, self._manifest.view)
        try:
            with closing(decode(self._tasks(), decoder, self._workers, self._batch_size)) as results:
                for decoded in results:
                    self._take_in(decoded)
            self._write()
        finally:
            self._let_go()
        return True

    def _is_any_free(self) -> bool:
        """Whether there is a part to be computed that nobody has."""
        for part in self._plan.parts:
            if (claim := self._parts.claim(part)) is not None:
                claim.release()
                return True
        return False

    def _tasks(self) -> Iterator[Task]:
        """Claims one free part after the other, when the decoder is about to need it.

        After the workers have been started: they would keep claims that they inherit for seconds if this process were killed.
        """
        for part in self._plan.parts:
            if (claim := self._parts.claim(part)) is not None:
                self._claims[part.number] = claim
                yield from tasks_of(part, self._sources[part.split])

    def _take_in(self, decoded: Decoded) -> None:
        """Encodes whole batches of what has been decoded, and at the end of a part what is left of it."""
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
        """Starts a batch; while the device computes it, the one before is written."""
        features = Moving(self._features(images))
        self._write()
        self._waiting.append((part, features, part.num_encoded))
        part.num_encoded += len(images)

    @torch.inference_mode()
    def _features(self, images: UInt8[Tensor, "B 3 h w"]) -> Shaped[Tensor, "B *shape"]:
        output = self._encoder.encode_pixels(images, self._manifest.precision)
        if self._manifest.kind == "pooled":
            return output.pooled(self._manifest.pooling).to(DTYPES[self._manifest.dtype])
        return output.patches.reshape(len(images), *self._manifest.shape).to(DTYPES[self._manifest.dtype])

    def _write(self) -> None:
        """Brings to the disk what the device has been given."""
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
        """Raises Refusal where a feature is not finite: it would be the nearest of all, or none."""
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
        """Leaves nothing of unfinished parts, which others may take now."""
        self._waiting = []
        for part in self._open.values():
            part.writer.abort()
        for claim in self._claims.values():
            claim.release()
        self._open, self._claims = {}, {}
