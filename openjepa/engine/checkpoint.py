"""Checkpoints that survive a kill at any moment: written under another name, flushed to disk, checksummed, then renamed.

A checkpoint is a folder `step_<number>`. It holds the tensors, `trainer.json` (step, position in the data, counters) and
`manifest.json` (size and BLAKE2b of every file). torch.distributed.checkpoint writes the tensors, in a single process too, so
that sharded runs need nothing else. The latest checkpoint is found by scanning. One that does not match its manifest is skipped
with a warning, and the process that trains renames it. Random numbers need no state: they are functions of seed, epoch, step
and sample.

The `.metadata` file of torch.distributed.checkpoint is a pickle: resume only from your own checkpoints. Networks for others are
safetensors and JSON, see `openjepa.weights`.
"""

import hashlib
import json
import logging
import os
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict, set_model_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from openjepa.config import read_object, readable_object, typed
from openjepa.refusals import Refusal
from openjepa.types import LoaderPosition

_CHUNK = 1 << 22
_TEMPORARY = ".writing-"
_log = logging.getLogger("openjepa")


@dataclass(frozen=True)
class RunIdentity:
    """Facts about the data on which order and schedules depend, beside the settings. Exact resume needs the same facts."""

    total_steps: int
    num_images: int | None
    """Number of training images; None for a stream of unknown length."""
    names: str | None
    """BLAKE2b of the names of all training images, in order; None for streams."""


@dataclass(frozen=True)
class TrainerState:
    """Everything that exact resume needs beside weights and optimizer."""

    step: int
    """Number of optimizer steps done."""
    position: LoaderPosition
    images_seen: int = 0
    seconds: float = 0.0
    """Time of the run so far, including looks and saving, without interruptions."""
    step_seconds: float = 0.0
    """Time of the steps alone, including their data path. 0 in checkpoints of older versions."""
    samples_skipped: int = 0
    """Number of samples that could not be read and were replaced."""
    identity: RunIdentity | None = None
    """None in checkpoints of older versions."""


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainerState, keep_every: int | None = None
) -> Path:
    """Writes `<folder>/step_<number>` atomically and returns it. Then removes old checkpoints.

    The newest two and those at multiples of `keep_every` steps are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step_{state.step:08d}"
    if final.exists():
        return final
    temporary = folder / f"{_TEMPORARY}{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    _complete_moments(optimizer)
    weights, moments = get_state_dict(model, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DCP warns that it runs in a single process, which is what we want
        save_tensors({"model": weights, "optimizer": moments}, checkpoint_id=temporary / "tensors")
    (temporary / "trainer.json").write_text(json.dumps(asdict(state), indent=1))
    _write_manifest(temporary)
    temporary.replace(final)
    _flush_folder(folder)
    _prune(folder, keep_every)
    return final


def _complete_moments(optimizer: torch.optim.Optimizer) -> None:
    """Gives parameters that never had a gradient (such as a last layer that is frozen at first) moments of zero.

    AdamW makes moments only at the first gradient, but a checkpoint is read into the moments of all parameters.
    """
    known: dict[str, torch.Tensor] = next((state for state in optimizer.state.values() if state), {})
    for value in (value for group in optimizer.param_groups for value in group["params"]):
        if not optimizer.state[value]:
            zeros = {key: torch.zeros_like(value if key != "step" else other) for key, other in known.items()}
            optimizer.state[value] = {key: zero.detach() for key, zero in zeros.items()}


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest. A warning names newer ones that are broken. Changes nothing."""
    for candidate in sorted(folder.glob("step_*"), reverse=True):
        problem = _check_manifest(candidate)
        if problem is None:
            return candidate
        _log.warning("checkpoint %s is broken (%s); falling back to the one before", candidate, problem)
    return None


def set_broken_aside(folder: Path, latest: Path | None) -> None:
    """Renames the checkpoints after `latest`, which `latest_checkpoint` has found broken, to `broken_*`.

    Only the process that holds the lock of the run may call it. Training can then write new checkpoints of these steps, and the
    broken ones are kept for inspection.
    """
    for broken in (path for path in folder.glob("step_*") if latest is None or path.name > latest.name):
        aside = folder / f"broken_{broken.name}"
        shutil.rmtree(aside, ignore_errors=True)
        broken.replace(aside)


def check_fits(path: Path, model: nn.Module) -> None:
    """Raises Refusal, naming the first difference, unless the checkpoint has the weights of `model` in the same shapes.

    Other versions of this program may build another network from the same settings. Does not read the weights themselves.
    """
    saved = FileSystemReader(path / "tensors").read_metadata().state_dict_metadata
    for name, value in model.state_dict().items():
        shape = getattr(saved.get(f"model.{name}"), "size", None)
        if shape is None or tuple(shape) != tuple(value.shape):
            there = "is missing" if shape is None else f"has the shape {list(shape)}, and the settings give {list(value.shape)}"
            raise Refusal(
                f"{path.parents[1]} cannot be continued: {name} of its checkpoint {path.name} {there}. Another version of "
                "openjepa, which built another network of these settings, has made it. Continue with that version, or pass "
                "--fresh or --run.name for a new run; its encoder can be used as it is"
            )


def load_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainerState:
    """Fills model and optimizer in place and returns the trainer's state."""
    weights, moments = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": moments}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_tensors(state, checkpoint_id=path / "tensors")
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return read_state(path)


def load_weights(path: Path, model: nn.Module) -> TrainerState:
    """Fills the model in place and returns the trainer's state. Does not read the optimizer's state.

    Raises Refusal if the checkpoint is of another network.
    """
    check_fits(path, model)
    state: dict[str, Any] = {"model": get_model_state_dict(model)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_tensors(state, checkpoint_id=path / "tensors")
    set_model_state_dict(model, state["model"])
    return read_state(path)


def read_state(path: Path) -> TrainerState:
    """The trainer's state of a checkpoint, without its tensors."""
    file = path / "trainer.json"
    mend = "delete this checkpoint, so that the one before it is used"
    return typed(TrainerState, read_object(file, mend) or {}, file, mend)


def _digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")


def _write_manifest(folder: Path) -> None:
    entries = {str(path.relative_to(folder)): [path.stat().st_size, _digest(path)] for path in _files(folder)}
    (folder / "manifest.json").write_text(json.dumps(entries, indent=1))
    for path in [*_files(folder), folder / "manifest.json"]:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            _flush_folder(path)


def _check_manifest(folder: Path) -> str | None:
    """Words for what is wrong with a checkpoint; None if it is whole."""
    entries = readable_object(folder / "manifest.json")
    if entries is None or not all(map(_is_entry, entries.values())):
        return "no readable manifest"
    for name, (size, digest) in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if _digest(path) != digest:
            return f"{name} does not match its checksum"
    return None


def _is_entry(value: object) -> bool:
    """True if a value of a manifest is a size and a checksum."""
    return isinstance(value, list) and [type(item) for item in value] == [int, str]


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _prune(folder: Path, keep_every: int | None) -> None:
    for leftover in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for path in sorted(folder.glob("step_*"))[:-2]:
        if keep_every is None or int(path.name.removeprefix("step_")) % keep_every != 0:
            shutil.rmtree(path, ignore_errors=True)
