"""Random color changes of batches of views: jitter, grayscale, blur, solarize (SimCLR, appendix A; DINO), on any device.

The changes of a view depend only on the seed of its sample. They follow the published order: mirror, jitter, grayscale, blur,
solarize. The four parts of the jitter have a random order for every view. An operation touches only the views that need it.

A view comes out the same, bit by bit, with any other views in the batch, on any number of threads and on every device. All
arithmetic is either elementwise, with each operation rounded by itself, or a sum of integers that float32 represents exactly.
Levels are rounded before the blur and at the end. Each operation clamps to [0, 255], like the published ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from openjepa.refusals import Refusal
from openjepa.seeds import derive_samples, uniforms
from openjepa.types import ColorChange, ViewSpec

NUMBERS_PER_VIEW = 10
"""Number of uniform numbers per view of one sample. In order: jitter or not, four strengths, their order,
grayscale, blur, the sigma of the blur, solarize."""
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
ORDERS = np.array(list(permutations(range(4))))
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R 601)."""
LEAST_SIGMA = 0.26
"""A narrower Gaussian changes no level by one, because the weight of each neighbor is below 1 / 1024."""
RADIUS_IN_SIGMAS = 3.0
BLOCK_VALUES = 200_000
"""Number of values changed at a time on a CPU, so that they stay in its cache. One view at 224 pixels."""
BLOCK_VIEWS = 256
"""Number of views changed at a time on other devices. Bounds the memory."""
BLUR_SIDE = 32
"""Largest number of pixels in a row that one matrix blurs. Longer rows are divided: most of a larger matrix would be zero."""
PARTS_OF_A_LEVEL = 8
"""Levels are summed as multiples of 1 / 8."""
PARTS_OF_A_WEIGHT = 8192
"""Weights of the blur are multiples of 1 / 8192. Since 255 x 8 x 8192 is below 2^24, every sum is exact in float32."""
VERY_LARGE = 1e30


@dataclass(frozen=True)
class DrawnColors:
    """The color changes drawn for each of R views."""

    strengths: NDArray[np.float64]
    """[R, 4]: factors of brightness, contrast and saturation, and turns of hue. (1, 1, 1, 0) changes nothing."""
    order: NDArray[np.int64]
    """[R, 4]: the four parts of the jitter in the order in which they are applied."""
    gray: NDArray[np.bool_]
    """[R]: true if the view becomes gray."""
    sigma: NDArray[np.float64]
    """[R]: standard deviation of the blur, in pixels. 0 means no blur."""
    solarized: NDArray[np.bool_]
    """[R]: true if the view is solarized."""

    def jittered(self) -> NDArray[np.bool_]:
        """[R]: true if any part of the jitter changes the view."""
        found: NDArray[np.bool_] = (self.strengths != NEUTRAL).any(axis=1)
        return found

    def changed(self) -> NDArray[np.int64]:
        """Indices of the views that are changed at all."""
        return np.flatnonzero(self.jittered() | self.gray | (self.sigma > 0) | self.solarized)

    def of(self, rows: NDArray[np.int64]) -> "DrawnColors":
        """The changes of the views `rows`."""
        return DrawnColors(self.strengths[rows], self.order[rows], self.gray[rows], self.sigma[rows], self.solarized[rows])


NEUTRAL = np.array([1.0, 1.0, 1.0, 0.0])


def draw_colors(views: Mapping[str, ViewSpec], ids: NDArray[np.int64], seed: int, epoch: int) -> dict[str, DrawnColors]:
    """Draws the color changes of the samples `ids` [B] in an epoch. Returns V x B rows by the name of the view, view by view.

    Views without color changes are left out. Raises Refusal if a view does not have one color change for each of its crops.
    """
    if not any(view.colors for view in views.values()):
        return {}
    seeds = derive_samples("color", seed, np.array([epoch]), ids)
    num_views = sum(view.count for view in views.values())
    numbers = uniforms(seeds, num_views * NUMBERS_PER_VIEW).reshape(len(ids), num_views, NUMBERS_PER_VIEW)
    drawn, used = {}, 0
    for name, view in views.items():
        if view.colors:
            if len(view.colors) != view.count:
                raise Refusal(f"{len(view.colors)} color changes for {view.count} crops {name!r}: give one for each")
            parts = [_drawn(change, numbers[:, used + number]) for number, change in enumerate(view.colors)]
            drawn[name] = _joined(parts)
        used += view.count
    return drawn


