"""What may lie in a folder beside images: each kind is left out by what it is, and counted aloud; nothing hangs or is fatal."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from openjepa.data.folders.entries import SERVICES, EntryKind, walk
from openjepa.data.folders.folder import open_folder
from openjepa.data.source import Splits
from openjepa.settings.sources import FolderSettings
from tests.helpers.images import shape_image

DOCS = Path(__file__).parents[3] / "docs" / "data.md"


def put(root: Path, *files: str) -> Path:
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shape_image(number, 16).save(root / file, "PNG")
    return root


def opened(root: Path) -> Splits:
    return open_folder(FolderSettings(path=str(root)), 0)


def names(splits: Splits) -> list[str]:
    return sorted(
        source.name(index)
        for source in (splits.train, splits.test)
        if source is not None
        for index in range(len(source))  # type: ignore[attr-defined]
    )


def kinds(root: Path, enter_all: bool = False) -> dict[str, EntryKind]:
    found = list(walk(root, enter_all))
    assert len(dict(found)) == len(found), "nothing comes twice"
    return dict(found)


SERVICE_FOLDERS = [name.replace("*", "My Catalog Previews") for service in SERVICES for name in service.folders]
IN_LIBRARIES = [
    "A.photoslibrary/resources",
    "A.photoslibrary/private",
    "B.photolibrary/Thumbnails",
    "C.aplibrary/Previews",
    "D.migratedphotolibrary/Data",
]


@pytest.mark.parametrize("folder", SERVICE_FOLDERS + [name.upper() for name in SERVICE_FOLDERS] + IN_LIBRARIES)
def test_service_folders_are_left_out_and_counted(tmp_path: Path, folder: str) -> None:
    put(tmp_path, "a/1.png", "a/2.png", "b/3.png", f"a/{folder}/1.png/THUMB_M.jpg", f"{folder}/x/deleted.png")
    splits = opened(tmp_path)
    assert names(splits) == ["a/1.png", "a/2.png", "b/3.png"] and splits.train.class_names == ("a", "b")
    last = folder.rpartition("/")[2]
    assert splits.description.endswith(f"; 2 service folders of other programs left out ({last})")
    assert kinds(tmp_path, enter_all=True)[f"a/{folder}/1.png/THUMB_M.jpg"] is EntryKind.SERVICE_FOLDER


def test_thumbnails_of_a_synology_never_reach_training(tmp_path: Path) -> None:
    """Six photos stay six: three thumbnails of each were images too, those of held-out photos among the training images."""
    photos = [f"{label}/{number}.jpg" for label in ("cat", "dog") for number in range(3)]
    put(tmp_path, *photos)
    for photo in photos:
        label, name = photo.split("/")
        put(tmp_path, *[f"{label}/@eaDir/{name}/SYNOPHOTO_THUMB_{size}.jpg" for size in ("SM", "M", "XL")])
    put(tmp_path, "dog/SYNOFILE_THUMB_M.jpg")
    splits = opened(tmp_path)
    assert names(splits) == photos
    assert "; 2 service folders of other programs left out (@eaDir)" in splits.description
    assert "; 1 thumbnail of another program left out (SYNOFILE_THUMB_M.jpg)" in splits.description


def test_the_originals_of_a_photo_library_are_images(tmp_path: Path) -> None:
    put(
        tmp_path,
        "A.photoslibrary/originals/1/x.png",
        "A.photoslibrary/resources/derivatives/1/x.png",
        "B.photolibrary/Masters/y.png",
    )
    assert names(opened(tmp_path)) == ["A.photoslibrary/originals/1/x.png", "B.photolibrary/Masters/y.png"]


@pytest.mark.parametrize(
    "name", ["thumbnails", "previews", "trash", "recycled", "cache", "originals", "resources", "snapshot", "svn"]
)
def test_names_that_may_be_classes_are_classes(tmp_path: Path, name: str) -> None:
    assert opened(put(tmp_path, f"{name}/1.png", "zebra/2.png")).train.class_names == (name, "zebra")


def test_every_name_of_the_table_stands_in_the_docs() -> None:
    page = DOCS.read_text()
    assert [name for service in SERVICES for name in service.folders if f"`{name}`" not in page] == []


# ------------------------------------------------------------------------------------------------------------ bad entries


def to_itself(root: Path) -> None:
    (root / "a" / "loop").symlink_to(root / "a" / "loop")


def at_each_other(root: Path) -> None:
    (root / "left").symlink_to(root / "right")
    (root / "right").symlink_to(root / "left")


def to_nowhere(root: Path) -> None:
    (root / "a" / "gone").symlink_to(root / "not there")


def pipe(root: Path) -> None:
    os.mkfifo(root / "a" / "pipe.jpg")


def link_to_pipe(root: Path) -> None:
    (root / ".hidden").mkdir()
    os.mkfifo(root / ".hidden" / "pipe")
    (root / "a" / "pipe.jpg").symlink_to(root / ".hidden" / "pipe")


def unix_socket(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        current = Path.cwd()
        os.chdir(root)  # their paths are short
        made.bind("plug.png")
        os.chdir(current)


def unread(root: Path) -> None:
    (root / "a" / "x.HEIC").write_bytes(b"x")
    (root / "a" / "y.cr2").write_bytes(b"x")


def hidden(root: Path) -> None:
    put(root, ".git/x.png", "a/.thumbnails/x.png")


def again(root: Path) -> None:
    (root / "a" / "up").symlink_to(root)


BAD: list[tuple[Callable[[Path], None], str, dict[str, EntryKind]]] = [
    (to_itself, "1 link that cannot be followed left out (loop)", {"a/loop": EntryKind.BROKEN_LINK}),
    (
        at_each_other,
        "2 links that cannot be followed left out (",
        {"left": EntryKind.BROKEN_LINK, "right": EntryKind.BROKEN_LINK},
    ),
    (to_nowhere, "1 link that cannot be followed left out (gone)", {"a/gone": EntryKind.BROKEN_LINK}),
    (pipe, "1 pipe, socket or device left out (pipe.jpg)", {"a/pipe.jpg": EntryKind.SPECIAL_FILE}),
    (link_to_pipe, "1 pipe, socket or device left out (pipe.jpg)", {"a/pipe.jpg": EntryKind.SPECIAL_FILE}),
    (unix_socket, "1 pipe, socket or device left out (plug.png)", {"plug.png": EntryKind.SPECIAL_FILE}),
    (
        unread,
        "2 images of formats that are not read left out (",
        {"a/x.HEIC": EntryKind.UNREAD_FORMAT, "a/y.cr2": EntryKind.UNREAD_FORMAT},
    ),
    (hidden, "2 hidden folders left out (", {".git/": EntryKind.HIDDEN_FOLDER, "a/.thumbnails/": EntryKind.HIDDEN_FOLDER}),
    (again, "1 folder that was reached before left out (up)", {"a/up/": EntryKind.REPEATED_FOLDER}),
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("make", "words", "expected"), BAD, ids=[make.__name__ for make, _, _ in BAD])
def test_a_bad_entry_is_left_out_and_said(
    tmp_path: Path, make: Callable[[Path], None], words: str, expected: dict[str, EntryKind]
) -> None:
    put(tmp_path, "a/1.png", "a/2.png", "b/3.png")
    make(tmp_path)
    splits = opened(tmp_path)
    assert names(splits) == ["a/1.png", "a/2.png", "b/3.png"]
    assert f"; {words}" in splits.description
    found = kinds(tmp_path)
    assert {path: found[path] for path in expected} == expected


def test_a_link_that_leads_nowhere_counts_as_an_unreadable_image(tmp_path: Path) -> None:
    """So that half of a data set on a disk that is not mounted stops a run at data.max_skipped."""
    put(tmp_path, "a/1.png", "b/2.png")
    (tmp_path / "a" / "gone.jpg").symlink_to(tmp_path / "nowhere" / "gone.jpg")
    assert names(opened(tmp_path)) == ["a/1.png", "a/gone.jpg", "b/2.png"]


def test_links_in_a_circle_are_no_images_whatever_their_names_are(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/2.png")
    for name, target in (("self", "self"), ("one", "two"), ("two", "one")):
        (tmp_path / "a" / f"{name}.jpg").symlink_to(tmp_path / "a" / f"{target}.jpg")
    splits = opened(tmp_path)
    assert names(splits) == ["a/1.png", "b/2.png"]
    (words,) = splits.left_out
    assert words.startswith("3 links that cannot be followed left out (") and "self.jpg" in words


@pytest.fixture
def locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that may not be read, also for a user who may read everything."""
    put(tmp_path, "a/1.png", "b/2.png", "b/private/3.png")
    scan = os.scandir

    def scandir(path: Path) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)  # type: ignore[return-value]

    monkeypatch.setattr(os, "scandir", scandir)
    yield tmp_path


def test_a_folder_that_cannot_be_read_is_left_out_and_said(locked: Path) -> None:
    splits = opened(locked)
    assert names(splits) == ["a/1.png", "b/2.png"]
    assert splits.description.endswith("; 1 folder that cannot be read left out (private)")
    with pytest.raises(PermissionError):
        opened(locked / "b" / "private")


def test_a_folder_with_only_left_out_entries_is_refused_with_the_reason(tmp_path: Path) -> None:
    put(tmp_path, "@eaDir/1.png", ".git/2.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"no images \(0 other files; 1 hidden folder .*\.git\); 1 service folder .* left out \(@eaDir\)\)"
    ):
        opened(tmp_path)
    with pytest.raises(ValueError, match=r"no images \(0 other files\)"):
        opened(tmp_path / "empty")
