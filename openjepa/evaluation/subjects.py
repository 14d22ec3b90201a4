"""What is evaluated: a run folder or the folder of an encoder, and the untrained encoder it is compared with."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from openjepa.config import load_run_config
from openjepa.evaluation.variants import data_name
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.seeds import derive
from openjepa.settings.data import DataSettings
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.weights.native import load_encoder


@dataclass(frozen=True)
class Subject:
    """What is evaluated."""

    output: Path
    """Folder that holds eval/: the run's, or the encoder's own where it lies in no run."""
    kind: str
    """run or encoder."""
    encoder_folder: Path
    initial_folder: Path | None
    """The untrained encoder, where the run has kept it."""
    predictor_folder: Path | None
    """The predictor, where there is one."""
    data: DataSettings | None
    """The images to evaluate on; None for an encoder without a run whose images nobody named."""
    seed: int
    """Of the run: the data's split and subset depend on it."""
    encoder_name: str
    """Of the encoder, where it is not the run's own: part of the results' file names."""
    names: tuple[str, ...]
    """Of encoder and data, where they are not the run's own."""
    masks_mode: str | None = None
    step: int | None = None
    """Step of the run after which the encoder was exported."""


def find_subject(path: Path, settings: EvaluationSettings, data: DataSettings | None) -> Subject:
    """Whether `path` is a run or an encoder folder, and which data goes with it."""
    if (path / "config.yaml").is_file():
        run = load_run_config(path)
        folder = path / ("encoder" if settings.encoder == "target" else "context_encoder")
        if not folder.is_dir():
            hint = (
                "finish or stop the training first"
                if settings.encoder == "target"
                else "train with method.export_context_encoder"
            )
            raise ValueError(f"encoder={settings.encoder!r}: the run {path} has no folder {folder.name}; {hint}")
        used = data or run.data
        name: str = "" if settings.encoder == "target" else settings.encoder
        mode, step = _note(path / "predictor", "mask_mode"), _note(folder, "step")
        names = (name, data_name(run.data, used))
        initial, predictor = _existing(path / "encoder_initial"), _existing(path / "predictor")
        return Subject(path, "run", folder, initial, predictor, used, run.run.seed, name, names, mode, step)
    if not (path / "config.json").is_file():
        raise ValueError(f"{path} is neither a run folder (config.yaml) nor an encoder folder (config.json, model.safetensors)")
    inside = (path.resolve().parent / "config.yaml").is_file()
    output, name = (path.resolve().parent, path.resolve().name) if inside else (path, "")
    names = (name, data_name(None, data) if data is not None else "")
    return Subject(output, "encoder", path, None, None, data, settings.seed, name, names, step=_note(path, "step"))


def untrained(subject: Subject, config: EncoderConfig, seed: int, is_first: bool = True) -> VisionTransformer:
    """The encoder as it was before training, or an equal one with other random weights.

    The run's own is used for the first of several seeds.
    """
    if subject.initial_folder is not None and is_first:
        return load_encoder(subject.initial_folder)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive("weights", seed))
        return build_encoder(config)


def _existing(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def _note(network: Path, name: str) -> Any:
    """What the config.json of an exported network says beside its settings; None where it does not."""
    try:
        return json.loads((network / "config.json").read_text()).get(name)
    except (OSError, ValueError):
        return None
