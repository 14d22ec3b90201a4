"""Augmentations: random erasing, RandAugment, and a chain of several, of one uint8 view; mixup and cutmix of a batch.

Random erasing: Zhong et al., 2017. RandAugment: Cubuk et al., 2020, in the variant `rand-m9-mstd0.5-inc1` of MAE and I-JEPA.
Both are written from the papers and from descriptions of the variant. Mixup (Zhang et al., 2018) and cutmix (Yun et al., 2019)
work on the batch's device and give the soft targets of mixed images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor
from torch.nn import functional

Augment = Callable[[UInt8[Tensor, "3 h w"], int], UInt8[Tensor, "3 h w"]]
"""(view, seed) -> view of the same size. Picklable, and a pure function of both arguments."""

TRIES = 10
"""Largest number of rectangles drawn until one fits. If none fits, nothing is erased."""


@dataclass(frozen=True)
class RandomErasing:
    """Replaces one rectangle of a view by noise, with probability `probability`.

    The area of the rectangle is uniform in `area`, height / width is log-uniform in `aspect`, and the position is uniform. The
    noise is Gaussian with the mean and standard deviation of the data per channel, independent for every pixel and channel. It
    is thus standard normal once pixels are normalized.

    The noise is rounded and clipped to 0 .. 255, because views are uint8. MAE erases after normalization and does not clip.
    Zhong et al. fill with uniform noise and erase up to 0.4 of the area.
    """

    probability: float = 0.25
    """Probability that a view is erased (MAE's value)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of the channels in [0, 1] (ImageNet's)."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Standard deviation of the channels (ImageNet's)."""
    area: tuple[float, float] = (0.02, 1 / 3)
    """Smallest and largest area as a fraction of the view."""
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    """Smallest and largest height / width."""

    def __call__(self, view: UInt8[Tensor, "3 h w"], seed: int) -> UInt8[Tensor, "3 h w"]:
        """The view with a rectangle erased, or the view itself. A pure function of both arguments."""
        generator = np.random.default_rng([seed, 1])  # independent of other augmentations with the same seed
        if generator.random() >= self.probability:
            return view
        height, width = int(view.shape[1]), int(view.shape[2])
        for _ in range(TRIES):
            area = generator.uniform(*self.area) * height * width
            aspect = math.exp(generator.uniform(math.log(self.aspect[0]), math.log(self.aspect[1])))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < rows < height and 0 < columns < width:
                return self._erased(view, (rows, columns), generator)
        return view

    def _erased(
        self, view: UInt8[Tensor, "3 h w"], size: tuple[int, int], generator: np.random.Generator
    ) -> UInt8[Tensor, "3 h w"]:
        top = int(generator.integers(0, view.shape[1] - size[0] + 1))
        left = int(generator.integers(0, view.shape[2] - size[1] + 1))
        mean, std = (np.array(values, dtype=np.float32)[:, None, None] * 255 for values in (self.mean, self.std))
        noise = mean + std * generator.standard_normal((3, *size), dtype=np.float32)
        erased = view.clone()
        erased[:, top : top + size[0], left : left + size[1]] = torch.from_numpy(noise.round().clip(0, 255).astype(np.uint8))
        return erased


@dataclass(frozen=True)
class InTurn:
    """Augmentations one after the other. Each gets the same seed and draws different numbers from it."""

    augmentations: tuple[Augment, ...]

    def __call__(self, view: UInt8[Tensor, "3 h w"], seed: int) -> UInt8[Tensor, "3 h w"]:
        """The view after all augmentations."""
        for augment in self.augmentations:
            view = augment(view, seed)
        return view


Color = tuple[int, int, int]
Operation = Callable[[Image.Image, float, float, Color], Image.Image]
"""(image, strength in [0, 1], sign of +1 or -1, fill color of pixels from outside the image) -> image of the same size."""
PROBABILITY = 0.5
"""Probability that a drawn operation is applied."""
MOST = 10.0
"""Largest magnitude. The strength of an operation is magnitude / MOST."""
MOST_DEGREES, MOST_SHEAR, MOST_SHIFT, MOST_FACTOR = 30.0, 0.3, 0.45, 0.9
LEAST_FACTOR = 0.1
MIDDLE, MOST_ADDED = 128, 110


