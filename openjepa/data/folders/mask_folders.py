"""Label maps beside photos (PASCAL VOC's SegmentationClass, Oxford pets' trimaps): pictures that nobody means to train on.

A folder of label maps is known by its names, which are those of photos elsewhere, and by its pixels: one channel or a palette.
Only a few headers are opened.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from openjepa.data.decode import mode_and_size
from openjepa.system.shell import command

ENDINGS = frozenset({".png", ".gif", ".bmp", ".tif", "tiff", ".pgm"})
"""Last four letters of the formats that keep classes exactly."""
MASK_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B"})
"""Pillow's names of one channel and of a palette."""
MARKS = ("_mask", "-mask", "_masks", "_seg", "_segmentation", "_gt", "_groundtruth", "_label", "_labels", "_trimap", "_mask_1")
"""Endings of the names of label maps that lie among their photos (x.png and x_mask.png)."""
_MASK_WORDS = re.compile(r"mask|segm|trimap|ground.?truth|annot", re.IGNORECASE)
MAX_FOLDERS = 16
"""Folders of which a header is opened."""
NUM_FIRST = 64
"""Files of a folder among which label maps are looked for by their names."""
NUM_SAMPLED = 3
"""Label maps of a folder that are compared with their photos."""
MAX_MATCHES = 8
"""Files of one name that are looked at."""


Header = tuple[str, tuple[int, int]]
"""Mode and size of a picture."""


@dataclass(frozen=True)
class MaskFolder:
    """A folder of label maps and that of their photos, as paths below the data's."""

    masks: str
    photos: str

    def advice(self, root: Path) -> str:
        """Says what is the matter and what to type."""
        if self.masks == self.photos:
            what, remedy = (
                f"images in {str(root / self.masks)!r} whose names end in a mark as {MARKS[0]}",
                "move them elsewhere",
            )
        else:
            mine, theirs = self.photos.split("/"), self.masks.split("/")
            shared = next((n for n, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]), len(theirs))
            what = f"the images in {str(root / self.masks)!r}"
            typed = command("--data.path", root.joinpath(*mine[: shared + 1]))
            remedy = f"give the photos alone ({typed}), or move the label maps away"
        return (
            f"{what} look like label maps of the photos in {str(root / self.photos)!r} (equal names, one channel or a palette) "
            f"and are used as images: {remedy}"
        )


def find_mask_folders(root: Path, files: Sequence[str]) -> list[MaskFolder]:
    """Folders among those of `files`, paths below `root`, that hold label maps; the same pair of places is found once."""
    header = cache(lambda name: mode_and_size(root / name))
    samples = {}
    for folder, names in _candidates(files).items():
        if all(found is not None and found[0] in MASK_MODES for found in map(header, names)):
            samples[folder] = names
    if not samples:
        return []
    by_stem = _by_stem(files, {_photo_stem(name) for names in samples.values() for name in names})
    places: dict[tuple[str, str], MaskFolder] = {}
    for folder, names in samples.items():
        for photos in _photo_folders(names, by_stem):
            if _are_masks(header, folder, names, photos, by_stem):
                places.setdefault(_first_difference(folder, photos), MaskFolder(folder, photos))
                break
    return list(places.values())


def _candidates(files: Sequence[str]) -> dict[str, list[str]]:
    """A few files of a few folders that could be label maps; of a folder that has such, those whose names are marked."""
    first: dict[str, list[str]] = defaultdict(list)
    for file in files:
        if file[-4:].lower() in ENDINGS:
            names = first[file[: file.rfind("/") + 1]]
            if len(names) < NUM_FIRST:
                names.append(file)
    step = max(1, -(-len(first) // MAX_FOLDERS))
    chosen = list(first.items())[::step]
    return {folder.rstrip("/"): _sample(names) for folder, names in chosen}


def _sample(names: list[str]) -> list[str]:
    marked = [name for name in names if _stem(name).lower().endswith(MARKS)]
    return (marked or names)[:NUM_SAMPLED]


def _photo_stem(file: str) -> str:
    """Name that the photo of a label map has, without ending."""
    stem = _stem(file)
    mark = next((mark for mark in sorted(MARKS, key=len, reverse=True) if stem.lower().endswith(mark)), "")
    return stem[: len(stem) - len(mark)]


def _stem(file: str) -> str:
    return file.rpartition("/")[2].rpartition(".")[0]


def _by_stem(files: Sequence[str], stems: set[str]) -> dict[str, list[str]]:
    """Files of these names without their endings, a few of each."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in files:
        stem = _stem(file)
        if stem in stems and len(found[stem]) < MAX_MATCHES:
            found[stem].append(file)
    return found


def _photo_folders(names: Sequence[str], by_stem: dict[str, list[str]]) -> list[str]:
    """Folders with a photo for each of the label maps `names`."""
    choices = [{file.rpartition("/")[0] for file in by_stem[_photo_stem(name)] if file != name} for name in names]
    return sorted(set.intersection(*choices))


def _are_masks(
    header: Callable[[str], Header | None], folder: str, names: Sequence[str], photos: str, by_stem: dict[str, list[str]]
) -> bool:
    """Whether each picture is a map of its photo: as large, and the photo in colors, or as gray as no map is.

    If the names say it too (masks/, x_mask.png), the photos may be of any kind and size.
    """
    is_named = _photo_stem(names[0]) != _stem(names[0]) or (_MASK_WORDS.search(folder) and not _MASK_WORDS.search(photos))
    for name in names:
        photo = next(file for file in by_stem[_photo_stem(name)] if file != name and file.rpartition("/")[0] == photos)
        mask_header, photo_header = header(name), header(photo)
        if mask_header is None or photo_header is None:
            return False
        (mask_mode, mask_size), (photo_mode, photo_size) = mask_header, photo_header
        differs = photo_mode not in MASK_MODES or (mask_mode in ("1", "P") and photo_mode not in ("1", "P"))
        if not is_named and not (differs and mask_size == photo_size):
            return False
    return True


def _first_difference(folder: str, photos: str) -> tuple[str, str]:
    """The folders at which two paths part: many classes with their own folders of label maps are one place."""
    mine, theirs = folder.split("/"), photos.split("/")
    return next(((a, b) for a, b in zip(mine, theirs, strict=False) if a != b), (mine[-1], theirs[-1]))
