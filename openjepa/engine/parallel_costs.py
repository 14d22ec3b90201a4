"""Costs of a step in one of several processes: memory by part, and bytes that it sends to the others.

They follow from the costs of a microbatch (`engine.costs`) and from what DDP and FSDP2 do (`engine.parallel`). A test measures
both in two processes.
"""

from dataclasses import dataclass, fields

import torch

from openjepa.engine.costs import StepCosts, WeightUnit, stored_bytes
from openjepa.engine.device import peak_memory
from openjepa.engine.parallel import Strategy
from openjepa.settings.run import Optimizers

NUMBER_BYTES = {"fp32": 4, "bf16": 2}
"""Bytes of one number, by precision."""
BUCKET_BYTES = 25 * 2**20
"""Bytes of gradients that DDP sends at once (torch's default)."""


INSIDE_BLOCK = 0.5
"""Bytes of temporaries in the backward of a block, over those that its forward keeps. Measured on a CPU: 0.2 to 0.9."""


@dataclass(frozen=True)
class Division:
    """How the processes of a run divide a step among themselves."""

    strategy: Strategy
    processes: int
    microbatches: int = 1
    """Microbatches of one process in a step."""
    precision: str = "bf16"
    reduce_precision: str = "fp32"
    recompute: bool = False
    optimizer: Optimizers = "adamw"

    @property
    def shares(self) -> int:
        """Number of processes over which weights, target encoder, gradients and moments are divided."""
        return self.processes if self.strategy == "fsdp2" else 1

    def gathered_bytes(self, unit: WeightUnit) -> int:
        """Bytes of one gathered weight of `unit`. On GPUs, FSDP2 gathers blocks in the precision of their products."""
        return NUMBER_BYTES[self.precision] if unit.is_block else 4


@dataclass(frozen=True)
class MemoryParts:
    """Bytes of one process in a training step, by what they hold."""

    weights: float
    """Trained weights in fp32."""
    target_encoder: float
    """Weights without gradients in fp32."""
    gradients: float
    moments: float
    """AdamW's two moments in fp32, or the one of Muon."""
    copies: float
    """bf16 copies of weights that autocast keeps from the forward to the backward."""
    activations: float
    """What the forward of a microbatch keeps for its backward."""
    temporaries: float
    """The most that the backward needs for a moment: gradients inside a block, a recomputed block, gathered weights."""

    def total(self) -> float:
        """Bytes of all parts."""
        return sum(float(getattr(self, item.name)) for item in fields(self))


def memory_parts(costs: StepCosts, division: Division, images: int, device: torch.device) -> MemoryParts:
    """Memory of one process. `images`: those of a microbatch, whatever the number for which `costs` were counted."""
    trained, frozen = (own_numbers(costs, division.shares, is_trained) for is_trained in (True, False))
    share, blocks = images / costs.images, costs.blocks
    one_block = stored_bytes(blocks.largest_bytes, blocks.largest_scores, device, division.precision)
    kept = costs.kept(device, division.precision, division.recompute)
    return MemoryParts(
        weights=4 * trained,
        target_encoder=4 * frozen,
        gradients=4 * trained + _whole_gradients(costs, division),
        moments=4 * (2 * trained - by_muon(costs, division.shares, division.optimizer)),
        copies=_copies(costs, division),
        activations=share * kept,
        temporaries=share * one_block * (INSIDE_BLOCK + division.recompute) + _communicated(costs, division),
    )


def own_numbers(costs: StepCosts, processes: int, is_trained: bool) -> int:
    """Number of weights that one of `processes` holds if they are divided: the trained ones, or those without gradients."""
    return sum(unit.numbers(processes) for unit in costs.units if unit.is_trained == is_trained)


def by_muon(costs: StepCosts, processes: int, optimizer: Optimizers) -> int:
    """Number of weights that Muon moves, if they are divided over `processes`: matrices of trained blocks. AdamW alone: 0."""
    if optimizer == "adamw":
        return 0
    blocks = (unit for unit in costs.units if unit.is_trained and unit.is_block)
    return sum(unit.numbers(processes, of_matrices=True) for unit in blocks)


