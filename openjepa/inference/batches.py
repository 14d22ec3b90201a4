"""Turns images of any kind into batches of uint8 views. All images of a batch have one shape.

Threads decode the next images while others are encoded. The decoders and torch's resizing let other threads run: two threads
decode and resize JPEG files twice as fast as one.
"""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal, get_args

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from openjepa.data.views import decoded_side, evaluation_view, whole_view
from openjepa.engine.device import thread_pool
from openjepa.inference.images import Picture, pixels_of
from openjepa.refusals import Refusal
from openjepa.settings.models import check_patch_divides

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
