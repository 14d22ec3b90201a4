"""Text files that name images and their classes, and a check that the named images exist."""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

from openjepa.refusals import Refusal, examples

VAL_ANNOTATIONS = "val_annotations.txt"
"""List of Tiny ImageNet, in the same folder as its folder of validation images."""


def read_lines(file: Path) -> list[str]:
    """The lines of a text file, except blank ones. Raises Refusal if it is not text."""
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{file} cannot be read as text ({error})") from error


def read_val_annotations(file: Path) -> dict[str, str]:
    """Class of each image by file name. Raises Refusal if a line has another form, or there are no lines.

    Lines are `val_0.JPEG<tab>n03444034`, possibly with a box after further tabs.
    """
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
    """Warns of images that the list `file` names but `root` does not hold. They are skipped and counted as unreadable.

    Raises Refusal if the list is empty or none of its images exists.
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
    """The paths among `names` for which there is no file below `root`.

    Every folder is read once, so that millions of files need no look-up each. A name is looked up only if its folder does not
    list it. On some disks, such a name exists nonetheless: upper and lower case, or different ways to write an accent, count as
    the same there.
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
    except OSError:  # missing, not a folder, or not readable
        return set()
