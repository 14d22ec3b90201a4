import io
import json
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openjepa.data.scene_layout import AREA, MIN_GAP, MIN_VISIBLE_PIXELS, SIZES, SceneLayout, lay_out_scene
from openjepa.data.scene_packing import PACKAGED_SCENES, read_annotations, read_masks
from openjepa.data.scene_visibility import Camera, Solid, instance_mask
from openjepa.data.scenes import CLASS_NAMES, count_label, distance_label, open_scenes
from openjepa.settings.data import ScenesSettings

NUM_LAYOUTS = 2000


@pytest.fixture(scope="module")
def layouts() -> list[SceneLayout]:
    return [lay_out_scene(7, "train", index) for index in range(NUM_LAYOUTS)]


def scene_with_depths(*depths: float) -> dict[str, Any]:
    return {"objects": [{"pixel_coords": [1, 1, depth]} for depth in depths]}


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


# ---- layout


def assert_counts_uniform(counts: np.ndarray) -> None:
    """Chi-squared over eight classes below its 99.99 % point (7 degrees of freedom: 29.9)."""
    observed = np.bincount(counts, minlength=8)
    expected = len(counts) / 8
    assert len(observed) == 8
    assert ((observed - expected) ** 2 / expected).sum() < 29.9


def assert_bins_filled(distances: np.ndarray) -> None:
    shares = np.bincount(distances, minlength=6) / len(distances)
    assert len(shares) == 6 and shares.min() >= 0.05, shares


def test_counts_are_uniform_and_every_distance_bin_holds_five_percent(layouts: list[SceneLayout]) -> None:
    scenes = [layout.annotation(64) for layout in layouts]
    assert_counts_uniform(np.array([count_label(scene) for scene in scenes]))
    assert_bins_filled(np.array([distance_label(scene) for scene in scenes]))


def test_objects_stand_apart_inside_the_area_and_on_the_ground(layouts: list[SceneLayout]) -> None:
    for layout in layouts:
        centers = np.array([item.solid.center for item in layout.objects])
        radii = np.array([SIZES[item.size] for item in layout.objects])
        distances = np.linalg.norm(centers[:, None, :2] - centers[None, :, :2], axis=-1)
        gaps = (distances - radii[:, None] - radii[None])[~np.eye(len(radii), dtype=bool)]
        assert gaps.min() >= MIN_GAP - 1e-9
        assert np.abs(centers[:, :2]).max() <= AREA
        heights = [0.7 if item.size == "large" else 0.35 for item in layout.objects]
        cubes = np.array([item.shape == "cube" for item in layout.objects])
        np.testing.assert_allclose(centers[:, 2], np.where(cubes, np.array(heights) / math.sqrt(2), heights))


def test_solids_do_not_intersect(layouts: list[SceneLayout]) -> None:
    """Independent of the rule of placing: no point of one solid's surroundings is inside two solids."""
    rng = np.random.default_rng(0)

    def inside(solid: Solid, points: np.ndarray) -> np.ndarray:
        x, y, z = (points - solid.center).T
        angle = math.radians(solid.rotation_degrees)
        if solid.shape == "sphere":
            return x**2 + y**2 + z**2 <= solid.half**2
        if solid.shape == "cylinder":
            return (x**2 + y**2 <= solid.half**2) & (abs(z) <= solid.half)
        u, v = x * math.cos(angle) + y * math.sin(angle), -x * math.sin(angle) + y * math.cos(angle)
        return np.maximum.reduce([abs(u), abs(v), abs(z)]) <= solid.half

    for layout in layouts[:100]:
        for item in layout.objects:
            points = item.solid.center + rng.uniform(-0.8, 0.8, (500, 3))
            assert sum(inside(other.solid, points).astype(int) for other in layout.objects).max() <= 1


def test_every_object_is_visible_and_inside_the_picture(layouts: list[SceneLayout]) -> None:
    for layout in layouts[:300]:
        mask = layout.mask(64)
        visible = np.bincount(mask.ravel(), minlength=len(layout.objects) + 1)
        assert len(visible) == len(layout.objects) + 1 and visible[1:].min() >= MIN_VISIBLE_PIXELS
        border = np.concatenate([mask[:2].ravel(), mask[-2:].ravel(), mask[:, :2].ravel(), mask[:, -2:].ravel()])
        assert not border.any()


def test_properties_occur_equally_often(layouts: list[SceneLayout]) -> None:
    items = [item for layout in layouts for item in layout.objects]
    for values in ([i.color for i in items], [i.material for i in items], [i.shape for i in items]):
        shares = np.unique(values, return_counts=True)[1] / len(items)
        # 13,000 objects: four standard deviations are at most 0.018
        np.testing.assert_allclose(shares, 1 / len(shares), atol=0.018)


