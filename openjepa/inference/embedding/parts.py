"""Parts of an unfinished table X, in the folder X.parts. Any number of processes on any number of machines share them.

plan.json           settings, weights and images of the parts; a folder without it holds nothing of value
000012.features     rows of features one after the other, as in the table
000012.json         their images, what was skipped, a checksum; written last: if this file exists, the part is complete
.claims/            locks: for each part, for making and removing the folder, for assembling, and for working at all

`assemble` puts all parts together, row after row. It names the features of the table last: if they exist, the table is
complete.
"""

import csv
import glob
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from openjepa.config import readable_object
from openjepa.inference.embedding.embed_plan import EmbedPlan, Part
from openjepa.inference.embedding.table import (
    FEATURES,
    MEAN_KEY,
    METADATA_KEY,
    TABLE_COLUMNS,
    Manifest,
    TableRow,
    Tally,
    parquet_blocks,
)
from openjepa.refusals import Refusal
from openjepa.system.shared_files import Claim, own_name, take, whole_file
from openjepa.types import Skipped

COPIED_BYTES = 2**24
"""Bytes of a part that are read at a time."""
GROUP_ROWS, GROUP_BYTES = 4096, 2**26
"""Limits for one row group of a Parquet file: number of rows, and bytes of features."""


@dataclass(frozen=True)
class PartNote:
    """Facts about a finished part."""

    num_records: int
    """Number of its images, readable or not."""
    rows: list[tuple[int, int | None, str]]
    """For each row: number of its record in the part, label, name."""
    skipped: list[Skipped]
    num_bytes: int
    checksum: int
    """CRC-32 of the features."""


