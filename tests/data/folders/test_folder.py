"""Layouts of folders, their splits and labels, and the errors for folders that cannot be used."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from openjepa.data.folders.folder import FolderSource, left_out_folders
from openjepa.data.source import ListSource, Splits, open_splits
from openjepa.settings.sources import FolderSettings
from tests.helpers.images import shape_image


def put(root: Path, *files: str) -> Path:
    """Small images at these paths below `root`."""
    for number, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        shape_image(number, 16).save(root / file)
    return root


def opened(root: Path, seed: int = 0, test_fraction: float = 0.2, max_images: int | None = None) -> Splits:
    return open_splits(FolderSettings(path=str(root), test_fraction=test_fraction, max_images=max_images), seed)


def names(source: object) -> list[str]:
    assert isinstance(source, ListSource)
    return [source.name(index) for index in range(len(source))]


def class_of_each(source: object) -> list[str]:
    assert isinstance(source, ListSource) and source.labels is not None and source.class_names is not None
    return [source.class_names[label] for label in source.labels]


def test_flat_folder_is_unlabeled_sorted_and_has_no_test(tmp_path: Path) -> None:
    splits = opened(put(tmp_path, "b.png", "a.JPG", "c.webp", "sub/z.png"))
    assert names(splits.train) == ["a.JPG", "b.png", "c.webp", "sub/z.png"]
    assert splits.train.labels is None and splits.test is None
    assert splits.train.read(1) == (tmp_path / "b.png").read_bytes()


def test_class_folders_of_any_depth(tmp_path: Path) -> None:
    splits = opened(put(tmp_path, "cat/x/y/1.png", "cat/2.png", "dog/3.png", "dog/deep/4.png"), test_fraction=0)
    assert splits.train.class_names == ("cat", "dog")
    assert class_of_each(splits.train) == [name.split("/")[0] for name in names(splits.train)]
    assert splits.test is None


def test_hidden_and_other_files_are_ignored_but_counted(tmp_path: Path) -> None:
    put(tmp_path, "a.png", ".hidden.png", ".cache/b.png")
    (tmp_path / "notes.txt").write_text("no image")
    splits = opened(tmp_path)
    assert names(splits.train) == ["a.png"]
    assert "1 images" in splits.description and "2 other files ignored" in splits.description


@pytest.mark.parametrize("test_name", ["val", "valid", "validation", "test", "Val"])
def test_a_split_on_disk_is_used(tmp_path: Path, test_name: str) -> None:
    splits = opened(put(tmp_path, "train/a/1.png", "train/b/2.png", f"{test_name}/b/3.png"))
    assert names(splits.train) == ["a/1.png", "b/2.png"] and splits.test is not None
    assert names(splits.test) == ["b/3.png"]
    assert class_of_each(splits.test) == ["b"], "labels follow the training classes"


def test_an_unlabeled_test_folder_gives_way_to_a_labeled_one(tmp_path: Path) -> None:
    """As ImageNet has it: images without classes in test, labeled ones in val."""
    splits = opened(put(tmp_path, "train/a/1.png", "train/b/2.png", "test/3.png", "val/a/4.png", "val/b/5.png"))
    assert splits.test is not None and names(splits.test) == ["a/4.png", "b/5.png"]


def test_flat_train_folder_is_used_alone(tmp_path: Path) -> None:
    splits = opened(put(tmp_path, "train/1.png", "train/2.png", "val/3.png"))
    assert names(splits.train) == ["1.png", "2.png"] and splits.test is None


def test_test_classes_unknown_to_training_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has not: fox"):
        opened(put(tmp_path, "train/a/1.png", "train/b/2.png", "val/a/3.png", "val/fox/4.png"))


def test_a_class_may_be_named_train(tmp_path: Path) -> None:
    splits = opened(put(tmp_path, "car/1.png", "plane/2.png", "train/3.png"), test_fraction=0)
    assert class_of_each(splits.train) == ["car", "plane", "train"]
    with pytest.raises(ValueError, match="holds 'train' and 'val' beside car, plane"):
        opened(put(tmp_path, "val/4.png"))


@pytest.mark.parametrize(
    ("first", "second"), [("Train", "train"), ("TRAIN", "Train"), ("train", "training"), ("val", "Val"), ("TEST", "test")]
)
def test_two_folders_that_mean_the_same_split_are_refused(tmp_path: Path, first: str, second: str) -> None:
    """One of them would be dropped without a word."""
    put(
        tmp_path,
        f"{first}/a/1.png",
        f"{first}/b/2.png",
        f"{second}/a/3.png",
        f"{second}/b/4.png",
        "train/a/5.png",
        "train/b/6.png",
    )
    with pytest.raises(ValueError, match=rf"holds '{first}', '{second}'|holds '{second}', '{first}'|which mean the same split"):
        opened(tmp_path)


def test_a_labeled_training_split_alone_says_how_to_hold_out_a_part(tmp_path: Path) -> None:
    put(tmp_path, *[f"train/{label}/{number}.png" for label in "ab" for number in range(5)], "test/1.png")
    alone = opened(tmp_path)
    words = (
        f", none with labels to test on (--data.path {tmp_path / 'train'} holds out a part of each class); images in no split"
    )
    assert words in alone.description and len(names(alone.train)) == 10 and alone.test is None
    assert len(names(opened(tmp_path / "train").test)) == 2


def test_classes_that_differ_in_case_are_two_classes(tmp_path: Path) -> None:
    assert opened(put(tmp_path, "Cat/1.png", "cat/2.png", "dog/3.png")).train.class_names == ("Cat", "cat", "dog")


def test_images_of_splits_that_are_not_used_are_said(tmp_path: Path) -> None:
    files = ["train/a/1.png", "train/b/2.png", "test/a/3.png", "val/a/4.png", "val/b/5.png", "validation/6.png"]
    splits = opened(put(tmp_path, *files))
    assert splits.description.endswith("1 to test; images in no split that is used: 2 in val, 1 in validation")
    assert {name: names(source) for name, source in left_out_folders(FolderSettings(path=str(tmp_path))).items()} == {
        "val": ["a/4.png", "b/5.png"],
        "validation": ["6.png"],
    }


@pytest.mark.parametrize("others", [(), ("val/a/3.png",)])
def test_images_beside_a_split_are_not_dropped(tmp_path: Path, others: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"holds images \(4\.png, 5\.png\) beside the folder 'train': move these away"):
        opened(put(tmp_path, "train/a/1.png", "train/b/2.png", "4.png", "5.png", *others))


def test_images_beside_classes_make_all_unlabeled(tmp_path: Path) -> None:
    splits = opened(put(tmp_path, "train/1.png", "car/2.png", "3.png"))
    assert names(splits.train) == ["3.png", "car/2.png", "train/1.png"] and splits.train.labels is None


@pytest.mark.parametrize("inner", ["", "images/", "data/images/"])
@pytest.mark.parametrize("test_inner", ["", "images/", "deep/er/"])
def test_one_sub_folder_alone_is_no_class_at_any_level(tmp_path: Path, inner: str, test_inner: str) -> None:
    splits = opened(put(tmp_path, f"x/train/{inner}a/p/1.png", f"x/train/{inner}b/p/2.png", f"x/val/{test_inner}b/p/3.png"))
    assert splits.train.class_names == ("a", "b") and class_of_each(splits.train) == ["a", "b"]
    assert names(splits.test) == ["b/p/3.png"] and class_of_each(splits.test) == ["b"]


def tiny_imagenet(root: Path) -> Path:
    """As the archive unpacks, with two classes."""
    classes = ("n01443537", "n02124075")
    put(root, *[f"train/{label}/images/{label}_{number}.JPEG" for label in classes for number in range(3)])
    put(root, *[f"{split}/images/{split}_{number}.JPEG" for split in ("val", "test") for number in range(4)])
    for label in classes:
        (root / "train" / label / f"{label}_boxes.txt").write_text(f"{label}_0.JPEG\t0\t10\t63\t58\n")
    lines = [f"val_{number}.JPEG\t{classes[number in (0, 3)]}\t0\t32\t44\t62\n" for number in (3, 0, 2, 1)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(reversed(classes)))
    return root


def test_tiny_imagenet_as_it_unpacks(tmp_path: Path) -> None:
    splits = opened(tiny_imagenet(tmp_path / "tiny-imagenet-200"))
    assert names(splits.train) == [f"{label}/images/{label}_{n}.JPEG" for label in ("n01443537", "n02124075") for n in range(3)]
    assert class_of_each(splits.train) == ["n01443537"] * 3 + ["n02124075"] * 3
    assert names(splits.test) == ["val_0.JPEG", "val_1.JPEG", "val_2.JPEG", "val_3.JPEG"]
    assert class_of_each(splits.test) == ["n02124075", "n01443537", "n01443537", "n02124075"]
    assert (
        splits.test is not None and splits.test.read(1) == (tmp_path / "tiny-imagenet-200/val/images/val_1.JPEG").read_bytes()
    )
    assert "6 images to train in 2 classes, 4 to test; images in no split that is used: 4 in test" in splits.description
    others = left_out_folders(FolderSettings(path=str(tmp_path)))
    assert {name: names(source) for name, source in others.items()} == {"test": [f"images/test_{n}.JPEG" for n in range(4)]}


def test_tiny_imagenet_without_its_list_has_unlabeled_splits(tmp_path: Path) -> None:
    root = tiny_imagenet(tmp_path)
    (root / "val" / "val_annotations.txt").unlink()
    splits = opened(root)
    assert len(names(splits.train)) == 6 and splits.train.labels is not None and splits.test is None
    assert "; images in no split that is used: 4 in test, 4 in val" in splits.description


def test_a_list_of_tiny_imagenet_that_is_not_as_expected(tmp_path: Path) -> None:
    root = tiny_imagenet(tmp_path)
    file = root / "val" / "val_annotations.txt"
    file.write_text("val_0.JPEG\tn02124075\t0\nval_9.JPEG\tn02124075\t0\n")
    with pytest.warns(
        UserWarning, match=r"val_annotations\.txt names 1 of 2 images .* for example val_9\.JPEG; they are skipped"
    ):
        splits = opened(root)
    assert names(splits.test) == ["val_0.JPEG", "val_9.JPEG"]
    assert "; images in no split that is used: 4 in test, 3 in val" in splits.description
    for text, words in (
        ("val_0.JPEG n02124075\n", r"val_annotations\.txt, line 1: 'val_0\.JPEG n02124075'; expected: a file name, a tab"),
        ("val_0.JPEG\tn9\n", r"val_annotations\.txt' has classes that 'train' has not: n9"),
        ("\n", r"val_annotations\.txt lists no images"),
        ("val_9.JPEG\tn02124075\n", r"names 1 of 1 images .*\. Expected: the listed images there"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=words):
            opened(root)
    file.write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match=r"val_annotations\.txt cannot be read as text"):
        opened(root)


def test_single_folders_are_entered(tmp_path: Path) -> None:
    splits = opened(put(tmp_path, "archive/images/a/1.png", "archive/images/b/2.png"), test_fraction=0)
    assert splits.train.class_names == ("a", "b")
    photos = opened(put(tmp_path / "flat", "2024/1.png", "2024/2.png"))
    assert photos.train.labels is None


def test_held_out_share_is_exact_in_each_class_and_depends_on_the_seed(tmp_path: Path) -> None:
    sizes = {"a": 20, "b": 7, "c": 1}
    put(tmp_path, *[f"{name}/{i:02d}.png" for name, size in sizes.items() for i in range(size)])
    first, again, other = opened(tmp_path), opened(tmp_path), opened(tmp_path, seed=1)
    assert first.test is not None and again.test is not None and other.test is not None
    held = class_of_each(first.test)
    assert {name: held.count(name) for name in sizes} == {"a": 4, "b": 1, "c": 0}
    assert set(names(first.train)).isdisjoint(names(first.test))
    assert len(names(first.train)) + len(names(first.test)) == 28
    assert names(first.test) == names(again.test) != names(other.test)
    assert names(first.train) == sorted(names(first.train))


def test_held_out_images_are_random(tmp_path: Path) -> None:
    put(tmp_path, *[f"{name}/{i}.png" for name in "ab" for i in range(4)])
    held = [tuple(names(opened(tmp_path, seed, 0.25).test)) for seed in range(40)]
    assert {name for pair in held for name in pair} == set(names(opened(tmp_path, test_fraction=0).train))


def test_max_images_draws_a_part_with_the_seed(tmp_path: Path) -> None:
    put(tmp_path, *[f"{name}/{i:02d}.png" for name in "ab" for i in range(20)])
    everything, part, other = opened(tmp_path), opened(tmp_path, max_images=10), opened(tmp_path, 1, max_images=10)
    assert len(names(part.train)) == 10 and set(names(part.train)) <= set(names(everything.train))
    assert class_of_each(part.train) == [name[0] for name in names(part.train)]
    assert names(part.train) == sorted(names(part.train)) and names(part.train) != names(other.train)
    assert part.train.read(3) == (tmp_path / names(part.train)[3]).read_bytes()


def test_links_are_followed_once(tmp_path: Path) -> None:
    put(tmp_path / "far", "1.png", "2.png")
    put(tmp_path / "data", "a/3.png")
    (tmp_path / "data" / "b").symlink_to(tmp_path / "far")
    (tmp_path / "data" / "a" / "loop").symlink_to(tmp_path / "data")
    splits = opened(tmp_path / "data", test_fraction=0)
    assert sorted(Path(name).name for name in names(splits.train)) == ["1.png", "2.png", "3.png"]


def test_sources_travel_to_workers_and_keep_odd_names(tmp_path: Path) -> None:
    put(tmp_path, "süß/日本.png", "süß/b.png", "a b/c.png")
    source = pickle.loads(pickle.dumps(opened(tmp_path, test_fraction=0).train))
    assert isinstance(source, FolderSource) and names(source) == ["a b/c.png", "süß/b.png", "süß/日本.png"]
    assert source.read(2) == (tmp_path / "süß/日本.png").read_bytes()
    assert np.array_equal(source.labels, [0, 1, 1])


def test_missing_path_names_the_nearest(tmp_path: Path) -> None:
    put(tmp_path / "photos", "1.png")
    with pytest.raises(ValueError, match=r"does not exist; did you mean .*photos"):
        opened(tmp_path / "fotos")
    with pytest.raises(ValueError, match=r"does not exist; .* holds: photos"):
        opened(tmp_path / "qqqqqqqqq" / "deeper")
    with pytest.raises(ValueError, match=r"is not set"):
        open_splits(FolderSettings(), 0)


def test_a_file_or_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"holds no images \(1 other files\).*\.jpg"):
        opened(tmp_path)
    with pytest.raises(ValueError, match="is a file"):
        opened(tmp_path / "a.txt")


def test_no_usable_image_among_the_first_is_refused(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"" if number < 3 else b"text")
    with pytest.raises(
        ValueError, match=r"none of the first 5 images .* \(3x empty file; 2x not an image\).*0\.jpg: empty file"
    ):
        opened(tmp_path)
    shape_image(0, 16).save(tmp_path / "9.png")
    assert len(names(opened(tmp_path).train)) == 6


def test_impossible_fractions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="test_fraction=1"):
        opened(put(tmp_path, "a/1.png", "b/2.png"), test_fraction=1)
    with pytest.raises(ValueError, match="max_images=0"):
        opened(tmp_path, max_images=0)
