"""Treatment of unreadable samples: the next of the order replaces them, they are counted, and too many stop the run."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from openjepa.data.decode import DecodeError, kind_of, reason_of
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
        place, own = _fill_slot(slot, num_candidates, fill, name)
        places.append(place)
        skipped += [own] if own is not None else []
    return places, skipped


def _fill_slot(
    slot: int, num_candidates: int, fill: Callable[[int, int], None], name: Callable[[int], str]
) -> tuple[int, Skipped | None]:
    """The place that a slot was filled from, and why its own candidate was unusable."""
    own: Skipped | None = None
    is_gone = True
    for place in range(slot, num_candidates):
        try:
            fill(slot, place)
            return place, own
        except (DecodeError, OSError) as error:
            own = own or skipped_sample(name(slot), error)
            is_gone = is_gone and isinstance(error, OSError)
    reason = "" if own is None else own.reason
    advice = ". Is the folder still there, and its file system mounted?" if is_gone else ""
    raise Refusal(f"{num_candidates - slot} images in a row cannot be used; the first is {name(slot)}: {reason}{advice}")


def skipped_sample(name: str, error: Exception) -> Skipped:
    """The record of a sample that `error` says cannot be used."""
    return Skipped(name, reason_of(error), kind_of(error))


@dataclass(frozen=True)
class SkipCounts:
    """The counts of one process since they were last put together with those of the others."""

    num_seen: int = 0
    num_skipped: int = 0
    new: tuple[tuple[int, Skipped], ...] = ()
    """Skipped samples that were not known yet, each with the step that it was skipped in."""
    last: Skipped | None = None
    """The latest skipped sample, known or not."""


class SkipLedger:
    """Counts the samples that the loaders of all processes skipped, and stops the run if there are too many.

    `count` counts what this process has seen. `merge` puts the counts of all processes together, so that they all know, write
    and judge the same. The share is a share of slots. It therefore does not change if the same bad file is met again in every
    epoch. Nothing is judged before `min_seen` samples.
    """

    def __init__(
        self, max_share: float, min_seen: int = 256, known: Iterable[str] = (), num_seen: int = 0, num_skipped: int = 0
    ) -> None:
        """`known`, `num_seen` and `num_skipped` are the counts of the interrupted run that this one continues."""
        self.max_share = max_share
        self.min_seen = min_seen
        self.num_seen = num_seen
        """Samples of all processes, up to the last `merge`."""
        self.num_skipped = num_skipped
        """Those of them that were skipped."""
        self._names = set(known)
        self._last: Skipped | None = None
        self._own = SkipCounts()

    def count(self, batch: Batch, step: int) -> None:
        """Counts a batch that this process has used in `step`."""
        seen, skipped = self._own.num_seen + len(batch.sample_ids), self._own.num_skipped + len(batch.skipped)
        last = batch.skipped[-1] if batch.skipped else self._own.last
        new = tuple((step, sample) for sample in batch.skipped if sample.name not in self._names)
        self._own = SkipCounts(seen, skipped, self._own.new + new, last)

    def take(self) -> SkipCounts:
        """The counts of this process since the last call, to be sent to all processes."""
        taken, self._own = self._own, SkipCounts()
        return taken

    def merge(self, counts: Sequence[SkipCounts]) -> list[tuple[int, Skipped]]:
        """Adds the counts of all processes, in their order. Returns the newly skipped samples, which belong in skipped.jsonl.

        Each comes with the step that it was first skipped in. Earlier steps come first.
        """
        found: list[tuple[int, Skipped]] = []
        for step, sample in sorted(chain.from_iterable(part.new for part in counts), key=lambda pair: pair[0]):
            if sample.name not in self._names:
                self._names.add(sample.name)
                found.append((step, sample))
        self.num_seen += sum(part.num_seen for part in counts)
        self.num_skipped += sum(part.num_skipped for part in counts)
        self._last = next((part.last for part in reversed(counts) if part.last is not None), self._last)
        return found

    def raise_if_too_many(self) -> None:
        """Raises Refusal if more than `max_share` were skipped, in all processes alike.

        Call it after `merge`, and after the samples are written down.
        """
        if self.num_seen < self.min_seen or self.num_skipped <= self.max_share * self.num_seen:
            return
        last = self._last or Skipped("see skipped.jsonl", "unreadable")
        raise Refusal(
            f"{self.num_skipped} of {self.num_seen} images could not be used, more than data.max_skipped="
            f"{self.max_share:g}; the last: {last.name} ({last.reason}). All are listed in skipped.jsonl: repair or remove "
            "them, or raise data.max_skipped"
        )
