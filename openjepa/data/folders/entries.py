"""The entries of a folder of images, at any depth, with their kinds. Only images are read.

Other programs keep folders and files of their own among photos: thumbnails, previews, deleted files, old versions. These are
left out. Their images are copies of other images, or were thrown away. A thumbnail of a held-out photo must not be trained on.
Only names that nobody would give to a class of images are listed ("thumbnails", "previews", "trash" and "recycled" are not). A
name that begins with a dot is hidden and need not be listed (.@__thumb, .thumbnails, .recycle, .git, .Trash-1000).
"""

import errno
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from openjepa.refusals import Refusal
from openjepa.system.console import absent

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
OTHER_SUFFIXES = (".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif")
SUFFIXES = frozenset(JPEG_SUFFIXES + OTHER_SUFFIXES)
"""Endings of the names of image files, in upper or lower case."""
_CAMERA_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".x3f")
_UNREAD_SUFFIXES = (".heic", ".heif", ".jxl", ".j2k", ".svg", ".psd", ".xcf", ".exr", ".hdr", ".tga", ".dds", ".dcm", ".nii")
UNREAD_SUFFIXES = frozenset(_CAMERA_SUFFIXES + _UNREAD_SUFFIXES)
"""Endings of pictures that are not read. Their owner would want to know that they are left out."""


class EntryKind(Enum):
    """Kind of an entry of a folder. The value describes one such entry in words."""

    IMAGE = "image"
    FOLDER = "folder"
    UNREAD_FORMAT = "image of a format that is not read"
    OTHER_FILE = "not an image"
    HIDDEN_FILE = "hidden file"
    HIDDEN_FOLDER = "in a hidden folder"
    SERVICE_FILE = "thumbnail of another program"
    SERVICE_FOLDER = "in a service folder of another program"
    SPECIAL_FILE = "pipe, socket or device"
    BROKEN_LINK = "link that cannot be followed"
    REPEATED_FOLDER = "folder that was reached before"
    UNREADABLE_FOLDER = "folder that cannot be read"


_CLOSED = (EntryKind.HIDDEN_FOLDER, EntryKind.SERVICE_FOLDER)
"""Folders that are not entered."""
_FOLDERS = (EntryKind.FOLDER, *_CLOSED)
_IGNORED = (EntryKind.OTHER_FILE, EntryKind.HIDDEN_FILE)
_PLURALS = {
    EntryKind.UNREAD_FORMAT: ("image of a format that is not read", "images of formats that are not read"),
    EntryKind.HIDDEN_FOLDER: ("hidden folder", "hidden folders"),
    EntryKind.SERVICE_FOLDER: ("service folder of another program", "service folders of other programs"),
    EntryKind.SERVICE_FILE: ("thumbnail of another program", "thumbnails of other programs"),
    EntryKind.SPECIAL_FILE: ("pipe, socket or device", "pipes, sockets or devices"),
    EntryKind.BROKEN_LINK: ("link that cannot be followed", "links that cannot be followed"),
    EntryKind.REPEATED_FOLDER: ("folder that was reached before", "folders that were reached before"),
    EntryKind.UNREADABLE_FOLDER: ("folder that cannot be read", "folders that cannot be read"),
}
SHOWN_EXAMPLES = 3


@dataclass
class OtherEntries:
    """Entries of a folder that are not images, counted by kind."""

    counts: Counter[EntryKind] = field(default_factory=Counter)
    examples: dict[EntryKind, list[str]] = field(default_factory=dict)
    """A few different names for each kind, or file name endings if the kind is UNREAD_FORMAT."""

    def add(self, path: str, kind: EntryKind) -> None:
        """Adds an entry to the counts."""
        self.counts[kind] += 1
        shown = self.examples.setdefault(kind, [])
        if kind in _IGNORED or len(shown) == SHOWN_EXAMPLES:
            return
        name = path.rstrip("/").rpartition("/")[2]
        name = _suffix(name) if kind is EntryKind.UNREAD_FORMAT else name
        if name not in shown:
            shown.append(name)

    @property
    def num_ignored(self) -> int:
        """Number of ordinary files that are not images, which every folder has."""
        return sum(self.counts[kind] for kind in _IGNORED)

    def described(self) -> list[str]:
        """All entries in words, one part for each kind that occurs."""
        files = "other file" if self.num_ignored == 1 else "other files"
        return [*([f"{self.num_ignored:,} {files} ignored"] if self.num_ignored else []), *self.left_out()]

    def left_out(self) -> list[str]:
        """The entries that an owner would want to know about, in words, one part for each kind that occurs."""
        return [
            f"{number:,} {one if number == 1 else many} left out ({', '.join(self.examples[kind])})"
            for kind, (one, many) in _PLURALS.items()
            if (number := self.counts[kind])
        ]


