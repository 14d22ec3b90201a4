"""Data sources, one file each. The line that registers one stands below its settings, in `settings.sources`."""

from typing import TYPE_CHECKING

from openjepa.settings.sources import SOURCES, DataSettings

if TYPE_CHECKING:
    from openjepa.data.source import Splits

__all__ = ["SOURCES", "open_splits"]


def open_splits(settings: DataSettings, seed: int) -> "Splits":
    """Opens the source that the settings choose, with at most `max_images` training images if that is set."""
    splits: Splits = SOURCES[settings.source].load()(settings, seed)
    if settings.max_images is None:
        return splits
    from openjepa.data.selection import limited

    return limited(splits, settings.max_images, seed)
