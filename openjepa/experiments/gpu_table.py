"""GPUS, what their makers state, and what a training step gets of it. Free of torch.

All rates are dense (without the twofold of sparse matrices), and bandwidths are in one direction.
"""

from dataclasses import dataclass

PRODUCTS = 0.8
"""Share of the stated peak that large matrix products reach. Assumed."""
TRAFFIC = 0.0070
"""Bytes that move through a GPU's memory for each FLOP of a large Vision Transformer: the mean of 0.0065 and 0.0075, which
follow from two measurements. NVIDIA trains ViT-g/14 at 693 images/s on eight A100 and at 1,428 on eight H100 (NeMo 24.07 user
guide, "Vision Transformer, Performance"), 45 % and 29 % of the stated peaks. `expected_mfu` gives 43 % and 30 %."""
PAPER_SHARE = 0.445
"""Smallest share of `expected_mfu` that the only published run of I-JEPA can have reached: ViT-H/14 on 16 A100 in under 72
hours (arXiv 2301.08243, introduction). The time of a run may be longer by as much."""
COLLECTIVES = 0.8
"""Share of a stated bandwidth that large collectives reach. NCCL's own cost model has 235 of 300 GB/s for the A100."""
MEMORY = 0.8
"""Share of the memory bandwidth that the optimizer reaches. Assumed."""
START_SECONDS, LINK_SECONDS, NETWORK_SECONDS, TREE_SECONDS = 14e-6, 1.9e-6, 4e-6, 8.5e-6
"""Latencies of a collective in NCCL's cost model (protocol LL128): once, of a hop within a node, of a hop between nodes in a
ring, and of one in a tree."""


@dataclass(frozen=True)
class Gpu:
    """One model of GPU."""

    title: str
    memory: float
    """Bytes."""
    bf16: float | None
    """FLOP/s of matrix products in bf16 with sums in fp32. None: no hardware for it."""
    fp32: float
    """FLOP/s in fp32, without TF32."""
    memory_bandwidth: float
    """Bytes/s."""
    link: float
    """Bytes/s that one GPU sends to others of its node: NVLink, or PCIe if it has none."""
    network: float
    """Bytes/s of the network of its usual node, divided by the GPUs of that node."""
    source: str

    def peak(self, precision: str) -> float:
        """Stated FLOP/s in `precision`: bf16, if the GPU has it, or fp32."""
        return self.bf16 if precision == "bf16" and self.bf16 is not None else self.fp32

    def expected_mfu(self, precision: str) -> float:
        """Share of the stated peak that is left for the FLOPs of a step, without waiting for data or other GPUs.

        A FLOP takes 1 / (PRODUCTS x peak) in products, and TRAFFIC / bandwidth between them.
        """
        return 1 / (1 / PRODUCTS + TRAFFIC * self.peak(precision) / self.memory_bandwidth)


_DGX = "network: {} for eight GPUs (datasheet of the {})"
GPUS = {
    "v100": Gpu(
        "V100 SXM2 32 GB",
        32e9,
        None,
        15.7e12,
        900e9,
        150e9,
        6.25e9,
        "datasheet of the V100; " + _DGX.format("4 x 100 Gb/s", "DGX-1"),
    ),
    "a100-40": Gpu(
        "A100 SXM4 40 GB",
        40e9,
        312e12,
        19.5e12,
        1555e9,
        300e9,
        25e9,
        "datasheet of the A100; " + _DGX.format("8 x 200 Gb/s", "DGX A100"),
    ),
    "a100-80": Gpu(
        "A100 SXM4 80 GB",
        80e9,
        312e12,
        19.5e12,
        2039e9,
        300e9,
        25e9,
        "datasheet of the A100; " + _DGX.format("8 x 200 Gb/s", "DGX A100"),
    ),
    "h100": Gpu(
        "H100 SXM5 80 GB",
        80e9,
        989e12,
        67e12,
        3350e9,
        450e9,
        50e9,
        "datasheet of the H100; " + _DGX.format("8 x 400 Gb/s", "DGX H100"),
    ),
    "h200": Gpu(
        "H200 SXM 141 GB",
        141e9,
        989e12,
        67e12,
        4800e9,
        450e9,
        50e9,
        "datasheet of the H200; " + _DGX.format("8 x 400 Gb/s", "DGX H200"),
    ),
    "b200": Gpu(
        "B200 SXM 180 GB",
        180e9,
        2250e12,
        80e12,
        8000e9,
        900e9,
        50e9,
        "datasheets of the HGX B200 and DGX B200; " + _DGX.format("8 x 400 Gb/s", "DGX B200"),
    ),
    "l40s": Gpu(
        "L40S 48 GB",
        48e9,
        362e12,
        91.6e12,
        864e9,
        32e9,
        12.5e9,
        "datasheet of the L40S (PCIe 4.0 x16); network: assumed, 100 Gb/s for each GPU",
    ),
    "rtx4090": Gpu(
        "GeForce RTX 4090 24 GB",
        24e9,
        165.2e12,
        82.6e12,
        1008e9,
        32e9,
        3.125e9,
        "Ada architecture whitepaper, appendix A (PCIe 4.0 x16); network: assumed, 25 Gb/s for each GPU",
    ),
}
"""GPUs by the name that --gpu takes."""
