"""Random crops against their closed form, resizing against Pillow, and the batched crops against single ones."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from openjepa.data import views
from openjepa.data.loading.cache import crop_batch, resize_matrices
from openjepa.data.views import (
    CROP_TRIES,
    NUMBERS_PER_VIEW,
    crop_and_resize,
    crop_box,
    evaluation_view,
    is_mirrored,
    resize,
    shrink_to_short_side,
)
from openjepa.seeds import derive_samples, uniforms
from openjepa.types import ViewSpec

PILLOW = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Waves of many lengths with some noise: has edges, gradients and detail, as photos have."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    image = 128 + 10 * rng.standard_normal((height, width, 3))
    for _ in range(12):
        frequency, phase = rng.uniform(0.01, 0.6, 2), rng.uniform(0, 6, 3)
        image += 12 * np.sin(rows[..., None] * frequency[0] + columns[..., None] * frequency[1] + phase)
    return image.clip(0, 255).astype(np.uint8)


def numbers(num: int, seed: int = 0) -> list[list[float]]:
    seeds = derive_samples("crop", seed, np.array([0]), np.arange(num))
    return uniforms(seeds, NUMBERS_PER_VIEW).tolist()


def psnr(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    return 10 * math.log10(255**2 / max(1e-9, float(((first.astype(float) - second) ** 2).mean())))


def test_crops_that_always_fit_have_uniform_area_shape_and_place() -> None:
    view = ViewSpec((8, 8), scale=(0.1, 0.5), aspect=(3 / 4, 4 / 3))
    side, num = 4000, 4000
    boxes = np.array([crop_box(row, side, side, view) for row in numbers(num)], dtype=float)
    areas = boxes[:, 2] * boxes[:, 3] / side**2
    aspects = np.log(boxes[:, 3] / boxes[:, 2])
    places = boxes[:, :2] / (side - boxes[:, 2:])
    drawn = [(areas, 0.1, 0.5), (aspects, math.log(3 / 4), math.log(4 / 3)), (places[:, 0], 0, 1), (places[:, 1], 0, 1)]
    for values, low, high in drawn:
        expected = low + (high - low) * (np.arange(num) + 0.5) / num
        # Kolmogorov's distance to the uniform law exceeds 1.95 / sqrt(n) in one of a thousand samples.
        assert np.abs(np.sort(values) - expected).max() < (high - low) * (1.95 / math.sqrt(num) + 1e-3)
    assert abs(np.corrcoef(np.stack([areas, aspects, places[:, 0], places[:, 1]])) - np.eye(4)).max() < 0.06


def test_crops_of_released_settings_fit_at_the_first_try_as_often_as_computed() -> None:
    """A try on a square fits iff area <= exp(-|log aspect|), so P = ((1 - e^-L) / L - s) / (1 - s), L = ln 4/3, s = 0.3."""
    view, side, num = ViewSpec((8, 8)), 3000, 6000
    log_limit = math.log(4 / 3)
    expected = ((1 - math.exp(-log_limit)) / log_limit - 0.3) / 0.7
    rows = numbers(num, seed=1)
    boxes = [crop_box(row, side, side, view) for row in rows]
    first_tries = [side * side * (0.3 + 0.7 * row[0]) for row in rows]
    at_first = np.mean([abs(box[2] * box[3] / area - 1) < 2e-3 for box, area in zip(boxes, first_tries, strict=True)])
    assert abs(at_first - expected) < 4 * math.sqrt(expected * (1 - expected) / num)
    # Accepted crops: E[area] = E[(a^2 - s^2) / 2] / (P (1 - s)), a = e^-|log aspect|.
    mean_square = (1 - math.exp(-2 * log_limit)) / (2 * log_limit)
    mean_area = (mean_square - 0.09) / 2 / (0.7 * expected)
    areas = np.array([box[2] * box[3] for box in boxes]) / side**2
    assert abs(areas.mean() - mean_area) < 4 * areas.std() / math.sqrt(num)


def test_crops_stay_inside_any_image() -> None:
    for height, width in ((1, 1), (2, 300), (300, 2), (31, 47)):
        for row in numbers(200, seed=2):
            top, left, box_height, box_width = crop_box(row, height, width, ViewSpec((8, 8)))
            assert 0 <= top <= height - box_height and 0 <= left <= width - box_width and box_height > 0 and box_width > 0


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(30, 900, (0, 430, 30, 40)), (900, 30, (430, 0, 40, 30)), (40, 44, (0, 0, 40, 44))],
)
def test_where_no_try_fits_the_center_is_taken(height: int, width: int, expected: tuple[int, ...]) -> None:
    view = ViewSpec((8, 8), scale=(1.2, 1.5))  # never fits
    assert crop_box([0.5] * NUMBERS_PER_VIEW, height, width, view) == expected


def test_a_later_try_is_used_where_the_first_does_not_fit() -> None:
    row = [0.99] + [0.0] * (CROP_TRIES - 1) + [0.0] + [0.5] * (CROP_TRIES - 1) + [0.0, 0.0, 0.0]
    assert crop_box(row, 100, 100, ViewSpec((8, 8))) == (0, 0, round(math.sqrt(3000)), round(math.sqrt(3000)))


def test_every_second_view_is_mirrored_and_only_where_asked() -> None:
    rows = numbers(4000, seed=3)
    assert not any(is_mirrored(row, ViewSpec((8, 8))) for row in rows)
    assert abs(np.mean([is_mirrored(row, ViewSpec((8, 8), horizontal_flip=True)) for row in rows]) - 0.5) < 0.04


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(32, 32), (96, 64), (224, 224)])
def test_crops_equal_pillow(interpolation: str, size: tuple[int, int]) -> None:
    image = photo(180, 240)
    for row in numbers(4, seed=4):
        box = crop_box(row, 180, 240, ViewSpec(size))
        top, left, height, width = box
        part = Image.fromarray(image[top : top + height, left : left + width])
        reference = np.asarray(part.resize(size[::-1], PILLOW[interpolation]))
        ours = crop_and_resize(torch.from_numpy(image), box, size, interpolation).permute(1, 2, 0).numpy()
        assert psnr(ours, reference) > 55
        mirror = crop_and_resize(torch.from_numpy(image), box, size, interpolation, flip=True)
        assert (mirror.permute(1, 2, 0).numpy() == ours[:, ::-1]).all()


def test_resize_to_the_same_size_changes_nothing() -> None:
    image = torch.from_numpy(photo(20, 30))
    assert torch.equal(resize(image, (20, 30), "bilinear"), image.permute(2, 0, 1))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(24, 24), (40, 56)])
def test_batched_crops_equal_single_ones(interpolation: str, size: tuple[int, int]) -> None:
    """To one of 255 levels, which the rounding between the two passes of the single resize costs."""
    shapes = [(32, 32), (50, 37), (18, 90), (64, 64), (24, 24), (40, 41)] * 3
    images = [photo(height, width, seed) for seed, (height, width) in enumerate(shapes)]
    flat = torch.cat([torch.from_numpy(image).reshape(-1, 3) for image in images])
    areas = torch.tensor([height * width for height, width in shapes])
    view = ViewSpec(size, scale=(0.05, 1.0), horizontal_flip=True)
    rows = numbers(len(shapes), seed=5)
    boxes = [crop_box(row, *shape, view) for row, shape in zip(rows, shapes, strict=True)]
    flips = [is_mirrored(row, view) for row in rows]
    table = torch.tensor([(*box, flip) for box, flip in zip(boxes, flips, strict=True)])
    starts, widths = areas.cumsum(0) - areas, torch.tensor([width for _, width in shapes])
    largest = (int(table[:, 2].max()) + 3, int(table[:, 3].max()))  # more room than needed must not matter
    batched = crop_batch(flat, starts, widths, table, largest, size, interpolation)
    single = torch.stack(
        [
            crop_and_resize(torch.from_numpy(image), box, size, interpolation, flip)
            for image, box, flip in zip(images, boxes, flips, strict=True)
        ]
    )
    difference = (batched.int() - single.int()).abs()
    assert difference.max() <= (1 if interpolation == "bilinear" else 2)
    assert (difference > 1).float().mean() < 1e-4 and (difference > 0).float().mean() < 0.25


def test_resize_matrices_keep_constants_and_the_identity() -> None:
    for interpolation in ("bilinear", "bicubic"):
        matrices = resize_matrices(torch.tensor([7, 20, 12]), 20, 12, interpolation)
        assert torch.allclose(matrices.sum(2), torch.ones(3, 12))
        assert (matrices[0, :, 7:] == 0).all()
        assert torch.allclose(matrices[2, :, :12], torch.eye(12), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(180, 240), (300, 100), (256, 256), (20, 31)])
def test_evaluation_view_is_the_resized_center(height: int, width: int) -> None:
    """Short side 256/224 of the size, long side in proportion, center: Pillow does the same."""
    image = photo(height, width)
    short = round(64 * 256 / 224)
    new_height, new_width = (int(short * height / width), short) if height > width else (short, int(short * width / height))
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC)
    top, left = round((new_height - 64) / 2), round((new_width - 64) / 2)
    reference = np.asarray(resized)[top : top + 64, left : left + 64]
    assert psnr(evaluation_view(torch.from_numpy(image), (64, 64)).permute(1, 2, 0).numpy(), reference) > 50


def test_evaluation_view_of_a_rectangle_covers_it() -> None:
    for size in ((48, 96), (96, 48)):
        for shape in ((200, 100), (100, 200), (77, 77)):
            view = evaluation_view(torch.full((*shape, 3), 9, dtype=torch.uint8), size)
            assert view.shape == (3, *size) and (view == 9).all()


def test_squash_uses_the_whole_image() -> None:
    image = photo(100, 240)
    reference = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC))
    squashed = evaluation_view(torch.from_numpy(image), (32, 32), "squash").permute(1, 2, 0).numpy()
    assert psnr(squashed, reference) > 50
    with pytest.raises(ValueError, match="fit='stretch'"):
        evaluation_view(torch.from_numpy(image), (32, 32), "stretch")


def test_shrinking_keeps_small_images() -> None:
    image = torch.from_numpy(photo(30, 40))
    assert shrink_to_short_side(image, 30) is image
    assert shrink_to_short_side(torch.from_numpy(photo(100, 300)), 30).shape == (30, 90, 3)


@pytest.mark.parametrize("shape", [(40, 2000), (2001, 40), (3, 700), (1, 900), (900, 2)])
def test_of_very_long_images_only_the_middle_is_resized(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is nearly what resizing all of it gives: the same center, sizes rounded once less."""
    ramp = torch.linspace(0, 20, shape[0])[:, None].cos() + torch.linspace(0, 30, shape[1])[None].sin()
    pixels = (60 * ramp + 128).to(torch.uint8)[..., None].expand(-1, -1, 3).contiguous()
    short = evaluation_view(pixels, (32, 32))
    monkeypatch.setattr(views, "MAX_LENGTHS", 10**6)
    whole = evaluation_view(pixels, (32, 32))
    assert short.shape == whole.shape == (3, 32, 32)
    assert psnr(short.numpy(), whole.numpy()) > 40


def test_one_line_of_pixels_needs_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = views.resize

    def recorded(pixels: torch.Tensor, size: tuple[int, int], interpolation: str, flip: bool = False) -> torch.Tensor:
        sizes.append(size)
        return real(pixels, size, interpolation, flip)

    monkeypatch.setattr(views, "resize", recorded)
    assert evaluation_view(torch.full((1, 30_000, 3), 7, dtype=torch.uint8), (224, 224)).eq(7).all()
    assert len(sizes) == 1 and sizes[0][0] == 256 and sizes[0][1] <= 10 * 224
