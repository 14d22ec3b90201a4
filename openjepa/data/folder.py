"""A folder of images at any depth: flat and unlabeled or in class folders, with or without a split."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openjepa.data.fingerprint import file_stamp
from openjepa.data.skipping import check_usable
from openjepa.data.source import ListSource, Splits
from openjepa.refusals import Refusal
from openjepa.seeds import derive_samples
from openjepa.settings.data import FolderSettings

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
OTHER_SUFFIXES = (".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif")
SUFFIXES = frozenset(JPEG_SUFFIXES + OTHER_SUFFIXES)
"""What an image file's name may end with, in any case."""
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "validation", "valid", "val")
"""Folders that are a split, the preferred first."""


class FolderSource(ListSource):
    """Image files below a folder, in sorted order."""

    def __init__(
        self, root: Path, files: list[str], labels: NDArray[np.int64] | None = None, class_names: tuple[str, ...] | None = None
    ) -> None:
        """`files`: paths below `root`."""
        self._root = root
        # One string for all names: a million Python strings would be copied into each worker as soon as they are touched.
        encoded = [os.fsencode(file) for file in files]
        self._names = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self._ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self.labels = labels
        self.class_names = class_names

    def __len__(self) -> int:
        """Number of files."""
        return len(self._ends)

    def read(self, index: int) -> bytes:
        """Contents of a file."""
        return self.path(index).read_bytes()

    def path(self, index: int) -> Path:
        """Where a file lies."""
        return self._root / self.name(index)

    def name(self, index: int) -> str:
        """Path of a file below the folder."""
        start = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._names[start : int(self._ends[index])].tobytes())

    def stamp(self, index: int) -> bytes:
        """Size and modification time of a file."""
        return file_stamp(f"{self._root}/{self.name(index)}")


def open_folder(settings: FolderSettings, seed: int) -> Splits:
    """The images below `settings.path`.

    Sub-folders that hold images are the classes (one sub-folder alone is not a class but looked into). Where all of them are
    named as splits, `train` is the training split and `test`, `validation`, `valid` or `val` the test split; otherwise
    `test_fraction` of each class is held out with the seed. Images directly in the folder make it unlabeled, with no test
    split. Hidden files and other suffixes are ignored, but counted.
    Raises Refusal where the path does not exist, none of the first images can be used, or images or other folders lie beside
    a split.
    """
    root = existing_path(settings.path)
    if not root.is_dir():
        raise Refusal(f"data.path={settings.path!r} is a file: give the folder that holds the images")
    root, files, num_ignored = _innermost(root)
    if not files:
        raise Refusal(
            f"data.path={settings.path!r} holds no images ({num_ignored} other files); known suffixes: "
            + " ".join(sorted(SUFFIXES))
        )
    splits = _split_folders(root, files)
    if splits is None:
        train, test = _held_out(root, files, settings.test_fraction, seed)
    else:
        train, test = splits
    check_usable(train, f"data.path={settings.path!r}")
    return Splits(train, test, _description(root, train, test, num_ignored))


def left_out(settings: FolderSettings) -> dict[str, FolderSource]:
    """Images of a folder with splits that `open_folder` does not open, by folder: unlabeled or further splits."""
    root, files, _ = _innermost(existing_path(settings.path))
    opened = _split_folders(root, files)
    if opened is None:
        return {}
    taken = {source.path(0).relative_to(root).parts[0] for source in opened if source is not None}
    names = sorted({_top(file) for file in files} - taken)
    return {name: FolderSource(root / name, _below(files, name)) for name in names}


def existing_path(path: str) -> Path:
    """The path, or a Refusal that suggests the nearest folder that exists."""
    if not path:
        raise Refusal("data.path is not set: give the folder with your images (--data.path ~/photos)")
    folder = Path(path).expanduser()
    if folder.exists():
        return folder
    parent = folder.parent
    while not parent.is_dir():
        folder, parent = parent, parent.parent
    siblings = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    near = difflib.get_close_matches(folder.name, siblings, n=1, cutoff=0.5)
    hint = f"did you mean {str(parent / near[0])!r}?" if near else f"{str(parent)!r} exists and holds: {_few(siblings)}"
    raise Refusal(f"data.path={path!r} does not exist; {hint}")


def _few(names: list[str], shown: int = 8) -> str:
    if not names:
        return "no folders"
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _innermost(root: Path) -> tuple[Path, list[str], int]:
    """The folder that really holds the images or their classes: single sub-folders, as archives leave them, are entered."""
    files, num_ignored = _find_images(root)
    while files:
        tops = {_top(file) for file in files}
        top = next(iter(tops))
        if len(tops) > 1 or not top or top.lower() in TRAIN_NAMES:
            break
        root = root / top
        files = [file.split("/", 1)[1] for file in files]
    return root, files, num_ignored


def _find_images(root: Path) -> tuple[list[str], int]:
    """Paths of all images below `root`, sorted, with slashes; and how many other files there are."""
    files: list[str] = []
    num_ignored = 0
    for folder, name in _walk(root, "", set()):
        if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
            files.append(folder + name)
        else:
            num_ignored += 1
    return sorted(files), num_ignored


