"""What a caller may call an image -> uint8 pixels: paths, PIL images, NumPy arrays, tensors, one or many."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from openjepa.data.decode import DecodeError, decode_image

Picture = str | Path | Image.Image | NDArray[Any] | Tensor
"""One image: a file, a PIL image, an array [h, w, 3] or [h, w], or a tensor [3, h, w] or [h, w]; numbers are uint8 levels, or
floats in [0, 1]."""
Pictures = Picture | Sequence[Picture]
"""One image or many: a sequence, an array [B, h, w, 3] or a tensor [B, 3, h, w]."""


def separate(images: Pictures) -> list[Picture]:
    """The images one by one; a single one becomes a list of one. Raises ValueError for arrays of another number of axes."""
    if isinstance(images, str | os.PathLike | Image.Image):
        return [images]
    if isinstance(images, np.ndarray | Tensor):
        if images.ndim == 4:
            return list(images)
        if images.ndim in (2, 3):
            return [images]
        raise ValueError(f"images have the shape {list(images.shape)}: give one image [3, h, w] or several [B, 3, h, w]")
    return list(images)


def pixels_of(image: Picture, min_side: int = 0) -> UInt8[Tensor, "h w 3"]:
    """RGB pixels of one image. `min_side`: large JPEG files may be decoded smaller, keeping so many pixels of the short side.

    Raises ValueError for a file that is no image, for arrays of another shape, and for floats outside of [0, 1].
    """
    if isinstance(image, str | os.PathLike):
        return torch.from_numpy(_decoded(Path(image).expanduser(), min_side))
    if isinstance(image, Image.Image):
        return torch.from_numpy(np.array(image.convert("RGB")))  # a copy: torch wants to own what it writes to
    if isinstance(image, np.ndarray):
        return _from_numbers(torch.from_numpy(np.ascontiguousarray(image)), channels_first=False)
    if isinstance(image, Tensor):
        return _from_numbers(image.detach().cpu(), channels_first=True)
    raise ValueError(f"an image cannot be a {type(image).__name__}: give a path, a PIL image, an array or a tensor")


def _decoded(path: Path, min_side: int) -> UInt8[np.ndarray, "h w 3"]:
    try:
        return decode_image(path.read_bytes(), min_side)
    except DecodeError as error:
        raise ValueError(f"{path} cannot be embedded: {error}") from None


def _from_numbers(values: Tensor, channels_first: bool) -> UInt8[Tensor, "h w 3"]:
    """Of an array or tensor; where both ends could be the channels, `channels_first` decides."""
    if values.ndim == 2:
        values = values[..., None].expand(-1, -1, 3)
    elif values.ndim == 3:
        values = _channels_last(values, channels_first)
    else:
        raise ValueError(f"an image has the shape {list(values.shape)}: give [h, w, 3], [3, h, w] or [h, w]")
    if values.numel() == 0:
        raise ValueError(f"an image has the shape {list(values.shape)}, which holds no pixels")
    return _levels(values).contiguous()


def _channels_last(values: Tensor, channels_first: bool) -> Tensor:
    first, last = values.shape[0] in (1, 3), values.shape[-1] in (1, 3)
    if not (first or last):
        raise ValueError(f"an image has the shape {list(values.shape)}: one end must be 3 channels (RGB) or 1 (gray)")
    if first and (channels_first or not last):
        values = values.permute(1, 2, 0)
    return values.expand(-1, -1, 3)


def _levels(values: Tensor) -> UInt8[Tensor, "h w 3"]:
    if values.dtype == torch.uint8:
        return values
    if values.dtype == torch.bool or not values.is_floating_point():
        raise ValueError(f"an image has {values.dtype} numbers: give uint8 levels, or floats in [0, 1]")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # also where they are not numbers
        raise ValueError(
            f"an image has floats from {low:.3g} to {high:.3g}: give uint8 levels or floats in [0, 1], which are normalized "
            "here; for images that you have normalized yourself, call the encoder: encoder(images)"
        )
    return (values.float() * 255).round().to(torch.uint8)