def checkpoint_copy(costs: StepCosts, division: Division) -> float:
    """Bytes of the copy in the memory of the CPU from which one process writes a checkpoint, held from the first save on.

    Weights, target encoder and moments in fp32. FSDP2 copies what a process holds. DDP shares whole tensors out among the
    processes, so that the shares differ by a few of them.
    """
    trained, frozen = (own_numbers(costs, division.shares, is_trained) for is_trained in (True, False))
    muon = by_muon(costs, division.shares, division.optimizer)
    return 4 * (3 * trained + frozen - muon) * division.shares / division.processes


def _whole_gradients(costs: StepCosts, division: Division) -> float:
    """Gradients of all weights, which FSDP2 adds up over microbatches before it divides them."""
    if division.strategy != "fsdp2" or division.microbatches == 1:
        return 0
    return NUMBER_BYTES[division.reduce_precision] * own_numbers(costs, 1, is_trained=True)


def _copies(costs: StepCosts, division: Division) -> float:
    """Autocast copies what is used in bf16 but stored in fp32. FSDP2 has gathered the blocks in bf16 already."""
    if division.precision != "bf16":
        return 0
    copied = [unit for unit in costs.units if unit.is_trained and not (division.strategy == "fsdp2" and unit.is_block)]
    return 2 * sum(unit.numbers() for unit in copied)


def _communicated(costs: StepCosts, division: Division) -> float:
    """Buffers of the communication that overlaps with the backward.

    FSDP2 holds the gathered weights of two units, the gradients of one, and gradients on their way. DDP sends gradients from
    where they are, or as bf16 copies of two buckets.
    """
    if division.strategy == "single":
        return 0
    if division.strategy == "ddp":
        return BUCKET_BYTES if division.reduce_precision == "bf16" else 0
    reduced = NUMBER_BYTES[division.reduce_precision]
    return max(_whole(unit, division) * (3 * division.gathered_bytes(unit) + reduced) for unit in costs.units)


def _whole(unit: WeightUnit, division: Division) -> int:
    """Number of weights of `unit` with all shares, which are padded to the same size."""
    return division.shares * unit.numbers(division.shares)


@dataclass(frozen=True)
class SentBytes:
    """Bytes that one process sends in a step, if every collective goes around a ring of all processes."""

    gathered: float
    """FSDP2: weights, for the forward of all networks and again for the backward of the trained ones."""
    reduced: float
    """Gradients, once in a step."""

    def total(self) -> float:
        """Bytes of both."""
        return self.gathered + self.reduced


def sent_bytes(costs: StepCosts, division: Division) -> SentBytes:
    """Bytes that each of several processes sends in a step.

    In a ring of W processes, each sends (W - 1) / W of the whole to gather it or to reduce and scatter it, and twice that to
    reduce it for all (Patarasso and Yuan 2009).
    """
    ring = (division.processes - 1) / division.processes
    reduced = NUMBER_BYTES[division.reduce_precision]
    if division.strategy != "fsdp2":
        return SentBytes(0, 2 * ring * reduced * own_numbers(costs, 1, is_trained=True))
    weights = {unit: _whole(unit, division) for unit in set(costs.units)}
    gathered = sum(weights[unit] * division.gathered_bytes(unit) * (2 if unit.is_trained else 1) for unit in costs.units)
    scattered = sum(weights[unit] * reduced for unit in costs.units if unit.is_trained)
    return SentBytes(ring * division.microbatches * gathered, ring * scattered)


@dataclass(frozen=True)
class Estimate:
    """Estimates of one process of a run."""

    trained_parameters: int
    flops_per_image: float
    """FLOPs of a training step, 2 per multiply-add."""
    memory_bytes: float
    """All parts of `memory_parts`. Without cached pixels. On a CPU also a checkpoint's copy and what is in use already."""
    checkpoint_copy: float
    """Bytes of `checkpoint_copy`, in the memory of the CPU."""


def estimate(costs: StepCosts, division: Division, images: int, device: torch.device) -> Estimate:
    """Estimates what one process needs. `images`: those of a microbatch."""
    memory, copy = memory_parts(costs, division, images, device).total(), checkpoint_copy(costs, division)
    held = peak_memory(device) + copy if device.type == "cpu" else 0
    return Estimate(own_numbers(costs, 1, is_trained=True), costs.step_flops, held + memory, copy)
