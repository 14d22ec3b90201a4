"""Label maps beside photos (PASCAL VOC's SegmentationClass, Oxford pets' trimaps): pictures that nobody means to train on.

A folder of label maps is recognized by two signs. Its files have the same names as photos in another folder, and their pixels
have one channel or a palette. Only a few headers are opened.
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
"""Last four characters of the names of files whose format stores classes without loss."""
MASK_MODES = frozenset({"1", "L", "P", "I", "I;16", "I;16B"})
"""Pillow's modes with one channel or a palette."""
MARKS = ("_mask", "-mask", "_masks", "_seg", "_segmentation", "_gt", "_groundtruth", "_label", "_labels", "_trimap", "_mask_1")
"""Endings of the names of label maps that lie in the same folder as their photos (x.png and x_mask.png)."""
_MASK_WORDS = re.compile(r"mask|segm|trimap|ground.?truth|annot", re.IGNORECASE)
MAX_FOLDERS = 16
"""Largest number of folders in which headers are opened."""
NUM_FIRST = 64
"""Number of files per folder that are searched for names of label maps."""
NUM_SAMPLED = 3
"""Number of label maps per folder that are compared with their photos."""
MAX_MATCHES = 8
"""Largest number of files considered per name."""


Header = tuple[str, tuple[int, int]]
"""Mode and size (width, height) of a picture."""


@dataclass(frozen=True)
class MaskFolder:
    """A folder of label maps and the folder of their photos, as paths below the data's folder."""

    masks: str
    photos: str

    def advice(self, root: Path) -> str:
        """A warning: what is wrong and what to type. `root` is the data's folder."""
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
    """Folders of label maps among the folders of `files` (paths below `root`).

    Pairs of folders that first differ at the same two names are reported once.
    """
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
    """A few files from each of a few folders that could hold label maps. Files with a name in MARKS are preferred."""
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
    """Name of the photo that a label map belongs to, without the ending."""
    stem = _stem(file)
    mark = next((mark for mark in sorted(MARKS, key=len, reverse=True) if stem.lower().endswith(mark)), "")
    return stem[: len(stem) - len(mark)]


def _stem(file: str) -> str:
    return file.rpartition("/")[2].rpartition(".")[0]


def _by_stem(files: Sequence[str], stems: set[str]) -> dict[str, list[str]]:
    """Files by their name without the ending, for the names in `stems`. At most MAX_MATCHES files per name."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in files:
        stem = _stem(file)
        if stem in stems and len(found[stem]) < MAX_MATCHES:
            found[stem].append(file)
    return found


def _photo_folders(names: Sequence[str], by_stem: dict[str, list[str]]) -> list[str]:
    """Folders that hold a photo for each of the label maps `names`."""
    choices = [{file.rpartition("/")[0] for file in by_stem[_photo_stem(name)] if file != name} for name in names]
    return sorted(set.intersection(*choices))


def _are_masks(
    header: Callable[[str], Header | None], folder: str, names: Sequence[str], photos: str, by_stem: dict[str, list[str]]
) -> bool:
    """True if each picture of `names` is a label map of its photo in the folder `photos`.

    It must be as large as the photo. The photo must have colors, or be gray while the map has one bit or a palette. If the
    names also say so (masks/, x_mask.png), the photos may be of any kind and size.
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
    """The names at which two paths first differ. Label maps in a sub-folder of each class thus count as one place."""
    mine, theirs = folder.split("/"), photos.split("/")
    return next(((a, b) for a, b in zip(mine, theirs, strict=False) if a != b), (mine[-1], theirs[-1]))
