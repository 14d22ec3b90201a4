"""A folder of images at any depth: flat and unlabeled, or in class folders, with or without a split, and without label maps.

Label maps beside photos (PASCAL VOC's SegmentationClass, Oxford pets' trimaps) are pictures that nobody means to train on. A
folder of them is recognized by two signs. Its files have the same names as photos in another folder, and their pixels have one
channel or a palette. Only a few headers are opened.
"""

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openjepa.data.decode import check_usable, mode_and_size
from openjepa.data.folders.entries import SUFFIXES, EntryKind, OtherEntries, existing_path, walk
from openjepa.data.folders.image_lists import VAL_ANNOTATIONS, check_listed, read_val_annotations
from openjepa.data.selection import held_out
from openjepa.data.source import JoinedBytes, ListSource, Splits, class_numbers, file_stamp
from openjepa.refusals import Refusal, few
from openjepa.settings.sources import FolderSettings
from openjepa.system.console import command

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "validation", "valid", "val")
"""Names of folders that are a split, the preferred one first."""


class FolderSource(ListSource):
    """Image files below a folder, in sorted order."""

    def __init__(
        self, root: Path, files: list[str], labels: NDArray[np.int64] | None = None, class_names: tuple[str, ...] | None = None
    ) -> None:
        """`files` are paths below `root`; `labels` are indices into `class_names`, one per file."""
        self.root = root
        """The folder that the names are relative to."""
        self._names = JoinedBytes.join([os.fsencode(file) for file in files])
        self.labels = labels
        self.class_names = class_names

    def __len__(self) -> int:
        """Number of files."""
        return len(self._names)

    def read(self, index: int) -> bytes:
        """Contents of a file."""
        return self.path(index).read_bytes()

    def path(self, index: int) -> Path:
        """Full path of a file."""
        return self.root / self.name(index)

    def name(self, index: int) -> str:
        """Path of a file below the folder."""
        return os.fsdecode(self._names[index])

    def stamp(self, index: int) -> bytes:
        """Size and modification time of a file."""
        return file_stamp(f"{self.root}/{self.name(index)}")


def open_folder(settings: FolderSettings, seed: int) -> Splits:
    """The images below `settings.path`, split into training and test images.

    Sub-folders that hold images are the classes. A single sub-folder is not a class; it is entered. If all sub-folders are
    named as splits, `train` is the training split. The test split is then the first of `test`, `testing`, `validation`, `valid`
    and `val` that has labels. Otherwise `test_fraction` of each class is held out, chosen by `seed`. If images lie directly in
    the folder, it is unlabeled and has no test split. All other entries are left out and counted (see entries.py).

    Raises Refusal if the path does not exist, none of the first images can be used, images or other folders lie beside a split,
    or two folders are the same split by their names.
    """
    root, files, others = _found(settings)
    opened = _split_folders(root, files) or _held_out(root, files, settings.test_fraction, seed)
    check_usable(opened.train, f"data.path={settings.path!r}")
    _warn_of_masks(root, files)
    unused = _unused(opened)
    parts = [_description(root, opened), *unused, *others.described()]
    return Splits(opened.train, opened.test, "; ".join(parts), root.name, left_out=tuple(others.left_out()), unused=unused)


def left_out_folders(settings: FolderSettings) -> dict[str, FolderSource]:
    """Images in splits of a folder that `open_folder` does not open (unlabeled or further ones), by the folder of the split."""
    root, files, _ = _innermost(existing_path(settings.path))
    opened = _split_folders(root, files)
    if opened is None:
        return {}
    return {name: FolderSource(root / name, unused) for name, unused in opened.unused.items()}


@dataclass(frozen=True)
class WholeFolder:
    """Every image of a folder, by split. Unlike `open_folder`, holds nothing out and leaves no split unused."""

    splits: dict[str, FolderSource]
    """The images of `train`, or of the whole folder under that name, and of each further split under its folder's name."""
    unlisted: tuple[Path, ...]
    """Images that the list of their split does not name. They belong to none."""
    others: OtherEntries
    """The entries that are no images."""


