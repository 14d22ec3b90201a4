import io
import json
import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openjepa.data.scenes.maps import PACKAGED_SCENES, read_annotations, read_masks
from openjepa.data.scenes.scenes import CLASS_NAMES, count_label, distance_label, open_scenes
from openjepa.settings.sources import ScenesSettings
from tests.helpers.scene_checks import assert_bins_filled, assert_counts_uniform, scene_with_depths, write_clevr


def distance_by_cases(nearest: float) -> int:
    """VTAB's form of the bins, written out: intervals open below and closed above."""
    edges = [0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0]
    (label,) = [bin for bin in range(6) if edges[bin] < nearest <= edges[bin + 1]]
    return label


# ---- labels


def test_distance_label_agrees_with_intervals_written_out_ties_included() -> None:
    ties = [8.0, 8.5, 9.0, 9.5, 10.0, 100.0]
    depths = [0.1, *ties, *(math.nextafter(t, 0) for t in ties), *(math.nextafter(t, 200) for t in ties[:-1])]
    depths += np.random.default_rng(0).uniform(6, 14, 200).tolist()
    for depth in depths:
        assert distance_label(scene_with_depths(depth + 3, depth, depth + 1)) == distance_by_cases(depth)
    assert [distance_label(scene_with_depths(tie)) for tie in ties] == [0, 1, 2, 3, 4, 5]


def test_count_label_is_objects_minus_three_and_refuses_others() -> None:
    assert [count_label(scene_with_depths(*[9.0] * n)) for n in range(3, 11)] == list(range(8))
    for count in (0, 2, 11):
        with pytest.raises(ValueError, match="3 to 10"):
            count_label(scene_with_depths(*[9.0] * count))
    with pytest.raises(ValueError, match=r"100\.5"):
        distance_label(scene_with_depths(100.5))


# ---- packaged set


@pytest.mark.parametrize("label", ["count", "distance"])
def test_packaged_set_is_whole(label: Any) -> None:
    splits = open_scenes(ScenesSettings(label=label), seed=0)
    assert splits.test is not None
    assert (len(splits.train), len(splits.test)) == (3000, 1000)
    for split, source in enumerate((splits.train, splits.test)):
        assert source.class_names == CLASS_NAMES[label]
        np.testing.assert_array_equal(source.labels, splits.extra_labels[label][split])
        assert_counts_uniform(splits.extra_labels["count"][split])
        assert_bins_filled(splits.extra_labels["distance"][split])


def test_packaged_pictures_masks_and_annotations_belong_together() -> None:
    splits = open_scenes(ScenesSettings(), seed=0)
    for split, source in (("train", splits.train), ("val", splits.test)):
        scenes, masks = read_annotations(PACKAGED_SCENES, split), read_masks(PACKAGED_SCENES, split)
        assert masks.shape == (len(scenes), 64, 64)
        for index in range(0, len(scenes), 97):
            picture = np.asarray(Image.open(io.BytesIO(source.read(index))))
            assert picture.shape == (64, 64, 3) and source.name(index) == scenes[index]["image_filename"]
            assert masks[index].max() == len(scenes[index]["objects"])
            # colored objects differ from the gray ground where the mask says, on average over the picture
            colorfulness = picture.max(-1).astype(int) - picture.min(-1)
            if any(item["color"] not in ("gray", "brown") for item in scenes[index]["objects"]):
                assert colorfulness[masks[index] > 0].mean() > 2 * colorfulness[masks[index] == 0].mean()


def test_packaged_set_is_at_most_ten_megabytes() -> None:
    assert sum(file.stat().st_size for file in PACKAGED_SCENES.parent.iterdir()) <= 10e6


def test_sources_travel_to_workers() -> None:
    source = open_scenes(ScenesSettings(), seed=0).train
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(17) == source.read(17) and copy.name(17) == source.name(17)


# ---- folders


@pytest.fixture
def clevr(tmp_path: Path) -> Path:
    root = tmp_path / "CLEVR_v1.0"
    write_clevr(root, {"train": [[9.2, 8.0, 11], [12, 13, 14, 10.5]], "val": [[8.6] * 10]})
    return root


def test_clevr_folder_is_read(clevr: Path) -> None:
    splits = open_scenes(ScenesSettings(path=str(clevr), label="distance"), seed=0)
    assert splits.train.labels.tolist() == [0, 5] and splits.test.labels.tolist() == [2]
    assert [labels.tolist() for labels in splits.extra_labels["count"]] == [[0, 1], [7]]
    assert splits.train.read(1) == (clevr / "images/train/CLEVR_train_000001.png").read_bytes()
    assert splits.test.name(0) == "images/val/CLEVR_val_000000.png"


def test_errors_say_what_is_missing_and_expected(clevr: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(ValueError) as caught:
            open_scenes(ScenesSettings(path=str(path)), seed=0)
        return str(caught.value)

    assert "does not exist" in message(clevr / "nowhere")
    assert f"did you mean {clevr}" in message(clevr.parent)
    (clevr / "images/train/CLEVR_train_000001.png").unlink()
    with pytest.warns(UserWarning, match=r"CLEVR_train_scenes\.json names 1 of 2 images .* CLEVR_train_000001\.png; they are"):
        assert len(open_scenes(ScenesSettings(path=str(clevr)), seed=0).train) == 2
    (clevr / "images/train/CLEVR_train_000000.png").unlink()
    assert "names 2 of 2 images" in message(clevr)
    (clevr / "scenes/CLEVR_val_scenes.json").unlink()
    text = message(clevr)
    assert "no scenes/CLEVR_val_scenes.json" in text and "Expected: images/{train,val}" in text
    (clevr / "scenes/CLEVR_train_scenes.json").write_text("{}")
    (clevr / "scenes/CLEVR_val_scenes.json").write_text("{}")
    assert "is no CLEVR file" in message(clevr)


def test_scene_with_too_few_objects_is_named(clevr: Path) -> None:
    file = clevr / "scenes/CLEVR_train_scenes.json"
    content = json.loads(file.read_text())
    content["scenes"][1]["objects"] = content["scenes"][1]["objects"][:2]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"CLEVR_train_000001.*2 objects"):
        open_scenes(ScenesSettings(path=str(clevr)), seed=0)
