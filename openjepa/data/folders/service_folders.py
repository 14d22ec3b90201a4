"""Folders and files that other programs keep among photos for themselves: thumbnails, previews, deleted files, old versions.

Their images are copies of what lies beside them, or were thrown away: a thumbnail of a held-out photo must not be trained on.
Only names that nobody would give to a class of images are listed ("thumbnails", "previews", "trash" and "recycled" are not).
What begins with a dot is hidden and needs no line here (.@__thumb, .thumbnails, .recycle, .snapshot, .git, .svn, .Trash-1000).
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Service:
    """What one program writes."""

    program: str
    purpose: str
    folders: tuple[str, ...]
    """Names of its folders, in any case; `*.lrdata` means the ending."""
    source: str
    """Where the names are from."""


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
"""Endings of the libraries of Apple Photos, iPhoto and Aperture: folders that look like one file on a Mac."""
LIBRARY_ORIGINALS = frozenset({"originals", "masters"})
"""Folders of a library with the photos themselves; the others hold derivatives, thumbnails and data bases (osxphotos documents
`resources/derivatives` and `originals`, earlier `Masters`)."""
SERVICE_FILES = re.compile(r"syno(photo|file|index|video)_thumb_", re.IGNORECASE)
"""How thumbnails of Synology begin that were copied out of their folder (SYNOFILE_THUMB_M.jpg; immich-go, issue 319)."""

_NAMES = frozenset(name.lower() for service in SERVICES for name in service.folders if not name.startswith("*"))
_ENDINGS = tuple(name[1:].lower() for service in SERVICES for name in service.folders if name.startswith("*"))


def is_service_folder(name: str, parent: str) -> bool:
    """Whether a folder `name` in a folder `parent` is another program's own."""
    lower = name.lower()
    if parent.lower().endswith(LIBRARIES):
        return lower not in LIBRARY_ORIGINALS
    return lower in _NAMES or lower.endswith(_ENDINGS)


def is_service_file(name: str) -> bool:
    """Whether an image file is another program's thumbnail, wherever it lies."""
    return name[:4].lower() == "syno" and SERVICE_FILES.match(name) is not None