def walk(root: Path, enter_all: bool = False) -> Iterator[tuple[str, EntryKind]]:
    """Path below `root` and kind of every file, and of every folder that is not entered (its path ends in a slash).

    Links to folders are followed, but no folder is entered twice. If `enter_all`, a hidden or service folder is replaced by
    all files in it, each with the kind of that folder. A folder that cannot be read is an entry. Raises OSError if `root`
    itself cannot be read.

    A link with the name of an image that leads nowhere (but not in a circle) counts as an image. Reading it fails, and it is
    then counted like other unreadable files.
    """
    entered: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        folders = []
        for path, kind in entries(root, waiting.pop(), entered):
            if kind is EntryKind.FOLDER:
                folders.append(path)
            elif enter_all and kind in _CLOSED:
                yield from ((file, kind) for file in _files_inside(root, path))
            else:
                yield path, kind
        waiting += sorted(folders, reverse=True)


def entries(root: Path, below: str = "", entered: set[tuple[int, int]] | None = None) -> Iterator[tuple[str, EntryKind]]:
    """Path below `root` and kind of each entry directly in the folder `below`.

    If the folder is among those `entered`, the only result is the folder itself, as REPEATED_FOLDER.
    """
    folder = root / below
    name = folder.name
    try:
        status = folder.stat()
        identity = status.st_dev, status.st_ino
        if entered is not None and identity in entered:
            yield below, EntryKind.REPEATED_FOLDER
            return
        if entered is not None:
            entered.add(identity)
        with os.scandir(folder) as found:
            for entry in found:
                kind = _kind(entry, name)
                yield f"{below}{entry.name}{'/' if kind in _FOLDERS else ''}", kind
    except OSError:
        if not below:
            raise
        yield below, EntryKind.UNREADABLE_FOLDER


def _kind(entry: os.DirEntry[str], parent: str) -> EntryKind:
    """Kind of an entry. Nothing is opened, because reading a pipe would wait forever. Only links cost a look-up."""
    name = entry.name
    try:
        if entry.is_dir():
            if name.startswith("."):
                return EntryKind.HIDDEN_FOLDER
            return EntryKind.SERVICE_FOLDER if is_service_folder(name, parent) else EntryKind.FOLDER
        if entry.is_file():
            return _kind_of_file(name)
        entry.stat()
    except OSError as error:  # a link that leads in a circle, to an impossible place, or nowhere
        kind = EntryKind.OTHER_FILE if error.errno == errno.ELOOP else _kind_of_file(name)
        return EntryKind.BROKEN_LINK if kind in (EntryKind.OTHER_FILE, EntryKind.UNREAD_FORMAT) else kind
    return EntryKind.SPECIAL_FILE


def _kind_of_file(name: str) -> EntryKind:
    if name.startswith("."):
        return EntryKind.HIDDEN_FILE
    suffix = _suffix(name)
    if suffix in SUFFIXES:
        return EntryKind.SERVICE_FILE if is_service_file(name) else EntryKind.IMAGE
    return EntryKind.UNREAD_FORMAT if suffix in UNREAD_SUFFIXES else EntryKind.OTHER_FILE


