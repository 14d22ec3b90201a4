"""Settings of the mask strategies: one dataclass each, all derived from MaskSettings."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from openjepa.settings.fields import (
    AT_LEAST_1,
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    SHARE_ABOVE_0,
    SMALLEST_FIRST,
    Entry,
    Range,
    between,
)

MaskKind = Literal["blocks", "tokens", "none"]
"""Kind of mask that a strategy draws: a context and target blocks, single masked patches, or nothing."""


MASKED_SHARE = Range(2**-52, BELOW_1, "above 0 and below 1, e.g. 0.75 (MAE) or 0.15 (MSN)")
"""Range of a masked share. A smaller share would be lost to rounding in 1 - ratio."""


@dataclass(frozen=True, kw_only=True)
class MaskSettings:
    """Common to every mask strategy. Abstract: use the dataclass of a strategy."""

    kind: ClassVar[MaskKind]
    """Kind of mask that the strategy draws."""
    equal_counts: ClassVar[bool] = False
    """True if all images have the same number of masked patches."""

    strategy: str
    """Strategy that draws the masks."""
    group_size: Annotated[int | None, AT_LEAST_1] = None
    """Images of a mask group, which share block sizes; a multiple of the microbatch. None: the whole batch, or for I-JEPA's
    masks near `optim.images_per_device` if that is set."""


@dataclass(frozen=True, kw_only=True)
class MultiblockSettings(MaskSettings):
    """I-JEPA's masks: several target blocks, and one context block without the targets (paper, section 3 and appendix A)."""

    kind = "blocks"

    strategy: Literal["multiblock"] = "multiblock"
    mode: Literal["unbiased", "official"] = "unbiased"
    """`unbiased`: separate draws of scale and aspect, all positions possible; `official`: as in the released collator."""
    num_targets: Annotated[int, AT_LEAST_1] = 4
    """Target blocks per image (paper: 4)."""
    target_scale: Annotated[tuple[float, float], SHARE_ABOVE_0, SMALLEST_FIRST] = (0.15, 0.2)
    """Smallest and largest area of a target block, as a fraction of the patches."""
    target_aspect: Annotated[tuple[float, float], POSITIVE, SMALLEST_FIRST] = (0.75, 1.5)
    """Smallest and largest height / width of a target block."""
    context_scale: Annotated[tuple[float, float], SHARE_ABOVE_0, SMALLEST_FIRST] = (0.85, 1.0)
    """Smallest and largest area of the context block before the targets are removed, as a fraction of the patches."""
    context_aspect: Annotated[tuple[float, float], POSITIVE, SMALLEST_FIRST] = (1.0, 1.0)
    """Smallest and largest height / width of the context block, relative to that of the grid."""
    context_cut: Literal["random_subset", "random_window", "smallest", "none"] = "random_subset"
    """How all contexts get one size: they keep a random subset of the patches, or the patches in a random sector around the
    grid's center. `smallest`: a random subset as large as the smallest of `cut_images` contexts is on average, which depends on
    scales and `num_targets` as in the paper's Tables 8 to 10. `none`: they are padded instead, and attention masks the padding.
    `official` mode ignores this."""
    context_ratio: Annotated[float, SHARE_ABOVE_0] = 0.25
    """Fraction of all patches that the context keeps after the cut (paper, Table 6: 0.25). Ignored by `official`, and by the
    cuts `smallest` and `none`."""
    cut_images: Annotated[int, between(1, 1024)] = 128
    """Images of the batch to whose smallest context `smallest` cuts (the released runs: 128 per GPU). Ignored otherwise."""
    min_keep: Annotated[int | None, NOT_NEGATIVE] = 10
    """A context (`official`: also a target) with at most this number of patches is drawn again. In `unbiased` mode only if
    `context_cut` is `smallest` or `none`, and scaled down on grids under 14x14. None: 10, or in proportion on grids under
    14x14."""
    max_redraws: Annotated[int, NOT_NEGATIVE] = 20
    """`unbiased`: most redraws of a sample's positions before its context is padded. The log counts such samples."""


@dataclass(frozen=True, kw_only=True)
class RasterizedSettings(MaskSettings):
    """One quadrant of the grid is the context, and the other three are the targets (I-JEPA, Table 6: "rasterized")."""

    kind = "blocks"

    strategy: Literal["rasterized"] = "rasterized"


@dataclass(frozen=True, kw_only=True)
class SingleBlockSettings(MaskSettings):
    """One large target block. All other patches are the context (I-JEPA, Table 6: "block")."""

    kind = "blocks"

    strategy: Literal["block"] = "block"
    target_scale: Annotated[tuple[float, float], SHARE_ABOVE_0, SMALLEST_FIRST] = (0.6, 0.6)
    """Smallest and largest area of the target block, as a fraction of the patches (paper: 0.6)."""
    target_aspect: Annotated[tuple[float, float], POSITIVE, SMALLEST_FIRST] = (0.75, 1.5)
    """Smallest and largest height / width of the target block. The paper does not say it; this is multi-block's."""
    rolled: bool = False
    """The block goes on at the opposite border if it reaches beyond one. Beyond the paper: without it a block of 0.6 always
    covers the middle of the grid, which is then never context."""


