"""Data sources. One file and one line of SOURCES each."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from openjepa.settings.registry import Entry
from openjepa.settings.sources import DataSettings, FolderSettings, HuggingFaceSettings, ScenesSettings

if TYPE_CHECKING:
    from openjepa.data.source import Splits


def _folder() -> Callable[..., Any]:
    from openjepa.data.folders.folder import open_folder

    return open_folder


def _huggingface() -> Callable[..., Any]:
    from openjepa.data.tables.huggingface import open_huggingface

    return open_huggingface


def _scenes() -> Callable[..., Any]:
    from openjepa.data.scenes.scenes import open_scenes

    return open_scenes


SOURCES: dict[str, Entry[DataSettings]] = {
    "folder": Entry(FolderSettings, _folder),
    "huggingface": Entry(HuggingFaceSettings, _huggingface),
    "scenes": Entry(ScenesSettings, _scenes),
}


def open_splits(settings: DataSettings, seed: int) -> "Splits":
    """Open the source that the settings choose; of its training images only `max_images`, where that is set."""
    splits: Splits = SOURCES[settings.source].load()(settings, seed)
    if settings.max_images is None:
        return splits
    from openjepa.data.selection import limited

    return limited(splits, settings.max_images, seed)
