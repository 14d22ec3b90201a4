"""Label maps of scenes: masks and annotations joined pixel by pixel, from the packaged set and from folders."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openjepa.data.scenes.maps import MAP_CLASSES, PACKAGED_SCENES, read_annotations, read_masks
from openjepa.data.scenes.scenes import open_scenes
from openjepa.data.selection import limited
from openjepa.data.source import LabelMaps, Splits
from openjepa.settings.sources import ScenesSettings

SHAPES = ["ground", "cube", "sphere", "cylinder"]
COLORS = ["ground", "gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow"]
WORDS = [("cube", "red"), ("sphere", "yellow"), ("cylinder", "gray")]
"""Shape and color of the three objects of every scene of a folder."""


@pytest.fixture(scope="module")
def packaged() -> Splits:
    return open_scenes(ScenesSettings(), seed=0)


def test_class_names() -> None:
    assert list(MAP_CLASSES["shape"]) == SHAPES and list(MAP_CLASSES["color"]) == COLORS


@pytest.mark.parametrize(("name", "classes"), [("shape", SHAPES), ("color", COLORS)])
def test_packaged_maps_show_what_the_annotations_say(packaged: Splits, name: str, classes: list[str]) -> None:
    for split, maps in zip(("train", "val"), packaged.label_maps[name], strict=True):
        scenes, masks = read_annotations(PACKAGED_SCENES, split), read_masks(PACKAGED_SCENES, split)
        assert list(maps.class_names) == classes
        for index in range(0, len(scenes), 131):
            found = maps.read(index)
            assert found.dtype == np.uint8 and found.shape == (64, 64)
            np.testing.assert_array_equal(found == 0, masks[index] == 0)
            for number, item in enumerate(scenes[index]["objects"], start=1):
                here = masks[index] == number
                assert here.sum() >= 9 and set(found[here].tolist()) == {classes.index(item[name])}


def test_every_object_of_the_packaged_set_is_seen(packaged: Splits) -> None:
    for number, split in enumerate(("train", "val")):
        objects = [len(np.unique(mask)) - 1 for mask in read_masks(PACKAGED_SCENES, split)]
        np.testing.assert_array_equal(objects, packaged.extra_labels["count"][number] + 3)


def test_a_subset_of_the_images_has_the_maps_of_these(packaged: Splits) -> None:
    train, test = packaged.label_maps["shape"]
    some = train.select(np.array([7, 3, 5])).select(np.array([2, 0]))
    np.testing.assert_array_equal(some.read(0), train.read(5))
    np.testing.assert_array_equal(some.read(1), train.read(7))
    few = limited(packaged, 4, seed=1)
    names = [packaged.train.name(index) for index in range(len(packaged.train))]  # type: ignore[union-attr]
    assert few.label_maps["shape"][1] is test
    for index in range(4):
        row = names.index(few.train.name(index))  # type: ignore[union-attr]
        np.testing.assert_array_equal(few.label_maps["shape"][0].read(index), train.read(row))


def test_maps_travel_to_workers(packaged: Splits) -> None:
    maps = packaged.label_maps["color"][1].select(np.arange(10, 20))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(maps)).read(4), maps.read(4))
    alone = pickle.dumps(packaged.label_maps["color"][1]._masks)  # type: ignore[attr-defined]
    assert len(alone) < 1000, "the masks are read where they are needed, not sent"


# ---- folders


def write_scenes(root: Path, masks: bool = True) -> Path:
    """Two scenes per split, 12 pixels high and 16 wide; objects 1 and 2 are columns 1 and 2 of every mask, 3 is not seen."""
    for split in ("train", "val"):
        entries = []
        for kind in ("images", "masks") if masks else ("images",):
            (root / kind / split).mkdir(parents=True)
        (root / "scenes").mkdir(exist_ok=True)
        for index in range(2):
            name = f"CLEVR_{split}_{index:06d}.png"
            Image.new("RGB", (16, 12)).save(root / "images" / split / name)
            if masks:
                save_mask(root / "masks" / split / name, example_mask())
            objects = [{"pixel_coords": [1, 1, 9.0], "shape": shape, "color": color} for shape, color in WORDS]
            entries.append({"image_filename": name, "objects": objects})
        (root / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps({"scenes": entries}))
    return root


def example_mask() -> Any:
    mask = np.zeros((12, 16), np.uint8)
    mask[:, 1], mask[:, 2] = 1, 2
    return mask


def save_mask(path: Path, mask: Any) -> None:
    Image.fromarray(mask).save(path)


def opened(root: Path) -> Splits:
    return open_scenes(ScenesSettings(path=str(root)), seed=0)


def shapes_of(root: Path) -> LabelMaps:
    return opened(root).label_maps["shape"][0]


def test_a_rendered_folder_has_maps(tmp_path: Path) -> None:
    splits = opened(write_scenes(tmp_path))
    for name, first, second in (("shape", 1, 2), ("color", 2, 8)):
        found = splits.label_maps[name][1].read(1)
        assert found.shape == (12, 16)
        assert (found[:, 1] == first).all() and (found[:, 2] == second).all() and not np.delete(found, [1, 2], axis=1).any()


def test_clevr_without_masks_has_no_maps(tmp_path: Path) -> None:
    assert not opened(write_scenes(tmp_path, masks=False)).label_maps


def test_missing_masks_are_counted(tmp_path: Path) -> None:
    write_scenes(tmp_path)
    (tmp_path / "masks/val/CLEVR_val_000001.png").unlink()
    with pytest.raises(ValueError, match=r"val lacks the masks of 1 of 2 pictures, for example CLEVR_val_000001\.png"):
        opened(tmp_path)


def test_masks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_scenes(tmp_path)
    path = tmp_path / "masks/train/CLEVR_train_000000.png"
    maps = shapes_of(tmp_path)
    for mask, message in (
        (np.zeros((16, 12), np.uint8), r"train_000000.*its mask has 16 x 12 pixels, the picture 12 x 16"),
        (np.full((12, 16), 4, np.uint8), r"train_000000.*shows object number 4, the annotations have 3"),
        (np.zeros((12, 16, 3), np.uint8), r"train_000000.*one channel"),
    ):
        save_mask(path, mask)
        with pytest.raises(ValueError, match=message):
            maps.read(0)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"train_000000.*cannot be read"):
        maps.read(0)
    assert maps.read(1).max() == 2


def test_unknown_shapes_are_named(tmp_path: Path) -> None:
    write_scenes(tmp_path)
    file = tmp_path / "scenes/CLEVR_train_scenes.json"
    content = json.loads(file.read_text())
    content["scenes"][1]["objects"][2]["shape"] = "cone"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"train_000001.*shape is 'cone'; known: cube, sphere, cylinder"):
        opened(tmp_path)


def test_labels_of_pixels_do_not_depend_on_the_label_of_the_image(packaged: Splits) -> None:
    other = open_scenes(replace(ScenesSettings(), label="distance"), seed=0)
    np.testing.assert_array_equal(other.label_maps["color"][1].read(9), packaged.label_maps["color"][1].read(9))
