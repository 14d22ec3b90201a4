"""Checkpoints that survive a kill at any moment, written beside the training and readable by any number of processes.

A checkpoint is a folder `step_<number>`. It holds the tensors, `trainer.json` (step, position in the data, counters) and
`manifest.json` (size and BLAKE2b of every file). torch.distributed.checkpoint writes the tensors, in a single process too. Each
has the name of its weight, so that a run may continue with another number of processes. Random numbers need no state: they are
functions of seed, epoch, step and sample.

How a checkpoint comes about:

1. All processes come to `CheckpointWriter.save` at the same step, and wait for the write before it. The main process makes sure
   that there is room, and makes the folder under another name.
2. Each process copies its part to the memory of the CPU: its shards, and its share of what all processes hold. The training
   goes on as soon as all have done so.
3. A thread writes the copies, flushes them to disk and makes their checksums. When all processes have, the main process writes
   the manifest, renames the folder, and removes old checkpoints.

This does what `async_save` of torch.distributed.checkpoint does, with an agreement of all processes after each part, because a
process that fails alone would leave the others waiting. It cannot wait for ever either: the threads communicate in a group of
their own, so that nothing of theirs can meet a message of the training; there is one write at a time, so that all threads do
the same in the same order; and a process that dies ends the waiting of the others with an error, as does the time limit of the
group.

The latest checkpoint is found by its name and its manifest. One that does not match its manifest is passed over with a warning
and renamed.

The `.metadata` file of torch.distributed.checkpoint is a pickle: resume only from your own checkpoints. Networks for others are
safetensors and JSON, see `openjepa.weights`.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor
from torch.futures import Future as TorchFuture

from openjepa.config import read_object, typed
from openjepa.engine import distributed
from openjepa.engine.checkpoint_files import (
    Checksum,
    begin_checkpoint,
    checksums,
    damage,
    flushed_text,
    lasting_damage,
    manifest_of,
    newest_first,
    prune,
    set_aside,
    step_folder,
    write_failed,
    write_manifest,
)
from openjepa.refusals import Refusal, RepeatedRefusal
from openjepa.system.shared_files import flush_folder
from openjepa.types import LoaderPosition

_log = logging.getLogger("openjepa")


@dataclass(frozen=True)
class RunIdentity:
    """Facts about the data on which order and schedules depend, beside the settings. Exact resume needs the same facts."""

    total_steps: int
    num_images: int | None
    """Number of training images; None for a stream of unknown length."""
    names: str | None
    """BLAKE2b of the names of all training images, in order; None for streams."""
    teacher: str | None = None
    """Hash of the weights of a teacher that stays as it is; None without one."""


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


class CheckpointWriter:
    """Writes the checkpoints of a run in a thread, while the training goes on. All processes make one and call it together.

    A context manager: leaving the block waits for the write in flight. Make it after the lock of the run folder is taken, so
    that the lock is held until then.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        keep_every: int | None = None,
        asynchronous: bool = True,
        timeout_seconds: float = distributed.TIMEOUT_SECONDS,
    ) -> None:
        """`folder`: holds the checkpoints; the newest two and those at multiples of `keep_every` steps are kept.

        `model`: its weights have the names that it gives them, so it is the bare one, not one that DDP wraps. `asynchronous`:
        False writes in `save` itself, without copies. `timeout_seconds`: how long a thread waits for the others, which may have
        larger parts to write.
        """
        self._folder, self._model, self._optimizer, self._keep_every = folder, model, optimizer, keep_every
        self._group = distributed.own_group(timeout_seconds) if asynchronous else None
        self._stager = DefaultStager(_staging(model)) if asynchronous else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    def save(self, state: TrainerState, wait: bool = False) -> Path:
        """Begins to write the checkpoint of `state` and returns its folder, which appears when the checkpoint is whole.

        The weights may change as soon as this returns. Does nothing if the folder exists. Raises Refusal, in all processes, if
        the disk has too little room or if the write before has failed. If `wait`, returns only when the checkpoint is whole.
        """
        self.finish()
        final = step_folder(self._folder, state.step)
        _complete_moments(self._optimizer)
        tensors = _own_share(_flat(*get_state_dict(self._model, self._optimizer)))
        needed = sum(distributed.gathered(sum(map(_bytes, tensors.values()))))
        temporary = distributed.from_main(lambda: self._begin(final, needed))
        if temporary is None:
            return final
        if self._stager is None:
            self._write(tensors, temporary, final, state)
        else:
            with _removed_after_error(temporary):
                staged = distributed.in_all(lambda: self._staged(tensors))
            self._writing = self._thread.submit(self._write, staged, temporary, final, state)
        if wait:
            self.finish()
        return final

    def has_failed(self) -> bool:
        """True if the write in flight has failed. `save` and `finish` raise its error. Does not wait or communicate."""
        return self._writing is not None and self._writing.done() and self._writing.exception() is not None

    def finish(self) -> None:
        """Waits until the checkpoint in flight is whole. Raises Refusal, in all processes, if it could not be written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> "CheckpointWriter":
        """Returns the writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Waits for the write in flight. If the block has failed, an error of the write is only a warning."""
        try:
            self.finish()
        except Exception as failure:
            if error is None:
                raise
            _log.warning("the last checkpoint was not finished: %s", failure)
        finally:
            self._thread.shutdown()
            if self._stager is not None:
                self._stager.close()

    def _begin(self, final: Path, needed: int) -> Path | None:
        if final.exists():
            return None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            return begin_checkpoint(final, needed)
        except OSError as error:
            raise write_failed(final, error) from error

    def _staged(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """A copy of `tensors` in the memory of the CPU, in the same place at every save."""
        assert self._stager is not None
        staged = self._stager.stage(tensors)
        assert isinstance(staged, dict)  # only a stager with a thread of its own returns a promise
        return staged

    def _write(self, tensors: dict[str, Any], temporary: Path, final: Path, state: TrainerState) -> None:
        """Writes the parts of all processes and makes them the checkpoint `final`. Called in the thread of each process."""
        with _removed_after_error(temporary):
            own = distributed.in_all(lambda: self._write_own(tensors, temporary, final), self._group)
            parts = distributed.gathered(own, self._group)
            distributed.from_main(lambda: self._commit(parts, temporary, final, state), self._group)

    def _write_own(self, tensors: dict[str, Any], temporary: Path, final: Path) -> dict[str, Checksum]:
        """Writes the part of this process and flushes it to disk. Returns the checksums of its files."""
        # not in a block that restores the filters, which other threads may have changed in between
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")  # a single process
        # nothing is copied ahead: the copies are made, and that code would use the first GPU in every process's thread
        place = _PlainWriter(temporary / "tensors", per_thread_copy_ahead=0)
        try:
            save_tensors(tensors, storage_writer=place, process_group=self._group)
        except CheckpointException as errors:  # in all processes, if one fails
            number, (error, _) = min(errors.failures.items())
            words = RuntimeError(f"process {number} could not write {final}: {error!r}")
            failure = write_failed(final, error) if isinstance(error, OSError) else words
            raise (failure if distributed.is_main() else RepeatedRefusal(str(failure))) from errors
        return checksums(temporary, sorted((temporary / "tensors").glob(f"__{distributed.rank()}_*")))

    def _commit(self, parts: list[dict[str, Checksum]], temporary: Path, final: Path, state: TrainerState) -> None:
        try:
            flushed_text(temporary / "trainer.json", json.dumps(asdict(state), indent=1))
            write_manifest(temporary, {name: checksum for part in parts for name, checksum in part.items()})
            temporary.replace(final)
            flush_folder(final.parent)
        except OSError as error:
            raise write_failed(final, error) from error
        prune(self._folder, self._keep_every)


class _PlainWriter(FileSystemWriter):
    """Writes tensors, and raises the error of the disk itself, which torch hides behind one of its file format."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> TorchFuture[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from None