@dataclass(frozen=True, kw_only=True)
class RandomTargetsSettings(MaskSettings):
    """Random single patches are one target. All other patches are the context (I-JEPA, Table 6: "random")."""

    kind = "blocks"

    strategy: Literal["random_targets"] = "random_targets"
    target_ratio: Annotated[float, MASKED_SHARE] = 0.6
    """Fraction of the patches that are the target (paper: 0.6)."""


@dataclass(frozen=True, kw_only=True)
class InverseBlockSettings(MaskSettings):
    """One rolled block is the context, and whole blocks of the rest are the targets (after data2vec 2.0, arXiv 2212.07525,
    and CAPI, arXiv 2502.08769)."""

    kind = "blocks"

    strategy: Literal["inverse_block"] = "inverse_block"
    context_scale: Annotated[tuple[float, float], SHARE_ABOVE_0, SMALLEST_FIRST] = (0.2, 0.4)
    """Smallest and largest area of the context block, as a fraction of the patches."""
    context_aspect: Annotated[tuple[float, float], POSITIVE, SMALLEST_FIRST] = (1.0, 1.0)
    """Smallest and largest height / width of the context block, relative to that of the grid."""
    num_targets: Annotated[int, AT_LEAST_1] = 4
    """Target blocks per image. They may overlap one another, but not the context."""
    target_scale: Annotated[tuple[float, float], SHARE_ABOVE_0, SMALLEST_FIRST] = (0.1, 0.15)
    """Smallest and largest area of a target block, as a fraction of the patches. Not published; multi-block's 0.15 to 0.2 would
    pile up in the narrow rest beside the context."""
    target_aspect: Annotated[tuple[float, float], POSITIVE, SMALLEST_FIRST] = (0.75, 1.5)
    """Smallest and largest height / width of a target block."""


@dataclass(frozen=True, kw_only=True)
class NoMaskSettings(MaskSettings):
    """No masks, for methods that compare whole views (DINO)."""

    kind = "none"

    strategy: Literal["none"] = "none"


@dataclass(frozen=True, kw_only=True)
class RandomPatchesSettings(MaskSettings):
    """Single patches masked at random, the same number in every image (MAE, MSN)."""

    kind = "tokens"
    equal_counts = True

    strategy: Literal["random_patches"] = "random_patches"
    ratio: Annotated[float | None, MASKED_SHARE] = 0.75
    """Fraction of the patches that is masked (MAE: 0.75; MSN: 0.15 for S/16, 0.3 for B/16, 0.7 for L/7). None: MSN's value for
    the width of the encoder."""
    shared: bool = False
    """One draw for all images of a mask group (MSN) instead of one for each image (MAE)."""


@dataclass(frozen=True, kw_only=True)
class BlockwiseSettings(MaskSettings):
    """Blocks of patches masked until a given share is reached (BEiT, data2vec, iBOT)."""

    kind = "tokens"

    strategy: Literal["blockwise"] = "blockwise"
    ratios: Annotated[tuple[float, ...], SHARE] = (0.6,)
    """Shares of patches to mask. If there are several, each image draws one (data2vec: 120/196; iBOT: 0.3, or 0 and 0.3)."""
    spreads: Annotated[tuple[float, ...], SHARE] = (0.0,)
    """For each of `ratios`: how far the share of an image may be from it (iBOT: 0, or 0 and 0.2)."""
    min_block: Annotated[int | None, AT_LEAST_1] = None
    """Fewest patches of a block. None: (shorter side of the grid div 3) squared, that is 16 at 14x14 (data2vec and iBOT)."""
    max_block: Annotated[int | None, AT_LEAST_1] = None
    """Most patches of a block. None: all that are left to mask."""
    aspect: Annotated[tuple[float, float], POSITIVE, SMALLEST_FIRST] = (0.3, 1 / 0.3)
    """Smallest and largest height / width of a block. Its logarithm is drawn uniformly."""


MASKS: dict[str, Entry[MaskSettings]] = {
    "multiblock": Entry(MultiblockSettings, "openjepa.masks.multiblock:build_multiblock"),
    "rasterized": Entry(RasterizedSettings, "openjepa.masks.rasterized:Rasterized"),
    "block": Entry(SingleBlockSettings, "openjepa.masks.single_block:SingleBlock"),
    "random_targets": Entry(RandomTargetsSettings, "openjepa.masks.random_targets:RandomTargets"),
    "inverse_block": Entry(InverseBlockSettings, "openjepa.masks.inverse_block:InverseBlock"),
    "random_patches": Entry(RandomPatchesSettings, "openjepa.masks.random_patches:RandomPatches"),
    "blockwise": Entry(BlockwiseSettings, "openjepa.masks.blockwise:Blockwise"),
    "none": Entry(NoMaskSettings, "openjepa.masks.sampler:NoMasks"),
}
"""Settings and sampler of each strategy, by `masks.strategy`."""
