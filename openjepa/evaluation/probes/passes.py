"""Steps of several passes over a training split, numbered so that a schedule ends where it was meant to."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from openjepa.refusals import Refusal

Batch = TypeVar("Batch")


def numbered_steps(epochs: int, steps_per_epoch: int, batches: Callable[[int], Iterable[Batch]]) -> Iterator[tuple[int, Batch]]:
    """Every batch of every epoch with the number of its step, epoch x steps_per_epoch + place in the epoch.

    `batches` starts the pass of an epoch, of at most `steps_per_epoch` batches. Unreadable images make a pass shorter, but do
    not shift the steps of the next. Raises Refusal at a pass without any batch: what is trained would stay as it was drawn.
    """
    for epoch in range(epochs):
        place = -1
        for place, batch in enumerate(batches(epoch)):
            yield epoch * steps_per_epoch + place, batch
        if place < 0:
            raise Refusal(
                "no image of the training split can be read, so that nothing can be trained; `openjepa data check` reads "
                "every image of a folder and says what is wrong"
            )