def _suffix(name: str) -> str:
    """The ending of a file name with its dot, in lower case. Empty if it has none."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > 0 else ""


def _files_inside(root: Path, below: str) -> Iterator[str]:
    """Every file of a folder that is otherwise not entered. Links in it are not followed."""
    for folder, _, names in os.walk(root / below):
        inside = Path(folder).relative_to(root).as_posix()
        yield from (f"{inside}/{name}" for name in sorted(names))


def existing_path(path: str, hub: bool = False) -> Path:
    """The file or folder `path`. Raises Refusal if it does not exist, and suggests the nearest path that does.

    `hub` is true if a name on the Hub may be meant.
    """
    if not path:
        raise Refusal("data.path is not set: give the folder with your images (--data.path ~/photos)")
    folder = Path(path).expanduser()
    if folder.exists():
        return folder
    if "://" in path:
        raise Refusal(
            f"data.path={path!r} is no folder on a disk. Of object stores, tars and Parquet files are read, with --data.source "
            "huggingface; `openjepa data pack` makes them of a folder"
        )
    raise Refusal(f"data.path={path!r} {absent(path, hub)}")


# --------------------------------------------------------------------------------------------------------------- other programs


@dataclass(frozen=True)
class Service:
    """Folders that one program writes."""

    program: str
    purpose: str
    folders: tuple[str, ...]
    """Names of its folders, in upper or lower case. `*.lrdata` matches the ending."""
    source: str
    """Where the names are documented."""


SERVICES: tuple[Service, ...] = (
    Service(
        "Synology DSM", "thumbnails of indexed media", ("@eaDir",), "Synology: Cloud Sync, names that are never synchronized"
    ),
    Service(
        "Synology DSM",
        "deleted files, snapshots, work of its services",
        ("#recycle", "#snapshot", "@sharebin", "@tmp", "@SynologyCloudSync"),
        "the same page; Immich's default exclusions",
    ),
    Service(
        "QNAP QTS",
        "thumbnails, deleted files, snapshots",
        ("@__thumb", "@Recycle", "@Recently-Snapshot"),
        "exclusion lists of immich-go and of photo scanners for NAS systems",
    ),
    Service("Hitachi NAS, NetApp ONTAP", "snapshots", ("~snapshot",), "Hitachi: NAS Platform, Snapshot Administration Guide"),
    Service(
        "Windows",
        "deleted files, restore points",
        ("$RECYCLE.BIN", "RECYCLER", "System Volume Information"),
        "Synology: Cloud Sync; exclusion lists of backup programs",
    ),
    Service(
        "macOS",
        "resource forks in archives, deleted files of shares",
        ("__MACOSX", "Network Trash Folder", "Temporary Items", "TheVolumeSettingsFolder"),
        "PhotoPrism, issue 2844; GitHub's gitignore for macOS; Carbon Copy Cloner's exclusions",
    ),
    Service("Linux, Android", "fragments found by fsck", ("lost+found", "LOST.DIR"), "e2fsck(8); how-tos for users of Android"),
    Service(
        "Lightroom Classic",
        "previews",
        ("*.lrdata", "Lightroom Previews"),
        "Adobe: preview caches beside the catalog (NAME Previews.lrdata, NAME Smart Previews.lrdata)",
    ),
    Service(
        "darcs, Subversion on ASP.NET",
        "pristine copies of all files",
        ("_darcs", "_svn"),
        "darcs 2.0, manual: DarcsRepo format; Subversion, notes/asp-dot-net-hack.txt",
    ),
    Service(
        "npm, Python", "installed packages, compiled code", ("node_modules", "__pycache__"), "GitHub's gitignore templates"
    ),
)
LIBRARIES = (".photoslibrary", ".photolibrary", ".migratedphotolibrary", ".aplibrary")
"""Endings of the libraries of Apple Photos, iPhoto and Aperture. They are folders that look like one file on a Mac."""
LIBRARY_ORIGINALS = frozenset({"originals", "masters"})
"""Folders of a library that hold the photos themselves. The others hold derivatives, thumbnails and data bases. Source:
osxphotos documents `resources/derivatives` and `originals`, earlier `Masters`."""
SERVICE_FILES = re.compile(r"syno(photo|file|index|video)_thumb_", re.IGNORECASE)
"""Beginning of the names of Synology's thumbnails, for those copied out of their folder (SYNOFILE_THUMB_M.jpg; immich-go,
issue 319)."""

_NAMES = frozenset(name.lower() for service in SERVICES for name in service.folders if not name.startswith("*"))
_ENDINGS = tuple(name[1:].lower() for service in SERVICES for name in service.folders if name.startswith("*"))


def is_service_folder(name: str, parent: str) -> bool:
    """True if a folder `name` in a folder `parent` belongs to another program."""
    lower = name.lower()
    if parent.lower().endswith(LIBRARIES):
        return lower not in LIBRARY_ORIGINALS
    return lower in _NAMES or lower.endswith(_ENDINGS)


def is_service_file(name: str) -> bool:
    """True if an image file of this name is another program's thumbnail, in any folder."""
    return name[:4].lower() == "syno" and SERVICE_FILES.match(name) is not None
