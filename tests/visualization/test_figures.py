import json
import re
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from openjepa.config import save_yaml
from openjepa.data.decode import decode_image
from openjepa.data.source import ListSource, open_splits
from openjepa.data.views import evaluation_view
from openjepa.masks import MASKS
from openjepa.masks.multiblock import build_multiblock
from openjepa.models.vit import build_encoder
from openjepa.settings.masks import (
    BlockwiseSettings,
    MaskSettings,
    MultiblockSettings,
    NoMaskSettings,
    RandomPatchesSettings,
    RasterizedSettings,
)
from openjepa.settings.models import EncoderConfig, ModelSettings
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import FolderSettings, ScenesSettings
from openjepa.types import ColorChange, Export, ViewSpec
from openjepa.visualization import mask_figure, visualize_run
from openjepa.visualization.mask_pictures import TARGET_COLORS, coverage, example_masks, neutral_grid, paint_masks
from openjepa.visualization.mask_rows import strategy_rows, target_rows
from openjepa.visualization.neighbors import (
    Pictured,
    choose_images,
    dense_features,
    nearest_of_gallery,
    neighbor_sheet,
    purity,
    similarity_map,
)
from openjepa.visualization.sheet import GOOD, Sheet, draw_table, heat, pca_colors
from openjepa.visualization.view_pictures import changes_views, read_views, view_sheet
from openjepa.weights.native import save_network
from tests.helpers.images import write_folder

CONFIG = EncoderConfig(width=48, depth=2, heads=3, mlp_ratio=4, patch_size=8, image_size=(32, 32))
SIDE = 24


def test_context_keeps_its_pixels_targets_are_outlined_the_rest_is_dimmed() -> None:
    pixels = np.random.default_rng(0).integers(128, 256, (4 * SIDE, 6 * SIDE, 3), dtype=np.uint8)
    context, targets = np.zeros((4, 6), bool), np.zeros((2, 4, 6), bool)
    context[3, :2] = True
    targets[0, 0:2, 0:2] = True
    targets[1, 0:2, 4:6] = True
    painted = paint_masks(pixels, context, targets)
    patches = painted.reshape(4, SIDE, 6, SIDE, 3).swapaxes(1, 2)
    before = pixels.reshape(4, SIDE, 6, SIDE, 3).swapaxes(1, 2)
    np.testing.assert_array_equal(patches[context], before[context])
    hidden = ~context & ~targets.any(axis=0)
    assert patches[hidden].max() < before[hidden].min(), "dimmed patches are darker than every pixel they had"
    for block, columns, color in (
        (targets[0], slice(0, 2 * SIDE), TARGET_COLORS[0]),
        (targets[1], slice(4 * SIDE, None), TARGET_COLORS[1]),
    ):
        region = painted[: 2 * SIDE, columns]
        outline = (region == color).all(axis=2)
        expected = np.ones_like(outline)
        expected[4:-4, 4:-4] = False  # a sixth of a patch of 24 pixels
        np.testing.assert_array_equal(outline, expected)
        assert not (patches[~block] == color).all(axis=-1).any(), "the color is nowhere else"


def test_an_outline_follows_a_block_that_is_no_rectangle() -> None:
    block = np.array([[[True, True], [True, False]]])
    painted = paint_masks(np.zeros((2 * SIDE, 2 * SIDE, 3), np.uint8), np.zeros((2, 2), bool), block)
    outline = (painted == TARGET_COLORS[0]).all(axis=2)
    inside = np.kron(block[0], np.ones((SIDE, SIDE), bool))
    expected = np.zeros_like(inside)
    for row, column in zip(*np.nonzero(inside), strict=True):
        window = [(row + down, column + right) for down in range(-4, 5) for right in range(-4, 5)]
        expected[row, column] = not all(0 <= r < 2 * SIDE and 0 <= c < 2 * SIDE and inside[r, c] for r, c in window)
    np.testing.assert_array_equal(outline, expected)


@pytest.mark.parametrize("grid", [(6, 6), (6, 9)])
def test_the_mask_picture_needs_no_images(tmp_path: Path, grid: tuple[int, int]) -> None:
    both = [
        build_multiblock(MultiblockSettings(), grid),
        build_multiblock(MultiblockSettings(mode="official", min_keep=2), grid),
    ]
    picture = np.asarray(Image.open(mask_figure(both, tmp_path / "new" / "masks.png", num_samples=128)).convert("RGBA"))
    alone = np.asarray(Image.open(mask_figure(both[0], tmp_path / "one.png", num_samples=128)).convert("RGBA"))
    assert picture.shape[0] > 2 * alone.shape[0] and picture.shape[1] == alone.shape[1]
    assert picture[0, 0, 3] == 0, "the background is transparent"
    for color in TARGET_COLORS[:4]:
        assert (alone[..., :3] == color).all(axis=2).any()
    assert (alone[..., :3] == neutral_grid((1, 1), 8)[0, 0]).all(axis=2).any(), "context patches keep the paper's color"


