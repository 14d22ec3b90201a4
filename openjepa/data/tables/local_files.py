"""Parquet files and tars on disk: the files that a path means, and the split that each belongs to."""

import glob
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from openjepa.data.folders.entries import EntryKind, OtherEntries, existing_path, is_service_folder, walk
from openjepa.data.tables.object_stores import find_urls, is_url
from openjepa.refusals import Refusal
from openjepa.system.console import hub_name

SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLIT_WORDS |= {"validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
"""Words in the name of a file or folder that state its split."""
SHARD_NAME = re.compile(r"(.+)-\d{5}-of-\d{5}\.\w+")
"""The Hub's file names. The split is in front of the numbers."""
ENDINGS = {".parquet": "parquet", ".tar": "tars", ".tar.gz": "tars", ".tgz": "tars"}
"""Kind of the files by their ending, in upper or lower case."""
UNFINISHED_PACK = ".packing.jsonl"
"""Name of the file that stands beside shards until `openjepa data pack` has written the last one."""
_PASSED_BY = (
    EntryKind.HIDDEN_FOLDER,
    EntryKind.SERVICE_FOLDER,
    EntryKind.REPEATED_FOLDER,
    EntryKind.UNREADABLE_FOLDER,
)
"""Folders that may hold tables but are not entered."""


@dataclass(frozen=True)
class LocalFiles:
    """Files on disk by split, all of one kind."""

    kind: str
    """`parquet` or `tars`."""
    splits: dict[str, list[str]]
    left_out: tuple[str, ...] = ()
    """Counts of the folders and links that were not followed, in words."""


def find_files(path: str) -> LocalFiles | None:
    """The files that `path` means. It is an existing path, a pattern, or a URL. None if it is a name on the Hub.

    Raises Refusal if there are no such files, or their split is unclear.
    """
    if is_url(path):
        return _in_a_store(path)
    folder = Path(path).expanduser()
    others = OtherEntries()
    if not folder.exists() and glob.has_magic(path):
        files = _matching(folder, others)
        if not files:
            raise Refusal("; ".join([f"data.path={path!r} matches no file", *others.left_out()]))
        return _grouped_here(files, Path(os.path.commonpath([file.parent for file in files])), path, others)
    if hub_name(path, one_part=True) is not None:
        return None
    folder = existing_path(path, hub=True)
    if folder.is_file():
        return _grouped_here([folder], folder.parent, path, others)
    return _grouped_here(_below(folder, others), folder, path, others)


def _in_a_store(path: str) -> LocalFiles:
    """The tables that a URL means. Hidden files and those of service folders are left out."""
    urls = {str(Path(name)): url for name, url in find_urls(path).items()}
    root = Path(os.path.commonpath([Path(name).parent for name in urls]))
    inner = {name: Path(name).relative_to(root) for name in urls}
    files = [Path(name) for name, below in inner.items() if not is_hidden(below) and service_folder(below) is None]
    if len(files) > 1:
        files = [file for file in files if _kind(file)]
    grouped = _grouped(files, root, path, OtherEntries())
    return replace(grouped, splits={split: [urls[file] for file in found] for split, found in grouped.splits.items()})


def _below(folder: Path, others: OtherEntries) -> list[Path]:
    """The tables below a folder. Adds the entries that are not followed to `others`, and ignores other files."""
    files = []
    for path, kind in walk(folder):
        if kind in _PASSED_BY or (kind is EntryKind.BROKEN_LINK and _kind(Path(path))):
            others.add(path, kind)
        elif kind is EntryKind.OTHER_FILE and _kind(Path(path)):
            files.append(folder / path)
    return files


def _matching(pattern: Path, others: OtherEntries) -> list[Path]:
    """The files that match a pattern, and those in matching folders named like files (Spark writes a folder `x.parquet`).

    Existing folders at the start of the pattern are taken literally, even if their names contain pattern characters.
    """
    root, parts = Path(pattern.anchor), list(pattern.parts[1 if pattern.anchor else 0 :])
    while len(parts) > 1 and (root / parts[0]).is_dir():
        root /= parts.pop(0)
    try:
        found = sorted(root.glob("/".join(parts)), key=str)
    except ValueError as error:  # two stars within a name
        raise Refusal(f"data.path={str(pattern)!r}: {error}") from error
    files, service_folders = set(), set()
    for path in found:
        inner = path.relative_to(root)
        if (service := service_folder(inner)) is not None:
            service_folders.add(service)
        elif is_hidden(inner) and not any(part.startswith(".") for part in parts):
            continue
        elif path.is_file():
            files.add(path)
        elif path.is_dir() and _kind(path):
            files.update(_below(path, others))
        elif path.is_symlink() and _kind(path):
            others.add(str(inner), EntryKind.BROKEN_LINK)
    for service in sorted(service_folders):
        others.add(f"{service}/", EntryKind.SERVICE_FOLDER)
    return list(files)


def is_hidden(file: Path) -> bool:
    """True if a file, or a folder above it, is hidden."""
    return any(part.startswith(".") for part in file.parts)


def service_folder(file: Path) -> str | None:
    """The outermost folder of a path that belongs to another program. None if there is none."""
    parents = ("", *file.parts)
    for depth, name in enumerate(file.parts):
        if is_service_folder(name, parents[depth]):
            return "/".join(file.parts[: depth + 1])
    return None


def _kind(file: Path) -> str:
    """`parquet`, `tars`, or an empty string."""
    name = file.name.lower()
    return next((kind for ending, kind in ENDINGS.items() if name.endswith(ending)), "")


def _grouped_here(files: list[Path], root: Path, path: str, others: OtherEntries) -> LocalFiles:
    for folder in {file.parent for file in files}:
        if (folder / UNFINISHED_PACK).exists():
            raise Refusal(
                f"data.path={path!r}: {folder} is not complete; repeat the `openjepa data pack` that was stopped there"
            )
    return _grouped(files, root, path, others)


def _grouped(files: list[Path], root: Path, path: str, others: OtherEntries) -> LocalFiles:
    left_out = tuple(others.left_out())
    files = sorted(files, key=str)
    kinds = {_kind(file) or file.suffix for file in files}
    if len(kinds) != 1 or not kinds <= set(ENDINGS.values()):
        held = "; ".join([", ".join(sorted(kinds)) or "neither", *left_out])
        raise Refusal(f"data.path={path!r} must hold Parquet files or tars, one kind; it holds {held}")
    if len(files) == 1 and len(_said(files[0].name)) > 1:  # a single file need not be distinguished from others
        return LocalFiles(kinds.pop(), {"train": [str(files[0])]}, left_out)
    said = {file: split_of(file.relative_to(root)) for file in files}
    if any(said.values()):
        said = {file: split or _hub_split(file) for file, split in said.items()}
    splits: dict[str, list[str]] = {}
    for file, split in said.items():
        splits.setdefault(split, []).append(str(file))
    if "" in splits and len(splits) == 1:
        return LocalFiles(kinds.pop(), {"train": splits[""]}, left_out)
    if "" in splits:
        raise Refusal(f"data.path={path!r}: {splits[''][0]!r} does not say its split, but other files do")
    return LocalFiles(kinds.pop(), splits, left_out)


def split_of(file: Path) -> str:
    """The split that the name of a file states, or else that of a folder above it. Empty if none does.

    A name that states two splits (`cifar-train-test`) does not count. Raises Refusal if no folder above it states one split.
    """
    unclear = ""
    for part in (file.name, *reversed(file.parts[:-1])):
        said = _said(part)
        if len(said) == 1:
            return said.pop()
        unclear = unclear or (part if said else "")
    if unclear:
        raise Refusal(
            f"{str(file)!r}: {unclear!r} could mean the splits {' and '.join(sorted(_said(unclear)))}: give it a name that "
            "says one, or move it into a folder that is named train, test or validation"
        )
    return ""


def _said(name: str) -> set[str]:
    """The splits that the words of a name state. A word is a run of letters."""
    return {SPLIT_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_WORDS}


def _hub_split(file: Path) -> str:
    """A split with a special name (`unlabeled-00000-of-00004.parquet`). It counts only beside files of the usual splits."""
    found = SHARD_NAME.fullmatch(file.name)
    return found[1] if found else ""
