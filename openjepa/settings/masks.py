"""Settings of the mask strategies: one dataclass each, all derived from MaskSettings."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """Common to every mask strategy. Abstract: use the dataclass of a strategy."""

    strategy: str
    """Which strategy draws the masks."""
    group_size: int | None = None
    """Samples that share what a mask group shares (block sizes); a multiple of the microbatch. None: the whole batch."""


@dataclass(frozen=True, kw_only=True)
class MultiblockSettings(MaskSettings):
    """I-JEPA's masks: several target blocks, and one context block without them (paper, section 3 and appendix A)."""

    strategy: Literal["multiblock"] = "multiblock"
    mode: Literal["unbiased", "official"] = "unbiased"
    """`unbiased`: separate draws of scale and aspect, all positions reachable; `official`: the released collator's."""
    num_targets: int = 4
    """Target blocks per image (paper: 4)."""
    target_scale: tuple[float, float] = (0.15, 0.2)
    """Smallest and largest area of a target block, as a fraction of the patches."""
    target_aspect: tuple[float, float] = (0.75, 1.5)
    """Smallest and largest height / width of a target block."""
    context_scale: tuple[float, float] = (0.85, 1.0)
    """Smallest and largest area of the context block, before the targets are taken out."""
    context_aspect: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest height / width of the context block relative to the grid's."""
    context_cut: Literal["random_subset", "random_window", "none"] = "random_subset"
    """What brings all contexts to one size: a random subset of the patches, the patches in a random sector around the grid's
    center, or nothing (padding, masked in attention). `official` mode has its own cut and ignores this."""
    context_ratio: float = 0.25
    """Fraction of all patches that the context keeps after the cut (paper, Table 6: 0.25). Ignored by `official` and `none`."""
    min_keep: int = 10
    """A context (`official`: also a target) of at most this many patches is drawn again. In `unbiased` mode only where
    `context_cut` is `none`, and scaled down on grids under 14x14."""
    max_redraws: int = 20
    """`unbiased`: how often the positions of a sample are redrawn before its context is padded. Its count is logged."""
