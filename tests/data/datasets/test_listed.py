"""Places205 and iNat18 on generated miniatures of their layout, and the error for every way to be broken."""

import csv
import json
import os
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openjepa.data.folders.image_lists import absent_files
from openjepa.evaluation.suite_run import evaluate_suite
from openjepa.types import Export
from openjepa.weights.native import save_network
from tests.helpers.benchmark_folders import opened, put, table, write
from tests.helpers.evaluated_run import CONFIG, SETTINGS, encoder

PLACES = ("a/abbey", "a/apartment_building/outdoor", "b/bar")


def places205(root: Path, images: str, lists: str) -> Path:
    files = {
        split: [f"{place}/gsun_{split}{n}.jpg {label}" for label, place in enumerate(PLACES) for n in (0, 1)]
        for split in ("train", "val")
    }
    for split, lines in files.items():
        put(root / images, *[line.split(" ")[0] for line in lines])
        write(root / lists / f"{split}_places205.csv", "\n".join(reversed(lines)) + "\n")
    return root


@pytest.mark.parametrize("images", ["data/vision/torralba/deeplearning/images256", "images256", "images", "."])
@pytest.mark.parametrize("lists", ["trainvalsplit_places205", "."])
def test_places205_at_every_depth(tmp_path: Path, images: str, lists: str) -> None:
    root = places205(tmp_path / "places205", images, lists)
    splits = opened("places205", tmp_path)
    for split, source in (("train", splits.train), ("val", splits.test)):
        with (root / lists / f"{split}_places205.csv").open() as file:
            assert table(source) == [(name, int(label)) for name, label in csv.reader(file, delimiter=" ")]
    assert splits.train.class_names == ("abbey", "apartment_building/outdoor", "bar")
    assert splits.train.read(0) == (root / images / "b/bar/gsun_train1.jpg").read_bytes()  # type: ignore[union-attr]
    assert splits.description == "Places205: 6 images to train in 3 of its 205 classes, 6 to test"


def absent_places(root: Path) -> str:
    """Deletes an image; the list's words for it."""
    (places205(root / "places205", "images256", ".") / "images256/b/bar/gsun_val0.jpg").unlink()
    return r"val_places205\.csv names 1 of 6 images that .*images256 does not hold, for example b/bar/gsun_val0\.jpg"


def absent_inat(root: Path) -> str:
    (inat18(root / "inat18") / "train_val2018/Aves/11/val1.jpg").unlink()
    return r"val2018\.json names 1 of 2 images that .*inat18 does not hold, for example train_val2018/Aves/11/val1\.jpg"


@pytest.mark.parametrize(("name", "spoil"), [("places205", absent_places), ("inat18", absent_inat)])
def test_a_listed_image_that_is_missing_is_as_an_empty_one(tmp_path: Path, name: str, spoil: Callable[[Path], str]) -> None:
    """It stays in the list, is said at once, and whoever reads it gets an error of the file system, which is counted."""
    with pytest.warns(
        UserWarning, match=spoil(tmp_path) + r".*; they are skipped, and count as unreadable images do \(max_skipped\)"
    ):
        splits = opened(name, tmp_path)
    assert splits.test is not None and len(splits.test) == (6 if name == "places205" else 2)
    unreadable = []
    for index in range(len(splits.test)):
        try:
            splits.test.read(index)
        except OSError:
            unreadable.append(splits.test.name(index))
    assert unreadable == (["b/bar/gsun_val0.jpg"] if name == "places205" else ["train_val2018/Aves/11/val1.jpg"])


def test_broken_places205_are_refused(tmp_path: Path) -> None:
    def fails(words: str) -> None:
        with pytest.raises(ValueError, match=words):
            opened("places205", tmp_path)

    root = places205(tmp_path / "places205", "images256", "trainvalsplit_places205")
    val = root / "trainvalsplit_places205" / "val_places205.csv"
    for line in ("a/abbey/x.jpg", "a/abbey/x.jpg,0", "a/abbey/x.jpg -1"):
        write(val, f"a/abbey/gsun_val0.jpg 0\n{line}\n")
        fails(rf"val_places205\.csv, line 2: '{line}'; expected: a path and a class")
    val.write_bytes(b"\xff\xff")
    fails(r"val_places205\.csv cannot be read as text")
    write(val, "\n")
    fails(r"val_places205\.csv lists no images")
    write(val, "c/cave/gsun_val0.jpg 0\n")
    fails(r"names 1 of 1 images that")
    write(val, "a/abbey/gsun_val0.jpg 3\n")
    fails(r"Places205: the test split has 1 classes without training images: 3")
    val.unlink()
    fails(
        r"places205 has no list val_places205\.csv; it holds: images256, trainvalsplit_places205\. Expected: trainvalsplit_pl"
    )
    places205(root, "images256", "trainvalsplit_places205")
    (root / "images256").rename(root / "pictures")
    fails(r"has none of the first images that train_places205\.csv names \(b/bar/gsun_train1\.jpg, b/bar/gsun_train0\.jpg, ")


def test_places205_without_one_folder_per_class_has_no_names(tmp_path: Path) -> None:
    root = places205(tmp_path / "places205", "images256", ".")
    lines = [line.replace(" 2", " 7") for line in (root / "train_places205.csv").read_text().splitlines()]
    write(root / "train_places205.csv", "\n".join(lines))
    write(root / "val_places205.csv", "a/abbey/gsun_val0.jpg 7\n")
    splits = opened("places205", tmp_path)
    assert splits.train.class_names is None and table(splits.test) == [("a/abbey/gsun_val0.jpg", 7)]


