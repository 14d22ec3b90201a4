"""Data sources, one file each. A source is registered in `settings.sources`, in the line below its settings."""

from typing import TYPE_CHECKING

from openjepa.settings.sources import SOURCES, DataSettings

if TYPE_CHECKING:
    from openjepa.data.source import Splits

__all__ = ["SOURCES", "open_splits"]


def open_splits(settings: DataSettings, seed: int) -> "Splits":
    """Opens the source that the settings choose. If `max_images` is set, keeps at most that many training images."""
    splits: Splits = SOURCES[settings.source].load()(settings, seed)
    if settings.max_images is None:
        return splits
    from openjepa.data.selection import limited

    return limited(splits, settings.max_images, seed)
