"""Mask strategies. One file and one line of MASKS each."""

from collections.abc import Callable
from typing import Any

from openjepa.registry import Entry
from openjepa.settings.masks import MaskSettings, MultiblockSettings


def _multiblock() -> Callable[..., Any]:
    from openjepa.masks.multiblock import build_multiblock

    return build_multiblock


MASKS: dict[str, Entry[MaskSettings]] = {
    "multiblock": Entry(MultiblockSettings, _multiblock),
}
