"""How long a step takes on GPUs that nobody has yet: products, memory, and waiting for other GPUs, from stated rates."""

import math
from dataclasses import dataclass

from openjepa.engine.costs import StepCosts
from openjepa.engine.parallel_costs import BUCKET_BYTES, Division, SentBytes, by_muon, own_numbers, sent_bytes
from openjepa.experiments.gpu_table import COLLECTIVES, LINK_SECONDS, MEMORY, NETWORK_SECONDS, START_SECONDS, TREE_SECONDS, Gpu

ADAMW_BYTES = 32
"""Bytes that an update moves for each trained weight: the norm reads the gradient, AdamW reads value, gradient and moments and
writes all but the gradient."""
MUON_BYTES = 92
"""The same if Muon moves it. One after the other: norm 4, momentum 12, Nesterov's look-ahead 12, copy in bf16 6, in each of
five iterations 8, decay 8 and the update 10."""
AVERAGE_BYTES = 12
"""Bytes that the target encoder moves for each of its weights: its update reads both networks and writes one."""


@dataclass(frozen=True)
class Machines:
    """GPUs of one kind in nodes of equal size."""

    gpu: Gpu
    gpus: int
    gpus_per_node: int
    link: float
    """Bytes/s that one GPU sends within its node."""
    network: float
    """Bytes/s that one GPU sends to other nodes."""

    @property
    def nodes(self) -> int:
        """Number of nodes. The last one may have fewer GPUs."""
        return math.ceil(self.gpus / self.gpus_per_node)

    def crossing(self) -> float:
        """Share of the bytes of a ring that go to another node. Each node has one way in and one way out, over all its GPUs."""
        return 0.0 if self.nodes == 1 else self.nodes / self.gpus

    def seconds(self, sent: SentBytes) -> float:
        """Time to send the bytes of one GPU. Links and network work at the same time."""
        within, between = sent.total() * (1 - self.crossing()), sent.total() * self.crossing()
        return max(within / self.link, between / self.network) / COLLECTIVES

    def ring_latency(self) -> float:
        """Latency of gathering, or of reducing and scattering: one hop for each other GPU."""
        return START_SECONDS + (self.gpus - self.nodes) * LINK_SECONDS + (self.nodes - 1) * NETWORK_SECONDS

    def tree_latency(self) -> float:
        """Latency of reducing for all, up and down a tree of nodes."""
        inside = (min(self.gpus, self.gpus_per_node) - 1) * LINK_SECONDS
        return START_SECONDS + 2 * (inside + math.log2(self.nodes) * TREE_SECONDS)


@dataclass(frozen=True)
class StepForecast:
    """Seconds of a step, by what they pass with."""

    compute: float
    optimizer: float
    """Norm, AdamW and the update of the target encoder, which wait for the GPU's memory; Muon also for products."""
    communication: float
    """All communication, most of which goes on during `compute`."""
    waiting: float
    """The part of `communication` that does not fit into the time in which it can go on."""

    def total(self) -> float:
        """Seconds of the step."""
        return self.compute + self.optimizer + self.waiting

    def efficiency(self) -> float:
        """Share of the step that is not spent waiting for other GPUs."""
        return 1 - self.waiting / self.total()


def forecast_step(costs: StepCosts, division: Division, images: int, machines: Machines, mfu: float) -> StepForecast:
    """Seconds of a step in which one GPU sees `images` images. `mfu`: share of the peak that its FLOPs get.

    DDP communicates during the backward of the last microbatch, and FSDP2 during the whole step. The FLOPs of recomputation
    take time, too.
    """
    again = costs.blocks.flops if division.recompute else 0.0
    rate = mfu * machines.gpu.peak(division.precision)
    compute = images * (costs.step_flops + again) / rate
    trained, average = (own_numbers(costs, division.shares, is_trained) for is_trained in (True, False))
    muon = by_muon(costs, division.shares, division.optimizer)
    moved = ADAMW_BYTES * (trained - muon) + MUON_BYTES * muon + AVERAGE_BYTES * average
    products = muon_flops(costs) / (mfu * machines.gpu.peak("bf16")) if muon else 0.0
    optimizer = moved / (MEMORY * machines.gpu.memory_bandwidth) + products
    communication = _communication(costs, division, machines)
    backward = costs.step_flops - sum(costs.flops.values()) + again
    overlapping = compute if division.strategy == "fsdp2" else images / division.microbatches * backward / rate
    return StepForecast(compute, optimizer, communication, max(0.0, communication - overlapping))


def muon_flops(costs: StepCosts) -> float:
    """FLOPs of Muon in a step: five iterations for each matrix of a trained block, each of X X^T, its square, and that times X.

    Each GPU is taken to compute all matrices, as with DDP.
    """
    shapes = [shape for unit in costs.units if unit.is_trained and unit.is_block for shape in unit.shapes if len(shape) == 2]
    return sum(5 * (4 * min(shape) * math.prod(shape) + 2 * min(shape) ** 3) for shape in shapes)


def _communication(costs: StepCosts, division: Division, machines: Machines) -> float:
    """Seconds of all collectives of a step, one after the other."""
    if division.strategy == "single":
        return 0.0
    sent = sent_bytes(costs, division)
    if division.strategy == "ddp":
        buckets = math.ceil(4 * own_numbers(costs, 1, is_trained=True) / BUCKET_BYTES)
        return machines.seconds(sent) + buckets * min(machines.tree_latency(), 2 * machines.ring_latency())
    trained = sum(unit.is_trained for unit in costs.units)
    collectives = division.microbatches * (len(costs.units) + trained) + trained
    return machines.seconds(sent) + collectives * machines.ring_latency()