def open_whole(settings: FolderSettings) -> WholeFolder:
    """All images below `settings.path`. A split whose images lie in no class folder has no labels. Refuses as `open_folder`."""
    root, files, others = _found(settings)
    _warn_of_masks(root, files)
    opened = _split_folders(root, files)
    if opened is None or opened.train_folder is None:
        names = _class_names(files)
        return WholeFolder({"train": FolderSource(root, files, _labels(files, names), names)}, (), others)
    splits: dict[str, FolderSource] = {"train": opened.train}
    unlisted: list[Path] = []
    for name in sorted({_top(file) for file in files} - {opened.train_folder.name}):
        test, rest = _test_split(root / name, _below(files, name), opened.train, opened.train_folder.name)
        splits[name] = FolderSource(root / name, rest) if test is None else test
        unlisted += [root / name / file for file in rest] if test is not None else []
    return WholeFolder(splits, tuple(unlisted), others)


@dataclass(frozen=True)
class _Opened:
    """The images of a folder, by split."""

    train: FolderSource
    test: FolderSource | None = None
    unused: dict[str, list[str]] = field(default_factory=dict)
    """Images in neither split, by the folder they are split into."""
    train_folder: Path | None = None
    """The folder of the training split. None if the folder had no splits of its own."""


def _found(settings: FolderSettings) -> tuple[Path, list[str], OtherEntries]:
    """The folder that holds the images or their classes, and its entries. Raises Refusal if there are no images."""
    root = existing_path(settings.path)
    if not root.is_dir():
        raise Refusal(f"data.path={settings.path!r} is a file: give the folder that holds the images")
    root, files, others = _innermost(root)
    if not files:
        found = "; ".join([f"{others.num_ignored} other files", *others.left_out()])
        known = " ".join(sorted(SUFFIXES)) + "; tars and Parquet files need --data.source huggingface"
        raise Refusal(f"data.path={settings.path!r} holds no images ({found}); known suffixes: {known}")
    return root, files, others


def _warn_of_masks(root: Path, files: list[str]) -> None:
    for masks in find_mask_folders(root, files):
        warnings.warn(masks.advice(root), stacklevel=3)


def _innermost(root: Path) -> tuple[Path, list[str], OtherEntries]:
    """The folder that really holds the images or their classes, the sorted image paths below it, and the other entries.

    Single sub-folders, as archives leave them, are entered.
    """
    files: list[str] = []
    others = OtherEntries()
    for path, kind in walk(root):
        if kind is EntryKind.IMAGE:
            files.append(path)
        else:
            others.add(path, kind)
    return *_entered(root, sorted(files), lambda top: top.lower() in TRAIN_NAMES), others


def _entered(root: Path, files: list[str], is_kept: Callable[[str], bool]) -> tuple[Path, list[str]]:
    """Enters the sub-folders that all files share, up to one that `is_kept`. Returns the folder and the paths below it."""
    while files:
        tops = {_top(file) for file in files}
        top = next(iter(tops))
        if len(tops) > 1 or not top or is_kept(top):
            break
        root = root / top
        files = [file.split("/", 1)[1] for file in files]
    return root, files


def _split_folders(root: Path, files: list[str]) -> _Opened | None:
    """The train and test splits if the folder is already split, or else None. Beside classes, a folder `train` is a class."""
    tops = sorted({_top(file) for file in files})
    trained, tested = ([top for name in names for top in tops if top.lower() == name] for names in (TRAIN_NAMES, TEST_NAMES))
    others = sorted(set(tops) - {"", *trained, *tested})
    if not trained or (others and not tested):
        return None
    _check_split(root, files, trained, tested, others)
    rest = {name: _below(files, name) for name in (*trained, *tested)}
    train, test = _split(root / trained[0], rest.pop(trained[0])), None
    for name in tested:
        test, rest[name] = _test_split(root / name, rest[name], train, trained[0])
        if test is not None:
            break
    unused = {name: files for name, files in sorted(rest.items()) if files}
    return _Opened(train, test, unused, root / trained[0])


