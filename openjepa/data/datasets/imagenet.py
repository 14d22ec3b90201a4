"""ImageNet-1K: class folders, or the official validation images in a single folder with their labels in another file."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openjepa.data.datasets.layouts import (
    class_folders,
    first_existing,
    is_flat,
    labeled_splits,
    listed_images,
    number_as,
    open_parquet_splits,
    parquet_files,
    refuse,
)
from openjepa.data.folders.folder import FolderSource
from openjepa.data.folders.image_lists import read_lines
from openjepa.data.source import Splits, class_numbers
from openjepa.refusals import Refusal, examples, needed_for

TITLE = "ImageNet-1K"
NUM_CLASSES = 1000
TRAIN_FOLDERS = ("train", "ILSVRC2012_img_train")
VAL_FOLDERS = ("val", "ILSVRC2012_img_val", "validation")
"""Names of the split folders, the preferred one first: our own name, then those of the archives."""
KAGGLE_FOLDER = Path("ILSVRC", "Data", "CLS-LOC")
KAGGLE_LABELS = "LOC_val_solution.csv"
DEVKIT = Path("ILSVRC2012_devkit_t12", "data")
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
EXPECTED = (
    "train/CLASS/*.JPEG and val/CLASS/*.JPEG, or val/*.JPEG as the official archive unpacks with "
    f"{DEVKIT}/ or {KAGGLE_LABELS} beside it"
)


@dataclass(frozen=True)
class _Truth:
    """Classes of validation images that lie in a single folder."""

    file: Path
    """File that lists the classes."""
    names: list[str]
    """File names of the images."""
    classes: list[str]
    """WordNet numbers of the images, which are also the names of the class folders."""


def open_imagenet(root: Path) -> Splits:
    """ImageNet-1K below `root`: class folders, the official archives, the competition's folders on Kaggle, or Parquet files.

    Raises Refusal if a split is missing, validation images have no labels, or none of the listed images exists.
    """
    if parquet_files(root):
        return open_parquet_splits(TITLE, root, ("label",), NUM_CLASSES)
    bases = (root, root / KAGGLE_FOLDER, root / KAGGLE_FOLDER.relative_to("ILSVRC"))
    train_folder = first_existing(base / name for base in bases for name in TRAIN_FOLDERS)
    val_folder = first_existing(base / name for base in bases for name in VAL_FOLDERS)
    if train_folder is None or val_folder is None:
        absent = "training" if train_folder is None else "validation"
        refuse(TITLE, root, f"has no folder of {absent} images", EXPECTED)
    train = class_folders(train_folder, TITLE)
    if is_flat(val_folder):
        truth = _read_truth((root, root.parent, val_folder.parent, val_folder), val_folder)
        return labeled_splits(TITLE, train, _labeled(truth, val_folder, train), NUM_CLASSES)
    return labeled_splits(TITLE, train, number_as(train, class_folders(val_folder, TITLE), val_folder), NUM_CLASSES)


def _labeled(truth: _Truth, folder: Path, train: FolderSource) -> FolderSource:
    assert train.class_names is not None
    if unknown := sorted(set(truth.classes) - set(train.class_names)):
        raise Refusal(
            f"{truth.file} has {len(unknown)} classes that the training split has no folder for: {examples(unknown)}. "
            "Expected: one training folder per class, named by its WordNet number (n01440764)"
        )
    labels = class_numbers(truth.classes, train.class_names)
    return listed_images(folder, truth.names, labels, train.class_names, truth.file)


def _read_truth(places: tuple[Path, ...], folder: Path) -> _Truth:
    """The classes of the flat images, from the first file that is found."""
    if table := first_existing(place / KAGGLE_LABELS for place in places):
        return _read_kaggle(table)
    if list_file := first_existing(place / DEVKIT / GROUND_TRUTH for place in places):
        return _read_devkit(list_file)
    refuse(
        TITLE,
        folder,
        "holds images without class folders, and their labels are nowhere beside it",
        f"the unpacked {DEVKIT.parts[0]}.tar.gz in {places[0]}, or {KAGGLE_LABELS} there, or one folder per class",
    )


def _read_kaggle(file: Path) -> _Truth:
    """Reads lines like `ILSVRC2012_val_00000001,n01751748 111 108 370 297`: a class, then its box; repeated for each object."""
    names, classes = [], []
    for number, line in enumerate(read_lines(file), start=1):
        name, _, prediction = line.partition(",")
        if name == "ImageId":
            continue
        if not re.match(r"n\d+\b", prediction):
            raise Refusal(f"{file}, line {number}: {line[:80]!r}; expected: ILSVRC2012_val_00000001,n01751748 ...")
        names.append(f"{name}.JPEG")
        classes.append(prediction.split()[0])
    return _Truth(file, names, classes)


def _read_devkit(file: Path) -> _Truth:
    """Reads one number per image, in the order of the image names. meta.mat beside `file` maps numbers to classes."""
    meta = file.with_name("meta.mat")
    if not meta.is_file():
        raise Refusal(f"{file} has the labels as numbers, but {meta.name} is not beside it: unpack the whole devkit")
    classes = _class_numbers(meta)
    found = []
    for number, line in enumerate(read_lines(file), start=1):
        if not line.strip().isdecimal() or int(line) not in classes:
            raise Refusal(f"{file}, line {number}: {line[:80]!r}; expected: a class from 1 to {NUM_CLASSES}")
        found.append(classes[int(line)])
    return _Truth(file, [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(found) + 1)], found)


def _class_numbers(meta: Path) -> dict[int, str]:
    """WordNet numbers by the devkit's own numbers. Raises Refusal if the file is not as expected."""
    synsets = _read_matlab(meta, "synsets")
    try:
        rows = [(int(synset.ILSVRC2012_ID), synset.WNID) for synset in np.atleast_1d(synsets)]
    except (AttributeError, TypeError, ValueError):
        rows = []
    if not rows or not all(isinstance(name, str) for _, name in rows):
        raise Refusal(f"{meta}: 'synsets' has no ILSVRC2012_ID (a number) and WNID (text); expected: the devkit's file")
    return {number: name for number, name in rows if number <= NUM_CLASSES}  # larger ones are groups of classes


def _read_matlab(file: Path, name: str) -> Any:
    """A variable of a MATLAB file, or None if the file lacks it. The fields of structures become attributes.

    Raises Refusal if the file is damaged or scipy is missing.
    """
    with needed_for("reading the labels of ImageNet's validation images (meta.mat)", "one folder per class"):
        from scipy.io import loadmat
    try:
        return loadmat(file, struct_as_record=False, squeeze_me=True, variable_names=[name]).get(name)
    except Exception as error:  # parsers of untrusted files can raise anything
        raise Refusal(f"{file} cannot be read as a MATLAB file ({error}): unpack the devkit again") from error
