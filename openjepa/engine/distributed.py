"""Rank, world size, and means and flags over processes. Every function also works in a single process."""

import os

import torch
import torch.distributed as dist
from torch import Tensor

from openjepa.refusals import Refusal


def refuse_unready_launch() -> None:
    """Raises Refusal if a launcher started several processes: training runs in one process so far.

    Each process would train a whole run of its own and compete for the run folder.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and not is_active():
        raise Refusal(f"WORLD_SIZE={processes}: training runs in one process so far; start it without torchrun")


def is_active() -> bool:
    """True if a process group is running."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process; 0 in a single process."""
    return dist.get_rank() if is_active() else 0


def world_size() -> int:
    """Number of processes; 1 in a single process."""
    return dist.get_world_size() if is_active() else 1


def is_main() -> bool:
    """True if this process is the one that writes files and prints."""
    return rank() == 0


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of `value` over all processes."""
    if not is_active():
        return value
    total = value.detach().clone()
    dist.all_reduce(total, op=dist.ReduceOp.SUM)
    return total / world_size()


def any_over_ranks(flag: bool) -> bool:
    """True if `flag` is set in any process, so that all processes stop at the same step."""
    if not is_active():
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())
