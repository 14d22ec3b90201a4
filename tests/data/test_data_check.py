"""`openjepa data check`: every file of a folder has its outcome, images are refused by training's rule, and nothing leaks."""

import csv
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.cli import main
from openjepa.data.check import CheckedFile, Outcome, inspect
from openjepa.data.folders.folder import open_folder
from openjepa.data.loading.loader import _patch_side
from openjepa.masks import MASKS
from openjepa.recipes import RECIPES, load_recipe
from openjepa.settings.derived import resolve
from openjepa.settings.sources import FolderSettings
from openjepa.training.startup import build_method, default_view
from tests.helpers.images import shape_image

USED_TRAIN, USED_TEST, SKIPPED_TRAIN = ("used", "train"), ("used", "test"), ("skipped", "train")
LEFT_OUT, UNUSED = ("left out", ""), ("not used", "")


def put(root: Path, *files: str, size: int = 16) -> None:
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shape_image(number, size).save(root / file, "PNG")


def everything(root: Path) -> dict[str, tuple[tuple[str, str], str, str]]:
    """A folder with every kind of file, and for each what is to become of it: outcome and split, class, reason."""
    expected: dict[str, tuple[tuple[str, str], str, str]] = {}

    def image(path: str, fate: tuple[str, str], label: str = "", reason: str = "", size: int = 16) -> None:
        put(root, path, size=size)
        expected[path] = fate, label, reason

    def other(path: str, reason: str, fate: tuple[str, str] = LEFT_OUT, label: str = "") -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"text")
        expected[path] = fate, label, reason

    image("train/cat/1.png", USED_TRAIN, "cat")
    image("train/cat/deep/2.JPG", USED_TRAIN, "cat")
    image("train/dog/images/3.png", USED_TRAIN, "dog")
    image("train/dog/caf\udce9.png", USED_TRAIN, "dog")
    image("train/dog/tiny.png", SKIPPED_TRAIN, "dog", "7 x 7 pixels, smaller than a patch of 8", size=7)
    other("train/cat/bad.jpg", "not an image", SKIPPED_TRAIN, "cat")
    (root / "train/cat/empty.png").touch()
    expected["train/cat/empty.png"] = SKIPPED_TRAIN, "cat", "empty file"
    image("val/images/v0.png", USED_TEST, "dog")
    image("val/images/v1.png", USED_TEST, "cat")
    image("val/images/unlisted.png", UNUSED, "", "in no split that is used")
    (root / "val/val_annotations.txt").write_text("v0.png\tdog\nv1.png\tcat\nv2.png\tcat\n")
    expected["val/val_annotations.txt"] = LEFT_OUT, "", "not an image"
    expected["val/images/v2.png"] = ("skipped", "test"), "cat", "No such file or directory"
    image("test/images/t0.png", UNUSED, "", "in no split that is used")

    image("train/cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", LEFT_OUT, "", "in a service folder of another program")
    image("#recycle/old.png", LEFT_OUT, "", "in a service folder of another program")
    image("My Previews.lrdata/a/b.png", LEFT_OUT, "", "in a service folder of another program")
    image("A.photoslibrary/resources/derivatives/x.jpg", LEFT_OUT, "", "in a service folder of another program")
    image("train/dog/SYNOFILE_THUMB_XL.jpg", LEFT_OUT, "", "thumbnail of another program")
    image(".thumbnails/1.png", LEFT_OUT, "", "in a hidden folder")
    image("train/cat/._1.png", LEFT_OUT, "", "hidden file")
    for path in ("LICENSE", "train/cat/boxes.txt", "photos.zip"):
        other(path, "not an image")
    for path in ("train/cat/1.heic", "train/dog/2.CR2"):
        other(path, "image of a format that is not read")
    return expected | bad_entries(root)