def test_rows_of_masks_show_the_context_and_each_target_alone(tmp_path: Path) -> None:
    grid, images = (5, 7), np.full((2, 10, 14, 3), 90, np.uint8)
    sampler = MASKS["rasterized"].load()(RasterizedSettings(), grid)
    side, hidden = round(176 / 7), np.array([232, 234, 238])
    picture = np.asarray(Image.open(target_rows(sampler, images, tmp_path / "t.png", seed=0)).convert("RGB"))
    for row, example in enumerate(example_masks(sampler, 2, 0)):
        top = 50 + row * (grid[0] * side + 8)
        for column, shown in enumerate([example.context, *example.targets], start=1):
            left = 4 + column * (grid[1] * side + 8)
            cell = picture[top : top + grid[0] * side, left : left + grid[1] * side]
            blank = (cell[side // 2 :: side, side // 2 :: side] == hidden).all(axis=2)
            np.testing.assert_array_equal(blank, ~shown)
            frame = (cell == TARGET_COLORS[column - 2]).all(axis=2).any()
            assert column == 1 or frame, "a target has the color of its number"
    beside = np.asarray(Image.open(strategy_rows([sampler], images, tmp_path / "s.png", seed=0)).convert("RGB"))
    (example, *_), left = example_masks(sampler, 2, 0), 4 + grid[1] * side + 8
    cell = beside[50 : 50 + grid[0] * side, left : left + grid[1] * side][side // 2 :: side, side // 2 :: side]
    np.testing.assert_array_equal((cell == 90).all(axis=2), example.context)
    np.testing.assert_array_equal((cell == hidden).all(axis=2), ~(example.context | example.targets.any(axis=0)))


def test_components_separate_the_segments_of_a_constructed_field() -> None:
    generator = np.random.default_rng(0)
    segments = np.zeros((2, 8, 8), int)
    segments[:, :, 4:] = 1
    segments[:, 5:, :3] = 2
    segments[1, :2] = 3
    directions = np.linalg.qr(generator.standard_normal((32, 4)))[0].T
    features = 5 * directions[segments] + 0.05 * generator.standard_normal((2, 8, 8, 32))
    colors = pca_colors(features).astype(int)
    means = np.stack([colors[segments == index].mean(axis=0) for index in range(4)])
    spread = max(np.abs(colors[segments == index] - means[index]).max() for index in range(4))
    gaps = np.linalg.norm(means[:, None] - means[None], axis=-1)[~np.eye(4, dtype=bool)]
    assert gaps.min() > 4 * spread, "patches of one segment look alike, those of two do not, in both images"


def test_component_colors_do_not_depend_on_rotation_or_shift_of_the_features() -> None:
    generator = np.random.default_rng(1)
    features = generator.exponential(size=(1, 6, 6, 8)) * np.arange(1, 9)
    rotation = np.linalg.qr(generator.standard_normal((8, 8)))[0]
    difference = pca_colors(features).astype(int) - pca_colors(features @ rotation + 3).astype(int)
    assert np.abs(difference).max() <= 1


def test_features_of_low_dimension_have_colors_too() -> None:
    assert pca_colors(np.random.default_rng(0).standard_normal((1, 3, 3, 2)))[..., 2].max() == 0
    assert pca_colors(np.zeros((1, 3, 3, 8))).shape == (1, 3, 3, 3)


def test_heat_gets_lighter() -> None:
    lightness = heat(np.linspace(-0.5, 1.5, 101)[None]).astype(float)[0] @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness[25:76]) > 0).all() and lightness[0] == lightness[25] and lightness[-1] == lightness[75]


def test_similarity_is_the_cosine_of_centered_features() -> None:
    features = np.random.default_rng(0).standard_normal((4, 5, 7))
    similarity = similarity_map(features, 1, 2)
    centered = features - features.reshape(-1, 7).mean(axis=0)
    a, b = centered[1, 2], centered[3, 4]
    assert similarity[3, 4] == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)))
    assert similarity[1, 2] == pytest.approx(1)


def test_dense_features_lie_on_a_grid_of_half_patches() -> None:
    """A network that only averages the pixels of its patch must return the average around the middle of each finer cell."""

    class PatchMean(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> object:
            class Output:
                patches = torch.nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2).repeat(1, 1, 16)

            return Output

    row, column = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    images = torch.stack([row, column, row])[None].to(torch.uint8)
    config = EncoderConfig(**{**CONFIG.__dict__, "pixel_mean": (0.0, 0.0, 0.0), "pixel_std": (1 / 255, 1 / 255, 1 / 255)})
    dense = dense_features(PatchMean(), config, images, torch.device("cpu"))  # type: ignore[arg-type]
    assert dense.shape == (1, 8, 8, 48)
    middle = np.arange(8) * 4 + 1.5
    np.testing.assert_allclose(dense[0, 1:-1, 3, 0], middle[1:-1], atol=0.02)
    np.testing.assert_allclose(dense[0, 3, 1:-1, 1], middle[1:-1], atol=0.02)