def _check_split(root: Path, files: list[str], trained: list[str], tested: list[str], others: list[str]) -> None:
    """Raises Refusal if something lies beside the splits, or two folders are the same split."""
    if others:
        raise Refusal(
            f"{str(root)!r} holds {trained[0]!r} and {tested[0]!r} beside {few(others) or 'no folders'}: "
            "move these away if it is a split, or rename the two if all are classes"
        )
    if loose := [file for file in files if not _top(file)]:
        raise Refusal(
            f"{str(root)!r} holds images ({few(loose)}) beside the folder {trained[0]!r}: move these away if it is a split, "
            f"or rename {trained[0]!r} if all images are to be used"
        )
    same_test = [name for name in tested if [other.lower() for other in tested].count(name.lower()) > 1]
    for same in (trained if len(trained) > 1 else [], same_test):
        if same:
            raise Refusal(
                f"{str(root)!r} holds {few([repr(name) for name in same])}, which mean the same split: put their images into "
                "one of them, or rename what is something else"
            )


def _split(root: Path, files: list[str]) -> FolderSource:
    """The images of a split's folder. They are labeled if they lie in class folders."""
    root, files = _entered(root, files, lambda top: False)
    names = _class_names(files)
    return FolderSource(root, files, _labels(files, names), names)


def _test_split(root: Path, files: list[str], train: FolderSource, train_name: str) -> tuple[FolderSource | None, list[str]]:
    """The labeled images of a split's folder, with the classes of `train`, and its other images.

    The first is None if the split has no labels.
    """
    names = train.class_names
    if names is None:
        return None, files
    inner, below = _entered(root, files, lambda top: top in names)
    tops = {_top(file) for file in below}
    if "" not in tops:
        _check_known(tops, names, root, train_name)
        return FolderSource(inner, below, _labels(below, names), names), []
    list_file = root / VAL_ANNOTATIONS
    if not list_file.is_file():
        return None, files
    classes = read_val_annotations(list_file)
    _check_known(set(classes.values()), names, list_file, train_name)
    check_listed(inner, list(classes), list_file)
    listed = sorted(classes)
    labels = class_numbers((classes[name] for name in listed), names)
    unused = [file for file, name in zip(files, below, strict=True) if name not in classes]
    return FolderSource(inner, listed, labels, names), unused


def _check_known(found: set[str], known: tuple[str, ...], place: Path, train_name: str) -> None:
    if unknown := sorted(found - set(known)):
        raise Refusal(f"{str(place)!r} has classes that {train_name!r} has not: {few(unknown)}")


def _top(file: str) -> str:
    """First folder of a path. Empty if the file lies in no folder."""
    return file.split("/", 1)[0] if "/" in file else ""


def _below(files: list[str], folder: str) -> list[str]:
    return [file.split("/", 1)[1] for file in files if file.startswith(folder + "/")]


def _class_names(files: list[str]) -> tuple[str, ...] | None:
    """The class folders. None if an image lies outside of them or there is only one."""
    names = {_top(file) for file in files}
    return None if "" in names or len(names) < 2 else tuple(sorted(names))


def _labels(files: list[str], names: tuple[str, ...] | None) -> NDArray[np.int64] | None:
    return None if names is None else class_numbers(map(_top, files), names)


def _held_out(root: Path, files: list[str], fraction: float, seed: int) -> _Opened:
    """All images, with a test split if they have classes.

    The number held out of each class is the whole number nearest to `fraction` of it, but never the whole class.
    """
    names = _class_names(files)
    labels = _labels(files, names)
    is_held = held_out(labels, fraction, seed) if fraction else None
    if labels is None or is_held is None:
        return _Opened(FolderSource(root, files, labels, names))
    parts = []
    for chosen in (np.flatnonzero(~is_held), np.flatnonzero(is_held)):
        parts.append(FolderSource(root, [files[index] for index in chosen], labels[chosen], names))
    return _Opened(parts[0], parts[1])


def _description(root: Path, opened: _Opened) -> str:
    train, test = opened.train, opened.test
    classes = f" in {len(train.class_names)} classes" if train.class_names else ", unlabeled"
    held = f", {len(test):,} to test" if test is not None else ""
    if test is None and train.labels is not None and opened.train_folder is not None:
        typed = command("--data.path", opened.train_folder)
        held = f", none with labels to test on ({typed} holds out a part of each class)"
    return f"{root.name}: {len(train):,} images to train{classes}{held}"


def _unused(opened: _Opened) -> tuple[str, ...]:
    unused = ", ".join(f"{len(files):,} in {name}" for name, files in opened.unused.items())
    return (f"images in no split that is used: {unused}",) if unused else ()


# ----------------------------------------------------------------------------------------------------- label maps beside photos


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
