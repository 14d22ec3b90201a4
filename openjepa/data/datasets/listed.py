"""Places205 and iNat18: data sets whose splits are lists of files with one class each."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openjepa.config import read_object
from openjepa.data.datasets.layouts import labeled_splits, listed_images, refuse_folder
from openjepa.data.folders.image_lists import read_lines
from openjepa.data.source import Splits
from openjepa.refusals import Refusal, examples

PLACES_LISTS = ("trainvalsplit_places205", ".")
"""Folders that may hold the lists: the one their archive unpacks to, or the data set's own folder."""
PLACES_IMAGES = ("data/vision/torralba/deeplearning/images256", "images256", "images", ".")
"""Folders that may hold the images: the one their archive unpacks to, or a shorter path."""
PLACES_EXPECTED = (
    f"{PLACES_LISTS[0]}/train_places205.csv and val_places205.csv (lines `a/abbey/gsun_x.jpg 0`), and the images below "
    f"{PLACES_IMAGES[0]}/ or images256/"
)
INAT_IMAGES = (".", "images")
INAT_EXPECTED = "train2018.json, val2018.json and the images in train_val2018/"


@dataclass(frozen=True)
class _Listed:
    """A list of images and their classes."""

    file: Path
    names: list[str]
    labels: NDArray[np.int64]


def open_places205(root: Path) -> Splits:
    """Places205 below `root`: the two lists, and the images in one of several folders (PLACES_IMAGES).

    Raises Refusal if a list is missing, all of its images are missing, or a line is not a path with a class.
    """
    lists = [_read_places(_places_list(root, split)) for split in ("train", "val")]
    images = _folder_of(root, PLACES_IMAGES, lists[0], "Places205", PLACES_EXPECTED)
    names = _places_names(lists[0])
    train, val = (listed_images(images, one.names, one.labels, names, one.file) for one in lists)
    return labeled_splits("Places205", train, val, 205)


def _places_list(root: Path, split: str) -> Path:
    for folder in PLACES_LISTS:
        if (file := root / folder / f"{split}_places205.csv").is_file():
            return file
    refuse_folder("Places205", root, f"has no list {split}_places205.csv", PLACES_EXPECTED)


def _read_places(file: Path) -> _Listed:
    names, labels = [], []
    for number, line in enumerate(read_lines(file), start=1):
        name, _, label = line.rpartition(" ")
        if not name or not label.isdecimal():
            raise Refusal(f"{file}, line {number}: {line[:80]!r}; expected: a path and a class, as `a/abbey/gsun_x.jpg 0`")
        names.append(name)
        labels.append(int(label))
    return _Listed(file, names, np.array(labels, dtype=np.int64))


def _places_names(train: _Listed) -> tuple[str, ...] | None:
    """Class names from the folders (a/apartment_building/outdoor -> apartment_building/outdoor).

    None if the training images do not have one folder per class.
    """
    first = np.unique(train.labels, return_index=True)
    known = {
        label: train.names[row].rpartition("/")[0].partition("/")[2]
        for label, row in zip(first[0].tolist(), first[1].tolist(), strict=True)
    }
    if sorted(known) != list(range(len(known))) or "" in known.values() or len(set(known.values())) < len(known):
        return None
    return tuple(known[label] for label in range(len(known)))


def _folder_of(root: Path, folders: Iterable[str], listed: _Listed, title: str, expected: str) -> Path:
    """The folder that the list's paths start from: the first one that holds one of the first 100 files of the list."""
    for folder in folders:
        if any((root / folder / name).is_file() for name in listed.names[:100]):
            return root / folder
    refuse_folder(
        title, root, f"has none of the first images that {listed.file.name} names ({examples(listed.names)})", expected
    )


def open_inat18(root: Path) -> Splits:
    """iNaturalist 2018 below `root`: annotations in COCO's format, with one class (species) per image.

    Raises Refusal if a file is missing or has another format, an image has no class or two, or all images are missing.
    """
    files = [root / f"{split}2018.json" for split in ("train", "val")]
    if absent := [file.name for file in files if not file.is_file()]:
        refuse_folder("iNat18", root, f"has no {' and no '.join(absent)}", INAT_EXPECTED)
    (train, categories), (val, _) = (_read_inat(file) for file in files)
    numbers, names = _inat_classes(categories, train.labels)
    images = _folder_of(root, INAT_IMAGES, train, "iNat18", INAT_EXPECTED)
    sources = []
    for one in (train, val):
        if unknown := sorted(set(one.labels.tolist()) - set(numbers)):
            shown = examples([str(category) for category in unknown])
            raise Refusal(f"{one.file} has {len(unknown)} categories unknown to {files[0].name}: [{shown}]")
        labels = np.array([numbers[label] for label in one.labels.tolist()], dtype=np.int64)
        sources.append(listed_images(images, one.names, labels, names, one.file))
    return labeled_splits("iNat18", sources[0], sources[1], 8142)


def _read_inat(file: Path) -> tuple[_Listed, list[dict[str, Any]]]:
    """The images with their category numbers, and the categories."""
    try:
        content = read_object(file, "get it again") or {}
        paths = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
        pairs = {(int(item["image_id"]), int(item["category_id"])) for item in content["annotations"]}
        categories = [{"id": int(item["id"]), "name": str(item["name"])} for item in content.get("categories", ())]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error) if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"
        raise Refusal(
            f"{file} is no annotation file in COCO's format ({reason}); expected: "
            '{"images": [{"id", "file_name"}, ...], "annotations": [{"image_id", "category_id"}, ...], "categories": [...]}'
        ) from error
    labels = dict(pairs)
    wrong = [paths[image] for image in paths if image not in labels]
    if wrong or len(pairs) != len(labels) or len(labels) != len(paths):
        raise Refusal(
            f"{file}: {len(paths):,} images, {len(labels):,} of them annotated with {len(pairs):,} categories; expected: one "
            f"category for each image" + (f", but there is none for {examples(wrong)}" if wrong else "")
        )
    numbers = np.array([labels[image] for image in paths], dtype=np.int64)
    return _Listed(file, list(paths.values()), numbers), categories


def _inat_classes(categories: list[dict[str, Any]], labels: NDArray[np.int64]) -> tuple[dict[int, int], tuple[str, ...] | None]:
    """A map from the file's category numbers to classes 0, 1, ... in the same order, and the names if the file has any."""
    if not categories:
        return {number: place for place, number in enumerate(np.unique(labels).tolist())}, None
    ordered = sorted(categories, key=lambda item: int(item["id"]))
    return {item["id"]: place for place, item in enumerate(ordered)}, tuple(item["name"] for item in ordered)
