"""What each operation of RandAugment does at a strength, random erasing, mixup and cutmix; views follow from seeds."""

import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from openjepa.data.augmentations import OPERATIONS, InTurn, Mix, RandAugment, RandomErasing, draw_mix, mix_images, soft_targets
from tests.helpers.images import shape_image

FILL = (10, 20, 30)
UNCHANGED_AT_ZERO = set(OPERATIONS) - {"auto_contrast", "equalize", "invert", "posterize"}


def view(seed: int = 0, size: int = 32) -> torch.Tensor:
    return torch.from_numpy(np.array(shape_image(seed, size))).permute(2, 0, 1).contiguous()


def apply(name: str, strength: float, sign: float = 1.0, image: Image.Image | None = None) -> np.ndarray:
    return np.array(OPERATIONS[name](image or shape_image(0), strength, sign, FILL)).astype(int)


def test_there_are_the_fifteen_operations() -> None:
    assert len(OPERATIONS) == 15


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_the_image_at_magnitude_nine_and_keeps_its_size(name: str) -> None:
    for size in ((32, 32), (24, 40)):
        image = shape_image(1, 40).crop((0, 0, *size))
        for sign in (-1.0, 1.0):
            changed = apply(name, 0.9, sign, image)
            assert changed.shape == (size[1], size[0], 3) and (changed != np.array(image)).mean() > 0.05


@pytest.mark.parametrize("name", sorted(UNCHANGED_AT_ZERO))
def test_operations_with_a_strength_do_nothing_at_zero(name: str) -> None:
    for sign in (-1.0, 1.0):
        assert np.array_equal(apply(name, 0.0, sign), np.array(shape_image(0)))


@pytest.mark.parametrize("name", sorted(UNCHANGED_AT_ZERO - {"solarize"}))
def test_severity_grows_with_the_magnitude(name: str) -> None:
    image = shape_image(0)
    changes = [np.abs(apply(name, strength) - np.array(image).astype(int)).mean() for strength in (0.0, 0.1, 0.3)]
    assert changes == sorted(changes) and len(set(changes)) == 3


