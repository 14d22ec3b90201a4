"""Color changes of views: each operation beside a slow restatement in Python or float64, chances, order and seeds."""

import colorsys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from openjepa.data.loading import loader as loader_module
from openjepa.data.loading.colors import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    NEUTRAL,
    SATURATION,
    DrawnColors,
    change_colors,
    change_floats,
    draw_colors,
)
from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan
from openjepa.data.source import ListSource
from openjepa.seeds import STREAMS
from openjepa.settings.sources import FolderSettings
from openjepa.types import ColorChange, InputSpec, ViewSpec
from tests.helpers.images import write_folder
from tests.helpers.loading import CPU, SEED, VIEW, RecordingSampler, load, opened, rows, same, uneven_images

LUMA = np.array([0.299, 0.587, 0.114])
DINO = ColorChange(
    jitter=(0.4, 0.4, 0.2, 0.1),
    jitter_probability=0.8,
    grayscale_probability=0.2,
    blur_probability=0.5,
    solarize_probability=0.2,
)
VIEWS = {"global": ViewSpec((24, 24), count=2, colors=(DINO, replace(DINO, blur_probability=0.1)))}


def nothing(rows: int) -> DrawnColors:
    return DrawnColors(
        strengths=np.tile(NEUTRAL, (rows, 1)),
        order=np.tile(np.arange(4), (rows, 1)),
        gray=np.zeros(rows, bool),
        sigma=np.zeros(rows),
        solarized=np.zeros(rows, bool),
    )


def jitter(*strengths: tuple[int, float]) -> DrawnColors:
    """One row with some parts of the jitter, in the order given."""
    drawn = nothing(1)
    rest = [part for part in range(4) if part not in dict(strengths)]
    drawn.order[0] = [*dict(strengths), *rest]
    for part, strength in strengths:
        drawn.strengths[0, part] = strength
    return drawn


