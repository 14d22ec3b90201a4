"""Features of images: computed for all subjects in one pass over the data, and kept in files of rows.

Rows are written batch by batch, continued after an interruption, and mapped if there are many. A file has the safetensors
format: 8 bytes of length, a JSON header padded to byte 4096, one index for every record of the source, then the rows. Index i
is the number of the record that row i belongs to, or -1 if there is no row i. An unreadable record has no row. While a file
grows, its name ends in `.partial`, and its header says how many rows are safely on disk. The next process continues there after
a crash. The name of a file contains a hash of everything that the features depend on.
"""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from openjepa.config import object_in
from openjepa.data.source import ListSource
from openjepa.engine import distributed
from openjepa.engine.device import Moving, encode, in_caches, resolve_precision
from openjepa.evaluation.probes.closed_sweep import CHUNK_ELEMENTS, LARGE_BYTES, is_large
from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig
from openjepa.system.console import progress
from openjepa.system.shared_files import take
from openjepa.weights.contents import weights_hash

HEADER_BYTES, NUMBER_BYTES = 4096, 8
"""Bytes of length and header together (a multiple of every item's size and of a page); bytes of one index."""
SECONDS_BETWEEN_NOTES = 10.0
"""Seconds between two flushes of the rows to disk. Frequent flushes cost time; rare ones lose more work after a crash."""
MAPPED_BYTES = 2**26
"""Files whose rows take more bytes than this are mapped; smaller ones are read into memory."""
NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}
"""Types of features and their names in safetensors."""
_AS_NUMPY = {torch.float32: np.float32, torch.bfloat16: np.int16, torch.uint8: np.uint8}


@dataclass(frozen=True)
class FeatureLayout:
    """Shape and type of a file of features."""

    num_records: int
    """Number of records of the source; the file has at most this many rows."""
    width: int
    dtype: torch.dtype

    @property
    def rows_start(self) -> int:
        """Byte at which the rows begin."""
        return HEADER_BYTES + NUMBER_BYTES * self.num_records

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.width * self.dtype.itemsize

    def header(self, num_rows: int, is_whole: bool) -> bytes:
        """Length and JSON header of a file that has `num_rows` rows safely on disk."""
        split = NUMBER_BYTES * self.num_records
        entries = {
            "__metadata__": {"whole": str(is_whole)},
            "indices": {"dtype": "I64", "shape": [self.num_records], "data_offsets": [0, split]},
            "rows": {
                "dtype": NAMES[self.dtype],
                "shape": [num_rows, self.width],
                "data_offsets": [split, split + num_rows * self.row_bytes],
            },
        }
        text, size = json.dumps(entries).encode(), HEADER_BYTES - NUMBER_BYTES
        assert len(text) <= size
        return size.to_bytes(NUMBER_BYTES, "little") + text.ljust(size)


@dataclass(frozen=True)
class FeatureRows:
    """Rows of features and the records they belong to. Unreadable records have no row."""

    rows: Shaped[Tensor, "n F"]
    indices: Int[Tensor, " n"]
    """The record number of each row, ascending."""


class RowWriter:
    """Appends rows to a file, which it locks for this process. As a context manager, it saves the row count on exit."""

    def __init__(self, path: Path, layout: FeatureLayout) -> None:
        """Opens the unfinished file of `path`, or continues it. Raises BlockingIOError if another process is writing it."""
        self.path, self._layout = path, layout
        path.parent.mkdir(parents=True, exist_ok=True)
        self.unfinished = path.with_name(f"{path.name}.partial")
        claim = take(self.unfinished)
        if claim is None:
            raise BlockingIOError(f"another process is writing {self.unfinished}")
        self._claim = claim
        self._file: BinaryIO = self.unfinished.open("r+b")
        found = _parsed(self._file)
        is_ours = found is not None and found.layout == layout
        self.num_rows = found.num_rows if found is not None and is_ours else 0
        """Rows written so far."""
        self._noted = self.num_rows
        self._file.truncate(layout.rows_start + self.num_rows * layout.row_bytes)  # rows beyond the count may be damaged
        self._indices = _numbers(self._file, layout, self.num_rows)
        if not is_ours:
            self._note(is_whole=False)
        self._file.seek(0, os.SEEK_END)
        self._last_note = time.monotonic()

    @property
    def next_record(self) -> int:
        """The number of the next record to read."""
        return int(self._indices[self.num_rows - 1]) + 1 if self.num_rows else 0

    def append(self, rows: Shaped[Tensor, "n F"], indices: Int[Tensor, " n"]) -> None:
        """Appends `rows`, which are on the CPU; `indices` are their record numbers."""
        self._file.write(rows.to(self._layout.dtype).contiguous().view(torch.uint8).numpy().data)
        self._indices[self.num_rows : self.num_rows + len(rows)] = indices.numpy()
        self.num_rows += len(rows)
        if time.monotonic() - self._last_note > SECONDS_BETWEEN_NOTES:
            self._note(is_whole=False)

    def finish(self) -> FeatureRows:
        """Gives the file its final name, which means that every record was tried, and reads it."""
        self._note(is_whole=True)
        self.unfinished.replace(self.path)
        return _read(self.path, self._layout, self.num_rows)

    def __enter__(self) -> "RowWriter":
        """The writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Saves the row count, even after an error, and closes the file."""
        if self.num_rows > self._noted and self.unfinished.exists():
            self._note(is_whole=False)
        self._file.close()
        self._claim.release()

    def _note(self, is_whole: bool) -> None:
        """Flushes rows and indices to disk, then writes the header that counts them."""
        self._file.flush()
        os.pwrite(self._file.fileno(), self._indices.tobytes(), HEADER_BYTES)
        os.fsync(self._file.fileno())
        os.pwrite(self._file.fileno(), self._layout.header(self.num_rows, is_whole), 0)
        os.fsync(self._file.fileno())
        self._noted = self.num_rows
        self._last_note = time.monotonic()


