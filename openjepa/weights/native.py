"""openjepa's own format: a folder with `config.json` and `model.safetensors`. Nothing in it is executable.

A folder that openjepa wrote in another program's format may also hold `predictor/`, which is in this format.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import Tensor, nn

from openjepa.config import read_object, typed
from openjepa.models.predictor import Predictor, build_predictor
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.refusals import Refusal
from openjepa.settings.models import EncoderConfig, PredictorConfig, check_encoder, check_predictor
from openjepa.system.shared_files import whole_folder
from openjepa.types import Export
from openjepa.weights.contents import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    Contents,
    FillPlan,
    fill_network,
    open_contents,
    same_names,
    weight_names,
)
from openjepa.weights.formats import Loaded, Networks, Reader, WeightsChoice, WrongChoice, refuse_context, size_words, stored
from openjepa.weights.state_dicts import Network

VERSION = 1
KINDS: dict[str, type[Any]] = {"openjepa-encoder": EncoderConfig, "openjepa-predictor": PredictorConfig}
"""The values of `format` in config.json, and the settings that belong to each."""

ENCODER_FOLDERS = {"target": "encoder", "context": "context_encoder"}
"""Names of the encoders' folders in a run folder."""
PREDICTOR_FOLDER = "predictor"
"""Name of the predictor's folder, in a run folder or inside the folder of an encoder."""

EXPORT = "export the network again"
"""Advice for a damaged folder."""

NetworkType = TypeVar("NetworkType", bound=nn.Module)
ConfigType = TypeVar("ConfigType", EncoderConfig, PredictorConfig)


def save_network(folder: Path, export: Export, alone: bool = False, weights: Mapping[str, Tensor] | None = None) -> None:
    """Writes a network to `folder` in fp32. The folder is replaced atomically, so that readers always see a complete one.

    `alone` has the same meaning as for `whole_folder`. `weights`: the network's weights, if the module itself may hold only a
    part of them (`engine.checkpoint.whole_state`).
    """
    config = _config_entries(export)
    with whole_folder(folder, alone) as unfinished:
        _write_files(unfinished, config, export.module.state_dict() if weights is None else weights, "float32")


def write(folder: Path, networks: Networks, dtype: str) -> list[str]:
    """Writes the encoder into an existing folder, and the predictor into `predictor/` inside it. Returns remarks."""
    encoder = Export(networks.config, networks.encoder, _training(networks.training))
    _write_files(folder, _config_entries(encoder), networks.encoder.state_dict(), dtype)
    write_predictor(folder, networks, dtype)
    return []


def write_predictor(folder: Path, networks: Networks, dtype: str) -> None:
    """Writes the predictor, if there is one, to `predictor/` inside the folder of an encoder in any format."""
    if networks.predictor is None:
        return
    place = folder / PREDICTOR_FOLDER
    place.mkdir()
    export = Export(networks.predictor_config, networks.predictor, networks.predictor_extra)
    _write_files(place, _config_entries(export), networks.predictor.state_dict(), dtype)


def read_predictor(folder: Path, choice: WeightsChoice) -> tuple[Predictor | None, PredictorConfig | None, dict[str, Any]]:
    """The predictor in `predictor/` of a folder, its settings, and the entries beside them.

    Predictor and settings are None if the folder has no predictor or `choice` does not want it.
    """
    if not choice.predictor or not (folder / PREDICTOR_FOLDER).is_dir():
        return None, None, {}
    return load_predictor(folder / PREDICTOR_FOLDER)


def _config_entries(export: Export) -> dict[str, Any]:
    """The entries of config.json."""
    name = next((name for name, kind in KINDS.items() if type(export.config) is kind), None)
    if name is None or not dataclasses.is_dataclass(export.config) or isinstance(export.config, type):
        raise Refusal(f"cannot save a network with {type(export.config).__name__}; known: {', '.join(KINDS)}")
    return {"format": name, "version": VERSION, **dataclasses.asdict(export.config), **_only_new(export)}


