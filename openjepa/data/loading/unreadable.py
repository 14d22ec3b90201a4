"""Treatment of unreadable samples: the next of the order replaces them, they are counted, and too many stop the run."""

from collections.abc import Callable, Iterable

from openjepa.data.decode import DecodeError, reason_of
from openjepa.refusals import Refusal
from openjepa.types import Batch, Skipped


def fill_slots(
    num: int, num_candidates: int, fill: Callable[[int, int], None], name: Callable[[int], str]
) -> tuple[list[int], list[Skipped]]:
    """Fills `num` slots. A slot takes the candidate at its own place, or the next readable one after it.

    `fill(slot, place)` raises DecodeError or OSError if the candidate is unusable. Returns the place that each slot was filled
    from, and the skipped samples of these slots. An unusable candidate is counted only in its own slot. Raises Refusal if no
    candidate is left.
    """
    places: list[int] = []
    skipped: list[Skipped] = []
    for slot in range(num):
        place, reason = _fill_slot(slot, num_candidates, fill, name)
        places.append(place)
        if place != slot:
            skipped.append(Skipped(name(slot), reason))
    return places, skipped


def _fill_slot(slot: int, num_candidates: int, fill: Callable[[int, int], None], name: Callable[[int], str]) -> tuple[int, str]:
    """The place that a slot was filled from, and why its own candidate was unusable."""
    reason = ""
    for place in range(slot, num_candidates):
        try:
            fill(slot, place)
            return place, reason
        except (DecodeError, OSError) as error:
            reason = reason or reason_of(error)
    raise Refusal(f"{num_candidates - slot} images in a row cannot be used; the first is {name(slot)}: {reason}")


class SkipLedger:
    """Counts the samples that the loader skipped, and stops the run if there are too many.

    `count` returns the newly skipped samples, which belong in skipped.jsonl. The share is a share of slots. It therefore does
    not change if the same bad file is met again in every epoch. Nothing is judged before `min_seen` samples.
    """

    def __init__(
        self, max_share: float, min_seen: int = 256, known: Iterable[str] = (), num_seen: int = 0, num_skipped: int = 0
    ) -> None:
        """`known`, `num_seen` and `num_skipped` are the counts of the interrupted run that this one continues."""
        self.max_share = max_share
        self.min_seen = min_seen
        self.num_seen = num_seen
        self.num_skipped = num_skipped
        self._names = set(known)
        self._last: Skipped | None = None

    def count(self, batch: Batch) -> list[Skipped]:
        """Counts a batch. Returns those of its skipped samples that were not known yet."""
        self.num_seen += len(batch.sample_ids)
        self.num_skipped += len(batch.skipped)
        new = [skipped for skipped in batch.skipped if skipped.name not in self._names]
        self._names.update(skipped.name for skipped in new)
        self._last = batch.skipped[-1] if batch.skipped else self._last
        return new

    def raise_if_too_many(self) -> None:
        """Raises Refusal if more than `max_share` were skipped. Call it after the samples are written down."""
        if self.num_seen < self.min_seen or self.num_skipped <= self.max_share * self.num_seen:
            return
        last = self._last or Skipped("see skipped.jsonl", "unreadable")
        raise Refusal(
            f"{self.num_skipped} of {self.num_seen} images could not be used, more than data.max_skipped="
            f"{self.max_share:g}; the last: {last.name} ({last.reason}). All are listed in skipped.jsonl: repair or remove "
            "them, or raise data.max_skipped"
        )
