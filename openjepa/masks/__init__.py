"""Mask strategies. One file and one line of MASKS each."""

from collections.abc import Callable
from typing import Any

from openjepa.settings.masks import (
    BlockwiseSettings,
    MaskSettings,
    MultiblockSettings,
    NoMaskSettings,
    RandomPatchesSettings,
)
from openjepa.settings.registry import Entry


def _multiblock() -> Callable[..., Any]:
    from openjepa.masks.multiblock import build_multiblock

    return build_multiblock


def _none() -> Callable[..., Any]:
    from openjepa.masks.sampler import NoMasks

    return NoMasks


def _random_patches() -> Callable[..., Any]:
    from openjepa.masks.random_patches import RandomPatches

    return RandomPatches


def _blockwise() -> Callable[..., Any]:
    from openjepa.masks.blockwise import Blockwise

    return Blockwise


MASKS: dict[str, Entry[MaskSettings]] = {
    "multiblock": Entry(MultiblockSettings, _multiblock),
    "random_patches": Entry(RandomPatchesSettings, _random_patches),
    "blockwise": Entry(BlockwiseSettings, _blockwise),
    "none": Entry(NoMaskSettings, _none),
}
