"""ImageNet-1K on generated miniatures of every layout, with the devkit's file of MATLAB as scipy writes it."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openjepa.data.datasets.imagenet import _class_numbers
from openjepa.refusals import Refusal
from tests.helpers.benchmark_folders import opened, put, table, write

WNIDS = ("n01440764", "n01443537", "n01484850")


def imagenet(root: Path, flat: bool, train: str = "train", val: str = "val") -> Path:
    put(root, *[f"{train}/{wnid}/{wnid}_{number}.JPEG" for wnid in WNIDS for number in (2, 9)])
    names = [f"{val}/ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3, 4)]
    return put(root, *(names if flat else [f"{val}/{WNIDS[0]}/a.JPEG", f"{val}/{WNIDS[2]}/b.JPEG"]))


def write_devkit(root: Path, numbers: tuple[Any, ...]) -> Path:
    """A devkit whose own numbers are in another order than the folders' names, as the real one's are."""
    scipy_io = pytest.importorskip("scipy.io", reason="writes meta.mat")
    data = root / "ILSVRC2012_devkit_t12" / "data"
    write(data / "ILSVRC2012_validation_ground_truth.txt", "".join(f"{number}\n" for number in numbers))
    synsets = np.zeros(
        (5, 1), dtype=[(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children", "children")]
    )
    rows = [(1, WNIDS[2]), (2, WNIDS[0]), (3, WNIDS[1]), (1000, "n09999999"), (1001, "n00001740")]
    for place, (number, wnid) in enumerate(rows):
        synsets[place, 0] = (float(number), wnid, "tench, Tinca tinca", 0.0, np.zeros((1, 0)))
    scipy_io.savemat(data / "meta.mat", {"about": "text", "synsets": synsets}, do_compression=len(numbers) % 2 == 0)
    return root


def test_imagenet_in_class_folders(tmp_path: Path) -> None:
    imagenet(tmp_path / "imagenet", flat=False)
    put(tmp_path / "imagenet", "test/ILSVRC2012_test_00000001.JPEG")
    splits = opened("imagenet1k", tmp_path)
    assert table(splits.train) == [(f"{wnid}/{wnid}_{n}.JPEG", label) for label, wnid in enumerate(WNIDS) for n in (2, 9)]
    assert table(splits.test) == [(f"{WNIDS[0]}/a.JPEG", 0), (f"{WNIDS[2]}/b.JPEG", 2)], "numbered as in training"
    assert splits.train.class_names == WNIDS and splits.test is not None and splits.test.class_names == WNIDS
    assert splits.description == "ImageNet-1K: 6 images to train in 3 of its 1,000 classes, 2 to test"


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("numbers", [(3, 1, 2, 1), (2, 2, 3, 1)])
def test_imagenet_with_the_official_flat_validation_images(tmp_path: Path, beside: bool, numbers: tuple[int, ...]) -> None:
    root = imagenet(tmp_path / "imagenet", True, "ILSVRC2012_img_train", "ILSVRC2012_img_val")
    write_devkit(tmp_path if beside else root, numbers)
    of_number = {1: 2, 2: 0, 3: 1}
    expected = [(f"ILSVRC2012_val_{row:08d}.JPEG", of_number[number]) for row, number in enumerate(numbers, start=1)]
    assert table(opened("imagenet1k", tmp_path).test) == expected


@pytest.mark.parametrize("folder", ["imagenet/ILSVRC/Data/CLS-LOC", "ILSVRC/Data/CLS-LOC"])
def test_imagenet_in_the_competitions_folders(tmp_path: Path, folder: str) -> None:
    imagenet(tmp_path / folder, flat=True)
    lines = [f"ILSVRC2012_val_{row:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8" for row, wnid in ((3, WNIDS[1]), (1, WNIDS[2]))]
    lines += [f"ILSVRC2012_val_{row:08d},{WNIDS[0]} 1 2 3 4" for row in (2, 4)]
    place = tmp_path / "imagenet" if folder.startswith("imagenet") else tmp_path
    file = write(place / "LOC_val_solution.csv", "\n".join(["ImageId,PredictionString", *lines]))
    labels = {name: label for name, label in table(opened("imagenet1k", tmp_path).test)}
    assert labels == {f"ILSVRC2012_val_{row:08d}.JPEG": label for row, label in ((3, 1), (1, 2), (2, 0), (4, 0))}
    write(file, "ImageId,PredictionString\nILSVRC2012_val_00000001,tench\n")
    with pytest.raises(ValueError, match=r"LOC_val_solution\.csv, line 2: 'ILSVRC2012_val_00000001,tench'; expected: "):
        opened("imagenet1k", tmp_path)
    write(file, f"ImageId,PredictionString\nILSVRC2012_val_00000001,n5 1\nILSVRC2012_val_00000002,{WNIDS[0]} 1\n")
    with pytest.raises(ValueError, match=r"LOC_val_solution\.csv has 1 classes that the training split has no folder for: n5"):
        opened("imagenet1k", tmp_path)


def test_broken_imagenets_are_refused(tmp_path: Path) -> None:
    def fails(folder: str, words: str) -> None:
        with pytest.raises(ValueError, match=words):
            opened("imagenet1k", tmp_path / folder)

    put(tmp_path / "a" / "imagenet", "train/x/1.JPEG", "train/y/2.JPEG")
    fails("a", r"imagenet has no folder of validation images; it holds: train\. Expected: train/CLASS")
    imagenet(tmp_path / "b" / "imagenet", flat=True)
    fails("b", r"labels are nowhere beside it.*Expected: the unpacked ILSVRC2012_devkit_t12\.tar\.gz in .*imagenet, or LOC_val")
    put(tmp_path / "a" / "imagenet", "val/z/1.JPEG", "val/x/1.JPEG")
    fails("a", r"val has 1 classes that the training split has not: z")
    write(tmp_path / "a" / "imagenet" / "train" / "n01440764.tar", "")
    fails("a", r"train holds archives that are not unpacked; it holds: n01440764\.tar, x, y")
    put(tmp_path / "c" / "imagenet", "train/x/1.JPEG", "train/y/2.JPEG", "train/3.JPEG", "val/x/1.JPEG", "val/y/1.JPEG")
    fails("c", r"train has images but not all of them in class folders")


def test_broken_devkits_are_refused(tmp_path: Path) -> None:
    root = write_devkit(imagenet(tmp_path / "imagenet", flat=True), (1, 2, 3, 1, 2, 2))
    with pytest.warns(UserWarning, match=r"names 2 of 6 images that .*val does not hold, for example ILSVRC2012_val_00000005"):
        test = opened("imagenet1k", tmp_path).test
    assert [name for name, _ in table(test)] == [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 7)]
    for line in ("1001", "0", "tench"):
        write_devkit(root, (1, line, 3, 1))
        with pytest.raises(ValueError, match=rf"ground_truth\.txt, line 2: '{line}'; expected: a class from 1 to 1000"):
            opened("imagenet1k", tmp_path)
    meta = root / "ILSVRC2012_devkit_t12" / "data" / "meta.mat"
    whole = meta.read_bytes()
    damaged = "cannot be read as a MATLAB file"
    for content, words in ((b"text", damaged), (whole[:-50], damaged), (whole[:128], ": 'synsets' has no ILSVRC2012_ID")):
        meta.write_bytes(content)
        with pytest.raises(ValueError, match=rf"meta\.mat ?{words}"):
            opened("imagenet1k", tmp_path)
    meta.unlink()
    with pytest.raises(ValueError, match=r"meta\.mat is not beside it: unpack the whole devkit"):
        opened("imagenet1k", tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
def test_class_numbers_are_read_from_what_scipy_writes(tmp_path: Path, compressed: bool) -> None:
    scipy_io = pytest.importorskip("scipy.io", reason="writes the file")
    kinds: list[Any] = [3.0, np.int32(70), np.array([[1000]], dtype=np.uint16)]
    for num in (1, 3):  # a single structure is not squeezed away
        synsets = np.zeros((num, 1), dtype=[(name, object) for name in ("ILSVRC2012_ID", "WNID", "gloss", "cells", "children")])
        for row, number in enumerate(kinds[:num]):
            cells, children = np.array(["a"], dtype=object), np.zeros((1, 0))
            synsets[row, 0] = (number, f"n0144076{row}", "äß, a text that is longer than its own tag", cells, children)
        scipy_io.savemat(tmp_path / "meta.mat", {"other": {"WNID": 1.0}, "synsets": synsets}, do_compression=compressed)
        expected = {3: "n01440760", 70: "n01440761", 1000: "n01440762"}
        assert _class_numbers(tmp_path / "meta.mat") == dict(list(expected.items())[:num])


def test_other_structures_are_refused(tmp_path: Path) -> None:
    scipy_io = pytest.importorskip("scipy.io", reason="writes the file")
    for synsets in ({"WNID": "n1"}, {"ILSVRC2012_ID": 1.0, "WNID": 2.0}, {"ILSVRC2012_ID": "x", "WNID": "n1"}, 3.0, "text"):
        scipy_io.savemat(tmp_path / "meta.mat", {"synsets": synsets})
        with pytest.raises(Refusal, match=r"meta\.mat: 'synsets' has no ILSVRC2012_ID \(a number\) and WNID \(text\)"):
            _class_numbers(tmp_path / "meta.mat")


def test_without_scipy_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(Refusal, match=r"needs the package scipy: pip install 'openjepa\[eval\]', or one folder per class"):
        _class_numbers(tmp_path / "meta.mat")
