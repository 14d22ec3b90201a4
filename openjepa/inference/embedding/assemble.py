"""All parts -> the table, row after row; its features get their name last, so that a table that is there is whole."""

import csv
import glob
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openjepa.inference.embedding.parts import PartNote, PartsFolder
from openjepa.inference.embedding.plan import Plan
from openjepa.inference.embedding.table import COLUMNS, FEATURES, MEAN_KEY, METADATA_KEY, Manifest, Row, Tally, parquet_blocks
from openjepa.refusals import Refusal
from openjepa.system.whole_files import whole_file
from openjepa.types import Skipped

GROUP_ROWS, GROUP_BYTES = 4096, 2**26
"""Of a row group of a Parquet file: at most so many rows, and of features."""


@dataclass(frozen=True)
class Assembled:
    """What a table holds."""

    rows_by_split: dict[str, int]
    num_skipped: int
    checksum: int
    """CRC-32 of all features."""


def skipped_file(output: Path) -> Path:
    """The list of images that have no row."""
    return output.with_name(f"{output.name}.skipped.jsonl")


def assemble(plan: Plan, parts: PartsFolder, output: Path, max_skipped: float) -> Assembled:
    """Writes the table at `output` and reads it again.

    Raises Refusal where too many images were skipped (their list is written), and for damaged parts. Parts stay.
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
    return Assembled(rows_by_split, num_skipped, checksum)


def _remove_leftovers(output: Path) -> None:
    """Unfinished files of a process that was killed while it assembled; only one assembles at a time."""
    for path in (output, output.with_suffix(".csv"), output.with_suffix(".json"), skipped_file(output)):
        for leftover in output.parent.glob(f".{glob.escape(path.name)}.*.unfinished"):
            leftover.unlink(missing_ok=True)


def _notes(plan: Plan, parts: PartsFolder) -> Iterator[tuple[int, PartNote]]:
    """Number of each part and what is known of it, one at a time."""
    for part in plan.parts:
        yield part.number, parts.note(part.number)


def _write_skipped(plan: Plan, parts: PartsFolder, output: Path) -> tuple[dict[str, int], int]:
    """The list of skipped images, where there are any; rows of each split, and records in all."""
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
    return json.dumps({"path": item.name, "split": split, "reason": item.reason}) + "\n"


def _rows(plan: Plan, parts: PartsFolder) -> Iterator[tuple[int, PartNote, list[Row]]]:
    """Of each part its number, its note and its rows, numbered in the split; a stream's numbers go on from shard to shard."""
    next_record: dict[str, int] = {}
    for number, note in _notes(plan, parts):
        split = plan.parts[number].split
        first = next_record.get(split, 0)
        next_record[split] = first + note.num_records
        yield number, note, [Row(name, split, first + index, label) for index, label, name in note.rows]


def _write_numpy(plan: Plan, parts: PartsFolder, output: Path, manifest: Manifest, num_rows: int) -> int:
    """The images, the manifest, and at last the features. Returns the checksum of these."""
    dtype = np.dtype(manifest.dtype)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (num_rows, *manifest.shape)}
    tally = Tally(manifest, num_rows)
    with whole_file(output) as unfinished:
        with unfinished.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for data in _features(plan, parts, manifest):
                file.write(data)
                tally.add(data)
        output.unlink(missing_ok=True)  # an older table: its features must never stand beside the images of this one
        _write_images(plan, parts, output.with_suffix(".csv"))
        with whole_file(output.with_suffix(".json")) as described:
            described.write_text(replace(manifest, mean=tally.mean()).to_json() + "\n", encoding="utf-8")
    return tally.checksum


def _features(plan: Plan, parts: PartsFolder, manifest: Manifest) -> Iterator[bytes]:
    """The features of all parts, whole rows at a time."""
    row_bytes = prod(manifest.shape) * np.dtype(manifest.dtype).itemsize
    for number, note in _notes(plan, parts):
        yield from parts.read(number, note, row_bytes)


def _write_images(plan: Plan, parts: PartsFolder, place: Path) -> None:
    with (
        whole_file(place) as unfinished,
        unfinished.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        usual = csv.writer(file, lineterminator="\n")
        quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        usual.writerow(COLUMNS)
        for _, _, rows in _rows(plan, parts):
            for row in rows:
                writer = quoted if "\r" in row.path else usual  # Python before 3.13 does not see that such a name needs it
                writer.writerow((row.path, row.split, row.index, "" if row.label is None else row.label))


def _write_parquet(plan: Plan, parts: PartsFolder, output: Path, manifest: Manifest, num_rows: int) -> int:
    """One file. Returns the checksum of its features."""
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
        # numbers of features neither repeat nor shrink, so that looking for that would only take time
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
    plan: Plan, parts: PartsFolder, group_rows: int, width: int, dtype: np.dtype[Any]
) -> Iterator[tuple[list[Row], NDArray[Any]]]:
    """The rows in groups of that size but for the last one."""
    rows: list[Row] = []
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
    """A name that is no valid Unicode, as file names may be, is written with backslashes: Parquet has no other strings."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def _check(output: Path, manifest: Manifest, num_rows: int, checksum: int) -> None:
    """Reads the table again. Raises Refusal, and removes it, where it is not what was written."""
    found = num_found = 0
    at_a_time = max(1, GROUP_BYTES // (prod(manifest.shape) * np.dtype(manifest.dtype).itemsize))
    for block in _blocks(output, manifest, at_a_time):
        num_found += len(block)
        found = zlib.crc32(np.ascontiguousarray(block).tobytes(), found)
    if (num_found, found) != (num_rows, checksum):
        output.unlink()
        raise Refusal(f"{output} could not be read again as it was written: the disk is failing, or out of space. Try again")


def _blocks(output: Path, manifest: Manifest, num_rows: int) -> Iterator[NDArray[Any]]:
    """Without the names of the images, which may be too many for the memory."""
    if output.suffix == ".parquet":
        for _, block in parquet_blocks(output, manifest, num_rows):
            yield block
        return
    features = np.load(output, mmap_mode="r", allow_pickle=False)
    for first in range(0, len(features), num_rows):
        yield features[first : first + num_rows]
