"""How one method is trained by several processes: replicated (DDP) or with divided weights (FSDP2).

The loop calls the module of `over_processes` instead of the method in `forward` only. All else (names of parameters, the
optimizer, `after_step`, looks, checkpoints) uses the method itself. The target encoder has no gradients, so DDP leaves it
alone. FSDP2 divides it exactly like the network that it follows, so that its update needs no communication.
"""

import inspect
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from openjepa.engine import distributed
from openjepa.models.transformer import Block
from openjepa.operators import keep_graphs_whole
from openjepa.refusals import Refusal
from openjepa.settings.models import Shape
from openjepa.settings.run import ParallelSettings, RunSettings

Strategy = Literal["single", "ddp", "fsdp2"]

_NAMES = inspect.signature(DistributedDataParallel.__init__).parameters
_SYNC_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _NAMES else "broadcast_buffers"
"""Option of DDP that copies buffers at every forward; torch 2.13 has renamed it. Ours are equal without: methods see to it."""
DIVIDED_FROM = 6e8
"""Weights of the encoder's blocks from which `auto` divides them: those of ViT-H, 12 x 32 layers x 1280^2."""


def choose_strategy(settings: ParallelSettings, shape: Shape, device_type: str, processes: int) -> Strategy:
    """How `processes` train an encoder of `shape`. `single` in one process, whatever the settings.

    Raises Refusal if devices of this type lack what the settings ask for.
    """
    if processes == 1:
        return "single"
    is_large = 12 * shape.depth * shape.width**2 >= DIVIDED_FROM
    automatic: Strategy = "fsdp2" if is_large and device_type == "cuda" else "ddp"
    strategy = automatic if settings.strategy == "auto" else settings.strategy
    if strategy == "ddp" and settings.reduce_precision == "bf16" and device_type != "cuda":
        raise Refusal(
            "parallel.reduce_precision=bf16 with replicated networks needs GPUs: set parallel.reduce_precision=fp32, or "
            "parallel.strategy=fsdp2"
        )
    return strategy


def prepare_blocks(method: nn.Module, settings: RunSettings) -> None:
    """Makes the transformer blocks compute again in the backward pass, and compiles them, if the settings say so.

    Call it before `over_processes`, which must find the blocks as they will be used.
    """
    for module in method.modules():
        if isinstance(module, Block):
            module.recompute = settings.recompute
            if settings.compile:
                keep_graphs_whole()
                module.compile()


def over_processes(
    method: nn.Module,
    networks: Sequence[nn.Module],
    strategy: Strategy,
    settings: ParallelSettings,
    device: torch.device,
    precision: str,
) -> nn.Module:
    """The module whose `forward` trains `method`, which must be on `device` already. Call it before the optimizer is built.

    `networks`: all networks of the method, which `fsdp2` divides in place: their parameters become DTensors. `precision`: bf16
    or fp32, as autocast has it.
    """
    if strategy == "single":
        return method
    if strategy == "fsdp2":
        for network in networks:
            _divide(network, settings, device, precision)
        return method
    no_copies: dict[str, Any] = {_SYNC_BUFFERS: False}
    replicated = DistributedDataParallel(method, gradient_as_bucket_view=True, **no_copies)
    if settings.reduce_precision == "bf16":
        replicated.register_comm_hook(None, bf16_compress_hook)
    return replicated


def _divide(network: nn.Module, settings: ParallelSettings, device: torch.device, precision: str) -> None:
    """Divides the weights of a network, first of each block, then the others."""
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # no method changes outputs in place
    mesh = init_device_mesh(device.type, (distributed.world_size(),), mesh_dim_names=("processes",))
    reduced = torch.bfloat16 if settings.reduce_precision == "bf16" else torch.float32
    # The linear layers of a block use their weights in bf16 anyway, so a block travels in it. Its LayerNorms and gammas, which
    # autocast would use in fp32, are rounded too (the weights themselves stay fp32): a group of their own would cost one more
    # message per block, and hooks inside of it, at which a compiled block falls into parts. Autocast of CPUs refuses a
    # LayerNorm of bf16 weights.
    used = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else None
    of_blocks = MixedPrecisionPolicy(param_dtype=used, reduce_dtype=reduced, cast_forward_inputs=False)
    for block in (module for module in network.modules() if isinstance(module, Block)):
        fully_shard(block, mesh=mesh, mp_policy=of_blocks, reshard_after_forward=True)
    # also the rest: else it would stay whole after a forward without backward, and its average would not move
    of_others = MixedPrecisionPolicy(reduce_dtype=reduced, cast_forward_inputs=False)
    fully_shard(network, mesh=mesh, mp_policy=of_others, reshard_after_forward=True)


class Reduction:
    """Sees to it that gradients are reduced over the processes only after the last microbatch of a step."""

    def __init__(self, trained: nn.Module) -> None:
        """`trained`: the module of `over_processes`. Its divided parts are collected once."""
        self._trained = trained
        self._parts = [part for part in trained.modules() if isinstance(part, FSDPModule)]
        self._is_last = True  # torch's own start

    def before(self, is_last: bool) -> None:
        """Call it before each microbatch. `is_last`: it is the last one of its step."""
        if is_last == self._is_last:
            return
        self._is_last = is_last
        if isinstance(self._trained, DistributedDataParallel):
            self._trained.require_backward_grad_sync = is_last  # what its context manager `no_sync` sets
        for part in self._parts:
            part.set_requires_gradient_sync(is_last, recurse=False)


def processes_line(strategy: Strategy, settings: ParallelSettings, device: torch.device) -> Sequence[str]:
    """Words for the introduction of a run: number of processes and strategy. Empty for a single process."""
    if strategy == "single":
        return ()
    way = "each with the whole networks" if strategy == "ddp" else "with divided networks"
    backend = "nccl" if device.type == "cuda" else "gloo"
    gradients = f"gradients travel in {settings.reduce_precision} by {backend}"
    return (f"processes  {distributed.world_size()}, {way} ({strategy}); {gradients}",)
