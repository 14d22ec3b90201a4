"""Data sources. One file and one line of SOURCES each."""

from typing import TYPE_CHECKING

from openjepa.settings.registry import Entry
from openjepa.settings.sources import DataSettings, FolderSettings, HuggingFaceSettings, ScenesSettings

if TYPE_CHECKING:
    from openjepa.data.source import Splits


SOURCES: dict[str, Entry[DataSettings]] = {
    "folder": Entry(FolderSettings, "openjepa.data.folders.folder:open_folder"),
    "huggingface": Entry(HuggingFaceSettings, "openjepa.data.tables.huggingface:open_huggingface"),
    "scenes": Entry(ScenesSettings, "openjepa.data.scenes.scenes:open_scenes"),
}


def open_splits(settings: DataSettings, seed: int) -> "Splits":
    """Opens the source that the settings choose, with at most `max_images` training images if that is set."""
    splits: Splits = SOURCES[settings.source].load()(settings, seed)
    if settings.max_images is None:
        return splits
    from openjepa.data.selection import limited

    return limited(splits, settings.max_images, seed)
