"""Mask strategies. One file and one line of MASKS each."""

from openjepa.settings.masks import (
    BlockwiseSettings,
    MaskSettings,
    MultiblockSettings,
    NoMaskSettings,
    RandomPatchesSettings,
)
from openjepa.settings.registry import Entry

MASKS: dict[str, Entry[MaskSettings]] = {
    "multiblock": Entry(MultiblockSettings, "openjepa.masks.multiblock:build_multiblock"),
    "random_patches": Entry(RandomPatchesSettings, "openjepa.masks.random_patches:RandomPatches"),
    "blockwise": Entry(BlockwiseSettings, "openjepa.masks.blockwise:Blockwise"),
    "none": Entry(NoMaskSettings, "openjepa.masks.sampler:NoMasks"),
}
