"""The processes of one run: how they join, their numbers, and sums, means and decisions over all of them.

A launcher such as torchrun starts the processes. Every function also works in a single process, where it communicates nothing.
A function that communicates must be called by all processes in the same order, or all of them wait for ever. A thread beside
the training therefore communicates in a `group` of its own.
"""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

import openjepa
from openjepa.refusals import Lost, Refusal, RepeatedRefusal
from openjepa.system.machine import RENDEZVOUS, launched

Result = TypeVar("Result")

TIMEOUT_SECONDS = 1800.0
"""Default time limit of a collective. Thrice the time after which one process starts data workers again that hang."""
MEETING_SECONDS = 600.0
"""Longest wait for the others in the first meeting, in which nobody works yet."""
BUCKET_NUMBERS = 2**24
"""Numbers that are added up in one message."""
PATIENT_SECONDS = 86_400.0
"""Time limit where others wait for hours, e.g. for a probe. Only a process that hangs, not one that ends, is noticed late."""

_launch: Store | None = None
"""What all processes can read, even if one of them hangs, and after torchrun has started all of them again."""
_store: Store | None = None
"""The part of it that belongs to this start of the processes."""
_doing = "the meeting of the processes"
_groups: list[dist.ProcessGroup | None] = []
"""Every process group, kept until this process ends. A group joins its thread as it ends. That thread may need Python's lock,
which DDP's reducer holds as it ends: if the reducer were the last to hold the group, it would wait for ever."""


def doing(what: str) -> None:
    """Notes what this process does next, for the error if the other processes do not come: `the gradients of step 12`."""
    global _doing
    _doing = what


def once(name: str, make: Callable[[], str]) -> str:
    """What `make` returns, or returned before torchrun started the processes again after a failure (`--max-restarts`).

    Only the main process calls it.
    """
    launch = _launch
    if launch is None and "TORCHELASTIC_RUN_ID" in os.environ:  # a single process, which has not met any other
        launch = next(rendezvous("env://"))[0]
    if launch is None:
        return make()
    if not launch.check([name]):
        launch.set(name, make())
    return launch.get(name).decode()


def is_active() -> bool:
    """True if a process group is running."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process; 0 in a single process."""
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    """Number of processes that have joined; 1 in a single process."""
    return dist.get_world_size() if is_active() else 1


def is_main() -> bool:
    """True if this process is the one that writes files and prints."""
    return rank() == 0


# ---------------------------------------------------------------------------------------------------- joining and leaving


