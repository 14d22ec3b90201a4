"""Turns images of any kind into uint8 pixels: files, PIL images, NumPy arrays and tensors, one or many."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openjepa.data.decode import DecodeError, decode_image, pillow_pixels
from openjepa.refusals import Refusal

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