def _drawn(change: ColorChange, numbers: NDArray[np.float64]) -> DrawnColors:
    """The changes of one view of every sample, from the uniform numbers [B, NUMBERS_PER_VIEW] of that view."""
    largest = np.array(change.jitter)
    low = np.maximum(0.0, 1.0 - largest)
    low[HUE] = -largest[HUE]
    strengths = low + (NEUTRAL + largest - low) * numbers[:, 1:5]
    jittered = numbers[:, :1] < change.jitter_probability
    sigma_low, sigma_high = change.blur_sigma
    sigma = sigma_low + (sigma_high - sigma_low) * numbers[:, 8]
    return DrawnColors(
        strengths=np.where(jittered, strengths, NEUTRAL),
        order=ORDERS[(numbers[:, 5] * len(ORDERS)).astype(np.int64)],
        gray=numbers[:, 6] < change.grayscale_probability,
        sigma=np.where((numbers[:, 7] < change.blur_probability) & (sigma >= LEAST_SIGMA), sigma, 0.0),
        solarized=numbers[:, 9] < change.solarize_probability,
    )


def _joined(parts: Sequence[DrawnColors]) -> DrawnColors:
    return DrawnColors(
        strengths=np.concatenate([part.strengths for part in parts]),
        order=np.concatenate([part.order for part in parts]),
        gray=np.concatenate([part.gray for part in parts]),
        sigma=np.concatenate([part.sigma for part in parts]),
        solarized=np.concatenate([part.solarized for part in parts]),
    )


