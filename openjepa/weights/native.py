"""openjepa's own format: a folder with `config.json` and `model.safetensors`, nothing in it executable."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openjepa.models.predictor import Predictor, build_predictor
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.settings.models import EncoderConfig, PredictorConfig
from openjepa.types import Export

VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
KINDS: dict[str, type[Any]] = {"openjepa-encoder": EncoderConfig, "openjepa-predictor": PredictorConfig}
"""Value of `format` in config.json, and the settings beside it."""

NetworkType = TypeVar("NetworkType", bound=nn.Module)
ConfigType = TypeVar("ConfigType", EncoderConfig, PredictorConfig)


def save_network(folder: Path, export: Export) -> None:
    """Writes a network, in fp32, as a folder that is complete at any moment it is seen; an older one there is replaced."""
    name = next((name for name, kind in KINDS.items() if type(export.config) is kind), None)
    if name is None or not dataclasses.is_dataclass(export.config) or isinstance(export.config, type):
        raise ValueError(f"cannot save a network with {type(export.config).__name__}; known: {', '.join(KINDS)}")
    config = {"format": name, "version": VERSION, **dataclasses.asdict(export.config), **_only_new(export)}
    tensors = {key: _plain(value) for key, value in export.module.state_dict().items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    save_file(tensors, unfinished / WEIGHTS_FILE)
    (unfinished / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    _replace(folder, unfinished)


def load_encoder(folder: Path) -> tuple[VisionTransformer, EncoderConfig]:
    """The encoder in `folder`, in evaluation mode, fp32, on the CPU. Raises ValueError where there is none that can be read."""
    config, _ = _read_config(folder, EncoderConfig)
    encoder = _build(lambda: build_encoder(config))
    _load(encoder, folder)
    return encoder, config


def load_predictor(folder: Path) -> tuple[Predictor, PredictorConfig, dict[str, Any]]:
    """The predictor in `folder`, as `load_encoder` does, and whatever else its config.json says (the mask settings)."""
    config, extra = _read_config(folder, PredictorConfig)
    predictor = _build(lambda: build_predictor(config))
    _load(predictor, folder)
    return predictor, config, extra


def _only_new(export: Export) -> dict[str, object]:
    """The export's extra entries; they must not hide the config's own."""
    taken = {"format", "version", *(field.name for field in dataclasses.fields(export.config))}  # type: ignore[arg-type]
    if clash := taken & set(export.extra):
        raise ValueError(f"extra entries {sorted(clash)} of an export have names that its config already uses")
    return dict(export.extra)


def _plain(value: Tensor) -> Tensor:
    value = value.detach().cpu()
    return (value.float() if value.is_floating_point() else value).contiguous().clone()


def _replace(folder: Path, unfinished: Path) -> None:
    """Renames `unfinished` to `folder`; a folder cannot be renamed over another, so an older one steps aside first."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    unfinished.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _read_config(folder: Path, kind: type[ConfigType]) -> tuple[ConfigType, dict[str, Any]]:
    """The settings in config.json and the entries beside them."""
    path = folder / CONFIG_FILE
    expected = next(name for name, value in KINDS.items() if value is kind)
    try:
        entries = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"{folder} holds no {expected}: {path.name} cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); export the network again") from error
    found = entries.pop("format", None) if isinstance(entries, dict) else None
    if found != expected:
        raise ValueError(f"{path} says format {found!r}, but {expected!r} is needed here")
    version = entries.pop("version", None)
    if version != VERSION:
        raise ValueError(f"{path} has version {version!r}; this openjepa reads version {VERSION}: use a matching release")
    fields = {field.name for field in dataclasses.fields(kind)}
    known: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entries.items() if name in fields
    }
    try:
        config = kind(**known)
    except TypeError as error:
        raise ValueError(f"{path} lacks settings: {error}") from error
    return config, {name: value for name, value in entries.items() if name not in fields}


def _build(build: Callable[[], NetworkType]) -> NetworkType:
    """Builds a network without moving torch's random generator, whose draws are overwritten anyway."""
    with torch.random.fork_rng(devices=[]):
        return build()


def _load(network: nn.Module, folder: Path) -> None:
    """Fills the weights of `network`, all of them and nothing else, and leaves it in evaluation mode."""
    path = folder / WEIGHTS_FILE
    try:
        network.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold the weights that {CONFIG_FILE} describes: {error}") from error
    network.requires_grad_(True).eval().to(torch.float32)