def photo(rows: int, height: int = 24, width: int = 20) -> torch.Tensor:
    """Noise over a slope, with gray, white, black and equal channels among the pixels."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (rows, 3, height, width), dtype=torch.uint8, generator=generator)
    pixels[:, :, 0] = 127
    pixels[:, :, 1, ::2] = 255
    pixels[:, :, 1, 1::2] = 0
    pixels[:, 1, 2] = pixels[:, 0, 2]
    pixels[:, 2, 3] = pixels[:, 1, 3]
    pixels[:, 2, 4] = pixels[:, 0, 4]
    return pixels


def slow_jitter(levels: NDArray[np.float64], part: int, strength: float) -> NDArray[np.float64]:
    """[3, h, w] in float64, from the definition of each part."""
    gray = np.tensordot(LUMA, levels, 1)
    if part == BRIGHTNESS:
        return (levels * strength).clip(0, 255)
    if part == CONTRAST:
        return (strength * levels + (1 - strength) * gray.mean()).clip(0, 255)
    if part == SATURATION:
        return (strength * levels + (1 - strength) * gray).clip(0, 255)
    changed = np.empty_like(levels)
    for row, column in np.ndindex(levels.shape[1:]):
        hue, saturation, value = colorsys.rgb_to_hsv(*levels[:, row, column] / 255)
        changed[:, row, column] = colorsys.hsv_to_rgb((hue + strength) % 1, saturation, value)
    return changed * 255


def slow_blur(levels: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    """A Gaussian of eight sigmas, tap by tap, of the image reflected at its last pixels."""
    radius = int(np.ceil(8 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    weights /= weights.sum()
    for axis in (1, 2):
        width = [(radius, radius) if number == axis else (0, 0) for number in range(3)]
        padded = np.pad(levels, width, mode="reflect")
        length = levels.shape[axis]
        levels = sum(w * padded.take(range(i, i + length), axis) for i, w in enumerate(weights))  # type: ignore[assignment]
    return levels


def slow(pixels: torch.Tensor, drawn: DrawnColors) -> NDArray[np.float64]:
    """All of one view in the published order, without rounding."""
    levels = pixels.double().numpy()
    for part in drawn.order[0]:
        if drawn.strengths[0, part] != NEUTRAL[part]:
            levels = slow_jitter(levels, part, drawn.strengths[0, part])
    if drawn.gray[0]:
        levels = np.repeat(np.tensordot(LUMA, levels, 1)[None], 3, 0)
    if drawn.sigma[0]:
        levels = slow_blur(levels, drawn.sigma[0])
    return np.where(levels >= 128, 255 - levels, levels) if drawn.solarized[0] else levels


def largest_difference(pixels: torch.Tensor, drawn: DrawnColors) -> float:
    expected = np.stack([slow(view, drawn.of(np.array([row]))) for row, view in enumerate(pixels)])
    changed = pixels.clone()
    change_colors(changed, drawn)
    assert changed.dtype == torch.uint8
    return float(np.abs(changed.numpy() - expected).max())


@pytest.mark.parametrize(
    ("part", "strength"),
    [
        *((part, strength) for part in (BRIGHTNESS, CONTRAST, SATURATION) for strength in (0.0, 0.6, 1.4)),
        *((HUE, turns) for turns in (-0.5, -0.1, -0.03, 0.02, 0.1, 0.4, 0.5)),
    ],
)
def test_each_part_of_the_jitter_is_its_definition(part: int, strength: float) -> None:
    """Rounding is half a level; the rest is float32."""
    assert largest_difference(photo(1), jitter((part, strength))) < 0.51


def test_a_third_of_a_turn_exchanges_the_channels() -> None:
    pixels = photo(1)
    changed = pixels.clone()
    change_colors(changed, jitter((HUE, 1 / 3)))
    assert (changed.int() - pixels.roll(1, dims=1).int()).abs().max() <= 1


def test_the_parts_come_in_their_drawn_order_and_each_is_clamped() -> None:
    parts = ((BRIGHTNESS, 1.4), (CONTRAST, 0.6), (SATURATION, 1.2), (HUE, 0.1))
    forward, backward = jitter(*parts), jitter(*parts[::-1])
    for drawn in (forward, backward):
        assert largest_difference(photo(1), drawn) < 0.51
    one, other = photo(1), photo(1)
    change_colors(one, forward)
    change_colors(other, backward)
    assert (one.int() - other.int()).abs().max() > 20


def test_gray_is_the_luma_of_itu_r_601() -> None:
    drawn = replace(nothing(1), gray=np.array([True]))
    assert largest_difference(photo(1), drawn) < 0.51


@pytest.mark.parametrize(
    ("sigma", "size"), [(0.3, (24, 20)), (1.0, (24, 20)), (2.0, (24, 20)), (2.0, (130, 67)), (2.0, (5, 8))]
)
def test_blur_is_a_gaussian(sigma: float, size: tuple[int, int]) -> None:
    """Three sigmas instead of eight move an image by well under a level; noise is the worst case."""
    drawn = replace(nothing(1), sigma=np.array([sigma]))
    if min(size) > 8 * sigma:
        assert largest_difference(photo(1, *size), drawn) < 1.0
    flat = torch.full((1, 3, *size), 200, dtype=torch.uint8)
    change_colors(flat, drawn)
    assert (flat == 200).all()


def test_every_view_has_a_sigma_of_its_own() -> None:
    """Also where the radius is that of the largest."""
    pixels = photo(3)
    drawn = replace(nothing(3), sigma=np.array([0.5, 0.0, 1.9]))
    assert largest_difference(pixels, drawn) < 1.0
    blurred = pixels.clone()
    change_colors(blurred, drawn)
    assert torch.equal(blurred[1], pixels[1]) and not torch.equal(blurred[0], pixels[0])


def test_the_blur_that_is_left_out_moves_no_level_by_one() -> None:
    """At the widest sigma that is drawn as none, on the worst image, a checkerboard."""
    board = torch.zeros(1, 3, 12, 12, dtype=torch.uint8)
    board[..., ::2, ::2] = board[..., 1::2, 1::2] = 255
    assert np.abs(slow_blur(board[0].double().numpy(), 0.26) - board[0].numpy()).max() < 1


def test_solarize_inverts_from_128_on() -> None:
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256).clone()
    change_colors(levels, replace(nothing(1), solarized=np.array([True])))
    expected = [level if level < 128 else 255 - level for level in range(256)]
    assert levels[0, 0, 0].tolist() == expected


def test_what_is_drawn_for_a_chunk_is_what_is_done_with_each_view() -> None:
    """The published order on many views at once, beside one view at a time in float64."""
    drawn = draw_colors(VIEWS, np.arange(20), seed=3, epoch=1)["global"]
    assert len(drawn.changed()) > 30
    assert largest_difference(photo(40), drawn) < 1.0


@pytest.mark.parametrize(("num", "size"), [(150, (12, 16)), (20, (97, 64)), (12, (224, 224))])
def test_a_view_is_the_same_in_whatever_company_and_on_any_number_of_threads(num: int, size: tuple[int, int]) -> None:
    """Bit by bit, so that workers, chunks and microbatches cannot change a batch."""
    drawn = draw_colors(VIEWS, np.arange(num // 2), seed=3, epoch=1)["global"]
    together, in_blocks, alone = (photo(num, *size) for _ in range(3))
    change_colors(in_blocks, drawn)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openjepa.data.loading.colors.BLOCK_VALUES", 10**9)
        change_colors(together, drawn)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    for row in range(num):
        change_colors(alone[row : row + 1], drawn.of(np.array([row])))
    torch.set_num_threads(threads)
    assert torch.equal(together, alone) and torch.equal(in_blocks, alone)


def test_views_keep_their_places_when_they_are_sorted_by_their_order() -> None:
    """Sorted, they stand as 0, 2, 1, 3: between the ends of a range, but not in it one after the other."""
    drawn = replace(nothing(4), order=np.array([[0, 1, 2, 3], [0, 2, 1, 3], [0, 1, 2, 3], [0, 3, 2, 1]]))
    drawn.strengths[:, BRIGHTNESS] = [0.5, 0.8, 1.2, 1.4]
    assert largest_difference(photo(4), drawn) < 0.51


def test_views_that_nothing_is_done_with_stay_bitwise() -> None:
    pixels = photo(4)
    changed = pixels.clone()
    change_colors(changed, nothing(4))
    assert torch.equal(changed, pixels) and len(nothing(4).changed()) == 0


def test_chances_and_ranges_are_those_asked_for() -> None:
    num = 4000
    drawn = draw_colors(VIEWS, np.arange(num), seed=0, epoch=0)["global"]
    first = drawn.of(np.arange(num))
    jittered = (first.strengths != NEUTRAL).any(axis=1)
    for found, expected in ((jittered, 0.8), (first.gray, 0.2), (first.solarized, 0.2)):
        assert found.mean() == pytest.approx(expected, abs=0.03)
    assert (first.sigma > 0).mean() == pytest.approx(0.5 * (2 - 0.26) / 1.9, abs=0.03)
    assert (drawn.of(num + np.arange(num)).sigma > 0).mean() == pytest.approx(0.1 * (2 - 0.26) / 1.9, abs=0.02)
    blurred = first.sigma[first.sigma > 0]
    assert 0.26 <= blurred.min() < 0.3 and 1.95 < blurred.max() <= 2.0
    low, high = first.strengths[jittered].min(axis=0), first.strengths[jittered].max(axis=0)
    assert np.allclose(low, [0.6, 0.6, 0.8, -0.1], atol=0.005) and np.allclose(high, [1.4, 1.4, 1.2, 0.1], atol=0.005)
    orders, counts = np.unique(drawn.order, axis=0, return_counts=True)
    assert len(orders) == 24 and counts.min() > 0.75 * counts.mean()


def test_draws_belong_to_the_sample() -> None:
    """Not to the chunk it is in; another seed, epoch, view or sample draws other numbers."""
    together = draw_colors(VIEWS, np.arange(10), seed=0, epoch=0)["global"]
    alone = draw_colors(VIEWS, np.array([7]), seed=0, epoch=0)["global"]
    assert (together.of(np.array([7, 17])).strengths == alone.strengths).all()
    assert len(np.unique(together.order[:, 0])) > 1, "samples differ"
    assert (together.order[:10] != together.order[10:]).any(), "and views"
    for changed in ({"seed": 1}, {"epoch": 1}):
        other = draw_colors(VIEWS, np.arange(10), **{"seed": 0, "epoch": 0, **changed})["global"]
        assert (other.strengths != together.strengths).any()
    assert len(set(STREAMS.values())) == len(STREAMS)


def test_a_view_without_colors_still_counts() -> None:
    """So that a view's draws depend on its place alone."""
    plain = {"first": ViewSpec((8, 8)), **VIEWS}
    drawn = draw_colors(plain, np.arange(4), seed=0, epoch=0)
    assert set(drawn) == {"global"}
    three = draw_colors({"all": ViewSpec((8, 8), count=3, colors=(DINO,) * 3)}, np.arange(4), seed=0, epoch=0)["all"]
    assert (drawn["global"].gray[:4] == three.gray[4:8]).all() and (drawn["global"].order[4:] == three.order[8:]).all()
    assert draw_colors({"first": ViewSpec((8, 8))}, np.arange(4), seed=0, epoch=0) == {}


