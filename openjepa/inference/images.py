"""Turns images of any kind into uint8 pixels (files, PIL images, NumPy arrays and tensors), and pixels into batches of views.

All images of a batch have one shape. Threads decode the next images while others are encoded. The decoders and torch's resizing
let other threads run: two threads decode and resize JPEG files twice as fast as one.
"""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openjepa.data.decode import DecodeError, decode_image, pillow_pixels
from openjepa.data.views import decoded_side, evaluation_view, whole_view
from openjepa.engine.device import thread_pool
from openjepa.refusals import Refusal
from openjepa.settings.models import check_patch_divides

Picture = str | Path | bytes | Image.Image | NDArray[Any] | Tensor
"""One image: the path of a file, its bytes, a PIL image, an array [h, w, 3] or [h, w], or a tensor [3, h, w] or [h, w].
Arrays and tensors may also have their channels at the other end, or a single channel. They hold uint8 levels, or floats in
[0, 1]."""
Pictures = Picture | Iterable[Picture]
"""One image or many: a list, a generator, an array [B, h, w, 3] or a tensor [B, 3, h, w]."""

HALF_LEVEL = 0.5 / 255
"""Floats may leave [0, 1] by this much, as after some resizing. They round to the same levels as 0 and 1."""
_KINDS = "a path, a PIL image, an array or a tensor"


def separate(images: Pictures) -> Iterable[Picture]:
    """The images one by one. A single image becomes a list of one. Raises Refusal if the type or shape is not supported."""
    if isinstance(images, str | bytes | os.PathLike | Image.Image):
        return [images]
    if isinstance(images, np.ndarray) and images.ndim == 1 and images.dtype.kind in "OUS":  # paths, as pandas returns them
        return images.tolist()  # type: ignore[no-any-return]
    if isinstance(images, np.ndarray | Tensor):
        if images.ndim == 4:
            return list(images)
        if images.ndim in (2, 3):
            return [images]
        raise Refusal(f"images have the shape {list(images.shape)}: give one image [3, h, w] or several [B, 3, h, w]")
    if isinstance(images, Iterable) and not isinstance(images, dict | set | frozenset):  # these have no order
        return images
    raise Refusal(f"images cannot be of type {type(images).__name__}: give {_KINDS}, or a list of these")


def pixels_of(image: Picture, min_side: int = 0) -> UInt8[Tensor, "h w 3"]:
    """RGB pixels of one image. `min_side`: large JPEG files may be decoded smaller, down to this short side in pixels.

    PIL images follow the rules for files (`openjepa.data.decode`): turned upright, transparency over white, the upper eight of
    16 bits. Raises Refusal if a file is not an image, an array has another shape, or floats are outside [0, 1].
    """
    if isinstance(image, str | os.PathLike):
        if "://" in str(image):
            raise Refusal(f"{image} is an address: download the image first, and give its path or its bytes")
        return _decoded(_read(Path(image).expanduser()), str(image), min_side)
    if isinstance(image, bytes):
        return _decoded(image, "an image given as bytes", min_side)
    if isinstance(image, Image.Image):
        try:
            return torch.from_numpy(pillow_pixels(image))
        except DecodeError as error:
            raise Refusal(f"a PIL image of mode {image.mode} cannot be used: {error}") from None
    if isinstance(image, np.ndarray):
        return _from_numbers(_as_tensor(image), channels_first=False)
    if isinstance(image, Tensor):
        return _from_numbers(image.detach().cpu(), channels_first=True)
    raise Refusal(f"an image cannot be of type {type(image).__name__}: give {_KINDS}")


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise Refusal(f"{path} is a folder: give its files, such as sorted(Path({str(path)!r}).rglob('*.jpg'))")
    try:
        return path.read_bytes()
    except OSError as error:
        raise Refusal(f"{path} cannot be embedded: {error.strerror or error}") from error


def _decoded(data: bytes, name: str, min_side: int) -> UInt8[Tensor, "h w 3"]:
    try:
        return torch.from_numpy(decode_image(data, min_side))
    except DecodeError as error:
        raise Refusal(f"{name} cannot be embedded: {error}") from None


def _as_tensor(array: NDArray[Any]) -> Tensor:
    """A tensor that shares the array's memory, or a copy if the array is read-only, not contiguous or byte-swapped."""
    if array.dtype.kind not in "buif":
        raise Refusal(f"an image is an array of {array.dtype}: give uint8 levels, or floats in [0, 1]")
    wanted = np.require(array, array.dtype.newbyteorder("="), ["C", "W"])
    return torch.from_numpy(wanted)


def _from_numbers(values: Tensor, channels_first: bool) -> UInt8[Tensor, "h w 3"]:
    """Pixels of an array or tensor. `channels_first`: takes the first axis if both ends could be the channels."""
    if values.ndim == 2:
        values = values[..., None].expand(-1, -1, 3)
    elif values.ndim == 3:
        values = _channels_last(values, channels_first)
    else:
        raise Refusal(f"an image has the shape {list(values.shape)}: give [h, w, 3], [3, h, w] or [h, w]")
    if values.numel() == 0:
        raise Refusal(f"an image has the shape {list(values.shape)}, which holds no pixels")
    return _levels(values).contiguous()


def _channels_last(values: Tensor, channels_first: bool) -> Tensor:
    first, last = values.shape[0] in (1, 3), values.shape[-1] in (1, 3)
    if not (first or last):
        hint = "; alpha: give a PIL image, which is put over white" if 4 in (values.shape[0], values.shape[-1]) else ""
        raise Refusal(f"an image has the shape {list(values.shape)}: one end must be 3 channels (RGB) or 1 (gray){hint}")
    if first and (channels_first or not last):
        values = values.permute(1, 2, 0)
    return values.expand(-1, -1, 3)