def test_layout_depends_on_its_arguments_only() -> None:
    first = lay_out_scene(3, "val", 5)
    lay_out_scene(3, "val", 6)
    again = lay_out_scene(3, "val", 5)
    assert first == again and first.annotation(96) == again.annotation(96)
    others = [lay_out_scene(4, "val", 5), lay_out_scene(3, "train", 5), lay_out_scene(3, "val", 6)]
    assert all(first.objects != other.objects for other in others)


def test_known_layout() -> None:
    """A golden value: a change of the layouts must raise LAYOUT_VERSION and renew the packaged set."""
    scene = lay_out_scene(0, "train", 0).annotation(64, suffix=".jpg")
    assert scene == read_annotations(PACKAGED_SCENES, "train")[0]


# ---- geometry


def test_depth_and_pixel_of_a_point_in_closed_form() -> None:
    camera = Camera((0.0, -10.0, 0.0), 90.0)  # looks along +y, x to the right, z up, half a side is 1 at depth 1
    np.testing.assert_allclose(camera.project(np.array([2.0, -6.0, 1.0])), [0.5 + 0.25, 0.5 - 0.125, 4.0])
    scene = lay_out_scene(1, "train", 0)
    position = np.array(scene.camera.position)
    for item, noted in zip(scene.objects, scene.annotation(64)["objects"], strict=True):
        offset = np.array(item.solid.center) - position
        assert noted["pixel_coords"][2] == pytest.approx(offset @ (-position / np.linalg.norm(position)), abs=1e-5)


def test_entry_depths_of_solids_in_closed_form() -> None:
    camera = Camera((0.0, -10.0, 0.0), 60.0)
    forward = np.array([0.0, 1.0, 0.0]).reshape(3, 1, 1)
    center = (0.0, 0.0, 0.0)
    assert Solid("sphere", center, 0.7).depth(camera, forward).item() == pytest.approx(9.3)
    assert Solid("cylinder", center, 0.7).depth(camera, forward).item() == pytest.approx(9.3)
    assert Solid("cube", center, 0.5).depth(camera, forward).item() == pytest.approx(9.5)
    assert Solid("cube", center, 0.5, 45.0).depth(camera, forward).item() == pytest.approx(10 - 0.5 * math.sqrt(2))
    assert Solid("cube", (5.0, 0.0, 0.0), 0.5).depth(camera, forward).item() == math.inf
    above = Camera((0.0, -1e-9, 10.0), 60.0)
    assert Solid("cylinder", center, 0.7).depth(above, -forward[[0, 2, 1]]).item() == pytest.approx(9.3)


def test_mask_shows_the_nearer_of_two_solids_whatever_their_order() -> None:
    camera = Camera((0.0, -10.0, 0.0), 30.0)
    near, far = Solid("sphere", (0.0, -2.0, 0.0), 0.35), Solid("cube", (0.0, 2.0, 0.0), 0.7)
    first, second = instance_mask(camera, [near, far], 65), instance_mask(camera, [far, near], 65)
    assert first[32, 32] == 1 and second[32, 32] == 2
    np.testing.assert_array_equal(first, np.array([0, 2, 1])[second])


# ---- annotations


def test_annotation_has_the_fields_of_clevr() -> None:
    layout = lay_out_scene(2, "val", 3)
    scene = layout.annotation(128)
    assert scene["image_filename"] == "CLEVR_val_000003.png" and scene["image_index"] == 3 and scene["split"] == "val"
    fields = {"color", "size", "material", "shape", "rotation", "3d_coords", "pixel_coords"}
    assert all(set(item) == fields for item in scene["objects"])
    assert json.loads(json.dumps(scene)) == scene
    directions = {name: np.array(vector) for name, vector in scene["directions"].items()}
    assert set(directions) == {"right", "left", "front", "behind", "above", "below"}
    np.testing.assert_allclose(directions["right"], -directions["left"])
    np.testing.assert_allclose(directions["right"] @ directions["behind"], 0, atol=1e-6)
    coordinates = np.array([item["3d_coords"] for item in scene["objects"]])
    for name, related in scene["relationships"].items():
        for i, others in enumerate(related):
            expected = [j for j in range(len(coordinates)) if (coordinates[j] - coordinates[i]) @ directions[name] > 0.2]
            assert others == expected
    # what is to the right in the world, at the same depth, is to the right in the picture
    columns = layout.camera.project(directions["right"])[0], layout.camera.project(directions["left"])[0]
    assert columns[0] > 0.5 > columns[1]


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


