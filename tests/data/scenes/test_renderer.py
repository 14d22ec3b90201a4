import sys
from pathlib import Path

import numpy as np
import pytest

from openjepa.data.scenes.layout import lay_out_scene
from openjepa.data.scenes.scenes import open_scenes
from openjepa.refusals import Refusal
from openjepa.settings.sources import ScenesSettings
from tests.helpers.scene_checks import files_below, write_clevr


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mitsuba", reason="rendering needs mitsuba: pip install openjepa[scenes]")
    from openjepa.data.scenes.renderer import render_scenes

    folder = tmp_path_factory.mktemp("scenes") / "one"
    render_scenes(folder, train=3, test=1, image_size=32, seed=5, samples=4, workers=1)
    return folder


def test_rendering_does_not_depend_on_workers(rendered: Path, tmp_path: Path) -> None:
    from openjepa.data.scenes.renderer import render_scenes

    render_scenes(tmp_path / "two", train=3, test=1, image_size=32, seed=5, samples=4, workers=2)
    assert files_below(tmp_path / "two") == files_below(rendered)
    assert len(files_below(rendered)) == 4 + 4 + 2 + 1


def test_interrupted_rendering_continues_and_finished_scenes_stay(rendered: Path) -> None:
    from openjepa.data.scenes.renderer import render_scenes

    whole = files_below(rendered)
    kept, lost = (rendered / f"images/train/CLEVR_train_00000{index}.png" for index in (0, 2))
    lost.unlink()
    time_kept = kept.stat().st_mtime_ns
    render_scenes(rendered, train=3, test=1, image_size=32, seed=5, samples=4, workers=1)
    assert files_below(rendered) == whole and kept.stat().st_mtime_ns == time_kept


def test_rendered_folder_is_a_source_and_refuses_other_settings(rendered: Path) -> None:
    from openjepa.data.scenes.renderer import render_scenes

    splits = open_scenes(ScenesSettings(path=str(rendered)), seed=0)
    expected = [len(lay_out_scene(5, "train", index).objects) - 3 for index in range(3)]
    assert splits.train.labels.tolist() == expected
    with pytest.raises(ValueError, match=r"image_size 32 \(now 48\)"):
        render_scenes(rendered, train=3, test=1, image_size=48, seed=5, samples=4)
    with pytest.raises(ValueError, match="samples=6"):
        render_scenes(rendered, train=3, test=1, image_size=32, seed=5, samples=6)


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("mitsuba", reason="rendering needs mitsuba: pip install openjepa[scenes]")
    from openjepa.data.scenes.renderer import render_scenes

    clevr = tmp_path / "CLEVR_v1.0"
    write_clevr(clevr, {"train": [[9.0] * 3], "val": [[9.0] * 3]})
    before = files_below(clevr)
    with pytest.raises(ValueError, match="not rendered here"):
        render_scenes(clevr, train=3, test=1, image_size=32, seed=5, samples=4, workers=1)
    assert files_below(clevr) == before


def test_without_mitsuba_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openjepa.data.scenes.renderer import render_scenes

    monkeypatch.setitem(sys.modules, "mitsuba", None)
    with pytest.raises(Refusal, match=r"rendering scenes needs the package mitsuba: pip install 'openjepa\[scenes\]'"):
        render_scenes(tmp_path / "new", train=1, test=1, image_size=32, seed=0, samples=4, workers=1)
    assert not (tmp_path / "new").exists()


def test_picture_and_mask_show_the_same_geometry() -> None:
    """The renderer's own visibility (its shape index) against our ray casting: they may differ at edges only."""
    mitsuba = pytest.importorskip("mitsuba", reason="rendering needs mitsuba: pip install openjepa[scenes]")
    from openjepa.data.scenes.renderer import describe_scene, load_mitsuba

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