def test_operations_on_values_equal_their_formulas() -> None:
    pixels = np.array(shape_image(3)).astype(int)
    given = Image.fromarray(pixels.astype(np.uint8))
    for magnitude in range(11):
        strength = magnitude / 10
        bits = 4 - (4 * magnitude) // 10
        assert np.array_equal(apply("posterize", strength, image=given), pixels // 2 ** (8 - bits) * 2 ** (8 - bits))
        inverted = np.where(pixels >= 256 - (256 * magnitude) // 10, 255 - pixels, pixels)
        assert np.array_equal(apply("solarize", strength, image=given), inverted)
        added = np.where(pixels < 128, pixels + 11 * magnitude, pixels)
        assert np.array_equal(apply("solarize_add", strength, image=given), added)
        for sign in (-1, 1):
            brighter = np.clip(pixels * max(0.1, 1 + sign * 0.09 * magnitude), 0, 255)
            assert np.abs(apply("brightness", strength, sign, given) - brighter).max() <= 1
    assert np.array_equal(apply("invert", 0.0, image=given), 255 - pixels)


def test_color_and_contrast_move_along_the_line_to_gray() -> None:
    given = shape_image(3)
    pixels, gray = np.array(given).astype(float), np.array(given.convert("L")).astype(float)[:, :, None]
    for sign in (-1, 1):
        factor = 1 + sign * 0.9 * 0.5
        assert np.abs(apply("color", 0.5, sign, given) - np.clip(gray + factor * (pixels - gray), 0, 255)).max() <= 1
        mean = int(gray.mean() + 0.5)
        assert np.abs(apply("contrast", 0.5, sign, given) - np.clip(mean + factor * (pixels - mean), 0, 255)).max() <= 1
    assert np.abs(apply("color", 1.0, -1, given) - (gray + 0.1 * (pixels - gray))).max() <= 1, "at least the factor 0.1"


def test_translations_move_by_a_share_of_the_side_and_fill() -> None:
    given = shape_image(0, 40)
    pixels = np.array(given).astype(int)
    right, down = (apply(name, 1.0, -1, given) for name in ("translate_x", "translate_y"))  # 0.45 x 40 = 18 pixels
    assert np.array_equal(right[:, 18:], pixels[:, :-18]) and np.array_equal(down[18:], pixels[:-18])
    assert (right[:, :18] == FILL).all() and (down[:18] == FILL).all()


def test_shears_move_rows_in_proportion_to_their_number() -> None:
    for name, axis in (("shear_x", 0), ("shear_y", 1)):
        ramp = np.broadcast_to(np.arange(0, 200, 5), (40, 40)) if axis == 0 else np.arange(0, 200, 5)[:, None].repeat(40, 1)
        given = Image.fromarray(np.stack([ramp] * 3, axis=-1).astype(np.uint8))
        sheared = apply(name, 1.0, 1, given)[:, :, 0]
        lines = sheared if axis == 0 else sheared.T
        for number in (0, 10, 20):  # a shift by 0.3 number pixels of a ramp of 5 per pixel
            expected = np.arange(0, 200, 5) + 5 * 0.3 * (number + 0.5)
            assert np.abs(lines[number, 4:24] - expected[4:24]).max() <= 1.5


def test_rotation_by_thirty_degrees_moves_a_point_as_the_matrix_says() -> None:
    dot = np.zeros((101, 101, 3), dtype=np.uint8)
    dot[48:53, 78:83] = 255  # 30 to the right of the center
    rotated = apply("rotate", 1.0, 1, Image.fromarray(dot))[:, :, 0]
    y, x = np.nonzero(rotated > 128)
    angle = np.deg2rad(30)  # against the clock; rows count downwards
    assert abs(x.mean() - (50 + 30 * np.cos(angle))) < 0.7 and abs(y.mean() - (50 - 30 * np.sin(angle))) < 0.7


# ---------------------------------------------------------------------------------------------------- whole augmentations


@pytest.mark.parametrize("augment", [RandAugment(), RandomErasing(1.0), InTurn((RandAugment(), RandomErasing(0.5)))])
def test_views_are_pure_functions_of_their_seeds(augment: RandAugment | RandomErasing | InTurn) -> None:
    given = view(0)
    before = given.clone()
    sent = pickle.loads(pickle.dumps(augment))
    outcomes = [augment(given, seed) for seed in range(30)]
    for seed, outcome in enumerate(outcomes):
        assert outcome.dtype == torch.uint8 and outcome.shape == given.shape and outcome.is_contiguous()
        assert torch.equal(sent(given, seed), outcome)
    assert torch.equal(given, before)
    assert len({outcome.numpy().tobytes() for outcome in outcomes}) > 15


def test_a_quarter_of_the_views_stays_as_it_is() -> None:
    """Two operations, each applied with probability 1/2. With magnitude 0 only four operations of fifteen do anything."""
    given, number = view(1), 400
    same = sum(torch.equal(RandAugment()(given, seed), given) for seed in range(number)) / number
    assert abs(same - 0.25) < 0.08  # standard error 0.022, and few operations do little
    same = sum(torch.equal(RandAugment(0.0, 0.0)(given, seed), given) for seed in range(number)) / number
    assert abs(same - (1 - 0.5 * 4 / 15) ** 2) < 0.08


def test_magnitudes_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    strengths: list[float] = []
    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, lambda image, strength, sign, fill: strengths.append(strength) or image)
    for seed in range(300):
        RandAugment(9.0, 0.5)(view(), seed)
    values = 10 * np.array(strengths)
    assert 250 < len(values) < 350 and values.max() == 10.0 and values.min() > 6.5
    assert abs(np.median(values) - 9.0) < 0.12 and abs(np.quantile(values, 0.1587) - 8.5) < 0.2


def test_erasing_replaces_one_rectangle_of_the_right_size() -> None:
    black = torch.zeros(3, 60, 80, dtype=torch.uint8)
    shares = []
    for seed in range(200):
        changed = (RandomErasing(1.0, mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1))(black, seed) > 0).any(dim=0)
        rows, columns = changed.any(dim=1).nonzero()[:, 0], changed.any(dim=0).nonzero()[:, 0]
        height, width = len(rows), len(columns)
        assert changed.sum() == height * width and rows[-1] - rows[0] + 1 == height and columns[-1] - columns[0] + 1 == width
        shares.append(height * width / (60 * 80))
        assert 0.25 < height / width < 4
    assert min(shares) > 0.015 and max(shares) < 0.35 and abs(np.mean(shares) - (0.02 + 1 / 3) / 2) < 0.03