def _levels(values: Tensor) -> UInt8[Tensor, "h w 3"]:
    if values.dtype == torch.uint8:
        return values
    if values.dtype == torch.bool or not values.is_floating_point():
        raise Refusal(f"an image has {values.dtype} numbers: give uint8 levels, or floats in [0, 1]")
    low, high = float(values.min()), float(values.max())
    if not (low >= -HALF_LEVEL and high <= 1 + HALF_LEVEL):  # also true for NaN
        raise Refusal(
            f"an image has floats from {low:.3g} to {high:.3g}: give uint8 levels or floats in [0, 1], which are normalized "
            "here; for images that you have normalized yourself, call the encoder: encoder(images)"
        )
    return (values.float() * 255).round().clamp(0, 255).to(torch.uint8)


# ---------------------------------------------------------------------------------------------------------------------- batches


ViewName = Literal["crop", "squash", "whole"]

MAX_WHOLE_PATCHES = 16_384
"""Most patches of a whole image: a square of 2048 pixels at patch size 16. Attention compares all of them with each other."""
MAX_THREADS = 8
MAX_SHAPES = 8
"""Number of image shapes collected at a time. If there are more, the largest collection becomes a batch before it is full."""


@dataclass(frozen=True)
class View:
    """How an image becomes what the network sees."""

    name: ViewName
    size: tuple[int, int]
    """Height and width in pixels. For `whole`, the smaller of them is the short side of the view."""
    patch_size: int

    def __post_init__(self) -> None:
        """Raises Refusal if the name is unknown or a size is not a multiple of the patch size."""
        if self.name not in get_args(ViewName):
            raise Refusal(f"view={self.name!r} is not known: use 'crop', 'squash' or 'whole'")
        check_patch_divides(self.patch_size, self.size, "size", of="the encoder")

    def of(self, pixels: UInt8[Tensor, "h w 3"]) -> UInt8[Tensor, "3 oh ow"]:
        """The view of an image. Raises Refusal if a whole image would have more than `MAX_WHOLE_PATCHES` patches."""
        if self.name != "whole":
            return evaluation_view(pixels, self.size, self.name)
        height, width = pixels.shape[:2]
        patches = (min(self.size) / self.patch_size) ** 2 * max(height, width) / min(height, width)
        if patches > MAX_WHOLE_PATCHES:
            raise Refusal(
                f"view='whole' of an image of {width} x {height} pixels would have {patches:,.0f} patches, more than "
                f"{MAX_WHOLE_PATCHES:,}: use view='squash' or 'crop', or a smaller size"
            )
        return whole_view(pixels, min(self.size), self.patch_size)


def prepared_view(image: Picture, view: View) -> UInt8[Tensor, "3 oh ow"]:
    """The view of an image of any kind."""
    return view.of(pixels_of(image, decoded_side(view.size)))


def batches(
    images: Iterable[Picture], view: View, batch_size: int, threads: int
) -> Iterator[tuple[list[int], UInt8[Tensor, "b 3 oh ow"]]]:
    """Yields numbers and views of images of one shape, at most `batch_size` at a time.

    Meanwhile `threads` threads prepare the next images. Images of one shape keep their order. If shapes differ, a batch waits
    until enough images of its shape have come. At most one batch is taken ahead from an iterator.
    """
    waiting: dict[tuple[int, ...], list[tuple[int, Tensor]]] = {}
    for number, pixels in enumerate(_in_threads(images, view, batch_size, threads)):
        collected = waiting.setdefault(tuple(pixels.shape), [])
        collected.append((number, pixels))
        if len(collected) == batch_size:
            yield _stacked(waiting.pop(tuple(pixels.shape)))
        elif len(waiting) > MAX_SHAPES:
            yield _stacked(waiting.pop(max(waiting, key=lambda shape: len(waiting[shape]))))
    for collected in waiting.values():
        yield _stacked(collected)


def _stacked(collected: list[tuple[int, Tensor]]) -> tuple[list[int], UInt8[Tensor, "b 3 oh ow"]]:
    return [number for number, _ in collected], torch.stack([pixels for _, pixels in collected])


def _in_threads(images: Iterable[Picture], view: View, ahead: int, threads: int) -> Iterator[UInt8[Tensor, "3 oh ow"]]:
    """The views in the order of the images."""
    numbered = enumerate(images)
    first = list(islice(numbered, 2))
    if threads < 2 or len(first) < 2:  # a thread would cost more than it saves for a single image
        for number, image in chain(first, numbered):
            yield _task(number, image, view)()
        return
    waiting: deque[Future[Tensor]] = deque()
    with warnings.catch_warnings(), thread_pool(min(threads, MAX_THREADS), "images") as pool:
        # the consumer runs beside the threads: if it saves warning filters while a thread silences them, they must not stay
        for number, image in chain(first, numbered):
            waiting.append(pool.submit(_task(number, image, view)))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _task(number: int, image: Picture, view: View) -> Callable[[], Tensor]:
    """A task that makes the view of an image in any thread. Its errors name the image."""
    if isinstance(image, Image.Image):  # it may be listed twice, and Pillow cannot read one file in two threads at once
        pixels = _named(number, lambda: pixels_of(image))
        return lambda: _named(number, lambda: view.of(pixels))
    if isinstance(image, str | os.PathLike):  # its errors name the file
        return lambda: prepared_view(image, view)
    return lambda: _named(number, lambda: prepared_view(image, view))


def _named(number: int, work: Callable[[], Tensor]) -> Tensor:
    try:
        return work()
    except ValueError as error:
        raise Refusal(f"image {number}: {error}") from error
