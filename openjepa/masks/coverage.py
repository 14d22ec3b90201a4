"""Pictures of a sampler's masks: single examples, and the frequency with which each patch is context or target."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from openjepa.masks.sampler import MaskSampler
from openjepa.seeds import derive, derive_samples
from openjepa.settings.masks import MaskKind
from openjepa.types import BlockMasks, Masks, TokenMask


@dataclass(frozen=True)
class Example:
    """The masks of one image, drawn on the grid."""

    context: Bool[np.ndarray, "H W"]
    """Patches of the context. If single patches are masked, the visible ones."""
    targets: Bool[np.ndarray, "M H W"]
    """Patches of each target block. If single patches are masked, they all count as one block."""
    kind: MaskKind = "blocks"


@dataclass(frozen=True)
class Statistics:
    """Averages over many draws."""

    samples: int
    context_ratio: float
    """Fraction of the patches that the context keeps (padding not counted)."""
    target_ratio: float
    """Fraction of the patches in one target block."""
    union_ratio: float
    """Fraction of the patches in any target block."""
    redrawn: float
    """Share of the samples whose positions were drawn more than once."""
    padded: float
    """Share of the samples whose context is still too small."""


def examples(sampler: MaskSampler, num_samples: int, seed: int = 0, microbatch: int = 128) -> list[Example]:
    """The first sample of each of `num_samples` mask groups, so that block sizes vary."""
    drawn = []
    for masks in _groups(sampler, num_samples, microbatch, seed):
        context, targets = _maps(masks)
        drawn.append(Example(context[0], targets[0], "blocks" if isinstance(masks, BlockMasks) else "tokens"))
    return drawn


def coverage(
    sampler: MaskSampler, num_samples: int = 20_000, seed: int = 0, microbatch: int = 128
) -> dict[str, Float[np.ndarray, "H W"]]:
    """Probability of each patch to be `context`, to be in a given `target` block, and to be in any of them (`union`).

    If single patches are masked, `context` are the visible ones, and all masked ones count as one target. Samples are drawn in
    groups of `microbatch`, because the official masks depend on them. Raises Refusal if the sampler draws no masks.
    """
    return _accumulate(sampler, max(1, num_samples // microbatch), seed, microbatch)[0]


def statistics(sampler: MaskSampler, num_samples: int = 20_000, seed: int = 0, microbatch: int = 128) -> Statistics:
    """Averages of the maps of `coverage`, and the shares of samples that were redrawn or padded."""
    num_groups = max(1, num_samples // microbatch)
    maps, redrawn, padded = _accumulate(sampler, num_groups, seed, microbatch)
    samples = num_groups * microbatch
    return Statistics(
        samples=samples,
        context_ratio=float(maps["context"].mean()),
        target_ratio=float(maps["target"].mean()),
        union_ratio=float(maps["union"].mean()),
        redrawn=redrawn / samples,
        padded=padded / samples,
    )


def _accumulate(
    sampler: MaskSampler, num_groups: int, seed: int, microbatch: int
) -> tuple[dict[str, Float[np.ndarray, "H W"]], int, int]:
    """Coverage maps, and the numbers of redrawn and of padded samples."""
    sums = {name: np.zeros(sampler.grid) for name in ("context", "target", "union")}
    redrawn, padded = 0, 0
    for masks in _groups(sampler, num_groups, microbatch, seed):
        context, targets = _maps(masks)
        sums["context"] += context.mean(axis=0)
        sums["target"] += targets.mean(axis=(0, 1))
        sums["union"] += targets.any(axis=1).mean(axis=0)
        if isinstance(masks, BlockMasks):
            redrawn, padded = redrawn + masks.redrawn, padded + masks.padded
    return {name: total / num_groups for name, total in sums.items()}, redrawn, padded


def _groups(sampler: MaskSampler, num_groups: int, microbatch: int, seed: int) -> Iterator[Masks]:
    """Masks of `num_groups` mask groups of `microbatch` samples, each in a step of its own."""
    for group in range(num_groups):
        seeds = derive_samples("mask", seed, np.zeros(1, np.int64), np.arange(microbatch) + group * microbatch)
        yield sampler(seeds, derive("group", seed, group), group)


def _maps(masks: Masks) -> tuple[Bool[np.ndarray, "B H W"], Bool[np.ndarray, "B M H W"]]:
    """Context and targets as maps on the grid."""
    height, width = masks.grid
    if isinstance(masks, TokenMask):
        masked = masks.masked.numpy().reshape(-1, height, width)
        return ~masked, masked[:, None]
    context, targets = masks.context.numpy(), masks.targets.numpy()
    valid = np.ones(context.shape, dtype=bool) if masks.context_valid is None else masks.context_valid.numpy()
    in_context = np.zeros((len(context), height * width), dtype=bool)
    rows = np.broadcast_to(np.arange(len(context))[:, None], context.shape)
    in_context[rows[valid], context[valid]] = True
    in_target = np.zeros((*targets.shape[:2], height * width), dtype=bool)
    np.put_along_axis(in_target, targets, True, axis=2)
    return in_context.reshape(-1, height, width), in_target.reshape(*targets.shape[:2], height, width)