class PartsFolder:
    """The folder of the parts of one table."""

    def __init__(self, output: Path) -> None:
        """`output`: path of the table."""
        self.path = output.with_name(f"{output.name}.parts")
        self.plan_file = self.path / "plan.json"
        self._claims = self.path / ".claims"

    def exists(self) -> bool:
        """True if the folder holds a plan."""
        return self.plan_file.is_file()

    @contextmanager
    def set_up(self) -> Iterator[None]:
        """Makes the folder and keeps others from making or removing it. At the end removes it if it has no plan."""
        while True:
            try:
                self._claims.mkdir(parents=True, exist_ok=True)
                claim = take(self._claims / "plan", wait=True)
                break
            except FileNotFoundError:  # another process has just removed the folder
                continue
        assert claim is not None
        try:
            yield
        finally:
            if not self.exists():  # nothing was begun, or the rest is to be removed
                self._take_away()
            claim.release()

    def start_working(self) -> Claim:
        """Marks that a process works here, until the claim is released."""
        claim = take(self._claims / "working", wait=True, shared=True)
        assert claim is not None
        return claim

    def is_worked_in(self, patience_seconds: float) -> bool:
        """True if other processes work here. Waits up to `patience_seconds` for workers of a killed process to end."""
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
        """Locks the part for this process. Returns None if another holds it, it is finished, or the whole table is done."""
        if self.is_done(part):
            return None
        claim = self._take(_name(part.number))
        # another process may just have finished the part, or may be removing all parts, the plan first
        if claim is not None and (self.is_done(part) or not self.exists()):
            claim.release()
            return None
        return claim

    def claim_assembling(self) -> Claim | None:
        """Locks the right to put the parts together. Returns None if another process does so or has done so."""
        return self._take("assemble")

    def is_done(self, part: Part) -> bool:
        """True if the part is finished."""
        return self._note_file(part.number).is_file()

    def done(self) -> set[int]:
        """Numbers of the finished parts."""
        try:
            with os.scandir(self.path) as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:
            return set()
        return {int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdecimal()}

    def write_plan(self, text: str) -> None:
        """Starts over: removes all parts and writes the plan."""
        self.forget_all()
        with whole_file(self.plan_file) as file:
            file.write_text(text, encoding="utf-8")

    def forget_all(self) -> None:
        """Removes plan and parts. The plan goes first: without it, parts mean nothing. Call it inside `set_up`."""
        self.plan_file.unlink(missing_ok=True)
        for entry in list(self.path.iterdir()):
            if entry.is_file():
                entry.unlink(missing_ok=True)

    def writer(self, part: Part) -> "PartWriter":
        """A writer for a part that this process has claimed."""
        for leftover in self.path.glob(f".{_name(part.number)}.*"):
            leftover.unlink(missing_ok=True)  # left by a killed process
        return PartWriter(self._features_file(part.number), self._note_file(part.number))

    def note(self, number: int) -> PartNote:
        """The note of a finished part. If its files are damaged, removes the part and raises Refusal."""
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
        """Yields the features of a part, whole rows at a time. If they are damaged, removes the part and raises Refusal."""
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
        """Removes the folder. The lock that is held meanwhile goes last: who waits for it must find no other claims."""
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
    """Writes a part row by row. Other processes see nothing of it before it is finished."""

    def __init__(self, features: Path, note: Path) -> None:
        """`features`, `note`: the files that it writes."""
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
        """Completes the part: flushes its features to the disk and names its files."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._unfinished.replace(self._features)
        note = PartNote(num_records, rows, skipped, self._num_bytes, self._checksum)
        with whole_file(self._note_file) as file:
            file.write_text(json.dumps(asdict(note)), encoding="utf-8")

    def abort(self) -> None:
        """Removes everything of an unfinished part."""
        with suppress(OSError):  # a full disk may refuse the last flush
            self._file.close()
        self._unfinished.unlink(missing_ok=True)


def _name(number: int) -> str:
    return f"{number:06d}"


def skipped_file(output: Path) -> Path:
    """Path of the list of images that could not be read and have no row."""
    return output.with_name(f"{output.name}.skipped.jsonl")


def assemble(plan: EmbedPlan, parts: PartsFolder, output: Path, max_skipped: float) -> dict[str, int]:
    """Writes the table at `output`, reads it again, and returns the number of rows of each split.

    Raises Refusal if parts are damaged, or if too many images were skipped (after writing their list). Parts stay.
    """
    _remove_leftovers(output)
    rows_by_split, num_records = _write_skipped(plan, parts, output)
    num_rows = sum(rows_by_split.values())
    num_skipped = num_records - num_rows
    if num_rows == 0 or num_skipped > max_skipped * num_records:
        raise Refusal(
            f"{num_skipped:,} of {num_records:,} images could not be read, more than max_skipped={max_skipped:g}; they are "
            f"listed in {skipped_file(output)}. Repair or remove them and repeat the command with --again, or raise "
            "--max-skipped and repeat it: what was computed is kept"
        )
    manifest = replace(plan.manifest, skipped=num_skipped)
    write = _write_numpy if output.suffix == ".npy" else _write_parquet
    checksum = write(plan, parts, output, manifest, num_rows)
    _check(output, manifest, num_rows, checksum)
    return rows_by_split


def _remove_leftovers(output: Path) -> None:
    """Removes unfinished files of a process that was killed while it assembled. Only one process assembles at a time."""
    for path in (output, output.with_suffix(".csv"), output.with_suffix(".json"), skipped_file(output)):
        for leftover in output.parent.glob(f".{glob.escape(path.name)}.*.unfinished"):
            leftover.unlink(missing_ok=True)


def _notes(plan: EmbedPlan, parts: PartsFolder) -> Iterator[tuple[int, PartNote]]:
    """Yields the number and the note of each part."""
    for part in plan.parts:
        yield part.number, parts.note(part.number)


def _write_skipped(plan: EmbedPlan, parts: PartsFolder, output: Path) -> tuple[dict[str, int], int]:
    """Writes the list of skipped images, if there are any. Returns the number of rows of each split and of all records."""
    rows_by_split = dict.fromkeys((part.split for part in plan.parts), 0)
    num_records, place = 0, skipped_file(output)
    with whole_file(place) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        for number, note in _notes(plan, parts):
            split = plan.parts[number].split
            rows_by_split[split] += len(note.rows)
            num_records += note.num_records
            for item in note.skipped:
                file.write(_skipped_line(item, split))
    if place.stat().st_size == 0:
        place.unlink()
    return rows_by_split, num_records


def _skipped_line(item: Skipped, split: str) -> str:
    return json.dumps({"path": item.name, "split": split, "reason": item.reason, "kind": item.kind}) + "\n"


def _rows(plan: EmbedPlan, parts: PartsFolder) -> Iterator[tuple[int, PartNote, list[TableRow]]]:
    """Yields number, note and rows of each part. Rows are numbered within their split, in a stream across all shards."""
    next_record: dict[str, int] = {}
    for number, note in _notes(plan, parts):
        split = plan.parts[number].split
        first = next_record.get(split, 0)
        next_record[split] = first + note.num_records
        yield number, note, [TableRow(name, split, first + index, label) for index, label, name in note.rows]


def _write_numpy(plan: EmbedPlan, parts: PartsFolder, output: Path, manifest: Manifest, num_rows: int) -> int:
    """Writes the images, the manifest, and last the features. Returns the checksum of the features."""
    dtype = np.dtype(manifest.dtype)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (num_rows, *manifest.shape)}
    tally = Tally(manifest, num_rows)
    with whole_file(output) as unfinished:
        with unfinished.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for data in _features(plan, parts, manifest):
                file.write(data)
                tally.add(data)
        output.unlink(missing_ok=True)  # features of an older table must never stand beside the images of this one
        _write_images(plan, parts, output.with_suffix(".csv"))
        with whole_file(output.with_suffix(".json")) as described:
            described.write_text(replace(manifest, mean=tally.mean()).to_json() + "\n", encoding="utf-8")
    return tally.checksum


def _features(plan: EmbedPlan, parts: PartsFolder, manifest: Manifest) -> Iterator[bytes]:
    """Yields the features of all parts, whole rows at a time."""
    row_bytes = prod(manifest.shape) * np.dtype(manifest.dtype).itemsize
    for number, note in _notes(plan, parts):
        yield from parts.read(number, note, row_bytes)


def _write_images(plan: EmbedPlan, parts: PartsFolder, place: Path) -> None:
    with (
        whole_file(place) as unfinished,
        unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        usual = csv.writer(file, lineterminator="\n")
        quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        usual.writerow(TABLE_COLUMNS)
        for _, _, rows in _rows(plan, parts):
            for row in rows:
                writer = quoted if "\r" in row.path else usual  # Python before 3.13 does not quote such a name
                writer.writerow((row.path, row.split, row.index, "" if row.label is None else row.label))


def _write_parquet(plan: EmbedPlan, parts: PartsFolder, output: Path, manifest: Manifest, num_rows: int) -> int:
    """Writes images, manifest and features to one file. Returns the checksum of the features."""
    import pyarrow
    import pyarrow.parquet as parquet

    dtype = np.dtype(manifest.dtype)
    width = prod(manifest.shape)
    group_rows = max(1, min(GROUP_ROWS, GROUP_BYTES // (width * dtype.itemsize)))
    kinds: dict[str, Any] = {"path": pyarrow.string(), "split": pyarrow.string(), "index": pyarrow.int64()}
    kinds |= {"label": pyarrow.int64(), FEATURES: pyarrow.list_(pyarrow.from_numpy_dtype(dtype), width)}
    schema = pyarrow.schema(kinds.items(), metadata={METADATA_KEY: manifest.to_json().encode()})
    tally = Tally(manifest, num_rows)
    with (
        whole_file(output) as unfinished,
        # features neither repeat nor compress, so a dictionary or compression of them would only take time
        parquet.ParquetWriter(unfinished, schema, compression="none", use_dictionary=["split"], write_statistics=False) as file,
    ):
        for rows, features in _groups(plan, parts, group_rows, width, dtype):
            tally.add(features.tobytes())
            columns: list[list[Any]] = [[_text(row.path) for row in rows], [row.split for row in rows]]
            columns += [[row.index for row in rows], [row.label for row in rows]]
            lists = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.reshape(-1)), width)
            arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, list(kinds.values())[:4], strict=True)]
            file.write_table(pyarrow.Table.from_arrays([*arrays, lists], schema=schema), row_group_size=group_rows)
        file.add_key_value_metadata({MEAN_KEY: json.dumps(tally.mean()).encode()})
    return tally.checksum


def _groups(
    plan: EmbedPlan, parts: PartsFolder, group_rows: int, width: int, dtype: np.dtype[Any]
) -> Iterator[tuple[list[TableRow], NDArray[Any]]]:
    """Yields the rows in groups of `group_rows`. The last group may be smaller."""
    rows: list[TableRow] = []
    features = np.empty((0, width), dtype)
    for number, note, new in _rows(plan, parts):
        rows += new
        for data in parts.read(number, note, width * dtype.itemsize):
            features = np.concatenate([features, np.frombuffer(data, dtype).reshape(-1, width)])
            while len(features) >= group_rows:
                yield rows[:group_rows], features[:group_rows]
                rows, features = rows[group_rows:], features[group_rows:]
    if rows:
        yield rows, features


def _text(name: str) -> str:
    """The name with backslash escapes for bytes that are not valid Unicode. File names may hold such bytes, Parquet may not."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _check(output: Path, manifest: Manifest, num_rows: int, checksum: int) -> None:
    """Reads the table again. If it differs from what was written, removes it and raises Refusal."""
    found = num_found = 0
    at_a_time = max(1, GROUP_BYTES // (prod(manifest.shape) * np.dtype(manifest.dtype).itemsize))
    for block in _blocks(output, manifest, at_a_time):
        num_found += len(block)
        found = zlib.crc32(np.ascontiguousarray(block).tobytes(), found)
    if (num_found, found) != (num_rows, checksum):
        output.unlink()
        raise Refusal(f"{output} could not be read again as it was written: the disk is failing, or out of space. Try again")


def _blocks(output: Path, manifest: Manifest, num_rows: int) -> Iterator[NDArray[Any]]:
    """Yields blocks of features. Does not read the names of the images, which may be too many for the memory."""
    if output.suffix == ".parquet":
        for _, block in parquet_blocks(output, manifest, num_rows):
            yield block
        return
    features = np.load(output, mmap_mode="r", allow_pickle=False)
    for first in range(0, len(features), num_rows):
        yield features[first : first + num_rows]