def change_colors(pixels: UInt8[Tensor, "R 3 h w"], drawn: DrawnColors) -> None:
    """Applies the changes `drawn` to the views `pixels`, in place."""
    rows = drawn.changed()
    # views with the same order of operations are neighbors, so that most operations apply to a whole block
    rows = rows[np.argsort(drawn.order[rows] @ [64, 16, 4, 1] + 256 * ~drawn.jittered()[rows], kind="stable")]
    size = BLOCK_VIEWS if pixels.device.type != "cpu" else max(1, BLOCK_VALUES // pixels[0].numel())
    for first in range(0, len(rows), size):
        block = rows[first : first + size]
        places = _places(block, pixels)
        images = change_floats(pixels[places].to(torch.float32), drawn.of(block))
        pixels[places] = images.round_().to(torch.uint8)


def change_floats(images: Float[Tensor, "R 3 h w"], drawn: DrawnColors) -> Float[Tensor, "R 3 h w"]:
    """The images after the changes `drawn`. Levels are in [0, 255] and not rounded. May overwrite `images`."""
    for place in range(4):
        operation = drawn.order[:, place]
        strength = np.take_along_axis(drawn.strengths, operation[:, None], axis=1)[:, 0]
        active = strength != NEUTRAL[operation]
        for part, change in JITTER.items():
            images = _on_rows(images, active & (operation == part), change, strength)
    images = _on_rows(images, drawn.gray, to_gray)
    images = _on_rows(images, drawn.sigma > 0, blur, drawn.sigma)
    return _on_rows(images, drawn.solarized, solarize)


def _on_rows(images: Tensor, chosen: NDArray[np.bool_], change: Callable[..., Tensor], *values: NDArray[np.generic]) -> Tensor:
    """`images`, with the rows that are `chosen` replaced by `change(images, *values)`. `values` have one row per image."""
    if not chosen.any():
        return images
    if chosen.all():
        return change(images, *values)
    rows = np.flatnonzero(chosen)
    places = _places(rows, images)
    images[places] = change(images[places], *(value[rows] for value in values))
    return images


def _places(rows: NDArray[np.int64], images: Tensor) -> slice | Tensor:
    """An index of the rows. It is a slice, which needs no copy, if the rows follow each other."""
    if (np.diff(rows) == 1).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return _on_device(rows, images.device)


def _on_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """Copies an array to the device, without waiting for it."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


# ------------------------------------------------------------------------------------------------------------- jitter


def _brighten(images: Tensor, factor: NDArray[np.float64]) -> Tensor:
    """f x, with the factor f and the levels x."""
    return images.mul_(_per_image(factor, images)).clamp_(0, 255)


def _contrast(images: Tensor, factor: NDArray[np.float64]) -> Tensor:
    """f x + (1 - f) m, where m is the mean gray of the image."""
    eighths = (images * PARTS_OF_A_LEVEL).round_().sum(dim=3)  # whole numbers
    sums = eighths.to(torch.int64).sum(dim=2)[:, :, None, None].to(torch.float32)  # [R, 3, 1, 1]
    mean = luma(sums).div_(PARTS_OF_A_LEVEL * images.shape[2] * images.shape[3])
    return _blend(images, factor, mean)


def _saturate(images: Tensor, factor: NDArray[np.float64]) -> Tensor:
    """f x + (1 - f) gray, where gray is the luma of each pixel."""
    return _blend(images, factor, luma(images))


def _turn_hue(images: Tensor, turns: NDArray[np.float64]) -> Tensor:
    """Turns the hue by `turns`, without changing value and chroma of HSV.

    M and m are the highest and lowest channel of a pixel, C = M - m, and H is its hue in turns. Channel n (red 0, green 2, blue
    4 sixths) of the HSV hexagon is M - C clamp(2 - 6 d, 0, 1). This equals M - 2 C + 6 C d, held between m and M.

    Here d is the distance of H + 1/2 from n on a circle of length 1, because the opposite hue has none of a channel. It is
    d = |v - round(v)|, where v is the difference of the two plus any whole number.
    Comparisons are written as arithmetic, which is several times as fast on a CPU as `where`.
    """
    red, green, blue = images.unbind(1)
    highest = torch.maximum(torch.maximum(red, green), blue)
    lowest = torch.minimum(torch.minimum(red, green), blue)
    chroma = highest - lowest
    not_red = (highest - red).mul_(VERY_LARGE).clamp_(max=1)  # 0 if red is the highest, else 1
    not_green = (highest - green).mul_(VERY_LARGE).clamp_(max=1)
    in_sixths = torch.lerp((blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4), not_green)
    in_sixths = torch.lerp(green - blue, in_sixths, not_red)  # chroma times hue in sixths of a turn
    slope = 6 * chroma
    hue = in_sixths.div_(slope.clamp(min=1e-6))
    shift = turns[:, None] - np.array([0.0, 2.0, 4.0]) / 6 + 0.5
    around = hue[:, None] + _on_device(shift.astype(np.float32), images.device)[:, :, None, None]  # [R, 3, h, w]
    rising = around.sub_(around.round()).abs_().mul_(slope[:, None]).add_(highest.sub(chroma, alpha=2)[:, None])
    return torch.minimum(torch.maximum(rising, lowest[:, None], out=rising), highest[:, None], out=rising)


JITTER: dict[int, Callable[..., Tensor]] = {
    BRIGHTNESS: _brighten,
    CONTRAST: _contrast,
    SATURATION: _saturate,
    HUE: _turn_hue,
}


def _blend(images: Tensor, factor: NDArray[np.float64], other: Float[Tensor, "R 1 h2 w2"]) -> Tensor:
    rest = other * _per_image(1 - factor, images)
    return images.mul_(_per_image(factor, images)).add_(rest).clamp_(0, 255)


def _per_image(values: NDArray[np.float64], images: Tensor) -> Float[Tensor, "R 1 1 1"]:
    return _on_device(values.astype(np.float32), images.device)[:, None, None, None]


def luma(images: Float[Tensor, "R 3 h w"]) -> Float[Tensor, "R 1 h w"]:
    """The gray level of each pixel by ITU-R 601."""
    red, green, blue = images.unbind(1)
    return (red * LUMA[0]).add_(green * LUMA[1]).add_(blue * LUMA[2])[:, None]


# ------------------------------------------------------------------------------------------- grayscale, blur, solarize


def to_gray(images: Float[Tensor, "R 3 h w"]) -> Float[Tensor, "R 3 h w"]:
    """Sets all channels to the luma."""
    return luma(images).expand_as(images).clone()


def solarize(images: Float[Tensor, "R 3 h w"]) -> Float[Tensor, "R 3 h w"]:
    """Inverts levels of 128 and more: each level becomes the smaller of itself and its inverse."""
    return torch.minimum(images, 255 - images)


def blur(images: Float[Tensor, "R 3 h w"], sigma: NDArray[np.float64]) -> Float[Tensor, "R 3 h w"]:
    """Gaussian blur of each image by its own sigma > 0, in pixels. Beyond the border, the image is reflected at its last pixel.

    Rows and columns are divided into stretches of at most BLUR_SIDE pixels. A banded matrix is multiplied with each stretch
    and the pixels within the radius around it. The radius of a kernel is three times its sigma.
    """
    height, width = images.shape[2:]
    kernels = _kernels(sigma, min(height, width) - 1)  # [R, 2 radius + 1]
    radius = kernels.shape[1] // 2
    rows, num_rows = _stretches(height)
    columns, num_columns = _stretches(width)
    padded = F.pad(images.round().mul_(PARTS_OF_A_LEVEL), (radius,) * 4, mode="reflect")
    if (num_rows * rows, num_columns * columns) != (height, width):
        padded = F.pad(padded, (0, num_columns * columns - width, 0, num_rows * rows - height))
    across = _band(kernels, columns, images.device)  # [R, columns, window]
    down = across if rows == columns else _band(kernels, rows, images.device)
    windows = padded.unfold(3, columns + 2 * radius, columns)  # [R, 3, h', stretches, window]
    narrow = torch.bmm(windows.flatten(1, 3), across.transpose(1, 2).contiguous()).round_()
    narrow = narrow.view(*padded.shape[:3], -1)  # [R, 3, h', w]
    windows = narrow.unfold(2, rows + 2 * radius, rows).permute(0, 1, 2, 4, 3)  # [R, 3, stretches, window, w]
    down = down[:, None, None].expand(-1, *windows.shape[1:3], -1, -1)
    blurred = torch.bmm(down.flatten(0, 2), windows.flatten(0, 2)).div_(PARTS_OF_A_LEVEL)
    return blurred.view(len(images), 3, num_rows * rows, -1)[:, :, :height, :width]


def _kernels(sigma: NDArray[np.float64], largest_radius: int) -> NDArray[np.float64]:
    """Weights [R, 2 radius + 1] of each Gaussian, as multiples of 1 / PARTS_OF_A_WEIGHT. Each row sums to exactly one."""
    own_radius = np.minimum(np.ceil(RADIUS_IN_SIGMAS * sigma), largest_radius)[:, None]
    offsets = np.arange(1, own_radius.max() + 1)[None, :]
    side = np.exp(-0.5 * (offsets / sigma[:, None]) ** 2) * (offsets <= own_radius)
    side = np.round(side / (1 + 2 * side.sum(axis=1, keepdims=True)) * PARTS_OF_A_WEIGHT) / PARTS_OF_A_WEIGHT
    middle = 1 - 2 * side.sum(axis=1, keepdims=True)
    return np.concatenate([side[:, ::-1], middle, side], axis=1)


def _stretches(side: int) -> tuple[int, int]:
    """Length and number of equal stretches that cover a side."""
    number = -(-side // BLUR_SIDE)
    return -(-side // number), number


def _band(kernels: NDArray[np.float64], length: int, device: torch.device) -> Float[Tensor, "R length window"]:
    """Matrices that blur the inner `length` of `length` + 2 `radius` samples: each row holds the kernel, shifted by one."""
    num, size = kernels.shape
    window = length + size - 1
    shifted = np.zeros((num, length, window + 1), dtype=np.float32)
    shifted[:, :, :size] = kernels[:, None]
    return _on_device(shifted.reshape(num, -1)[:, : length * window].reshape(num, length, window), device)
