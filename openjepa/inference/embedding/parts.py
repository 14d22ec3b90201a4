"""The parts of an unfinished table X in the folder X.parts, shared by any number of processes on any number of machines.

plan.json           which settings, weights and images the parts are of; a folder without it holds nothing of value
000012.features     rows of features one after the other, as they will stand in the table
000012.json         their images, what was skipped, a checksum: written last, so that a part is whole where it is there
.claims/            locks: of each part, of setting up and taking away the folder, of assembling, and of working at all

Progress of the whole table, over all processes that compute parts of it.
"""

import json
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from openjepa.inference.embedding.plan import Part, Plan
from openjepa.refusals import Refusal
from openjepa.system.claims import Claim, take
from openjepa.system.json_files import readable_object
from openjepa.system.whole_files import own_name, whole_file
from openjepa.types import Skipped

COPIED_BYTES = 2**24
"""Of a part that is read at a time."""


@dataclass(frozen=True)
class PartNote:
    """What is known of a part that is whole."""

    num_records: int
    """Images it was made of, readable or not."""
    rows: list[tuple[int, int | None, str]]
    """Of each row: number of its record in the part, label, name."""
    skipped: list[Skipped]
    num_bytes: int
    checksum: int
    """CRC-32 of the features."""


class PartsFolder:
    """The folder of the parts of one table."""

    def __init__(self, output: Path) -> None:
        """`output`: the table."""
        self.path = output.with_name(f"{output.name}.parts")
        self.plan_file = self.path / "plan.json"
        self._claims = self.path / ".claims"

    def exists(self) -> bool:
        """Whether there is a plan in it."""
        return self.plan_file.is_file()

    @contextmanager
    def set_up(self) -> Iterator[None]:
        """Makes the folder; inside no other process sets it up or takes it away. Without a plan it is gone at the end."""
        while True:
            try:
                self._claims.mkdir(parents=True, exist_ok=True)
                claim = take(self._claims / "plan", wait=True)
                break
            except FileNotFoundError:  # it was taken away just now
                continue
        assert claim is not None
        try:
            yield
        finally:
            if not self.exists():  # nothing was begun, or what is left was to be removed
                self._take_away()
            claim.release()

    def start_working(self) -> Claim:
        """Says until it is released that a process works here."""
        claim = take(self._claims / "working", wait=True, shared=True)
        assert claim is not None
        return claim

    def is_worked_in(self, patience_seconds: float) -> bool:
        """Whether other processes work here; for so long they may end, as workers of a killed process do after seconds."""
        deadline = time.monotonic() + patience_seconds
        while True:
            alone = take(self._claims / "working")
            if alone is not None:
                alone.release()
                return False
            if time.monotonic() >= deadline:
                return True
            time.sleep(0.1)

    def claim(self, part: Part) -> Claim | None:
        """The part, for this process alone; None where another has it, where it is whole, and where all is over."""
        if self.is_done(part):
            return None
        claim = self._take(_name(part.number))
        # it may have been done since; or it is not there because another process removes all parts, the plan first
        if claim is not None and (self.is_done(part) or not self.exists()):
            claim.release()
            return None
        return claim

    def claim_assembling(self) -> Claim | None:
        """The right to put the parts together; None where another process does or has done so."""
        return self._take("assemble")

    def is_done(self, part: Part) -> bool:
        """Whether the part is whole."""
        return self._note_file(part.number).is_file()

    def done(self) -> set[int]:
        """Numbers of the parts that are whole."""
        try:
            with os.scandir(self.path) as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:
            return set()
        return {int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdecimal()}

    def write_plan(self, text: str) -> None:
        """Begins anew: whatever parts there were are gone."""
        self.forget_all()
        with whole_file(self.plan_file) as file:
            file.write_text(text, encoding="utf-8")

    def forget_all(self) -> None:
        """Removes plan and parts, the plan first, without which the rest means nothing; call it inside `set_up`."""
        self.plan_file.unlink(missing_ok=True)
        for entry in list(self.path.iterdir()):
            if entry.is_file():
                entry.unlink(missing_ok=True)

    def writer(self, part: Part) -> "PartWriter":
        """Writes the part, which must be claimed."""
        for leftover in self.path.glob(f".{_name(part.number)}.*"):
            leftover.unlink(missing_ok=True)  # of a process that was killed
        return PartWriter(self._features_file(part.number), self._note_file(part.number))

    def note(self, number: int) -> PartNote:
        """What is known of a part that is whole. Raises Refusal where its files are not, and forgets it then."""
        file = self._note_file(number)
        entries = readable_object(file) or {}
        try:
            note = PartNote(
                num_records=entries["num_records"],
                rows=[(index, label, name) for index, label, name in entries["rows"]],
                skipped=[Skipped(**item) for item in entries["skipped"]],
                num_bytes=entries["num_bytes"],
                checksum=entries["checksum"],
            )
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(number) from error
        features = self._features_file(number)
        if not features.is_file() or features.stat().st_size != note.num_bytes:
            raise self._damaged(number)
        return note

    def read(self, number: int, note: PartNote, row_bytes: int) -> Iterator[bytes]:
        """The features of a part, whole rows at a time. Raises Refusal where they are damaged, and forgets the part then."""
        checksum = 0
        with self._features_file(number).open("rb") as file:
            while data := file.read(max(1, COPIED_BYTES // row_bytes) * row_bytes):
                checksum = zlib.crc32(data, checksum)
                yield data
        if checksum != note.checksum:
            raise self._damaged(number)

    def _damaged(self, number: int) -> Refusal:
        self._note_file(number).unlink(missing_ok=True)
        return Refusal(
            f"part {number} in {self.path} was damaged on the disk and has been dropped: repeat the same command, which "
            "computes it again"
        )

    def _take_away(self) -> None:
        """Removes the folder, last the lock that is held meanwhile: whoever waits for it must find no other claims."""
        for claim in list(self._claims.iterdir()):
            if claim.name != "plan":
                claim.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def _take(self, name: str) -> Claim | None:
        try:
            return take(self._claims / name)
        except FileNotFoundError:
            return None

    def _features_file(self, number: int) -> Path:
        return self.path / f"{_name(number)}.features"

    def _note_file(self, number: int) -> Path:
        return self.path / f"{_name(number)}.json"


class PartWriter:
    """Writes a part row by row; nothing of it is seen before it is whole."""

    def __init__(self, features: Path, note: Path) -> None:
        """The files it will be."""
        self._features, self._note_file = features, note
        self._unfinished = own_name(features, "unfinished")
        self._file: BinaryIO = self._unfinished.open("wb")
        self._checksum = self._num_bytes = 0

    def append(self, rows: NDArray[Any]) -> None:
        """Adds rows of features [n, *shape]."""
        data = rows.tobytes()
        self._file.write(data)
        self._checksum = zlib.crc32(data, self._checksum)
        self._num_bytes += len(data)

    def finish(self, num_records: int, rows: list[tuple[int, int | None, str]], skipped: list[Skipped]) -> None:
        """The part is whole."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._unfinished.replace(self._features)
        note = PartNote(num_records, rows, skipped, self._num_bytes, self._checksum)
        with whole_file(self._note_file) as file:
            file.write_text(json.dumps(asdict(note)), encoding="utf-8")

    def abort(self) -> None:
        """Leaves nothing of an unfinished part."""
        with suppress(OSError):  # a full disk refuses what was still to be flushed
            self._file.close()
        self._unfinished.unlink(missing_ok=True)


def _name(number: int) -> str:
    return f"{number:06d}"


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
