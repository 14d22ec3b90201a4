"""What torch counts while it computes: FLOPs of some work, and the storage that a method's forward keeps for its backward."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from openjepa.engine.device import autocast
from openjepa.methods.base import Method
from openjepa.schedules import Progress
from openjepa.types import Batch


def counted(work: Callable[[], object]) -> int:
    """FLOPs of `work` under bf16 autocast, as torch counts them. (In fp32 torch has no count of a CPU's fused attention.)"""
    with FlopCounterMode(display=False) as counter, autocast(torch.device("cpu"), "bf16"):
        work()
    return counter.get_total_flops()


def kept_bytes(method: Method, batch: Batch, progress: Progress, precision: str) -> int:
    """Storage of every tensor that autograd saves in the forward, the method's own weights aside."""
    weights = {value.untyped_storage().data_ptr() for value in method.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value), autocast(torch.device("cpu"), precision):
        method(batch, progress)
    return sum(value.untyped_storage().nbytes() for pointer, value in kept.items() if pointer not in weights)