def _pictured(images: torch.Tensor, labels: list[int] | None, split: str) -> Pictured:
    return Pictured(images, None if labels is None else np.array(labels), ("a", "$b$"), np.arange(len(images)), split)


def _units(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def test_duplicated_images_are_each_others_neighbors() -> None:
    features = _units(np.random.default_rng(0).standard_normal((20, 8)))
    features[10:] = features[:10]
    found = nearest_of_gallery(features, features, 1, list(range(20)))
    assert [row[0] for row in found] == [*range(10, 20), *range(10)]


def test_neighbors_are_framed_by_whether_their_class_is_right() -> None:
    images = torch.zeros((12, 3, 16, 16), dtype=torch.uint8)
    queries, gallery = _pictured(images[:2], [0, 1], "test"), _pictured(images, [0] * 6 + [1] * 6, "training")
    separate = _units(np.eye(2)[[0] * 6 + [1] * 6] + 0.01)
    both = {"untrained": (separate[[6, 0]], separate), "trained": (separate[[0, 6]], separate)}
    sheet, found = neighbor_sheet(queries, gallery, both, (64, 64))
    assert purity(queries, gallery, found) == {"untrained": 0.0, "trained": 1.0}
    right = (sheet.pixels()[..., :3] == [int(GOOD[start : start + 2], 16) for start in (1, 3, 5)]).all(axis=2)
    half = right.shape[1] // 2
    assert right[:, half + 40 :].any() and not right[:, :half].any(), "green only beside the trained encoder"


def test_classes_of_any_name_are_written_below_the_images() -> None:
    """Bytes that are no text, as in folders named in another encoding, are written out; letters of no font are named."""
    images = torch.zeros((8, 3, 16, 16), dtype=torch.uint8)
    features = _units(np.random.default_rng(0).standard_normal((8, 4)))
    for name, missing in ((b"caf\xe9".decode(errors="surrogateescape"), []), ("a\nb", []), ("\U00013000", ["\U00013000"])):
        named = replace(_pictured(images, [0] * 8, "training"), class_names=(name,))
        sheet, _ = neighbor_sheet(named, named, {"trained": (features, features)}, (64, 64))
        if set(sheet.undrawn) != set(missing):  # a font with hieroglyphs is installed
            assert name == "\U00013000" and not sheet.undrawn
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            assert sheet.pixels()[..., 3].any()
        assert [name in str(warning.message) for warning in said] == [True] * bool(sheet.undrawn)


def test_neighbors_without_labels_have_no_frames() -> None:
    images = torch.zeros((9, 3, 16, 16), dtype=torch.uint8)
    features = _units(np.random.default_rng(0).standard_normal((9, 4)))
    same = _pictured(images, None, "training")
    _, found = neighbor_sheet(same, same, {"trained": (features, features)}, (64, 64))
    assert purity(same, same, found) == {}
    assert all(row not in indices for row, indices in enumerate(found["trained"])), "no image is its own neighbor"


def test_a_sheet_puts_pixels_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    sheet = Sheet(101, 57)
    sheet.image(pixels, 50, 20)
    drawn = sheet.pixels()
    assert drawn.shape == (57, 101, 4)
    np.testing.assert_array_equal(drawn[20:50, 50:90, :3], pixels)
    assert drawn[..., 3].sum() == 255 * 30 * 40
    np.testing.assert_array_equal(draw_table({"a": [pixels]}, (30, 40)).pixels()[:, -40:, :3], pixels)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with two encoders and a folder of images of two classes."""
    generator = np.random.default_rng(0)
    for split, number in (("train", 8), ("test", 4)):
        for name in ("dark", "light"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(number):
                pixels = generator.integers(0, 120, (40, 40, 3)) + (120 if name == "light" else 0)
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "images" / split / name / f"{index}.png")
    folder = tmp_path / "run"
    folder.mkdir()
    data = FolderSettings(path=str(tmp_path / "images"), image_size=32)
    save_yaml(RunConfig(data=data, masks=MultiblockSettings()), folder / "config.yaml")
    for seed, name in enumerate(("encoder_initial", "encoder")):
        torch.manual_seed(seed)
        save_network(folder / name, Export(CONFIG, build_encoder(CONFIG)))
    return folder


def test_a_run_is_drawn_and_listed(run: Path) -> None:
    paths = visualize_run(run, num_images=4, device="cpu")
    listed = json.loads((run / "figures" / "figures.json").read_text())["figures"]
    assert [path.name for path in paths] == [entry["file"] for entry in listed]
    assert [path.stem for path in paths] == ["masks", "pca", "similarity", "neighbors"]
    assert all(entry["title"] and entry["caption"] and entry["alt"] for entry in listed)
    assert "multiblock/unbiased" in listed[0]["caption"] and "trained 100%" in listed[3]["caption"]
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in visualize_run(run, num_images=4, device="cpu")] == first, "same seed, same pictures"


def test_a_run_without_its_untrained_encoder_is_drawn(run: Path) -> None:
    for path in (run / "encoder_initial").iterdir():
        path.unlink()
    assert len(visualize_run(run, num_images=2, device="cpu")) == 4


def test_an_untrained_folder_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="openjepa train"):
        visualize_run(tmp_path)
    with pytest.raises(ValueError, match="num_images=0"):
        visualize_run(tmp_path, num_images=0)


def test_every_class_is_shown_before_one_is_shown_twice(run: Path) -> None:
    config = RunConfig(data=FolderSettings(path=str(run.parent / "images"), image_size=32))
    shown, gallery = choose_images(config, (32, 32), 4, 10, seed=3)
    assert shown.labels is not None and sorted(shown.labels[:2]) == [0, 1] and sorted(shown.labels) == [0, 0, 1, 1]
    assert (shown.split, gallery.split, len(gallery.images)) == ("test", "training", 10)


def test_scenes_are_shown_whole_other_images_cropped(run: Path) -> None:
    scenes = RunConfig(data=ScenesSettings(image_size=32))
    for config, fit in ((scenes, "squash"), (RunConfig(data=FolderSettings(path=str(run.parent / "images"))), "crop")):
        splits = open_splits(config.data, 0)
        for pictured, source in zip(choose_images(config, (32, 32), 2, 8, seed=0), (splits.test, splits.train), strict=True):
            assert isinstance(source, ListSource)
            for image, index in zip(pictured.images, pictured.indices, strict=True):
                pixels = torch.from_numpy(decode_image(source.read(int(index))))
                assert torch.equal(image, evaluation_view(pixels, (32, 32), fit))
                assert not torch.equal(image, evaluation_view(pixels, (32, 32), "crop" if fit == "squash" else "squash"))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'openjepa[report]'")):
        Sheet(10, 10)


@pytest.mark.parametrize("settings", [RandomPatchesSettings(ratio=0.75), BlockwiseSettings(ratios=(0.4,))])
def test_single_masked_patches_are_drawn_and_counted(settings: MaskSettings, tmp_path: Path) -> None:
    sampler = MASKS[settings.strategy].load()(settings, (6, 8))
    shown = example_masks(sampler, 2, seed=1)[0]
    assert shown.kind == "tokens" and shown.targets.shape == (1, 6, 8)
    np.testing.assert_array_equal(shown.context, ~shown.targets[0])
    maps = coverage(sampler, 256)
    np.testing.assert_allclose(maps["context"] + maps["union"], 1.0)
    np.testing.assert_allclose(maps["target"], maps["union"])
    assert 0.3 < maps["union"].mean() <= 0.76
    picture = np.asarray(Image.open(mask_figure(sampler, tmp_path / "m.png", num_samples=128)).convert("RGB"))
    assert (picture == TARGET_COLORS[0]).all(axis=2).any() and not (picture == TARGET_COLORS[1]).all(axis=2).any()


def test_views_are_the_loaders_crops_under_the_whole_images(tmp_path: Path) -> None:
    data = FolderSettings(path=str(write_folder(tmp_path / "images", 20)), image_size=32)
    config = replace(RunConfig(data=data), masks=NoMaskSettings(), model=ModelSettings(size="test", patch_size=8))
    views = {"global": ViewSpec((32, 32), count=2, colors=(ColorChange(),) * 2), "local": ViewSpec((16, 16), count=3)}
    (tmp_path / "summary.json").write_text(json.dumps({"views": {name: asdict(view) for name, view in views.items()}}))
    assert read_views(tmp_path) == views and changes_views(views)
    assert not changes_views({"image": ViewSpec((32, 32))}) and read_views(tmp_path / "images") == {}
    pixels = view_sheet(config, views, 4).pixels()
    assert pixels.shape == (208 + 2 * 216 + 2 * 108 + 8 - 8, 44 + 4 * 216 - 8, 4)
    again = view_sheet(config, views, 4).pixels()
    np.testing.assert_array_equal(pixels, again)
    left = pixels[:, 44 : 44 + 208, :3]
    first, second = left[216:424], left[432:640]
    assert not np.array_equal(first, second), "two crops of one image"
    small = left[648 : 648 + 100, :100]
    assert small.std() > 0 and not (pixels[648 + 108 :, 44 + 108 : 44 + 208, 3] > 0).any(), "three small crops, no fourth"