def test_one_change_for_each_view() -> None:
    with pytest.raises(ValueError, match=r"1 color changes for 2 crops 'image': give one for each"):
        draw_colors({"image": ViewSpec((8, 8), count=2, colors=(DINO,))}, np.arange(2), seed=0, epoch=0)


def test_floats_are_not_rounded() -> None:
    half = torch.full((1, 3, 2, 2), 100.0)
    assert change_floats(half, jitter((BRIGHTNESS, 1.005)))[0, 0, 0, 0].item() == pytest.approx(100.5)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    drawn = draw_colors(VIEWS, np.arange(20), seed=3, epoch=1)["global"]
    for size in ((24, 20), (224, 224)):
        on_cpu, on_gpu = photo(40, *size), photo(40, *size).cuda()
        change_colors(on_cpu, drawn)
        change_colors(on_gpu, drawn)
        assert torch.equal(on_gpu.cpu(), on_cpu)


# ---- in the loader


SMALL = ViewSpec((12, 16), count=3, scale=(0.05, 0.3), colors=(DINO,) * 3)
COLORED = InputSpec({"image": replace(VIEW, colors=(DINO,)), "small": SMALL}, ("image",))
PLAIN = InputSpec({"image": VIEW, "small": replace(SMALL, colors=())}, ("image",))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> ListSource:
    return uneven_images(tmp_path_factory.mktemp("images"))