def read_rows(path: Path) -> FeatureRows | None:
    """The rows of a complete file; None if there is no such file.

    A large file is mapped, so that rows are in memory only while they are used. Never write to them.
    """
    try:
        with path.open("rb") as file:
            found = _parsed(file)
    except OSError:
        return None
    return _read(path, found.layout, found.num_rows) if found is not None and found.is_whole else None


@dataclass(frozen=True)
class _Parsed:
    """The header of a file, parsed."""

    layout: FeatureLayout
    num_rows: int
    is_whole: bool


def _parsed(file: BinaryIO) -> _Parsed | None:
    """The header of a file; None if the file is not ours or holds fewer rows than its header says."""
    try:
        text = object_in(file.read(HEADER_BYTES)[NUMBER_BYTES:].decode(), file.name)
        rows, width = text["rows"]["shape"]
        (num_records,) = text["indices"]["shape"]
        dtype = {name: dtype for dtype, name in NAMES.items()}[text["rows"]["dtype"]]
        found = _Parsed(FeatureLayout(num_records, width, dtype), rows, text["__metadata__"]["whole"] == "True")
    except (ValueError, KeyError, TypeError):
        return None
    layout = found.layout
    return found if os.fstat(file.fileno()).st_size >= layout.rows_start + rows * layout.row_bytes else None


def _numbers(file: BinaryIO, layout: FeatureLayout, num_rows: int) -> NDArray[np.int64]:
    """The record number of each row; -1 for rows that do not exist yet."""
    file.seek(HEADER_BYTES)
    known = np.frombuffer(file.read(NUMBER_BYTES * num_rows), np.int64)
    return np.concatenate([known, np.full(layout.num_records - num_rows, -1, np.int64)])


def _read(path: Path, layout: FeatureLayout, num_rows: int) -> FeatureRows:
    with path.open("rb") as file:
        indices = torch.from_numpy(_numbers(file, layout, num_rows)[:num_rows])
    return FeatureRows(_read_rows(path, layout, num_rows), indices)


