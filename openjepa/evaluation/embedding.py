"""Features of a handful of images: the short way from files to vectors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from openjepa.data.decode import DecodeError, decode_image
from openjepa.data.views import evaluation_view
from openjepa.engine.embedding import pooled_features
from openjepa.weights.loading import Choice, load_any


def embed_images(subject: Path, images: Sequence[Path | str | Image.Image], batch_size: int = 64) -> Float[Tensor, "B D"]:
    """Pooled output in fp32 of the encoder in `subject` for each image, resized and cropped as in the evaluations.

    Raises ValueError where there is no encoder and for a file that is no image.
    """
    loaded = load_any(subject, Choice(predictor=False))
    encoder, config = loaded.encoder, loaded.config
    features = []
    for start in range(0, len(images), batch_size):
        pixels = torch.stack([_view(image, config.image_size) for image in images[start : start + batch_size]])
        features.append(pooled_features(encoder, config, pixels, torch.device("cpu"), "fp32"))
    return torch.cat(features) if features else torch.empty(0, config.width)


def _view(image: Path | str | Image.Image, size: tuple[int, int]) -> UInt8[Tensor, "3 h w"]:
    if isinstance(image, Image.Image):
        pixels = np.array(image.convert("RGB"))  # a copy: torch wants to own what it writes to
    else:
        try:
            pixels = decode_image(Path(image).expanduser().read_bytes())
        except DecodeError as error:
            raise ValueError(f"{image} cannot be embedded: {error}") from None
    return evaluation_view(torch.from_numpy(pixels), size)