def _walk(root: Path, below: str, entered: set[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    """(folder, file name) of every file; links to folders are followed, but none is entered twice."""
    status = (root / below).stat()
    if (status.st_dev, status.st_ino) in entered:
        return
    entered.add((status.st_dev, status.st_ino))
    with os.scandir(root / below) as entries:
        folders = []
        for entry in entries:
            if entry.is_dir():
                folders.append(entry.name)
            else:
                yield below, entry.name
    for name in sorted(folders):
        if not name.startswith("."):
            yield from _walk(root, f"{below}{name}/", entered)


def _split_folders(root: Path, files: list[str]) -> tuple[FolderSource, FolderSource | None] | None:
    """Train and test where the folder is split already, else None: beside classes, a folder `train` is a class too."""
    tops = {_top(file).lower(): _top(file) for file in files}
    train_name = next((tops[name] for name in TRAIN_NAMES if name in tops), None)
    if train_name is None:
        return None
    tested = sorted(set(tops) & set(TEST_NAMES))
    others = sorted(set(tops) - {"", *TRAIN_NAMES, *TEST_NAMES})
    if others and not tested:
        return None
    if others:
        raise Refusal(
            f"{str(root)!r} holds {train_name!r} and {tops[tested[0]]!r} beside {_few([tops[name] for name in others])}: "
            "move these away if it is a split, or rename the two if all are classes"
        )
    if loose := [file for file in files if not _top(file)]:
        raise Refusal(
            f"{str(root)!r} holds images ({_few(loose)}) beside the folder {train_name!r}: move these away if it is a split, "
            f"or rename {train_name!r} if all images are to be used"
        )
    train_files = _below(files, train_name)
    names = _class_names(train_files)
    train = FolderSource(root / train_name, train_files, _labels(train_files, names), names)
    for test_name in (tops[name] for name in TEST_NAMES if name in tops):
        test_files = _below(files, test_name)
        test_names = {_top(file) for file in test_files}
        if names is None or "" in test_names:
            continue  # without labels on both sides it cannot test anything
        if unknown := sorted(test_names - set(names)):
            raise Refusal(f"{str(root / test_name)!r} has classes that {train_name!r} has not: {_few(unknown)}")
        return train, FolderSource(root / test_name, test_files, _labels(test_files, names), names)
    return train, None


def _top(file: str) -> str:
    """First folder of a path; empty for a file that lies in none."""
    return file.split("/", 1)[0] if "/" in file else ""


def _below(files: list[str], folder: str) -> list[str]:
    return [file.split("/", 1)[1] for file in files if file.startswith(folder + "/")]


def _class_names(files: list[str]) -> tuple[str, ...] | None:
    """The class folders, or None where images lie outside of them or there is only one."""
    names = {_top(file) for file in files}
    return None if "" in names or len(names) < 2 else tuple(sorted(names))


def _labels(files: list[str], names: tuple[str, ...] | None) -> NDArray[np.int64] | None:
    if names is None:
        return None
    numbers = {name: number for number, name in enumerate(names)}
    return np.array([numbers[_top(file)] for file in files], dtype=np.int64)


def _held_out(root: Path, files: list[str], fraction: float, seed: int) -> tuple[FolderSource, FolderSource | None]:
    """All images, or with classes a split of each of them: the nearest whole number to its fraction, never all."""
    if not 0 <= fraction < 1:
        raise Refusal(f"data.test_fraction={fraction} must be at least 0 and less than 1")
    names = _class_names(files)
    labels = _labels(files, names)
    if labels is None:
        return FolderSource(root, files), None
    # Sorted by class, then by a random key: the first of each class are held out.
    keys = derive_samples("subset", seed, np.array([0]), np.arange(len(files)))
    order = np.lexsort((keys, labels))
    counts = np.bincount(labels)
    num_held = np.minimum(np.floor(fraction * counts + 0.5).astype(np.int64), counts - 1)
    rank_in_class = np.arange(len(files)) - np.repeat(np.cumsum(counts) - counts, counts)
    is_held = np.zeros(len(files), dtype=np.bool_)
    is_held[order] = rank_in_class < num_held[labels[order]]
    if not is_held.any():
        return FolderSource(root, files, labels, names), None
    parts = []
    for chosen in (np.flatnonzero(~is_held), np.flatnonzero(is_held)):
        parts.append(FolderSource(root, [files[index] for index in chosen], labels[chosen], names))
    return parts[0], parts[1]


def _description(root: Path, train: FolderSource, test: FolderSource | None, num_ignored: int) -> str:
    classes = f" in {len(train.class_names)} classes" if train.class_names else ", unlabeled"
    held = f", {len(test):,} to test" if test is not None else ""
    files = "file" if num_ignored == 1 else "files"
    ignored = f"; {num_ignored:,} other {files} ignored" if num_ignored else ""
    return f"{root.name}: {len(train):,} images to train{classes}{held}{ignored}"
