"""Shared parts of the openers of benchmarks: class folders, Parquet files, lists of images, and their errors."""

import glob
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from openjepa.data.decode import check_usable
from openjepa.data.folders.entries import EntryKind, entries
from openjepa.data.folders.folder import FolderSource, open_folder
from openjepa.data.folders.image_lists import check_listed
from openjepa.data.source import ListSource, Splits, class_numbers
from openjepa.data.tables.huggingface import open_huggingface, require_library
from openjepa.data.tables.local_files import is_hidden, service_folder
from openjepa.refusals import Refusal, examples, few
from openjepa.settings.sources import FolderSettings, HuggingFaceSettings


def labeled_splits(title: str, train: ListSource, test: ListSource, num_classes: int) -> Splits:
    """Checks both splits and describes them in one line, which says if some of the `num_classes` classes are absent.

    Raises Refusal if none of the first images of a split can be read, the test split has classes without training images, or
    a label is not below `num_classes`.
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
    description = f"{title}: {len(train):,} images to train in {found:,}{of} classes, {len(test):,} to test"
    return Splits(train, test, description, title)


def refuse(title: str, root: Path, problem: str, expected: str) -> NoReturn:
    """Raises the Refusal for a folder that exists but is not as it should be: the problem, the contents, and `expected`."""
    raise Refusal(f"{title}: {root} {problem}; it holds: {held(root)}. Expected: {expected}")


def held(folder: Path) -> str:
    """The first entries of a folder, in words."""
    return few(sorted(entry.name for entry in folder.iterdir())) or "nothing"


def first_existing(places: Iterable[Path]) -> Path | None:
    """The first of `places` that exists; None if none does."""
    return next((place for place in places if place.exists()), None)


# -------------------------------------------------------------------------------------------------------- class folders


def class_folders(folder: Path, title: str) -> FolderSource:
    """The images of a folder with one sub-folder per class, at least two. Raises Refusal if it has no such sub-folders."""
    if any(entry.suffix == ".tar" for entry in folder.iterdir()):
        refuse(
            title, folder, "holds archives that are not unpacked", "one folder of images per class: unpack each archive there"
        )
    opened = open_folder(FolderSettings(path=str(folder), test_fraction=0.0), 0)
    source = opened.train
    assert isinstance(source, FolderSource)
    for what in opened.left_out:
        warnings.warn(f"{title}: {folder}: {what}", stacklevel=2)
    if source.labels is None:
        refuse(title, folder, "has images but not all of them in class folders", "two or more folders of images, one per class")
    return source


def is_flat(folder: Path) -> bool:
    """True if images lie directly in the folder."""
    return any(kind is EntryKind.IMAGE for _, kind in entries(folder))


def number_as(train: FolderSource, test: FolderSource, place: Path) -> FolderSource:
    """`test` with its classes numbered as in `train`. Raises Refusal if `test`, in the folder `place`, has other classes."""
    assert train.class_names is not None and test.class_names is not None and test.labels is not None
    if unknown := sorted(set(test.class_names) - set(train.class_names)):
        raise Refusal(f"{place} has {len(unknown)} classes that the training split has not: {examples(unknown)}")
    test.labels = class_numbers(test.class_names, train.class_names)[test.labels]
    test.class_names = train.class_names
    return test


# ---------------------------------------------------------------------------------------------------------------- Parquet


def parquet_files(root: Path) -> list[Path]:
    """Parquet files in a folder or its direct sub-folders, the layout of repositories on the hub. Skips hidden ones."""
    found = [file for depth in ("*", "*/*") for file in root.glob(f"{depth}.parquet") if file.is_file()]
    inner = {file: file.relative_to(root) for file in sorted(found)}
    return [file for file, below in inner.items() if not is_hidden(below) and service_folder(below) is None]


def open_parquet_splits(title: str, root: Path, label_columns: tuple[str, ...], num_classes: int) -> Splits:
    """Training and test split of the Parquet files below `root`. Labels are in the first of `label_columns` that exists.

    Raises Refusal if a file cannot be read, no label column is there, or a split is missing.
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
    """The images below `root` that a list names. Warns of absent ones, which count as unreadable later.

    Raises Refusal if the list `file` is empty or none of its images exists.
    """
    check_listed(root, names, file)
    return FolderSource(root, names, labels, class_names)
