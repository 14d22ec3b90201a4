"""The subject of an evaluation: a run folder, or an encoder in any readable format; and the encoders it is compared with.

It is compared with an untrained encoder and, if the run started from weights, with the encoder at the start.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from openjepa.config import load_run_config, readable_object
from openjepa.engine.device import seed_generator
from openjepa.evaluation.tasks import data_name
from openjepa.models.vit import VisionTransformer, build_encoder
from openjepa.refusals import Refusal
from openjepa.seeds import derive
from openjepa.settings.evaluation import EvaluationSettings
from openjepa.settings.models import EncoderConfig
from openjepa.settings.sources import DataSettings
from openjepa.system.console import absent, hub_name, say
from openjepa.weights.formats import WeightsChoice, load_any
from openjepa.weights.native import load_encoder

ELSEWHERE = Path("evaluations")
"""Folder below the working directory for results of encoders in places where nothing can be written."""


@dataclass(frozen=True)
class Subject:
    """A run's encoder, or an encoder alone, with all that its evaluation needs."""

    output: Path
    """Folder that holds eval/: the run's, or that of `_output` if the encoder belongs to no run."""
    kind: str
    """run or encoder."""
    encoder_path: Path
    """Path of the encoder: a folder, a file, or a name on the Hub."""
    initial_folder: Path | None
    """Folder of the untrained encoder, if the run started from random weights and kept them."""
    predictor_folder: Path | None
    """Folder of the predictor, if there is one."""
    data: DataSettings | None
    """The images to evaluate on; None for an encoder without a run if no images were named."""
    seed: int
    """Seed of the run, which decides the data's split and subset."""
    encoder_name: str
    """Part of the results' file names; empty for the run's own encoder."""
    names: tuple[str, ...]
    """Parts of the results' file names for encoder and data; empty for the run's own."""
    masks_mode: str | None = None
    step: int | None = None
    """The run's step at which the encoder was exported."""
    which: Literal["target", "context"] = "target"
    """The encoder that is evaluated if a file holds both."""
    start_folder: Path | None = None
    """Folder of the encoder before training, if the run started from weights (`run.init`) and kept it."""


def find_subject(path: Path, settings: EvaluationSettings, data: DataSettings | None) -> Subject:
    """Finds out whether `path` is a run, an encoder folder, a file of weights or a name on the Hub, and which data it has.

    Raises Refusal if it can be none of these.
    """
    if (path / "config.yaml").is_file():
        run = load_run_config(path)
        folder = path / ("encoder" if settings.encoder == "target" else "context_encoder")
        if not folder.is_dir():
            hint = (
                "finish or stop the training first"
                if settings.encoder == "target"
                else "train with method.export_context_encoder"
            )
            raise Refusal(f"encoder={settings.encoder!r}: the run {path} has no folder {folder.name}; {hint}")
        used = data or run.data
        name: str = "" if settings.encoder == "target" else settings.encoder
        mode, step = _note(path / "predictor", "mask_mode"), _note(folder, "step")
        names = (name, data_name(run.data, used))
        initial, predictor = _existing(path / "encoder_initial"), _existing(path / "predictor")
        start, initial = (None, initial) if run.run.init is None else (initial, None)
        return Subject(path, "run", folder, initial, predictor, used, run.run.seed, name, names, mode, step, start_folder=start)
    name_on_hub = hub_name(path)
    if not path.exists() and name_on_hub is None:
        raise Refusal(f"{path} {absent(path)}; name a run folder, an encoder folder or a file of weights")
    if not ((path / "config.json").is_file() or path.is_file() or name_on_hub is not None):
        raise Refusal(
            f"{path} is neither a run folder (config.yaml) nor an encoder folder (config.json, model.safetensors) "
            "nor a file of weights"
        )
    inside = path.is_dir() and (path.resolve().parent / "config.yaml").is_file()
    output, name = (path.resolve().parent, path.resolve().name) if inside else (_output(path), "")
    # the run's seed, so that the images it was trained on are not in the test split
    seed = load_run_config(path.resolve().parent).run.seed if inside else settings.seed
    name = "-".join(part for part in (name, settings.encoder if settings.encoder == "context" else "") if part)
    names = (name, data_name(None, data) if data is not None else "")
    return Subject(
        output, "encoder", path, None, None, data, seed, name, names, step=_note(path, "step"), which=settings.encoder
    )


def load_subject(subject: Subject, heads: int | None) -> tuple[VisionTransformer, EncoderConfig]:
    """Loads the encoder. Prints what was found if it is not in openjepa's own format. Raises Refusal if it cannot be read."""
    loaded = load_any(subject.encoder_path, WeightsChoice(encoder=subject.which, heads=heads, predictor=False))
    if not loaded.is_own:
        say(f"{subject.encoder_path}: {loaded.what}; results in {subject.output / 'eval'}")
    for note in loaded.notes:
        say(f"note: {note}")
    return loaded.encoder, loaded.config


def baselines(subject: Subject, config: EncoderConfig, seed: int, is_first: bool = True) -> dict[str, VisionTransformer]:
    """The encoders to compare with: `start`, if the run started from weights, then `untrained`."""
    start = {} if subject.start_folder is None else {"start": load_encoder(subject.start_folder)[0]}
    return {**start, "untrained": untrained(subject, config, seed, is_first)}


def untrained(subject: Subject, config: EncoderConfig, seed: int, is_first: bool = True) -> VisionTransformer:
    """An encoder of the same shape with random weights. For the first seed it is the run's own, if the run kept it."""
    if subject.initial_folder is not None and is_first:
        return load_encoder(subject.initial_folder)[0]
    with torch.random.fork_rng(devices=[]):
        seed_generator(torch.device("cpu"), derive("weights", seed))  # not a GPU's generator
        return build_encoder(config)


def _output(path: Path) -> Path:
    """The folder for the results of an encoder that belongs to no run.

    It is the encoder's own folder, or X.results beside its file X. If that place is the Hub's cache or not writable, it is
    evaluations/<name> below the working directory.
    """
    place = path if path.is_dir() else path.parent
    cached = next((part for part in path.absolute().parts if part.startswith("models--")), None)
    if path.exists() and cached is None and os.access(place, os.W_OK):
        return path if path.is_dir() else path.with_name(f"{path.name}.results")
    if path.exists():
        return ELSEWHERE / (cached.removeprefix("models--") if cached else path.resolve().name)
    return ELSEWHERE / (hub_name(path) or str(path)).replace("/", "--")


def _existing(folder: Path) -> Path | None:
    return folder if folder.is_dir() else None


def _note(network: Path, name: str) -> Any:
    """The entry `name` in the config.json of an exported network; None if there is none."""
    return (readable_object(network / "config.json") or {}).get(name)