def inat18(root: Path, images: str = ".") -> Path:
    """Annotations whose categories start at 11 and stand in another order than their numbers."""
    for split, numbers in (("train", (12, 11, 13, 11)), ("val", (13, 11))):
        names = [f"train_val2018/Aves/{number}/{split}{place}.jpg" for place, number in enumerate(numbers)]
        put(root / images, *names)
        content = {
            "images": [{"id": 500 + place, "file_name": name, "width": 16} for place, name in enumerate(names)],
            "annotations": [{"id": 1, "image_id": 500 + p, "category_id": n} for p, n in reversed(list(enumerate(numbers)))],
            "categories": [{"id": number, "name": f"species {number}"} for number in (13, 11, 12)],
        }
        write(root / f"{split}2018.json", json.dumps(content))
    return root


def changed(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("images", [".", "images"])
def test_inat18(tmp_path: Path, images: str) -> None:
    root = inat18(tmp_path / "inat18", images)
    splits = opened("inat18", tmp_path)
    assert [label for _, label in table(splits.train)] == [1, 0, 2, 0]
    assert table(splits.test) == [("train_val2018/Aves/13/val0.jpg", 2), ("train_val2018/Aves/11/val1.jpg", 0)]
    assert splits.train.class_names == ("species 11", "species 12", "species 13")
    for split in ("train", "val"):
        changed(root / f"{split}2018.json", lambda content: content.pop("categories"))
    assert [label for _, label in table(opened("inat18", tmp_path).train)] == [1, 0, 2, 0], "categories are not needed"


def test_broken_inat18_is_refused(tmp_path: Path) -> None:
    root = inat18(tmp_path / "inat18")
    val = root / "val2018.json"
    whole = val.read_text()
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        r"val2018\.json: 2 images, 1 of them annotated with 1 .*none for train_val2018/Aves/13/v": lambda c: c[
            "annotations"
        ].pop(),
        r"2 images, 2 of them annotated with 3 categories": lambda c: c["annotations"].append(
            {"image_id": 500, "category_id": 11}
        ),
        r"1 images, 2 of them annotated with 2 categories": lambda c: c["images"].pop(),
        r"val2018\.json has 1 categories unknown to train2018\.json: \[99\]": lambda c: c["annotations"][0].update(
            category_id=99
        ),
        r"val2018\.json is no annotation file .*KeyError: 'annotations'": lambda c: c.pop("annotations"),
        r"names 2 of 2 images .*for example train_val2018/x\.jpg, .*Expected: the listed images there": lambda c: [
            image.update(file_name="train_val2018/x.jpg") for image in c["images"]
        ],
    }
    for words, change in changes.items():
        val.write_text(whole)
        changed(val, change)
        with pytest.raises(ValueError, match=words):
            opened("inat18", tmp_path)
    for text in (whole[:-9], "[]", "3"):
        val.write_text(text)
        with pytest.raises(ValueError, match=r"val2018\.json is no annotation file in COCO's format"):
            opened("inat18", tmp_path)
    val.unlink()
    with pytest.raises(ValueError, match=r"inat18 has no val2018\.json; it holds: train2018\.json, train_val2018\. Expected: "):
        opened("inat18", tmp_path)
    val.write_text(whole)
    (root / "train_val2018").rename(root / "pictures")
    with pytest.raises(ValueError, match=r"has none of the first images that train2018\.json names"):
        opened("inat18", tmp_path)


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["missing", "empty"])
def test_a_suite_counts_a_missing_image_as_an_empty_one(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    root, wnids = tmp_path / "data" / "imagenet", ("n01440764", "n01443537")
    put(root, *[f"train/{wnid}/{number}.JPEG" for wnid in wnids for number in range(12)])
    files = [f"ILSVRC2012_val_{number:08d}" for number in range(1, 17)]
    put(root, *[f"val/{file}.JPEG" for file in files])
    write(root / "LOC_val_solution.csv", "".join(f"{file},{wnids[row % 2]} 1 2 3 4\n" for row, file in enumerate(files)))
    for file in files[3:6]:
        spoil(root / "val" / f"{file}.JPEG")
    save_network(tmp_path / "mine", Export(CONFIG, encoder(1)))
    settings = replace(SETTINGS, tasks=("imagenet1k",), baselines=(), protocols=("knn",), neighbors=(1,))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        (refused,) = evaluate_suite(tmp_path / "mine", "cached", root.parent, settings)
        (result,) = evaluate_suite(tmp_path / "mine", "cached", root.parent, replace(settings, max_skipped=0.2), again=True)
    assert "failed: 3 of the 16 images of the test split cannot be read" in str(refused.skipped)
    assert result.num_test == 13 and result.dropped == {"train": 0, "test": 3} and "3 unreadable images" in result.departures
    assert any("names 3 of 16 images" in str(item.message) for item in said) == (spoil is Path.unlink)


def test_names_that_the_disk_takes_for_others_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As disks of Macs and Windows do with upper and lower case, and with accents."""
    names = ["a/One.JPG", "A/two.jpg", "caf\u00e9/3.jpg"]
    on_disk = ["a/one.jpg", "a/two.jpg", "cafe\u0301/3.jpg"]
    for name in on_disk:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    absent = ["a/four.jpg", "b/1.jpg", "\0.jpg", "x" * 300]
    assert absent_files(tmp_path, [*on_disk, *absent]) == absent
    exists = os.path.exists

    def folded(path: Path) -> bool:
        name = unicodedata.normalize("NFD", path.relative_to(tmp_path).as_posix()).lower()
        return exists(tmp_path / name)

    monkeypatch.setattr("os.path.exists", folded)
    assert absent_files(tmp_path, [*names, *on_disk, *absent]) == absent