def bad_entries(root: Path) -> dict[str, tuple[tuple[str, str], str, str]]:
    cat = root / "train" / "cat"
    os.mkfifo(cat / "pipe.jpg")
    (cat / "self").symlink_to(cat / "self")
    (cat / "left").symlink_to(cat / "right")
    (cat / "right").symlink_to(cat / "left")
    (cat / "gone.txt").symlink_to(root / "nowhere")
    (cat / "gone.png").symlink_to(root / "nowhere")
    (cat / "circle.png").symlink_to(cat / "circle.png")
    (cat / "linked.png").symlink_to(cat / "1.png")
    (cat / "up").symlink_to(root)
    return {
        "train/cat/pipe.jpg": (LEFT_OUT, "", "pipe, socket or device"),
        **{
            f"train/cat/{name}": (LEFT_OUT, "", "link that cannot be followed")
            for name in ("self", "left", "right", "gone.txt", "circle.png")
        },
        "train/cat/gone.png": (SKIPPED_TRAIN, "cat", "No such file or directory"),
        "train/cat/linked.png": (USED_TRAIN, "cat", ""),
        "train/cat/up/": (LEFT_OUT, "", "folder that was reached before"),
    }


@pytest.mark.timeout(60)
def test_every_file_of_a_folder_of_all_kinds_is_accounted_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, listed = tmp_path / "all kinds", tmp_path / "list.csv"
    expected = everything(root)
    with pytest.warns(UserWarning, match=r"val_annotations\.txt names 1 of 3 images"):
        main(["data", "check", "--data.path", str(root), "--patch-size", "8", "--list", str(listed)])
    with listed.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {row["path"]: ((row["outcome"], row["split"]), row["class_name"], row["reason"]) for row in rows}
    assert found == expected and len(rows) == len(expected)
    on_disk = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()} - {"train/cat/up"}
    assert on_disk == {path for path in expected if path not in ("val/images/v2.png", "train/cat/up/")}
    assert {(row["width"], row["height"]) for row in rows if row["outcome"] == "used"} == {("16", "16")}
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "train: 5 of 9 images can be used",
        "  2 classes with 3 to 6 images",
        "  cannot be used: train/dog/tiny.png: 7 x 7 pixels, smaller than a patch of 8",
        "test: 2 of 3 images can be used",
        "not used: 2 in no split that is used: test/images/t0.png, val/images/unlisted.png",
        "left out: 4 not an image: LICENSE, photos.zip, train/cat/boxes.txt, ...",
        "left out: 1 in a hidden folder: .thumbnails/1.png",
        f"every file: {listed}",
    ):
        assert line in lines


@pytest.mark.parametrize("given", ["files.csv", "./sub/../files.csv", "sub/files.csv", "link/files.csv"])
def test_the_list_does_not_list_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    """Written into the folder it is of; nor an earlier one of the same name."""
    put(tmp_path / "data", "1.png", "sub/2.png", "sub/3.png")
    (tmp_path / "data" / "sub" / "others.csv").touch()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "data" / "sub")
    monkeypatch.chdir(tmp_path / "data")
    for _ in range(2):
        main(["data", "check", "--data.path", ".", "--list", given])
        with Path(given).open(newline="") as file:
            rows = [row["path"] for row in csv.DictReader(file)]
        assert {path.rpartition("/")[2] for path in rows if not path.endswith("/")} == {"1.png", "2.png", "3.png", "others.csv"}


def test_names_that_are_no_text_are_printed_on_any_terminal(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "good.png", "caf\udce9.lrdata/1.png")
    (tmp_path / "bad\udce9.png").write_bytes(b"text")
    for encoding in ("utf-8", "ascii"):
        with (tmp_path_factory.mktemp("printed") / "log").open("w+", encoding=encoding, errors="strict") as terminal:
            with monkeypatch.context() as changed:
                changed.setattr(sys, "stdout", terminal)
                main(["data", "check", "--data.path", str(tmp_path)])
            terminal.seek(0)
            printed = terminal.read()
        assert r"  cannot be used: bad\udce9.png: not an image" in printed.splitlines()
        assert r"1 service folder of another program left out (caf\udce9.lrdata)" in printed