def write_clevr(root: Path, depths: dict[str, list[list[float]]]) -> None:
    for split, scenes in depths.items():
        (root / "images" / split).mkdir(parents=True)
        (root / "scenes").mkdir(exist_ok=True)
        entries = []
        for index, scene in enumerate(scenes):
            name = f"CLEVR_{split}_{index:06d}.png"
            Image.new("RGB", (24, 16), (index, 0, 0)).save(root / "images" / split / name)
            entries.append({"image_filename": name, "image_index": index} | scene_with_depths(*scene))
        (root / "scenes" / f"CLEVR_{split}_scenes.json").write_text(json.dumps({"info": {}, "scenes": entries}))


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
    text = message(clevr)
    assert "1 of 2 pictures" in text and "CLEVR_train_000001.png" in text and "image_filename" in text
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


# ---- rendering


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mitsuba", reason="rendering needs mitsuba: pip install openjepa[scenes]")
    from openjepa.data.scene_renderer import render_scenes

    folder = tmp_path_factory.mktemp("scenes") / "one"
    render_scenes(folder, train=3, test=1, image_size=32, seed=5, samples=4, workers=1)
    return folder


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_rendering_does_not_depend_on_workers(rendered: Path, tmp_path: Path) -> None:
    from openjepa.data.scene_renderer import render_scenes

    render_scenes(tmp_path / "two", train=3, test=1, image_size=32, seed=5, samples=4, workers=2)
    assert files_below(tmp_path / "two") == files_below(rendered)
    assert len(files_below(rendered)) == 4 + 4 + 2 + 1


def test_interrupted_rendering_continues_and_finished_scenes_stay(rendered: Path) -> None:
    from openjepa.data.scene_renderer import render_scenes

    whole = files_below(rendered)
    kept, lost = (rendered / f"images/train/CLEVR_train_00000{index}.png" for index in (0, 2))
    lost.unlink()
    time_kept = kept.stat().st_mtime_ns
    render_scenes(rendered, train=3, test=1, image_size=32, seed=5, samples=4, workers=1)
    assert files_below(rendered) == whole and kept.stat().st_mtime_ns == time_kept


def test_rendered_folder_is_a_source_and_refuses_other_settings(rendered: Path) -> None:
    from openjepa.data.scene_renderer import render_scenes

    splits = open_scenes(ScenesSettings(path=str(rendered)), seed=0)
    expected = [len(lay_out_scene(5, "train", index).objects) - 3 for index in range(3)]
    assert splits.train.labels.tolist() == expected
    with pytest.raises(ValueError, match=r"image_size 32 \(now 48\)"):
        render_scenes(rendered, train=3, test=1, image_size=48, seed=5, samples=4)
    with pytest.raises(ValueError, match="samples=6"):
        render_scenes(rendered, train=3, test=1, image_size=32, seed=5, samples=6)


def test_foreign_folder_is_left_alone(clevr: Path) -> None:
    pytest.importorskip("mitsuba", reason="rendering needs mitsuba: pip install openjepa[scenes]")
    from openjepa.data.scene_renderer import render_scenes

    before = files_below(clevr)
    with pytest.raises(ValueError, match="not rendered here"):
        render_scenes(clevr, train=3, test=1, image_size=32, seed=5, samples=4, workers=1)
    assert files_below(clevr) == before


def test_without_mitsuba_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openjepa.data.scene_renderer import render_scenes

    monkeypatch.setitem(sys.modules, "mitsuba", None)
    with pytest.raises(ImportError, match=r"pip install openjepa\[scenes\]"):
        render_scenes(tmp_path / "new", train=1, test=1, image_size=32, seed=0, samples=4, workers=1)
    assert not (tmp_path / "new").exists()


def test_picture_and_mask_show_the_same_geometry() -> None:
    """The renderer's own visibility (its shape index) against our ray casting: they may differ at edges only."""
    mitsuba = pytest.importorskip("mitsuba", reason="rendering needs mitsuba: pip install openjepa[scenes]")
    from openjepa.data.scene_renderer import describe_scene, load_mitsuba

    load_mitsuba()
    layout = lay_out_scene(0, "train", 1)
    description = describe_scene(mitsuba, layout, 64)
    description["integrator"] = {"type": "aov", "aovs": "shape:shape_index"}
    scene = mitsuba.load_dict(description, parallel=False, optimize=False)
    owners = [int(shape.id().split("_")[1]) + 1 if shape.id().startswith("object") else 0 for shape in scene.shapes()]
    shape_number = np.rint(np.array(mitsuba.render(scene, spp=1))[..., -1]).astype(int)  # from 1
    mask = layout.mask(64)
    same = np.array(owners)[shape_number - 1] == mask
    inner = np.ones_like(same)
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(mask, step, axis) == mask
    assert same[inner].all() and inner.mean() > 0.8