def test_the_loader_changes_the_crops_as_drawn_and_nothing_else(images: ListSource) -> None:
    for epoch_step in (0, 6):  # 45 samples: five steps of eight in an epoch
        colored = load(images, epoch_step + 1, inputs=COLORED)[epoch_step]
        plain = load(images, epoch_step + 1, inputs=PLAIN)[epoch_step]
        drawn = draw_colors(COLORED.views, plain.sample_ids.numpy(), SEED, epoch_step // 5)
        for name, view in plain.views.items():
            change_colors(view.flatten(0, 1), drawn[name])
        assert same([colored], [plain])


def test_colors_do_not_depend_on_workers_chunks_or_microbatches(images: ListSource, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(images, 3, plan=BatchPlan(16, 16), inputs=COLORED)
    assert rows(load(images, 3, plan=BatchPlan(16, 4, group_size=16), inputs=COLORED)) == rows(whole)
    monkeypatch.setattr(loader_module, "CHUNK_BYTES", 10_000)
    assert same(load(images, 3, plan=BatchPlan(16, 16), workers=2, inputs=COLORED), whole)


def test_colors_on_the_device_are_those_of_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the crops are the same: whole images of the size of their views."""
    inputs = InputSpec({"image": ViewSpec((16, 16), scale=(1.0, 1.0), aspect=(1.0, 1.0), colors=(DINO,))}, ("image",))
    source = opened(write_folder(tmp_path, 20, size=16))
    expected = load(source, 2, cache="memory", inputs=inputs)
    monkeypatch.setattr(loader_module, "HOST_DEVICES", ())
    assert same(load(source, 2, cache="device", inputs=inputs), expected)


def test_caches_keep_the_detail_of_small_crops(tmp_path: Path) -> None:
    write_folder(tmp_path, 4, size=90)
    settings = FolderSettings(path=str(tmp_path), image_size=16, cache="memory")
    for small, side in ((replace(SMALL, size=(12, 12), colors=()), 54), (replace(SMALL, scale=(0.5, 1.0), colors=()), 30)):
        inputs = InputSpec({"image": ViewSpec((16, 16)), "small": small}, ("image",))
        loader = TrainingLoader(opened(tmp_path), settings, inputs, RecordingSampler(), BatchPlan(2, 2), SEED, 0, CPU)
        assert loader._cache is not None and int(loader._cache.sizes[0, 0]) == side
