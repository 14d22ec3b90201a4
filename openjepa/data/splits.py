"""Images in the view that is evaluated, in their order, for features and probes."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Int, UInt8
from numpy.typing import NDArray
from torch import Tensor

from openjepa.data.decode import decode_image
from openjepa.data.loading.unreadable import reason_of
from openjepa.data.loading.workers import parallel_map
from openjepa.data.source import ListSource
from openjepa.data.views import decoded_side, evaluation_view
from openjepa.seeds import derive_samples
from openjepa.types import Skipped

CHUNK = 64
"""Images a worker hands over at a time."""


@dataclass(frozen=True)
class EvalBatch:
    """Some images of a source."""

    images: UInt8[Tensor, "B 3 h w"]
    labels: Int[Tensor, " B"] | None
    indices: Int[Tensor, " B"]
    """Their numbers in the source; unreadable ones are left out."""


@dataclass(frozen=True)
class _EvaluationReader:
    """Decodes and resizes a chunk; the worker's part."""

    source: ListSource
    size: tuple[int, int]
    fit: str

    def __call__(self, indices: NDArray[np.int64]) -> tuple[UInt8[Tensor, "n 3 h w"], list[int], list[Skipped]]:
        records = [Record(self.source.name(index), partial(self.source.read, index)) for index in indices.tolist()]
        images, places, unreadable = evaluation_views(records, self.size, self.fit)
        return images, indices[places].tolist(), unreadable


@dataclass(frozen=True)
class Record:
    """An image file that is to be decoded."""

    name: str
    read: Callable[[], bytes]


def evaluation_views(
    records: Sequence[Record],
    size: tuple[int, int],
    fit: str,
    every: Callable[[Callable[[int], str | None], Iterable[int]], Iterable[str | None]] = map,
) -> tuple[UInt8[Tensor, "n 3 h w"], list[int], list[Skipped]]:
    """Views of the records that can be read, their places among all, and those that cannot be read with the reason.

    `every`: calls a function for every place, as `map` does, or a pool of threads.
    """
    images = torch.empty((len(records), 3, *size), dtype=torch.uint8)
    enough = decoded_side(size)

    def problem(place: int) -> str | None:
        try:
            pixels = torch.from_numpy(decode_image(records[place].read(), enough))
        except (ValueError, OSError) as error:
            return reason_of(error)
        images[place] = evaluation_view(pixels, size, fit)
        return None

    reasons = list(every(problem, range(len(records))))
    places = [place for place, reason in enumerate(reasons) if reason is None]
    unreadable = [Skipped(records[place].name, reason) for place, reason in enumerate(reasons) if reason is not None]
    return (images[places] if unreadable else images), places, unreadable


def evaluation_batches(
    source: ListSource,
    image_size: tuple[int, int],
    batch_size: int = 256,
    workers: int = 0,
    *,
    fit: str = "crop",
    max_images: int | None = None,
    seed: int = 0,
    first: int = 0,
    unreadable: list[Skipped] | None = None,
) -> Iterator[EvalBatch]:
    """The images of a source in order, `batch_size` at a time.

    `fit`: `crop` (short side to 256/224 of the size, center crop) or `squash`. `max_images`: only so many, drawn with the seed.
    `first`: records with smaller numbers are passed over. Images that cannot be read are left out and added to `unreadable`;
    where that is None, a warning at the end counts them.
    """
    indices = np.arange(len(source))
    if max_images is not None and max_images < len(source):
        keys = derive_samples("subset", seed, np.array([2]), indices)
        indices = np.sort(np.argsort(keys, kind="stable")[:max_images])
    indices = indices[indices >= first]
    found: list[Skipped] = [] if unreadable is None else unreadable
    chunks = (indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK))
    reader = _EvaluationReader(source, image_size, fit)
    images: list[Tensor] = []
    numbers: list[int] = []
    for chunk_images, used, failed in parallel_map(reader, chunks, workers, ahead=2 * -(-batch_size // CHUNK)):
        images.append(chunk_images)
        numbers.extend(used)
        found.extend(failed)
        while len(numbers) >= batch_size:
            joined = torch.cat(images)
            yield _batch(source, joined[:batch_size], numbers[:batch_size])
            images, numbers = [joined[batch_size:]], numbers[batch_size:]
    if numbers:
        yield _batch(source, torch.cat(images), numbers)
    if unreadable is None and found:
        warnings.warn(
            f"{len(found)} of {len(indices)} images to be evaluated cannot be read and are left out; the first is "
            f"{found[0].name}: {found[0].reason}",
            stacklevel=2,
        )


def _batch(source: ListSource, images: Tensor, numbers: list[int]) -> EvalBatch:
    labels = None if source.labels is None else torch.from_numpy(source.labels[numbers])
    return EvalBatch(images, labels, torch.tensor(numbers, dtype=torch.int64))
