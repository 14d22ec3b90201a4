"""From images to feature matrices: every subject in one pass over the data, kept on disk under a hash of all that matters."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from rich.console import Console
from rich.progress import Progress
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from openjepa.data.source import ListSource
from openjepa.engine.device import autocast, resolve_precision
from openjepa.models.vit import VisionTransformer
from openjepa.settings.models import EncoderConfig
from openjepa.types import normalize
from openjepa.whole_files import whole_file

CACHE_VERSION = 2
"""Raised when the way features are made changes, so that older files are not found."""
PIXEL_SIDE = 32
NUM_LAYERS = 4
FINGERPRINT_RECORDS = 32
"""Records of a source whose bytes enter its fingerprint, beside the names of all."""


class Images(Protocol):
    """A batch of images in the order of the source."""

    @property
    def images(self) -> UInt8[Tensor, "B 3 h w"]: ...  # noqa: D102

    @property
    def indices(self) -> Int[Tensor, " B"]: ...  # noqa: D102


class Extractor(Protocol):
    """What makes one row of features of each image."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the features would."""

    def extract(self, images: UInt8[Tensor, "B 3 h w"]) -> Shaped[Tensor, "B F"]:
        """One row per image, as it is kept: on the CPU, float32 or uint8."""

    def kinds(self, rows: Shaped[Tensor, "n F"]) -> dict[str, Float[Tensor, "n D"]]:
        """The feature matrices that these rows hold; the first is the one for k-NN."""


class EncoderFeatures:
    """Pooled outputs of the last four layers of a frozen encoder, each after the final norm; `last` is the fourth of them."""

    def __init__(self, encoder: VisionTransformer, config: EncoderConfig, device: torch.device, precision: str) -> None:
        """Moves the encoder to `device` and freezes it."""
        self._encoder = encoder.eval().requires_grad_(False).to(device)
        self._config = config
        self._device = device
        self._precision = resolve_precision(precision, device)
        described = json.dumps([asdict(config), self._precision, device.type])
        self.fingerprint = hashlib.sha256((described + weights_hash(encoder)).encode()).hexdigest()

    @torch.inference_mode()
    def extract(self, images: UInt8[Tensor, "B 3 h w"]) -> Float[Tensor, "B F"]:
        """The pooled outputs side by side, the last layer last. Pooled in float32 whatever the encoder's precision."""
        pixels = normalize(images.to(self._device, non_blocking=True), self._config.pixel_mean, self._config.pixel_std)
        with autocast(self._device, self._precision):
            outputs = self._encoder.last_layers(pixels, min(NUM_LAYERS, self._config.depth))
        return torch.cat([output.pooled(self._config.pooling) for output in outputs], dim=1).cpu()

    def kinds(self, rows: Float[Tensor, "n F"]) -> dict[str, Float[Tensor, "n D"]]:
        """`last` and `last_four`."""
        return {"last": rows[:, -self._config.width :], "last_four": rows}


class PixelFeatures:
    """The evaluation view itself, resized to 32x32 RGB (antialiased bilinear)."""

    fingerprint = f"pixels {PIXEL_SIDE}"

    def extract(self, images: UInt8[Tensor, "B 3 h w"]) -> UInt8[Tensor, "B F"]:
        """3072 bytes per image."""
        if images.shape[-2:] == (PIXEL_SIDE, PIXEL_SIDE):
            return images.flatten(1).cpu()
        size = (PIXEL_SIDE, PIXEL_SIDE)
        resized = functional.interpolate(images.float(), size, mode="bilinear", antialias=True, align_corners=False)
        return resized.round().clamp(0, 255).to(torch.uint8).flatten(1).cpu()

    def kinds(self, rows: UInt8[Tensor, "n F"]) -> dict[str, Float[Tensor, "n F"]]:
        """`pixels` only, in [0, 1]."""
        return {"pixels": rows.float() / 255}


def weights_hash(network: nn.Module) -> str:
    """Hash of all weights and their names."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def source_hash(source: ListSource) -> str:
    """Hash of a source: the names of all records and the bytes of some, evenly spread."""
    digest = hashlib.sha256(str(len(source)).encode())
    for index in range(len(source)):
        digest.update(source.name(index).encode(errors="surrogateescape"))
    for index in range(0, len(source), max(1, len(source) // FINGERPRINT_RECORDS)):
        try:
            digest.update(source.read(index))
        except (OSError, ValueError):
            digest.update(b"unreadable")
    return digest.hexdigest()


@dataclass(frozen=True)
class View:
    """One split as it is shown to every extractor."""

    source: ListSource
    split: str
    """train or test; only a name."""
    settings: Mapping[str, Any]
    """What the pixels depend on: image size and fit. Part of the hash."""
    batches: Callable[[], Iterator[Images]] = field(repr=False)
    """Starts a pass over the readable images."""


@dataclass(frozen=True)
class Features:
    """Rows of features and the records they belong to; unreadable records have no row."""

    rows: Shaped[Tensor, "n F"]
    indices: Int[Tensor, " n"]


def extract_features(view: View, extractors: Mapping[str, Extractor], cache: Path | None) -> dict[str, Features]:
    """Features of a split by every extractor, in one pass for those that are not in the folder `cache` yet.

    Features that lack an image are computed but not kept: the image may be readable the next time.
    """
    where = source_hash(view.source) + json.dumps([CACHE_VERSION, dict(view.settings)], sort_keys=True)
    files = {name: _file(cache, name, view.split, where, extractor) for name, extractor in extractors.items()}
    kept = {name: features for name, path in files.items() if (features := _read(path)) is not None}
    found = {name: features for name, features in kept.items() if len(features.indices) == len(view.source)}
    missing = {name: extractor for name, extractor in extractors.items() if name not in found}
    computed = _compute(view, missing) if missing else {}
    for name, features in computed.items():
        if len(features.indices) == len(view.source):
            _write(files[name], features)
    return found | computed


def _compute(view: View, extractors: Mapping[str, Extractor]) -> dict[str, Features]:
    rows: dict[str, list[Tensor]] = {name: [] for name in extractors}
    indices: list[Tensor] = []
    for batch in _with_progress(view):
        indices.append(batch.indices)
        for name, extractor in extractors.items():
            rows[name].append(extractor.extract(batch.images))
    if not indices:
        raise ValueError(f"no image of the {view.split} split can be read; see the messages above")
    return {name: Features(torch.cat(parts), torch.cat(indices)) for name, parts in rows.items()}


def _with_progress(view: View) -> Iterator[Images]:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"features of the {view.split} split", total=len(view.source))
        for batch in view.batches():
            yield batch
            progress.advance(task, len(batch.indices))


def _file(cache: Path | None, name: str, split: str, where: str, extractor: Extractor) -> Path | None:
    if cache is None:
        return None
    digest = hashlib.sha256((where + extractor.fingerprint).encode()).hexdigest()[:20]
    return cache / f"{name}-{split}-{digest}.safetensors"


def _read(path: Path | None) -> Features | None:
    """The features in a file; None where there are none, or only a damaged file."""
    if path is None or not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as tensors:
            return Features(tensors.get_tensor("rows"), tensors.get_tensor("indices"))
    except (SafetensorError, OSError):
        return None


def _write(path: Path | None, features: Features) -> None:
    if path is None:
        return
    with whole_file(path) as file:
        save_file({"rows": features.rows.contiguous(), "indices": features.indices.contiguous()}, file)