def _write_files(folder: Path, config: dict[str, Any], weights: Mapping[str, Tensor], dtype: str) -> None:
    save_file(stored(weights, dtype), folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def _training(entries: Mapping[str, Any]) -> dict[str, Any]:
    """What a config.json says of the training: the step, and the role of an encoder that is no target encoder."""
    return {name: entries[name] for name in ("step", "role") if name in entries}


def load_encoder(folder: Path) -> tuple[VisionTransformer, EncoderConfig]:
    """The encoder in `folder`, in evaluation mode, in fp32, on the CPU. Raises Refusal if it cannot be read."""
    encoder, config, _ = _read_encoder(folder)
    return encoder, config


def _read_encoder(folder: Path) -> tuple[VisionTransformer, EncoderConfig, tuple[str, ...]]:
    """The same as `load_encoder`, with the notes on prefixes removed from names."""
    config, _ = _read_config(folder, EncoderConfig)
    encoder, notes = _load(lambda: build_encoder(config), folder)
    return encoder, config, notes


def load_predictor(folder: Path) -> tuple[Predictor, PredictorConfig, dict[str, Any]]:
    """The predictor in `folder`, in evaluation mode, in fp32, on the CPU; its settings; and other entries of its config.json.

    The other entries hold the mask settings. Raises Refusal if it cannot be read.
    """
    config, extra = _read_config(folder, PredictorConfig)
    return _load(lambda: build_predictor(config), folder)[0], config, extra


def recognize(contents: Contents) -> bool:
    """True for a run folder with an encoder, or an encoder folder."""
    if contents.settings is None:
        return (contents.path / "encoder" / CONFIG_FILE).is_file()
    return str(contents.settings.get("format", "")).startswith("openjepa-")


def read(contents: Contents, choice: WeightsChoice) -> Loaded:
    """Reads the encoder of a run (with its predictor) or of an encoder folder. Raises Refusal if it cannot be read."""
    if contents.settings is not None:
        refuse_context(contents, choice)
        encoder, config, notes = _read_encoder(contents.path)
        predictor, predictor_config, extra = read_predictor(contents.path, choice)
        words = f"openjepa's encoder: {size_words(config)}"
        training = _training(contents.settings)
        return Loaded(
            encoder,
            config,
            predictor,
            predictor_config,
            words,
            predictor_extra=extra,
            training=training,
            notes=notes,
            is_own=True,
        )
    folder = contents.path / ENCODER_FOLDERS[choice.encoder]
    if not folder.is_dir():
        hint = "train with method.export_context_encoder"
        raise WrongChoice(f"encoder={choice.encoder!r}: the run {contents.path} has no folder {folder.name}; {hint}", "encoder")
    encoder, config, notes = _read_encoder(folder)
    predictor, predictor_config, extra = read_predictor(contents.path, choice)
    training = _training(read_object(folder / CONFIG_FILE, EXPORT) or {})
    words = f"openjepa's run, {training.get('role', choice.encoder)} encoder: {size_words(config)}"
    there = tuple(name for name, item in ENCODER_FOLDERS.items() if (contents.path / item).is_dir())
    return Loaded(encoder, config, predictor, predictor_config, words, there, extra, training, notes, is_own=True)


def _only_new(export: Export) -> dict[str, object]:
    """The export's extra entries, none of which may replace an entry of the config."""
    taken = {"format", "version", *(field.name for field in dataclasses.fields(export.config))}  # type: ignore[arg-type]
    if clash := taken & set(export.extra):
        raise Refusal(f"extra entries {sorted(clash)} of an export have names that its config already uses")
    return dict(export.extra)


def _read_config(folder: Path, kind: type[ConfigType]) -> tuple[ConfigType, dict[str, Any]]:
    """The settings in config.json, and the entries beside them."""
    path = folder / CONFIG_FILE
    expected = next(name for name, value in KINDS.items() if value is kind)
    entries = read_object(path, EXPORT)
    if entries is None:
        raise Refusal(f"{folder} holds no {expected}: {path.name} cannot be read (there is no such file)")
    found = entries.pop("format", None)
    if found != expected:
        raise Refusal(f"{path} says format {found!r}, but {expected!r} is needed here")
    version = entries.pop("version", None)
    if version != VERSION:
        raise Refusal(f"{path} has version {version!r}; this openjepa reads version {VERSION}: use a matching release")
    config = typed(kind, entries, path, EXPORT)
    try:
        check_encoder(config) if isinstance(config, EncoderConfig) else check_predictor(config)
    except Refusal as error:
        raise Refusal(f"{path} is damaged: {error}; {EXPORT}") from error
    fields = {field.name for field in dataclasses.fields(kind)}
    return config, {name: value for name, value in entries.items() if name not in fields}


def _load(build: Callable[[], NetworkType], folder: Path) -> tuple[NetworkType, tuple[str, ...]]:
    """The network filled with exactly the weights of `folder`, in evaluation mode, and notes on their names."""
    path = folder / WEIGHTS_FILE
    where = f"{path} does not hold the weights that {CONFIG_FILE} describes"
    if not path.is_file():
        raise Refusal(f"{where}: it is not there; export the network again")
    contents = open_contents(folder)

    def network(networks: Callable[[], Mapping[str, Network]]) -> Network:
        try:
            return networks().get("", Network({}))
        except Refusal as error:
            raise Refusal(f"{where}: {error}") from error

    notes = network(lambda: contents.networks).notes()
    return fill_network(
        build, FillPlan(same_names(weight_names(build))), lambda: network(contents.mapped).tensors, where
    ), notes


READER = Reader(recognize, read)
