import json
import math

import numpy as np
import pytest

from openjepa.data.scenes.layout import (
    AREA,
    MIN_GAP,
    MIN_VISIBLE_PIXELS,
    OBJECT_SIZES,
    Camera,
    SceneLayout,
    Solid,
    instance_mask,
    lay_out_scene,
)
from openjepa.data.scenes.maps import PACKAGED_SCENES, read_annotations
from openjepa.data.scenes.scenes import count_label, distance_label
from tests.helpers.scene_checks import assert_bins_filled, assert_counts_uniform

NUM_LAYOUTS = 2000


@pytest.fixture(scope="module")
def layouts() -> list[SceneLayout]:
    return [lay_out_scene(7, "train", index) for index in range(NUM_LAYOUTS)]


def test_counts_are_uniform_and_every_distance_bin_holds_five_percent(layouts: list[SceneLayout]) -> None:
    scenes = [layout.annotation(64) for layout in layouts]
    assert_counts_uniform(np.array([count_label(scene) for scene in scenes]))
    assert_bins_filled(np.array([distance_label(scene) for scene in scenes]))


def test_objects_stand_apart_inside_the_area_and_on_the_ground(layouts: list[SceneLayout]) -> None:
    for layout in layouts:
        centers = np.array([item.solid.center for item in layout.objects])
        radii = np.array([OBJECT_SIZES[item.size] for item in layout.objects])
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