def _read_rows(path: Path, layout: FeatureLayout, num_rows: int) -> Shaped[Tensor, "n F"]:
    shape, dtype, start = (num_rows, layout.width), layout.dtype, layout.rows_start
    if num_rows * layout.row_bytes <= MAPPED_BYTES:
        count = num_rows * layout.width
        return torch.from_numpy(np.fromfile(path, _AS_NUMPY[dtype], count, offset=start)).view(dtype).view(shape)
    mapped = np.memmap(path, dtype=_AS_NUMPY[dtype], mode="r", offset=start, shape=shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch has no read-only tensors, and nothing writes to features
        return torch.from_numpy(mapped).view(dtype)


# ------------------------------------------------------------------------------------------------------ from images to features


CACHE_VERSION = 4
"""Increased whenever the computation of features changes, so that older files are not found."""
PIXEL_SIDE = 32
NUM_LAYERS = 4


class ImageBatch(Protocol):
    """A batch of images in the order of the source."""

    @property
    def images(self) -> UInt8[Tensor, "B 3 h w"]: ...  # noqa: D102  (the name says it)

    @property
    def indices(self) -> Int[Tensor, " B"]: ...  # noqa: D102  (the name says it)


class Extractor(Protocol):
    """Makes one row of features from each image."""

    @property
    def fingerprint(self) -> str:
        """Identifies the features: it changes whenever they would."""

    @property
    def width(self) -> int:
        """The number F of columns."""

    def extract(self, images: UInt8[Tensor, "B 3 h w"]) -> Shaped[Tensor, "B F"]:
        """One row per image, float32 or uint8, on the extractor's device. Does not wait for the device."""

    def kept_as(self, num_rows: int, wanted: str) -> torch.dtype:
        """The type in which `num_rows` rows are stored. `wanted` is auto, fp32 or bf16."""

    def kinds(self, rows: Shaped[Tensor, "n F"]) -> dict[str, Shaped[Tensor, "n D"]]:
        """The feature matrices contained in these rows, by name. k-NN uses the first."""


class EncoderFeatures:
    """Pooled outputs of the last four layers of a frozen encoder, each after the final norm; `last` is the last layer's."""

    def __init__(self, encoder: VisionTransformer, config: EncoderConfig, device: torch.device, precision: str) -> None:
        """Moves the encoder to `device` and freezes it."""
        self.num_layers = min(NUM_LAYERS, config.depth)
        self.width = self.num_layers * config.width
        self._encoder = encoder.eval().requires_grad_(False).to(device)
        self._config = config
        self._device = device
        self._precision = resolve_precision(precision, device)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of settings, precision and weights. Takes seconds for a large encoder, so it is computed only if needed."""
        described = json.dumps([asdict(self._config), self._precision, self._device.type])
        return hashlib.sha256((described + weights_hash(self._encoder)).encode()).hexdigest()

    @torch.inference_mode()
    def extract(self, images: UInt8[Tensor, "B 3 h w"]) -> Float[Tensor, "B F"]:
        """The layers' pooled outputs side by side, the last layer last. Pools in float32 at any precision of the encoder."""
        if not len(images):  # the last share of a process may be empty
            return torch.empty(0, self.width, device=self._device)
        parts = in_caches(images, self._config.patch_size, self._device)
        return torch.cat([encode(self._pooled_layers, part, self._config, self._device, self._precision) for part in parts])

    def _pooled_layers(self, pixels: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B F"]:
        outputs = self._encoder.last_layers(pixels, self.num_layers)
        return torch.cat([output.pooled(self._config.pooling) for output in outputs], dim=1)

    def kept_as(self, num_rows: int, wanted: str) -> torch.dtype:
        """The type asked for; for `auto`, bf16 if float32 would take more than 1 GiB, else float32."""
        if wanted == "auto":
            return torch.bfloat16 if num_rows * self.width * 4 > LARGE_BYTES else torch.float32
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted]

    def kinds(self, rows: Float[Tensor, "n F"]) -> dict[str, Float[Tensor, "n D"]]:
        """`last` (last layer) and `last_four` (last four layers)."""
        return {"last": rows[:, -self._config.width :], "last_four": rows}


class PixelFeatures:
    """The evaluation view itself, resized to 32x32 RGB (antialiased bilinear)."""

    fingerprint = f"pixels {PIXEL_SIDE}"
    width = 3 * PIXEL_SIDE**2

    def extract(self, images: UInt8[Tensor, "B 3 h w"]) -> UInt8[Tensor, "B F"]:
        """The 3072 bytes of each resized image."""
        if images.shape[-2:] == (PIXEL_SIDE, PIXEL_SIDE):
            return images.flatten(1)
        size = (PIXEL_SIDE, PIXEL_SIDE)
        resized = functional.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return resized.round().clamp(0, 255).to(torch.uint8).flatten(1)

    def kept_as(self, num_rows: int, wanted: str) -> torch.dtype:
        """Always uint8."""
        return torch.uint8

    def kinds(self, rows: UInt8[Tensor, "n F"]) -> dict[str, Shaped[Tensor, "n F"]]:
        """`pixels` only, in [0, 1]. Large matrices stay uint8, because every protocol divides by its own scale."""
        return {"pixels": rows if is_large(rows) else rows.float() / 255}


@dataclass(frozen=True)
class SplitView:
    """One split of the data, in the view that every extractor gets."""

    source: ListSource
    split: str
    """train or test; used only as a name."""
    settings: Mapping[str, Any]
    """Settings that the pixels depend on: image size and fit. They are part of the hash."""
    batches: Callable[[int], Iterator[ImageBatch]] = field(repr=False)
    """Starts a pass over the readable images at the given record number. Of N processes each gets every N-th batch."""


def extract_features(
    view: SplitView, extractors: Mapping[str, Extractor], cache: Path | None, feature_dtype: str = "auto"
) -> dict[str, FeatureRows]:
    """Features of a split from every extractor. One pass computes those that are not yet in the folder `cache`.

    Large features are mapped from files, because they may not fit into memory: never write to them. The next call continues an
    interrupted pass. Unreadable images are not tried again while their files are unchanged. `feature_dtype` is fp32, bf16, or
    auto, which means bf16 if fp32 would take more than 1 GiB. If `cache` is None, the files are temporary. Raises Refusal if
    features are not finite, or if no image of the split can be read.
    """
    num = len(view.source)
    types = {name: extractor.kept_as(num, feature_dtype) for name, extractor in extractors.items()}
    where = view.source.fingerprint + json.dumps([CACHE_VERSION, dict(view.settings)], sort_keys=True)
    found: dict[str, FeatureRows] = {}
    writers: dict[str, RowWriter] = {}
    with TemporaryDirectory(prefix="openjepa-features-") as temporary, ExitStack() as stack:
        folder = Path(distributed.from_main(lambda: temporary)) if cache is None else cache
        files = {}
        for name, extractor in extractors.items():
            described = f"{where}{extractor.fingerprint}{types[name]}"
            files[name] = folder / f"{name}-{view.split}-{hashlib.sha256(described.encode()).hexdigest()[:20]}.safetensors"

        def begin() -> dict[str, int]:
            found.update({name: kept for name, path in files.items() if (kept := read_rows(path)) is not None})
            for name in (name for name in extractors if name not in found):
                layout = FeatureLayout(num, extractors[name].width, types[name])
                writers[name] = stack.enter_context(_writer(files[name], stack, layout))
            return {name: writer.next_record for name, writer in writers.items()}

        def finish() -> dict[str, Path]:
            if not all(writer.num_rows for writer in writers.values()):
                raise Refusal(f"no image of the {view.split} split can be read; see the messages above")
            found.update({name: writer.finish() for name, writer in writers.items()})
            for name in extractors:
                _check_finite(name, found[name], view)
            return files | {name: writer.path for name, writer in writers.items()}

        if starts := distributed.from_main(begin):
            _compute(view, {name: (extractors[name], types[name], start) for name, start in starts.items()}, writers)
        places = distributed.from_main(finish)
        distributed.in_all(lambda: found.update({name: _kept(places[name]) for name in places if name not in found}))
    return {name: found[name] for name in extractors}


def _kept(path: Path) -> FeatureRows:
    """The rows that the main process has written or found."""
    kept = read_rows(path)
    if kept is None:
        raise Refusal(f"{path}, which the main process has written, is not here: the folder must be the same on all machines")
    return kept


def _check_finite(name: str, features: FeatureRows, view: SplitView) -> None:
    """Raises Refusal if a feature is not finite. Such a feature would spoil the nearest neighbors and every head."""
    if not features.rows.is_floating_point():
        return
    parts = torch.split(features.rows, max(1, CHUNK_ELEMENTS // features.rows.shape[1]))
    broken = torch.cat([~part.isfinite().all(dim=1) for part in parts]).nonzero()[:, 0]
    if len(broken):
        first = view.source.name(int(features.indices[broken[0]]))
        raise Refusal(
            f"features of {len(broken):,} of {len(features.rows):,} images of the {view.split} split, of {name!r} are not "
            f"finite (the first is of {first}): try --precision fp32; where that does not help, its weights are not finite "
            "or too large"
        )


def _writer(path: Path, stack: ExitStack, layout: FeatureLayout) -> RowWriter:
    """A writer for `path`. If another process is writing that file, the writer's file is temporary instead."""
    try:
        return RowWriter(path, layout)
    except BlockingIOError:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="openjepa-features-")))
        return RowWriter(folder / path.name, layout)


