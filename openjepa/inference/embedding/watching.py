"""Progress of the whole table, over all processes that compute parts of it."""

import time
from collections.abc import Callable

from openjepa.inference.embedding.parts import PartsFolder
from openjepa.inference.embedding.plan import Plan

SECONDS_BETWEEN_LOOKS = 1.0


class Watch:
    """Counts records of this process one by one, and those of other processes part by part as they finish them."""

    def __init__(self, plan: Plan, parts: PartsFolder, known: set[int], advance: Callable[[int], None]) -> None:
        """`known`: parts that are done and counted. `advance`: told of new records."""
        self._plan, self._parts, self._known, self._advance = plan, parts, set(known), advance
        self._last_look = time.monotonic()

    def seen(self, num_records: int) -> None:
        """This process has done so many more."""
        if num_records:
            self._advance(num_records)
        self.look()

    def finished(self, part: int) -> None:
        """This process has finished a part, whose records it has counted."""
        self._known.add(part)

    def look(self) -> None:
        """Looks what others have done, not too often."""
        if time.monotonic() - self._last_look < SECONDS_BETWEEN_LOOKS:
            return
        new = self._parts.done() - self._known
        self._known |= new
        self._advance(sum(records_of(number, self._plan, self._parts) for number in new))
        self._last_look = time.monotonic()


def records_of(number: int, plan: Plan, parts: PartsFolder) -> int:
    """Records of a part that is done."""
    planned = plan.parts[number].num_records
    if planned is not None:
        return planned
    try:
        return parts.note(number).num_records
    except (OSError, ValueError):  # it is gone: all is over
        return 0
