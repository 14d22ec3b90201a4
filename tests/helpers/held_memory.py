"""What one process really holds and sends: storages that live at the end of a block, and bytes of its collectives."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

RING_SHARES = {"_allgather_base_": 1, "_reduce_scatter_base_": 1, "allreduce_": 2}
"""Collectives, and how many times (W - 1) / W of the whole tensor each process sends in a ring."""


class Ledger(TorchDispatchMode):
    """Notes the storage of every result, unless it is one of `known`, and the bytes that collectives send, during the block."""

    def __init__(self, processes: int, known: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {value.untyped_storage()._cdata for value in known}
        self._ring = (processes - 1) / processes
        self._storages: dict[int, StorageWeakRef] = {}
        self.sent: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            self._count(func._schema.name.removeprefix("c10d::"), args)
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and type(value) is Tensor:
                storage = value.untyped_storage()
                if storage._cdata not in self._known:
                    self._storages[storage._cdata] = StorageWeakRef(storage)
        return result

    def _count(self, name: str, args: Any) -> None:
        if name in RING_SHARES:
            largest = max(value.nbytes for value in tree_leaves(args[:2]) if isinstance(value, Tensor))
            self.sent[name] += RING_SHARES[name] * self._ring * largest

    def held(self) -> int:
        """Bytes of the noted storages that something still refers to."""
        alive = (torch.UntypedStorage._new_with_weak_ptr(item.cdata) for item in self._storages.values() if not item.expired())
        return sum(storage.nbytes() for storage in alive if storage is not None)


def own_bytes(values: Iterable[Tensor]) -> int:
    """Bytes of the shares of this process in `values`."""
    return sum(getattr(value, "_local_tensor", value).nbytes for value in values)