def _compute(
    view: SplitView, extractors: Mapping[str, tuple[Extractor, torch.dtype, int]], writers: Mapping[str, RowWriter]
) -> None:
    """Makes one pass, starting at the first record missing from any file. Each batch is written while the next is computed.

    `extractors`: with the type of the rows and the first record that is missing. `writers`: empty but in the main process.
    """
    waiting: list[tuple[str, Moving, Tensor]] = []
    for batch in _with_progress(view, min(start for _, _, start in extractors.values())):
        started = []
        for name, (extractor, dtype, start) in extractors.items():
            is_new = batch.indices >= start
            if bool(is_new.any()):
                rows = extractor.extract(batch.images if bool(is_new.all()) else batch.images[is_new])
                started.append((name, Moving(rows.to(dtype)), batch.indices[is_new]))
        _write(waiting, writers)  # while the device computes
        waiting = started
    _write(waiting, writers)


def _write(waiting: list[tuple[str, Moving, Tensor]], writers: Mapping[str, RowWriter]) -> None:
    """Lets the main process write the rows of all processes, which are those of consecutive records in their order."""
    for part in distributed.gathered_in_main([(name, moving.arrived(), indices) for name, moving, indices in waiting]):
        for name, rows, indices in part:
            writers[name].append(rows, indices)


def _with_progress(view: SplitView, first: int) -> Iterator[ImageBatch]:
    with progress(f"features of the {view.split} split", len(view.source), first) as advance:
        for batch in view.batches(first) if first < len(view.source) else ():
            yield batch
            advance(len(batch.indices) * distributed.world_size())
