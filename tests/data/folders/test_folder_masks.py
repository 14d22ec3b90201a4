"""Label maps among photos are said aloud, with what to type; photos that only share names are not taken for such."""

import shlex
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.data.folders.folder import ENDINGS, MaskFolder, find_mask_folders, open_folder
from openjepa.settings.sources import FolderSettings
from openjepa.system.console import command
from tests.helpers.images import shape_image
from tests.helpers.tiff_files import GRAY, Layout, shown, written


def put(root: Path, mode: str, *files: str, size: tuple[int, int] = (16, 12)) -> list[str]:
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shape_image(number, 16).resize(size).convert(mode).save(root / file)
    return list(files)


VOC = ("JPEGImages/1.jpg", "JPEGImages/2.jpg", "JPEGImages/3.jpg", "SegmentationClass/2.png", "SegmentationClass/3.png")
PETS = ("images/cat_1.jpg", "images/dog_1.jpg", "annotations/trimaps/cat_1.png", "annotations/trimaps/dog_1.png")
BUSI = ("benign/b (1).png", "benign/b (1)_mask.png", "normal/n (1).png", "normal/n (1)_mask.png")
DEEP = ("images/train/k/1.jpg", "images/train/l/1.jpg", "masks/train/k/1.png", "masks/train/l/1.png")
XRAY = ("scans/1.png", "scans/2.png", "lungs/1.png", "lungs/2.png")


@pytest.mark.parametrize(
    ("files", "photo_mode", "mask_mode", "photos", "masks", "typed"),
    [
        (VOC, "RGB", "P", "JPEGImages", "SegmentationClass", "JPEGImages"),
        (PETS, "RGB", "L", "images", "annotations/trimaps", "images"),
        (DEEP, "RGB", "L", "images/train/k", "masks/train/k", "images"),
        (BUSI, "RGB", "1", "benign", "benign", ""),
        (XRAY, "L", "1", "scans", "lungs", "scans"),
    ],
    ids=["voc", "pets", "deep", "in place", "x-ray"],
)
def test_label_maps_are_said_with_what_to_type(
    tmp_path: Path, files: tuple[str, ...], photo_mode: str, mask_mode: str, photos: str, masks: str, typed: str
) -> None:
    are_masks = [file for file in files if file.startswith(masks.split("/")[0] + "/") and (masks != photos or "_mask" in file)]
    are_masks += [file for file in files if "_mask" in file and file not in are_masks]
    put(tmp_path, photo_mode, *[file for file in files if file not in are_masks])
    put(tmp_path, mask_mode, *are_masks)
    found = find_mask_folders(tmp_path, sorted(files))
    assert MaskFolder(masks, photos) in found
    said = found[0].advice(tmp_path)
    assert f"label maps of the photos in '{tmp_path / photos}'" in said
    assert (f"({command('--data.path', tmp_path / typed)})" if typed else "move them elsewhere") in said
    with pytest.warns(UserWarning, match="look like label maps"):
        splits = open_folder(FolderSettings(path=str(tmp_path), test_fraction=0), 0)
    assert len(splits.train) == len(files), "they are images until the user says otherwise"
    if typed:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            open_folder(FolderSettings(path=str(tmp_path / typed)), 0)


@pytest.mark.parametrize("ending", sorted(ENDINGS))
@pytest.mark.parametrize(
    ("photos", "masks"),
    [("JPEGImages/{}.jpg", "SegmentationClass/{}"), ("train/{}.jpg", "train_masks/{}_mask")],
    ids=["voc", "carvana"],
)
def test_label_maps_of_every_format_are_found(tmp_path: Path, photos: str, masks: str, ending: str) -> None:
    suffix = ending if ending.startswith(".") else f".{ending}"
    files = put(tmp_path, "RGB", *[photos.format(number) for number in (1, 2)])
    files += put(tmp_path, "L", *[masks.format(number) + suffix for number in (1, 2)])
    assert find_mask_folders(tmp_path, sorted(files)) == [MaskFolder(masks.split("/")[0], photos.split("/")[0])]


@pytest.mark.parametrize("order", ["<", ">"])
def test_label_maps_of_16_bits_are_found(tmp_path: Path, order: str) -> None:
    files = put(tmp_path, "RGB", "photos/1.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/1.tif").write_bytes(written(Layout(GRAY, 16, order)))
    shape_image(0, 16).resize(shown(Layout(GRAY, 16)).shape[1::-1]).save(tmp_path / "photos/1.jpg")
    assert find_mask_folders(tmp_path, ["labels/1.tif", *files]) == [MaskFolder("labels", "photos")]


def test_what_to_type_can_be_pasted(tmp_path: Path) -> None:
    said = MaskFolder("my masks", "it's 'photos'").advice(tmp_path)
    typed = said.partition("(--data.path ")[2].partition("), or move")[0]
    assert shlex.split(typed) == [str(tmp_path / "it's 'photos'")]


@pytest.mark.parametrize(("first", "second"), [("RGB", "RGB"), ("L", "L"), ("P", "P"), ("1", "1")])
def test_classes_with_equal_names_are_no_label_maps(tmp_path: Path, first: str, second: str) -> None:
    """As MNIST's digits are exported: one channel, 0.png in every class."""
    files = put(tmp_path, first, "cat/0.png", "cat/1.png") + put(tmp_path, second, "dog/0.png", "dog/1.png")
    assert find_mask_folders(tmp_path, sorted(files)) == []


def test_gray_photos_of_another_size_or_name_are_no_label_maps(tmp_path: Path) -> None:
    files = put(tmp_path, "RGB", "cat/0.png", "cat/1.png") + put(tmp_path, "L", "dog/0.png", "dog/1.png", size=(20, 12))
    assert find_mask_folders(tmp_path, sorted(files)) == []
    files = put(tmp_path, "L", "fox/8.png", "fox/9.png") + put(tmp_path, "RGB", "cat/0.png")
    assert find_mask_folders(tmp_path, sorted(files)) == []


def test_damaged_and_missing_files_are_no_label_maps(tmp_path: Path) -> None:
    files = put(tmp_path, "RGB", "photos/1.jpg", "photos/2.jpg")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks/1.png").write_bytes(b"no image")
    assert find_mask_folders(tmp_path, [*files, "masks/1.png", "masks/2.png"]) == []


def test_few_headers_are_opened_however_many_folders_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "one.png")
    opened: list[Path] = []
    files = [f"c{label:04d}/{number}.png" for label in range(300) for number in range(5)]

    def header(file: Path) -> tuple[str, tuple[int, int]]:
        opened.append(file)
        return "L", (4, 4)

    monkeypatch.setattr("openjepa.data.folders.folder.mode_and_size", header)
    assert find_mask_folders(tmp_path, files) == []
    assert 0 < len(opened) <= 100
