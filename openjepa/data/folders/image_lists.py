"""Text files that name images and their classes, and which of the named images are there."""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from openjepa.refusals import Refusal, examples

VAL_ANNOTATIONS = "val_annotations.txt"
"""The list of Tiny ImageNet beside its folder of validation images."""


def read_lines(file: Path) -> list[str]:
    """Lines of a text file without those that are blank. Raises Refusal if it is no text."""
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{file} cannot be read as text ({error})") from error


def read_val_annotations(file: Path) -> dict[str, str]:
    """Class of each image by its file name: lines `val_0.JPEG<tab>n03444034`, and a box after further tabs."""
    classes = {}
    for number, line in enumerate(read_lines(file), start=1):
        name, *others = line.split("\t")
        if not others or not name or not others[0].strip():
            raise Refusal(
                f"{file}, line {number}: {line[:80]!r}; expected: a file name, a tab and a class, as val_0.JPEG<tab>n03444034"
            )
        classes[name] = others[0].strip()
    if not classes:
        raise Refusal(f"{file} lists no images")
    return classes


def check_listed(root: Path, names: Sequence[str], file: Path) -> None:
    """Warns of images that the list `file` names and `root` does not hold: they are skipped and counted as unreadable ones are.

    Raises Refusal if the list is empty or none of its images is there.
    """
    if not names:
        raise Refusal(f"{file} lists no images")
    absent = absent_files(root, names)
    if not absent:
        return
    found = f"{file} names {len(absent):,} of {len(names):,} images that {root} does not hold, for example {examples(absent)}"
    if len(absent) == len(names):
        raise Refusal(f"{found}. Expected: the listed images there")
    warnings.warn(f"{found}; they are skipped, and count as unreadable images do (max_skipped)", stacklevel=3)


def absent_files(root: Path, names: Iterable[str]) -> list[str]:
    """The paths among `names` below `root` that name no file.

    Every folder is read once: millions of files cost no look-up each. Only a name that its folder does not list is looked up:
    disks may take upper and lower case, or other ways to write an accent, for the same name.
    """
    present: dict[str, set[str]] = {}
    absent = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in present:
            present[folder] = _names_in(root / folder)
        if file not in present[folder] and not os.path.exists(root / name):  # noqa: PTH110 - false for any name
            absent.append(name)
    return absent


def _names_in(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries}
    except OSError:  # not there, no folder, or not to be read
        return set()