def test_erasing_fills_with_standard_normal_noise_after_normalization_as_often_as_asked() -> None:
    mean, std = (0.5, 0.45, 0.4), (0.1, 0.09, 0.08)
    white = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    erased = [RandomErasing(0.25, mean, std)(white, seed) for seed in range(400)]
    changed = [image for image in erased if not torch.equal(image, white)]
    assert abs(len(changed) / 400 - 0.25) < 0.08
    for channel in range(3):
        values = torch.cat([image[channel][image[channel] < 255] for image in changed]).double() / 255
        normalized = (values - mean[channel]) / std[channel]
        assert abs(normalized.mean()) < 0.02 and abs(normalized.std() - 1) < 0.02


def test_cutmix_pastes_the_area_that_its_labels_say() -> None:
    labels = torch.tensor([2, 0, 1, 1])
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 24, 40)
    pasted = 0
    for seed in range(60):
        mix = draw_mix(0.0, 1.0, (24, 40), seed)
        mixed = mix_images(images, mix)
        for i in range(4):
            own, other = (mixed[i] == i).float().mean().item(), (mixed[i] == (i - 1) % 4).float().mean().item()
            assert own == pytest.approx(mix.own, abs=1e-6) and own + other == pytest.approx(1.0)
        targets = soft_targets(labels, 3, 0.0, mix)
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))
        torch.testing.assert_close(targets[0], torch.tensor([0.0, 1 - mix.own, mix.own]))  # the image before it is the last: 1
        pasted += mix.own < 1
    assert pasted > 50 and torch.equal(images[:, 0, 0, 0], torch.arange(4.0))


def test_mixup_is_the_weighted_mean_of_images_and_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(5, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 3, 0])
    for seed in range(20):
        mix = draw_mix(0.8, 0.0, (8, 8), seed)
        assert mix.box is None and 0 <= mix.own <= 1
        mixed, targets = mix_images(images, mix), soft_targets(labels, 4, 0.1, mix)
        for i in range(5):
            torch.testing.assert_close(mixed[i], mix.own * images[i] + (1 - mix.own) * images[i - 1])
            expected = np.full(4, 0.1 / 4)
            expected[labels[i]] += 0.9 * mix.own
            expected[labels[i - 1]] += 0.9 * (1 - mix.own)
            np.testing.assert_allclose(targets[i].numpy(), expected, atol=1e-6)


def test_the_distribution_of_lambda_and_the_coin() -> None:
    mixes = [draw_mix(0.8, 1.0, (32, 32), seed) for seed in range(2000)]
    share = np.mean([mix.box is None for mix in mixes])
    assert abs(share - 0.5) < 0.05
    values = np.array([mix.own for mix in mixes if mix.box is None])
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1))
    assert abs(values.mean() - 0.5) < 0.04 and abs(values.var() - 1 / (4 * 2.6)) < 0.01
    assert draw_mix(0.0, 0.0, (32, 32), 0) == Mix() and draw_mix(0.8, 1.0, (32, 32), 7) == mixes[7]
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(mix_images(images, Mix()), images)


def test_the_loss_with_smoothing_equals_a_slow_restatement() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(6, 5, generator=generator, dtype=torch.float64), torch.tensor([0, 4, 2, 2, 1, 3])
    targets = soft_targets(labels, 5, 0.1, Mix()).double()
    found = nn.functional.cross_entropy(logits, targets)
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        log_sum = math.log(sum(math.exp(value) for value in row))
        nll = [log_sum - value for value in row]
        total += 0.9 * nll[label] + 0.1 * sum(nll) / 5
    assert found.item() == pytest.approx(total / 6, rel=1e-6)
