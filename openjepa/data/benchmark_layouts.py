"""What the openers of benchmarks share: class folders, Parquet files, lists of images, and their errors."""

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from openjepa.data.folder import SUFFIXES, FolderSource, open_folder
from openjepa.data.huggingface import open_huggingface, require_library
from openjepa.data.skipping import check_usable
from openjepa.data.source import ListSource, Splits
from openjepa.refusals import Refusal
from openjepa.settings.data import FolderSettings, HuggingFaceSettings

NUM_EXAMPLES = 3
"""Names that an error gives as examples."""
NUM_HELD = 8
"""Entries of a folder that an error lists."""


def labeled_splits(title: str, train: ListSource, test: ListSource, num_classes: int) -> Splits:
    """Both splits with a line that says what they hold, also where it is not the whole data set of `num_classes` classes.

    Raises Refusal if none of the first images of a split can be read, a split has classes that training has not, or there are
    more classes than there should be.
    """
    assert train.labels is not None and test.labels is not None
    if (largest := max(train.labels.max(initial=0), test.labels.max(initial=0))) >= num_classes:
        raise Refusal(f"{title}: an image has class {largest}, but there are only {num_classes:,} classes, numbered from 0 on")
    if unknown := sorted(set(np.unique(test.labels).tolist()) - set(np.unique(train.labels).tolist())):
        known = dict(enumerate(train.class_names or ()))
        names = [known.get(label, str(label)) for label in unknown]
        raise Refusal(f"{title}: the test split has {len(names)} classes without training images: {examples(names)}")
    check_usable(train, f"the training split of {title}")
    check_usable(test, f"the test split of {title}")
    found = len(np.unique(train.labels))
    of = "" if found == num_classes else f" of its {num_classes:,}"
    return Splits(train, test, f"{title}: {len(train):,} images to train in {found:,}{of} classes, {len(test):,} to test")


def refuse(title: str, root: Path, problem: str, expected: str) -> NoReturn:
    """Raises the Refusal of a folder that is there but not as it should be: problem, what it holds, what is expected."""
    raise Refusal(f"{title}: {root} {problem}; it holds: {held(root)}. Expected: {expected}")


def held(folder: Path) -> str:
    """The first entries of a folder, in words."""
    names = sorted(entry.name for entry in folder.iterdir())
    more = f" and {len(names) - NUM_HELD} more" if len(names) > NUM_HELD else ""
    return ", ".join(names[:NUM_HELD]) + more if names else "nothing"


def examples(names: Sequence[str]) -> str:
    """The first names, in words."""
    return ", ".join(names[:NUM_EXAMPLES]) + (", ..." if len(names) > NUM_EXAMPLES else "")


def first_existing(places: Iterable[Path]) -> Path | None:
    """The first of these files or folders that exists."""
    return next((place for place in places if place.exists()), None)


# -------------------------------------------------------------------------------------------------------- class folders


def class_folders(folder: Path, title: str) -> FolderSource:
    """The images of a folder that has one sub-folder per class, at least two. Raises Refusal where it has not."""
    if any(entry.suffix == ".tar" for entry in folder.iterdir()):
        refuse(
            title, folder, "holds archives that are not unpacked", "one folder of images per class: unpack each archive there"
        )
    source = open_folder(FolderSettings(path=str(folder), test_fraction=0.0), 0).train
    assert isinstance(source, FolderSource)
    if source.labels is None:
        refuse(title, folder, "has images but not all of them in class folders", "two or more folders of images, one per class")
    return source


def is_flat(folder: Path) -> bool:
    """Whether images lie directly in a folder."""
    with os.scandir(folder) as entries:
        return any(Path(entry.name).suffix.lower() in SUFFIXES and not entry.is_dir() for entry in entries)


def number_as(train: FolderSource, test: FolderSource, place: Path) -> FolderSource:
    """`test` with its classes numbered as those of `train`. Raises Refusal where it has others; `place` is its folder."""
    assert train.class_names is not None and test.class_names is not None and test.labels is not None
    if unknown := sorted(set(test.class_names) - set(train.class_names)):
        raise Refusal(f"{place} has {len(unknown)} classes that the training split has not: {examples(unknown)}")
    numbers = {name: number for number, name in enumerate(train.class_names)}
    test.labels = np.array([numbers[name] for name in test.class_names], dtype=np.int64)[test.labels]
    test.class_names = train.class_names
    return test


# ---------------------------------------------------------------------------------------------------------------- Parquet


def parquet_files(root: Path) -> list[Path]:
    """Parquet files in a folder or in its sub-folders, as the hub's repositories keep them."""
    return sorted([*root.glob("*.parquet"), *root.glob("*/*.parquet")])


def open_parquet_splits(title: str, root: Path, label_columns: tuple[str, ...], num_classes: int) -> Splits:
    """Training and test split of the Parquet files below `root`, labels from the first of the columns that is there.

    Raises Refusal where a file cannot be read, no label column is there, or a split is missing.
    """
    require_library()
    files = parquet_files(root)
    names = _column_names(files[0])
    label = next((name for name in label_columns if name in names), None)
    if label is None:
        raise Refusal(f"{files[0]} has no column {' or '.join(label_columns)}; it has {', '.join(names)}")
    depth = "*" if files[0].parent == root else "*/*"
    pattern = f"{glob.escape(str(root))}/{depth}.parquet"
    splits = open_huggingface(HuggingFaceSettings(path=pattern, label_column=label, test_fraction=0.0), 0)
    assert isinstance(splits.train, ListSource)
    if splits.test is None or splits.train.labels is None:
        expected = "files named as train and as test or validation, every row with a label"
        refuse(title, root, "lacks labels or a labeled test split", expected)
    return labeled_splits(title, splits.train, splits.test, num_classes)


def _column_names(file: Path) -> list[str]:
    import pyarrow.parquet as pq

    try:
        return list(pq.read_schema(file).names)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise Refusal(f"{file} is no readable Parquet file ({error}): get it again") from error


# ------------------------------------------------------------------------------------------------------------------ lists


def listed_images(
    root: Path, names: list[str], labels: NDArray[np.int64], class_names: tuple[str, ...] | None, file: Path
) -> FolderSource:
    """The images below `root` that a list names. Raises Refusal where the list `file` is empty or names absent images."""
    if not names:
        raise Refusal(f"{file} lists no images")
    if absent := absent_files(root, names):
        raise Refusal(
            f"{file} names {len(absent):,} of {len(names):,} images that {root} does not hold, for example "
            f"{examples(absent)}. Expected: every listed image there"
        )
    return FolderSource(root, names, labels, class_names)


def absent_files(root: Path, names: Iterable[str]) -> list[str]:
    """Those of the paths below `root` where no file is. Every folder is read once: millions of files cost no look-up each."""
    present: dict[str, set[str]] = {}
    absent = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in present:
            present[folder] = _names_in(root / folder)
        if file not in present[folder]:
            absent.append(name)
    return absent


def _names_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def read_lines(file: Path) -> list[str]:
    """Lines of a text file without those that are blank. Raises Refusal where it is no text."""
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{file} cannot be read as text ({error})") from error
