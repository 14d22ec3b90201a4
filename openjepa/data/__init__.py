"""Data sources. One file and one line of SOURCES each."""

from collections.abc import Callable
from typing import Any

from openjepa.registry import Entry
from openjepa.settings.data import DataSettings, FolderSettings, HuggingFaceSettings, ScenesSettings


def _folder() -> Callable[..., Any]:
    from openjepa.data.folder import open_folder

    return open_folder


def _huggingface() -> Callable[..., Any]:
    from openjepa.data.huggingface import open_huggingface

    return open_huggingface


def _scenes() -> Callable[..., Any]:
    from openjepa.data.scenes import open_scenes

    return open_scenes


SOURCES: dict[str, Entry[DataSettings]] = {
    "folder": Entry(FolderSettings, _folder),
    "huggingface": Entry(HuggingFaceSettings, _huggingface),
    "scenes": Entry(ScenesSettings, _scenes),
}