@contextmanager
def _removed_after_error(folder: Path) -> Iterator[None]:
    """Removes an unfinished checkpoint if the block fails, as it does in all processes. The main process does it."""
    try:
        yield
    except BaseException:
        if distributed.is_main():
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _staging(model: nn.Module) -> StagingOptions:
    """How tensors are copied before they are written: from a GPU into pinned memory, without waiting for each."""
    on_gpu = any(value.is_cuda for value in model.parameters())
    return StagingOptions(
        use_pinned_memory=on_gpu, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=on_gpu
    )


def _flat(weights: Mapping[str, Any], moments: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a checkpoint holds of model and optimizer, by its name there."""
    values = {f"model.{name}": value for name, value in weights.items()}
    for name, entries in moments["state"].items():
        values |= {f"optimizer.state.{name}.{key}": value for key, value in entries.items()}
    return values | {"optimizer.param_groups": moments["param_groups"]}


def _own_share(values: dict[str, Any]) -> dict[str, Any]:
    """What this process writes: its part of every sharded tensor, and every n-th of the others, which n processes all hold."""
    sharded = {name: value for name, value in values.items() if isinstance(value, DTensor)}
    largest_first = sorted(values.keys() - sharded.keys(), key=lambda name: (-_bytes(values[name]), name))
    return sharded | {name: values[name] for name in largest_first[distributed.rank() :: distributed.world_size()]}


def _bytes(value: object) -> int:
    """The bytes of a tensor that this process holds; 0 for anything else."""
    if isinstance(value, DTensor):
        value = value.to_local()
    return value.nbytes if isinstance(value, Tensor) else 0


def _complete_moments(optimizer: torch.optim.Optimizer) -> None:
    """Gives parameters that never had a gradient (such as a last layer that is frozen at first) moments of zero.

    AdamW makes moments only at the first gradient, but a checkpoint is read into the moments of all parameters.
    """
    known: dict[str | None, dict[str, torch.Tensor]] = {}
    members = [(group.get("moved_by"), value) for group in optimizer.param_groups for value in group["params"]]
    for kind, value in members:
        if optimizer.state[value]:
            known.setdefault(kind, optimizer.state[value])
    for kind, value in members:
        if not optimizer.state[value]:
            zeros = {key: torch.zeros_like(value if key != "step" else other) for key, other in known.get(kind, {}).items()}
            optimizer.state[value] = {key: zero.detach() for key, zero in zeros.items()}


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest. A warning names newer ones that are broken. Changes nothing.

    All processes call it together: each reads a share of the files, and all get the same answer.
    """
    for candidate in distributed.from_main(lambda: newest_first(folder)):
        problem = _problem(candidate)
        if problem is None:
            return candidate
        if distributed.is_main():
            _log.warning("checkpoint %s is broken (%s); falling back to the one before", candidate, problem)
    return None


def _problem(folder: Path) -> str | None:
    """Words for what is wrong with a checkpoint; None if it is whole."""
    files = distributed.from_main(lambda: manifest_of(folder))
    if files is None:
        return "no readable manifest"
    largest_first = sorted(files, key=lambda name: (-files[name][0], name))
    found = distributed.divided_work([partial(damage, folder / name, files[name]) for name in largest_first])
    # another machine may have written a file that this process sees, and another one does not yet
    suspects = {name: files[name] for name, words in zip(largest_first, found, strict=True) if words is not None}
    return (
        distributed.from_main(lambda: lasting_damage(folder, suspects, wait=distributed.world_size() > 1)) if suspects else None
    )


def set_broken_aside(folder: Path, latest: Path | None) -> None:
    """Renames the checkpoints after `latest`, which `latest_checkpoint` has found broken, to `broken_*`.

    The main process does it, and must hold the lock of the run. Training can then write new checkpoints of these steps, and the
    broken ones are kept for inspection.
    """
    distributed.from_main(lambda: set_aside(folder, latest))


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


def whole_state(module: nn.Module) -> dict[str, Any]:
    """The weights of a network, whole even if it is divided over the processes: on the CPU, and only in the main process.

    All processes call it together; the others get an empty dictionary. A single process gets the weights themselves.
    """
    if not distributed.is_active():
        return module.state_dict()
    return get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def read_state(path: Path) -> TrainerState:
    """The trainer's state of a checkpoint, without its tensors."""
    file = path / "trainer.json"
    mend = "delete this checkpoint, so that the one before it is used"
    return typed(TrainerState, read_object(file, mend) or {}, file, mend)
