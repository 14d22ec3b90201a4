"""From images to feature matrices: all subjects in one pass over the data, cached on disk.

The name of a cache file contains a hash of everything that the features depend on.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor
from torch.nn import functional

from openjepa.data.source import ListSource
from openjepa.engine.device import Moving, encode, in_caches, resolve_precision
from openjepa.evaluation.feature_store import FeatureRows, Layout, RowWriter, read_rows
from openjepa.evaluation.probes.closed_sweep import CHUNK_ELEMENTS, LARGE_BYTES, is_large
from openjepa.models.vit import VisionTransformer
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig
from openjepa.system.console import progress
from openjepa.weights.contents import weights_hash

CACHE_VERSION = 4
"""Increased whenever the computation of features changes, so that older files are not found."""
PIXEL_SIDE = 32
NUM_LAYERS = 4


class Images(Protocol):
    """A batch of images in the order of the source."""

    @property
    def images(self) -> UInt8[Tensor, "B 3 h w"]: ...  # noqa: D102

    @property
    def indices(self) -> Int[Tensor, " B"]: ...  # noqa: D102


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
class View:
    """One split of the data, in the view that every extractor gets."""

    source: ListSource
    split: str
    """train or test; used only as a name."""
    settings: Mapping[str, Any]
    """Settings that the pixels depend on: image size and fit. They are part of the hash."""
    batches: Callable[[int], Iterator[Images]] = field(repr=False)
    """Starts a pass over the readable images at the given record number."""


def extract_features(
    view: View, extractors: Mapping[str, Extractor], cache: Path | None, feature_dtype: str = "auto"
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
    with TemporaryDirectory(prefix="openjepa-features-") as temporary:
        folder = Path(temporary) if cache is None else cache
        files = {
            name: folder / _file_name(name, view.split, f"{where}{extractor.fingerprint}{types[name]}")
            for name, extractor in extractors.items()
        }
        found = {name: kept for name, path in files.items() if (kept := read_rows(path)) is not None}
        with ExitStack() as stack:
            missing = {
                name: (extractor, stack.enter_context(_writer(files[name], stack, Layout(num, extractor.width, types[name]))))
                for name, extractor in extractors.items()
                if name not in found
            }
            computed = _compute(view, missing) if missing else {}
    features = found | computed
    for name in extractors:
        _check_finite(name, features[name], view)
    return features


def _check_finite(name: str, features: FeatureRows, view: View) -> None:
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


def _file_name(name: str, split: str, described: str) -> str:
    return f"{name}-{split}-{hashlib.sha256(described.encode()).hexdigest()[:20]}.safetensors"


def _writer(path: Path, stack: ExitStack, layout: Layout) -> RowWriter:
    """A writer for `path`. If another process is writing that file, the writer's file is temporary instead."""
    try:
        return RowWriter(path, layout)
    except BlockingIOError:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="openjepa-features-")))
        return RowWriter(folder / path.name, layout)


def _compute(view: View, extractors: Mapping[str, tuple[Extractor, RowWriter]]) -> dict[str, FeatureRows]:
    """Makes one pass, starting at the first record missing from any file. Each batch is written while the next is computed."""
    starts = {name: writer.next_record for name, (_, writer) in extractors.items()}
    waiting: list[tuple[RowWriter, Moving, Tensor]] = []
    for batch in _with_progress(view, min(starts.values())):
        started = []
        for name, (extractor, writer) in extractors.items():
            is_new = batch.indices >= starts[name]
            if bool(is_new.any()):
                rows = extractor.extract(batch.images if bool(is_new.all()) else batch.images[is_new])
                started.append((writer, Moving(rows.to(writer.dtype)), batch.indices[is_new]))
        _write(waiting)  # while the device computes
        waiting = started
    _write(waiting)
    if not all(writer.num_rows for _, writer in extractors.values()):
        raise Refusal(f"no image of the {view.split} split can be read; see the messages above")
    return {name: writer.finish() for name, (_, writer) in extractors.items()}


def _write(waiting: list[tuple[RowWriter, Moving, Tensor]]) -> None:
    for writer, moving, indices in waiting:
        writer.append(moving.arrived(), indices)


def _with_progress(view: View, first: int) -> Iterator[Images]:
    with progress(f"features of the {view.split} split", len(view.source), first) as advance:
        for batch in view.batches(first) if first < len(view.source) else ():
            yield batch
            advance(len(batch.indices))