def test_remarks_on_used_images_are_counted_and_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A microscope's picture: 12 bits stored in 16."""
    put(tmp_path / "images", "good.png")
    Image.fromarray(np.full((16, 16), 4000, np.uint16)).save(tmp_path / "images" / "dark.png")
    listed = tmp_path / "list.csv"
    main(["data", "check", "--data.path", str(tmp_path / "images"), "--list", str(listed)])
    lines = capsys.readouterr().out.splitlines()
    assert "train: 2 of 2 images can be used" in lines
    assert [line for line in lines if line.startswith("used: 1 nearly black: ") and line.endswith(": dark.png")]
    with listed.open(newline="") as file:
        assert {row["path"]: row["remark"][:12] for row in csv.DictReader(file)} == {"dark.png": "nearly black", "good.png": ""}


def findings(settings: FolderSettings, min_side: int = 1) -> dict[str, CheckedFile]:
    return {found.path: found for found in inspect(settings, open_folder(settings, 0), min_side)}


def test_images_that_max_images_leaves_are_named(tmp_path: Path) -> None:
    from openjepa.data.source import open_splits

    put(tmp_path, *[f"{label}/{number}.png" for label in "ab" for number in range(10)], "c.txt/x/1.png")
    settings = FolderSettings(path=str(tmp_path), max_images=4)
    found = list(inspect(settings, open_splits(settings, 0), 1))
    assert len(found) == 21
    counts = [(item.outcome, item.split, item.reason) for item in found]
    assert counts.count((Outcome.USED, "train", "")) == 4 and counts.count((Outcome.USED, "test", "")) == 4
    assert counts.count((Outcome.UNUSED, "", "not among data.max_images")) == 13


# ------------------------------------------------------------------------------------------------- the rule of training


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.endswith(("cpu-32", "cpu-96"))])
def test_the_smallest_side_is_that_of_training(recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For each method: what its loader takes an image for too small by."""
    config = resolve(load_recipe(recipe))
    view = default_view(config.data)
    sampler = MASKS[config.masks.strategy].load()(config.masks, config.model.grid(view.size))
    side = _patch_side(build_method(config, view, sampler).inputs(), sampler)
    put(tmp_path, "enough.png", size=side)
    if side > 1:
        put(tmp_path, "small.png", size=side - 1)
    main(["data", "check", "--data.path", str(tmp_path), "--recipe", recipe])
    lines = capsys.readouterr().out.splitlines()
    assert f"train: 1 of {2 if side > 1 else 1} images can be used" in lines
    if side > 1:
        words = f"{side - 1} x {side - 1} pixels, smaller than a patch of {side}"
        assert f"  cannot be used: small.png: {words}" in lines


@pytest.mark.parametrize(("option", "usable"), [([], 1), (["--patch-size", "15"], 2), (["--patch-size", "1"], 3)])
def test_the_patch_is_16_or_the_given_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str], usable: int
) -> None:
    for size in (1, 15, 16):
        put(tmp_path, f"{size}.png", size=size)
    main(["data", "check", "--data.path", str(tmp_path), *option])
    assert f"train: {usable} of 3 images can be used" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--patch-size", "0"], "--patch-size 0 must be at least 1"),
        (["--preset", "fast"], "--preset fast needs a recipe"),
        (["--recipe", "cpu-65"], "recipe 'cpu-65' does not exist"),
        (["--list", "nowhere/x.csv"], "--list nowhere/x.csv: there is no folder nowhere"),
        (["--list", "x.txt"], "--list x.txt must end in .csv"),
    ],
)
def test_impossible_options_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str], words: str
) -> None:
    put(tmp_path, "1.png")
    with pytest.raises(SystemExit) as stopped:
        main(["data", "check", "--data.path", str(tmp_path), *option])
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_reading_in_threads_leaves_the_warning_filters_as_they_were(tmp_path: Path) -> None:
    """Each decoding thread changes the filters of the whole process and puts back what it saw: in any order."""
    put(tmp_path, *[f"{number}.png" for number in range(300)])
    before = list(warnings.filters)
    for _ in range(3):
        assert len(findings(FolderSettings(path=str(tmp_path)))) == 300
        assert warnings.filters == before
