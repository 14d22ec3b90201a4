"""Generated photos, which time the data path without any data."""

import io
from pathlib import Path
from typing import final

import numpy as np
from PIL import Image

from openjepa.data.source import ListSource, ShardSource, open_splits
from openjepa.settings.run import RunConfig
from openjepa.settings.sources import is_without_path

PHOTO = (375, 500)
"""Height and width of the generated photos, those of a typical ImageNet file."""


def generate_photo(number: int, size: tuple[int, int] = PHOTO) -> bytes:
    """A JPEG of `size` (height, width) with smooth shapes, edges and grain. Decoding takes about as long as for a photo."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    picture = 128 + 12 * rng.standard_normal((*size, 3), dtype=np.float32)
    for _ in range(20):
        across, down, *phases = rng.uniform(0.005, 0.4, 2).tolist() + rng.uniform(0, 6, 3).tolist()
        waves = rows * np.float32(across) + columns * np.float32(down)
        for channel, phase in enumerate(phases):
            picture[..., channel] += 14 * np.sign(np.sin(waves + np.float32(phase)))
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def write_photos(folder: Path, number: int, size: tuple[int, int] = PHOTO) -> None:
    """Writes the first `number` generated photos to `folder`."""
    for index in range(number):
        (folder / f"{index:04d}.jpg").write_bytes(generate_photo(index, size))


@final
class GeneratedPhotos(ListSource):
    """A data set of generated photos."""

    def __init__(self, number: int, different: int = 8) -> None:
        """A data set with `number` records that repeat `different` images."""
        self._number = number
        self._files = [generate_photo(index) for index in range(different)]

    def __len__(self) -> int:
        """Number of records."""
        return self._number

    def read(self, index: int) -> bytes:
        """The bytes of a JPEG file."""
        return self._files[index % len(self._files)]

    def name(self, index: int) -> str:
        """Name of a record in messages."""
        return f"generated photo {index}"


def timed_source(config: RunConfig) -> ListSource | ShardSource:
    """The training images of `config`, or two batches of generated photos if it names no data."""
    if is_without_path(config.data):
        return GeneratedPhotos(2 * config.optim.batch_size)
    return open_splits(config.data, config.run.seed).train