def auto_contrast(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Stretches each channel to 0 .. 255. Ignores the strength."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Flattens the histogram of each channel. Ignores the strength."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Replaces each value by 255 - value. Ignores the strength."""
    return ImageOps.invert(image)


def posterize(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Keeps the highest 4 - floor(4 strength) bits of each value: 4 bits at strength 0, 1 at 0.9, none at 1."""
    return _by_table(image, [value & ~(0xFF >> (4 - int(4 * strength))) for value in range(256)])


def solarize(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Inverts values of at least 256 - floor(256 strength): none at strength 0, all at 1."""
    return ImageOps.solarize(image, 256 - int(256 * strength))


def solarize_add(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Adds floor(110 strength) to values below 128."""
    added = int(MOST_ADDED * strength)
    return _by_table(image, [min(255, value + added) if value < MIDDLE else value for value in range(256)])


def color(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Moves the image away from its gray version (sign +1) or towards it (-1)."""
    return ImageEnhance.Color(image).enhance(_factor(strength, sign))


def contrast(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Moves the image away from its mean gray (sign +1) or towards it (-1)."""
    return ImageEnhance.Contrast(image).enhance(_factor(strength, sign))


def brightness(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Moves the image away from black (sign +1) or towards it (-1)."""
    return ImageEnhance.Brightness(image).enhance(_factor(strength, sign))


def sharpness(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Moves the image away from a smoothed version (sign +1) or towards it (-1)."""
    return ImageEnhance.Sharpness(image).enhance(_factor(strength, sign))


def rotate(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Rotates by 30 strength degrees about the center. `sign` gives the direction."""
    return image.rotate(sign * MOST_DEGREES * strength, Image.Resampling.BICUBIC, fillcolor=fill)


def shear_x(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Shifts row y by 0.3 strength y pixels, so that the top row stays. `sign` gives the direction."""
    return _affine(image, (1, sign * MOST_SHEAR * strength, 0, 0, 1, 0), fill)


def shear_y(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Shifts column x by 0.3 strength x pixels, so that the left column stays. `sign` gives the direction."""
    return _affine(image, (1, 0, 0, sign * MOST_SHEAR * strength, 1, 0), fill)


def translate_x(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Shifts the image by 0.45 strength of its width. `sign` gives the direction."""
    return _affine(image, (1, 0, sign * MOST_SHIFT * strength * image.width, 0, 1, 0), fill)


def translate_y(image: Image.Image, strength: float, sign: float, fill: Color) -> Image.Image:
    """Shifts the image by 0.45 strength of its height. `sign` gives the direction."""
    return _affine(image, (1, 0, 0, 0, 1, sign * MOST_SHIFT * strength * image.height), fill)


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": auto_contrast,
    "equalize": equalize,
    "invert": invert,
    "posterize": posterize,
    "solarize": solarize,
    "solarize_add": solarize_add,
    "color": color,
    "contrast": contrast,
    "brightness": brightness,
    "sharpness": sharpness,
    "rotate": rotate,
    "shear_x": shear_x,
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
}


@dataclass(frozen=True)
class RandAugment:
    """Two of fifteen operations per view, drawn with replacement; each is applied with probability 0.5.

    The magnitude of an operation is `magnitude` plus Gaussian noise of standard deviation `magnitude_std`, clipped to [0, 10].
    If an operation has a direction, it is drawn at random. With s = magnitude / 10:

    | operations | at strength s |
    |---|---|
    | auto_contrast, equalize, invert | the same at every s |
    | posterize | keeps 4 - floor(4 s) bits |
    | solarize | inverts values of at least 256 - floor(256 s) |
    | solarize_add | adds floor(110 s) to values below 128 |
    | color, contrast, brightness, sharpness | enhanced by the factor 1 +- 0.9 s, at least 0.1 |
    | rotate | by +-30 s degrees |
    | shear_x, shear_y | by +-0.3 s pixels per pixel |
    | translate_x, translate_y | by +-0.45 s of the side |

    Every operation with a strength becomes stronger as s grows. This is the `inc1` of the name; in AutoAugment's tables some
    operations become weaker. Geometric operations are bicubic. Pixels from outside the image get the color `fill`.

    Written from Cubuk et al. (2020) and from descriptions of the variant, not from its code. Rounding may differ from it.
    """

    magnitude: float = 9.0
    """Mean magnitude, at most 10."""
    magnitude_std: float = 0.5
    """Standard deviation of the magnitude between operations."""
    num_operations: int = 2
    """Number of operations drawn per view."""
    fill: Color = (124, 116, 104)
    """Color of pixels from outside the image: the mean pixel of the data (default: ImageNet's)."""

    def __call__(self, view: UInt8[Tensor, "3 h w"], seed: int) -> UInt8[Tensor, "3 h w"]:
        """The augmented view. A pure function of both arguments."""
        # a different kind of generator, so that its numbers differ from those that drew the crop from the same seed
        generator = np.random.default_rng(seed)
        chosen = generator.integers(0, len(OPERATIONS), self.num_operations)
        applied = generator.random(self.num_operations) < PROBABILITY
        magnitudes = generator.normal(self.magnitude, self.magnitude_std, self.num_operations).clip(0, MOST)
        signs = np.where(generator.random(self.num_operations) < 0.5, -1.0, 1.0)
        if not applied.any():
            return view
        operations = list(OPERATIONS.values())
        image = Image.fromarray(view.permute(1, 2, 0).contiguous().numpy())
        for number in np.flatnonzero(applied):
            image = operations[chosen[number]](image, float(magnitudes[number]) / MOST, float(signs[number]), self.fill)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def _factor(strength: float, sign: float) -> float:
    return max(LEAST_FACTOR, 1.0 + sign * MOST_FACTOR * strength)


def _by_table(image: Image.Image, table: list[int]) -> Image.Image:
    return image.point(table * 3)


def _affine(image: Image.Image, matrix: tuple[float, ...], fill: Color) -> Image.Image:
    """Affine transform: output pixel (x, y) is the input pixel at (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=fill)


# ------------------------------------------------------------------------------------------------------------- mixup and cutmix


MixBox = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""


@dataclass(frozen=True)
class Mix:
    """One draw that says how a batch is mixed. Each image is mixed with the one before it (the first with the last)."""

    own: float = 1.0
    """lambda, an image's own share. With a box it is exactly the share of the area outside the box."""
    box: MixBox | None = None
    """The region taken from the other image (cutmix). None for a weighted mean of both images everywhere (mixup)."""


def draw_mix(mixup: float, cutmix: float, size: tuple[int, int], seed: int) -> Mix:
    """Draws lambda from Beta(alpha, alpha). alpha is `mixup` or `cutmix`; 0 turns it off. If both are set, a coin toss decides.

    The box of cutmix has the aspect ratio of the image (`size`: height, width), the area 1 - lambda and a uniform center. It is
    clipped to the image, and lambda is then set to the share that the clipped box leaves.
    """
    generator = np.random.default_rng(seed)
    is_cutmix = cutmix > 0 and (mixup == 0 or generator.random() < 0.5)
    alpha = cutmix if is_cutmix else mixup
    if alpha == 0:
        return Mix()
    own = float(generator.beta(alpha, alpha))
    if not is_cutmix:
        return Mix(own)
    top, height = _cut(size[0], own, int(generator.integers(0, size[0])))
    left, width = _cut(size[1], own, int(generator.integers(0, size[1])))
    return Mix(1.0 - height * width / (size[0] * size[1]), (top, left, height, width))


def _cut(side: int, own: float, center: int) -> tuple[int, int]:
    """Start and length of the clipped box along one side."""
    half = int(side * math.sqrt(1.0 - own)) // 2
    start, end = max(0, center - half), min(side, center + half)
    return start, end - start


def mix_images(images: Float[Tensor, "B 3 h w"], mix: Mix) -> Float[Tensor, "B 3 h w"]:
    """Mixes every image with the one before it. `images` is not changed."""
    if mix.own == 1.0:
        return images
    others = images.roll(1, dims=0)
    if mix.box is None:
        return torch.lerp(others, images, mix.own)
    top, left, height, width = mix.box
    mixed = images.clone()
    mixed[:, :, top : top + height, left : left + width] = others[:, :, top : top + height, left : left + width]
    return mixed


def soft_targets(labels: Int[Tensor, " B"], num_classes: int, smoothing: float, mix: Mix) -> Float[Tensor, "B classes"]:
    """Target probabilities, which sum to 1: lambda t(own label) + (1 - lambda) t(the other image's label).

    t(y) = (1 - smoothing) onehot(y) + smoothing / classes (Szegedy et al., 2016).
    """
    one_hot = functional.one_hot(labels, num_classes).to(torch.float32)
    mixed = torch.lerp(one_hot.roll(1, dims=0), one_hot, mix.own)
    return mixed * (1.0 - smoothing) + smoothing / num_classes