@contextmanager
def joined(
    device: torch.device | str, timeout_seconds: float = TIMEOUT_SECONDS, orderly: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Joins the processes that the launcher has started, for the block. Only the main process prints in it.

    Does nothing without a launcher or if the processes have joined already. `timeout_seconds`: how long one process waits for
    the others in every collective. In the first meeting it waits at most MEETING_SECONDS. Raises Refusal if the others cannot
    be found, or if they run other versions of Python, torch or openjepa. If several processes raise Refusal in the block, only
    the first of them tells it: the others raise RepeatedRefusal. `orderly`: errors that all processes raise together.
    """
    if launched() == 1 or is_active():
        yield
        return
    ended: Exception | None = None
    _join(torch.device(device), timeout_seconds)
    with contextlib.ExitStack() as block:
        if not is_main():
            block.enter_context(contextlib.redirect_stdout(block.enter_context(open(os.devnull, "w"))))  # noqa: PTH123  (no path)
        block.enter_context(_told_once())
        block.enter_context(explain_lost(timeout_seconds))
        _check_versions()
        try:
            yield
        except orderly as error:
            ended = error
        # not after another error: the others may be gone already, and leaving waits for them
        dist.barrier()
    dist.destroy_process_group()
    if ended is not None:
        raise ended


def _join(device: torch.device, timeout_seconds: float) -> None:
    missing = [name for name in RENDEZVOUS if name not in os.environ]
    if missing:
        raise Refusal(
            f"WORLD_SIZE={launched()} says that there are several processes, but {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not set: start them with `torchrun --nproc-per-node N -m openjepa ...`, "
            "or unset WORLD_SIZE"
        )
    if device.type not in ("cpu", "cuda"):
        raise Refusal(f"{launched()} processes cannot train on {device}: several processes need run.device=cuda or cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
        os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")  # a hang leaves a file that names each process's collectives
    global _launch, _store
    meeting_seconds = min(timeout_seconds, MEETING_SECONDS)
    try:
        _launch, number, processes = next(rendezvous("env://", timeout=timedelta(seconds=meeting_seconds)))
        _store = _of_this_start(_launch, number, processes, meeting_seconds)
        dist.init_process_group(
            backend="gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",  # flags and objects are on the CPU
            timeout=timedelta(seconds=timeout_seconds),
            store=_store,
            rank=number,
            world_size=processes,
            device_id=device if device.type == "cuda" else None,
        )
        _groups.append(dist.group.WORLD)
    except (dist.DistError, TimeoutError) as error:
        here = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise Refusal(
            f"process {os.environ['RANK']} of {launched()} did not find the others at {here} within {meeting_seconds:g} s: "
            f"are all of them started, and is the port open between the machines? ({error})"
        ) from error


def _of_this_start(launch: Store, number: int, processes: int, seconds: float) -> Store:
    """`launch` without what earlier starts of the same processes have left there: torchrun keeps it when it starts them again.

    Without this, a process could read the address of a dead one. torchrun's own count of restarts does not tell starts apart,
    because every node counts only its own failures. So the main process counts its starts and tells the others, each of which
    asks under a number that no process has used before.
    """
    if number > 0:
        asking = launch.add("asked", 1)
        start = launch.get(f"answer {asking}").decode()
        launch.add(f"came to {start}", 1)
        return PrefixStore(start, launch)
    start, answered, end = f"start {launch.add('starts', 1)}", 0, time.monotonic() + seconds
    while (missing := processes - 1 - launch.add(f"came to {start}", 0)) > 0:
        while answered < launch.add("asked", 0):  # those of dead processes, too
            answered += 1
            launch.set(f"answer {answered}", start)
        if time.monotonic() > end:
            raise TimeoutError(f"{missing} did not come")
        time.sleep(0.01)
    return PrefixStore(start, launch)


_LOST = ("gloo", "NCCL", "nccl")
"""Words in the errors of torch's collectives, of which some are plain RuntimeErrors. Gloo's begin with the path of its file."""


@contextmanager
def explain_lost(timeout_seconds: float) -> Iterator[None]:
    """Turns the error of a collective that the other processes did not take part in into Lost. `joined` does so, too."""
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        words = str(error)
        if not isinstance(error, dist.DistError) and not any(word in words for word in _LOST):
            raise
        is_late = ("imed out" in words or "imeout" in words) and "refused" not in words
        late = f"did not come within {timeout_seconds:g} s (parallel.timeout_seconds)"
        cause = late if is_late else "ended or cannot be reached"
        raise Lost(
            f"process {rank()} waited for the others in {_doing}, and at least one of them {cause}. The output of that process "
            "has the cause. The same command goes on from what is saved.",
            _doing,
        ) from error


@contextmanager
def _told_once() -> Iterator[None]:
    """Turns every refusal but the first of all processes into a RepeatedRefusal: often all of them find the same fault.

    Also the error of a process that waits for one that has refused. The words of other errors are left for `first_error`.
    """
    try:
        yield
    except RepeatedRefusal:
        raise
    except Exception as error:
        if _store is not None and not isinstance(error, Lost):
            with contextlib.suppress(dist.DistError):  # the process that keeps it has ended
                _store.compare_set("error", "", f"process {rank()}: {error or type(error).__name__}")
        if not isinstance(error, Refusal):
            raise
        if _refusals_so_far() > 0:
            raise RepeatedRefusal(str(error)) from error
        error.is_for_all = True
        raise


def first_error() -> str:
    """Words of the first process that has ended with an error of its own; empty if none has, as after a kill."""
    with contextlib.suppress(dist.DistError):
        if _store is not None and _store.check(["error"]):
            return _store.get("error").decode()
    return ""


def _refusals_so_far() -> int:
    """Number of refusals of other processes before one of this process, which is counted here."""
    assert _store is not None
    try:
        return int(_store.add("refusals", 1)) - 1
    except dist.DistError:  # the process that counts has ended, with a message of its own
        return 1


def _check_versions() -> None:
    own = {"openjepa": openjepa.__version__, "torch": torch.__version__, "Python": platform.python_version()}
    refuse_differences({f"versions of {name}": version for name, version in own.items()}, "Install the same one everywhere")


def refuse_differences(own: Mapping[str, object], advice: str) -> None:
    """Raises Refusal in all processes, naming what differs and where, unless they call it with the same values.

    `own`: values that can be pickled, by what they are. `advice`: what to do about a difference.
    """
    everywhere = gathered(dict(own))
    for name in own:
        holders: dict[str, list[int]] = {}
        for number, found in enumerate(everywhere):
            holders.setdefault(str(found.get(name)), []).append(number)
        if len(holders) > 1:
            words = "; ".join(f"{value} in process {', '.join(map(str, ranks))}" for value, ranks in holders.items())
            raise Refusal(f"the processes have different {name}: {words}. {advice}")


# ---------------------------------------------------------------------------------------------------------------- tensors


class _Sum(torch.autograd.Function):
    """Sum over processes. Every process uses the sum, so the gradient of each share is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of `value` over all processes, which has gradients.

    If the loss is the mean of the processes' own losses, and their gradients are averaged (as DDP and FSDP do), then the
    gradient through this sum is the one that a single process with all the data would have.
    """
    if not is_active() or value.is_meta:  # costs are counted on the meta device, whose tensors have no values
        return value
    return _Sum.apply(value)  # type: ignore[no-untyped-call,no-any-return]  # torch has no types for it


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of `value` over all processes, which has gradients like `sum_over_ranks`."""
    return sum_over_ranks(value) / world_size() if is_active() else value


def var_mean_over_ranks(rows: Float[Tensor, "n D"]) -> tuple[Float[Tensor, " D"], Float[Tensor, " D"]]:
    """Biased variance and mean of each column over the rows of all processes, with gradients like `sum_over_ranks`.

    The number of rows n may differ between processes.
    """
    variance, mean = torch.var_mean(rows, dim=0, correction=0)
    if world_size() == 1:
        return variance, mean
    # mean of the variances + variance of the means; fp64, because the latter is a difference of squares
    own_mean, own_variance = mean.double(), variance.double()
    sums = len(rows) * torch.stack([torch.ones_like(own_mean), own_mean, own_variance + own_mean.square()])
    number, first, second = sum_over_ranks(sums)
    of_all = first / number
    return (second / number - of_all.square()).clamp(min=0).to(rows.dtype), of_all.to(rows.dtype)


def rows_of_all(rows: Tensor) -> Tensor:
    """The rows [n, ...] of all processes, in their order: [sum of n, ...]. Without gradients; n may differ."""
    if not is_active():
        return rows
    numbers = gathered(len(rows))
    filled = rows.new_zeros(max(numbers), *rows.shape[1:])
    filled[: len(rows)] = rows.detach()
    parts = [torch.empty_like(filled) for _ in numbers]
    dist.all_gather(parts, filled)
    return torch.cat([part[:number] for part, number in zip(parts, numbers, strict=True)])


def add_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replaces each of `tensors` by its sum over all processes, some at a time. All have one type and one device."""
    if not is_active():
        return
    for bucket in _buckets(tensors):
        joint = torch.cat([tensor.detach().flatten() for tensor in bucket])
        dist.all_reduce(joint)
        sums = torch.split(joint, [tensor.numel() for tensor in bucket])
        for tensor, total in zip(bucket, sums, strict=True):
            tensor.detach().copy_(total.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yields `tensors` in groups of about BUCKET_NUMBERS numbers: few messages, and little memory for copies."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        bucket.append(tensor)
        if sum(item.numel() for item in bucket) >= BUCKET_NUMBERS:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


# -------------------------------------------------------------------------------------------------- objects and decisions


def largest_over_ranks(values: Sequence[float]) -> list[float]:
    """The largest of each of `values` over all processes. On the CPU, so that no GPU has to finish its work first."""
    found = torch.tensor(values, dtype=torch.float64)
    if is_active():
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return found.tolist()


def own_group(timeout_seconds: float = TIMEOUT_SECONDS) -> dist.ProcessGroup | None:
    """A second group of all processes, on the CPU, for a thread. All processes must call this. None in a single process."""
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds)) if is_active() else None
    _groups.append(group)
    return group


def gathered(value: Result, group: dist.ProcessGroup | None = None) -> list[Result]:
    """The `value` of each process, in their order. It must be possible to pickle it."""
    found: list[Any] = [value] * world_size()
    if is_active():
        dist.all_gather_object(found, value, group=group)
    return found


def gathered_in_main(value: Result) -> list[Result]:
    """The `value` of each process, in their order, in the main process; an empty list in the others."""
    found: list[Any] | None = [value] * world_size() if is_main() else None
    if is_active():
        dist.gather_object(value, found)
    return found or []


def own_range(number: int) -> range:
    """The share of this process in 0, ..., `number` - 1: consecutive, and about as many as every other process has."""
    return range(number * rank() // world_size(), number * (rank() + 1) // world_size())


def barrier() -> None:
    """Waits until all processes are here."""
    if is_active():
        dist.all_reduce(torch.zeros(1))  # on the CPU: a barrier of NCCL would also wait for the GPU


def from_main(make: Callable[[], Result], group: dist.ProcessGroup | None = None) -> Result:
    """What `make` returns in the main process, which alone calls it; the others get a pickled copy.

    An error of `make` is raised in all processes: the same error in the main process, a RepeatedRefusal in the others.
    """
    if not is_active():
        return make()
    sent: list[Any] = [None, None]
    failure: Exception | None = None
    if is_main():
        try:
            sent[0] = make()
        except Exception as error:
            failure, sent[1] = error, str(error) or type(error).__name__
    dist.broadcast_object_list(sent, src=0, group=group)
    if failure is not None:
        raise failure
    if sent[1] is not None:
        raise RepeatedRefusal(sent[1])
    return sent[0]  # type: ignore[no-any-return]  # what `make` returned


def in_all(make: Callable[[], Result], group: dist.ProcessGroup | None = None) -> Result:
    """What `make` returns here. If it fails in any process, it fails in all: with its own error there, a refusal elsewhere.

    Without this, the processes in which it works would wait for those that have ended.
    """
    if not is_active():
        return make()
    failure: Exception | None = None
    result: Any = None
    try:
        result = make()
    except Exception as error:
        failure = error
    failures = gathered(None if failure is None else str(failure) or type(failure).__name__, group)
    if failure is not None:
        raise failure
    for number, words in enumerate(failures):
        if words is not None:
            raise RepeatedRefusal(f"process {number}: {words}")
    return result  # type: ignore[no-any-return]  # what `make` returned


def divided_work(works: Sequence[Callable[[], Result]]) -> list[Result]:
    """What each of `works` returns, in their order. Each process calls every N-th of them; the others get pickled copies.

    An error of one of them is raised in all processes, as by `in_all`.
    """
    parts = gathered(in_all(lambda: [work() for work in works[rank() :: world_size()]]))
    return [parts[number % len(parts)][number // len(parts)] for number in range(len(works))]
