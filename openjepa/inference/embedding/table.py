"""The table that `openjepa embed` writes: features, their images, and how the features were made. Free of torch.

`X.npy` is an array [n, D] (or [n, H, W, D] for features of patches). The images are listed in `X.csv`, and the manifest is
`X.json`. `X.parquet` holds all three in one file: the manifest in the metadata of the schema under `openjepa`, the mean of the
features in the metadata of the file under `openjepa.mean`, and each row of features as a list of fixed length.

The manifest keeps the mean of all features, because a centered search needs it and computing it takes as long as the search.
The mean is used only if the table still has the same number of rows and the same values in a sample of them. If features were
filtered, normalized or reordered since, the mean is computed again.
"""

import base64
import csv
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from openjepa.config import nearest_names, object_in, readable, readable_object, typed
from openjepa.refusals import Refusal, require_package
from openjepa.system.console import command
from openjepa.system.shared_files import is_writable

FORMAT, VERSION = "openjepa-features", 1
TABLE_COLUMNS = ("path", "split", "index", "label")
"""Columns of the list of images: name in the source, split, number in the split, and class number (empty without a label)."""
FEATURES = "features"
"""Column of the features in a Parquet file."""
METADATA_KEY, MEAN_KEY = b"openjepa", b"openjepa.mean"
ENDINGS = (".npy", ".parquet")
FEATURE_AXES = {"pooled": 1, "patches": 3}
"""Number of axes of the features of one image, by kind."""
SAMPLE = 1024
"""Number of evenly spread rows that are compared to decide if the kept mean is still right; all rows of a smaller table.

Changes to other rows move the mean by less than a thousandth of the change. Parquet files need no sample: they cannot be
changed in place, and a program that rewrites one drops the mean.
"""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """How the features were made: enough to embed another image the same way, and to find the images again."""

    subject: str
    """Argument for `openjepa.load`: an absolute path, or a name on the Hub."""
    encoder: Literal["target", "context"] = "target"
    heads: int | None = None
    weights: str
    """Hash of the weights."""
    kind: Literal["pooled", "patches"]
    shape: tuple[int, ...]
    """Shape of the features of one image: (D,) or (H, W, D)."""
    dtype: Literal["float16", "float32"]
    pooling: Literal["average", "class_token"]
    """How one vector per image is made. In a table of patches: how it would be made."""
    view: Literal["crop", "squash"]
    size: tuple[int, int]
    """Height and width of the images as the encoder saw them, in pixels."""
    precision: Literal["bf16", "fp32"]
    data: dict[str, Any] = field(default_factory=dict)
    """Settings of the data source (`openjepa.config.to_dict`)."""
    splits: tuple[str, ...] = ("train",)
    """Splits of the source, in the order of the rows."""
    seed: int = 0
    """Seed with which the source was opened."""
    images: str = ""
    """Splits, numbers of images and hashes of their names. Differs for other images."""
    files: str = ""
    """Hash of sizes and times of the images' files. Differs if files were overwritten in place. Empty in older tables."""
    class_names: tuple[str, ...] = ()
    """Names of the labels, if the data has them."""
    skipped: int = 0
    """Number of images that could not be read and have no row."""
    mean: dict[str, Any] = field(default_factory=dict)
    """Mean of the features of all images (`Tally.mean`); empty if it is not known."""

    def to_json(self) -> str:
        """The manifest as JSON."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1)


def manifest_from_json(text: str | bytes, where: str) -> Manifest:
    """Reads a manifest that `to_json` wrote. `where`: what errors call the text. Raises Refusal for any other text."""
    mend = "embed the images again"
    try:
        entries = object_in(text.decode() if isinstance(text, bytes) else text, where, mend)
    except UnicodeDecodeError as error:
        raise Refusal(f"{where} is not valid JSON ({error}); {mend}") from error
    if entries.pop("format", None) != FORMAT:
        raise Refusal(f"{where} does not describe features that openjepa embed wrote")
    if (version := entries.pop("version", None)) != VERSION:
        raise Refusal(f"{where} has version {version!r}; this openjepa reads version {VERSION}: embed the images again")
    if not isinstance(entries.get("mean"), dict):  # damaged: the mean then counts as not known
        entries.pop("mean", None)
    manifest = typed(Manifest, entries, where, mend)
    if len(manifest.shape) != FEATURE_AXES[manifest.kind] or min(manifest.shape) < 1:
        raise Refusal(
            f"{where} is damaged: features of kind {manifest.kind} cannot have the shape {list(manifest.shape)}; embed the "
            "images again"
        )
    return manifest


@dataclass(frozen=True, slots=True)
class TableRow:
    """The image of one row."""

    path: str
    """Its name in the source: for a folder, the path below it."""
    split: str
    index: int
    """Its number in the split."""
    label: int | None


class TableRows(Sequence[TableRow]):
    """The images of all rows. A `TableRow` is made only when it is read, because a search names ten of a million images."""

    def __init__(
        self, paths: Sequence[str], splits: Sequence[str], indices: Sequence[int], labels: Sequence[int | None]
    ) -> None:
        """The columns of the table. All have the same length."""
        self._paths, self._splits, self._indices, self._labels = paths, splits, indices, labels

    def __len__(self) -> int:
        """Number of images."""
        return len(self._paths)

    @overload
    def __getitem__(self, place: int) -> TableRow: ...

    @overload
    def __getitem__(self, place: slice) -> "TableRows": ...

    def __getitem__(self, place: int | slice) -> "TableRow | TableRows":
        """The image of one row, or the images of a slice."""
        if isinstance(place, slice):
            return TableRows(self._paths[place], self._splits[place], self._indices[place], self._labels[place])
        return TableRow(self._paths[place], self._splits[place], self._indices[place], self._labels[place])


class FeatureTable:
    """Features of n images and the images themselves, opened by `open_table`. Features are read block by block."""

    def __init__(self, path: Path, manifest: Manifest, rows: Sequence[TableRow], features: NDArray[Any] | None) -> None:
        """`features`: a mapped file; None for Parquet, which is read block by block."""
        self.path, self.manifest, self.rows = path, manifest, rows
        self._features = features

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def blocks(self, num_rows: int, start: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yields (number of the first row, features [b, *shape]) of consecutive blocks of at most `num_rows` images.

        `start`: the first row. Blocks of `.npy` are views into the mapped file.
        """
        if self._features is None:
            yield from parquet_blocks(self.path, self.manifest, num_rows, start)
            return
        for first in range(start, len(self), num_rows):
            yield first, self._features[first : first + num_rows]

    def features(self, index: int) -> NDArray[Any]:
        """Features of one image [*shape]."""
        block: NDArray[Any] = next(block for _, block in self.blocks(1, index))
        return block[0]  # type: ignore[no-any-return]


def open_table(path: Path) -> FeatureTable:
    """Opens a table that `openjepa embed` wrote. `path` ends in .npy or .parquet.

    Raises Refusal if it is missing or damaged, or if another program wrote it.
    """
    if path.is_dir():
        raise Refusal(f"{path} is a folder: name a file of features, X.npy or X.parquet, that openjepa embed wrote")
    if not path.is_file():
        unfinished = path.with_name(f"{path.name}.parts")
        hint = (
            "it is not finished: repeat the same `openjepa embed` to complete it" if unfinished.exists() else "it is not there"
        )
        raise Refusal(f"{path} cannot be searched: {hint}")
    if path.suffix == ".npy":
        return _open_numpy(path)
    if path.suffix == ".parquet":
        return _open_parquet(path)
    raise Refusal(f"{path} is no file of features: openjepa embed writes .npy or .parquet")


def _open_numpy(path: Path) -> FeatureTable:
    manifest_path, csv_path = path.with_suffix(".json"), path.with_suffix(".csv")
    if missing := [item.name for item in (manifest_path, csv_path) if not item.is_file()]:
        raise Refusal(f"{path} lacks {' and '.join(missing)} beside it, which openjepa embed writes with it")
    manifest = manifest_from_json(manifest_path.read_bytes(), str(manifest_path))
    try:
        with csv_path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            lines = csv.reader(file)
            if next(lines, None) != list(TABLE_COLUMNS):
                raise Refusal(f"its first line is not {','.join(TABLE_COLUMNS)}")
            rows = _rows(lines)
    except (ValueError, csv.Error) as error:
        raise Refusal(f"{csv_path} is damaged or cut off ({error}); embed the images again") from error
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        what = "it is no array of numbers in NumPy's format"
        raise Refusal(f"{path} is damaged or cut off: {what}; embed the images again") from error
    if features.shape != (len(rows), *manifest.shape) or features.dtype != np.dtype(manifest.dtype):
        raise Refusal(
            f"{path} holds {features.dtype} {list(features.shape)}, but {csv_path.name} and {manifest_path.name} describe "
            f"{manifest.dtype} {[len(rows), *manifest.shape]}; embed the images again"
        )
    return FeatureTable(path, manifest, rows, features)


def _rows(lines: Iterable[list[str]]) -> TableRows:
    """The images in the lines of a CSV file. Raises ValueError if a line cannot be read."""
    paths: list[str] = []
    splits: list[str] = []
    indices: list[int] = []
    labels: list[int | None] = []
    for path, split, index, label in lines:
        paths.append(path)
        splits.append(split)
        indices.append(int(index))
        labels.append(int(label) if label else None)
    return TableRows(paths, splits, indices, labels)


def parquet_manifest(path: Path) -> Manifest:
    """The manifest in the metadata of a Parquet file, including the mean. Raises Refusal if there is none."""
    import pyarrow.parquet as parquet

    try:
        entries = parquet.read_metadata(path).metadata or {}
    except (OSError, ValueError) as error:
        raise Refusal(f"{path} is no file of features that openjepa embed wrote ({error})") from error
    if METADATA_KEY not in entries:
        raise Refusal(f"{path} is no file of features that openjepa embed wrote (its metadata hold no manifest)")
    manifest = manifest_from_json(entries[METADATA_KEY], str(path))
    return replace(manifest, mean=readable(entries.get(MEAN_KEY, b"").decode(errors="replace")) or {})


def _open_parquet(path: Path) -> FeatureTable:
    import pyarrow.parquet as parquet

    manifest = parquet_manifest(path)
    try:
        with parquet.ParquetFile(path) as file:
            if missing := {*TABLE_COLUMNS, FEATURES} - set(file.schema_arrow.names):
                raise Refusal(f"it has no column {' and '.join(sorted(missing))}")
            names = file.read(columns=list(TABLE_COLUMNS)).to_pydict()
    except (OSError, ValueError) as error:
        raise Refusal(f"{path} is damaged or cut off ({error}); embed the images again") from error
    return FeatureTable(path, manifest, TableRows(*(names[name] for name in TABLE_COLUMNS)), None)


def parquet_blocks(path: Path, manifest: Manifest, num_rows: int, start: int = 0) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yields (number of the first row, features [b, *shape]) of blocks of a Parquet file. Reads one row group at a time.

    `num_rows`: the most rows of a block. `start`: the first row. Raises Refusal if a row group is damaged.
    """
    import pyarrow.parquet as parquet

    file, first = parquet.ParquetFile(path), 0
    for number in range(file.num_row_groups):
        length = file.metadata.row_group(number).num_rows
        if first + length > start:
            group = _row_group(file, number, path, length * prod(manifest.shape)).reshape(length, *manifest.shape)
            for begin in range(max(0, start - first), length, num_rows):
                yield first + begin, group[begin : begin + num_rows]
        first += length


def _row_group(file: Any, number: int, path: Path, size: int) -> NDArray[Any]:
    """The features of a row group, as a flat array of `size` numbers. Raises Refusal if they are damaged."""
    try:
        column = file.read_row_group(number, columns=[FEATURES]).column(0).combine_chunks()
        values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
    except (OSError, ValueError, AttributeError) as error:
        raise Refusal(f"{path}: row group {number} is damaged ({error}); embed the images again") from error
    if values.dtype.kind != "f":
        raise Refusal(f"{path}: row group {number} holds features of type {column.type}, not numbers; embed the images again")
    if len(values) != size:
        raise Refusal(f"{path}: row group {number} holds {len(values):,} numbers instead of {size:,}; embed the images again")
    return values


def evenly_spread(number: int, at_most: int) -> list[int]:
    """At most `at_most` of `number` rows, evenly spread, in ascending order."""
    return sorted({int(row) for row in np.linspace(0, number - 1, min(at_most, number))})


class Tally:
    """Computes the checksum and the mean of features while they are written."""

    def __init__(self, manifest: Manifest, num_rows: int) -> None:
        """`num_rows`: number of rows that will be added in all."""
        self._dtype, self._shape = np.dtype(manifest.dtype), manifest.shape
        self._sum, self._num_rows = np.zeros(manifest.shape), 0
        self._wanted, self._sample = evenly_spread(num_rows, SAMPLE), 0
        self.checksum = 0
        """CRC-32 of all features."""

    def add(self, data: bytes) -> None:
        """Adds the bytes of whole rows."""
        self.checksum = zlib.crc32(data, self.checksum)
        rows = np.frombuffer(data, self._dtype).reshape(-1, *self._shape)
        inside = range(self._num_rows, self._num_rows + len(rows))
        for row in self._wanted:
            if row in inside:
                self._sample = zlib.crc32(rows[row - inside.start].tobytes(), self._sample)
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._num_rows += len(rows)

    def mean(self) -> dict[str, Any]:
        """The mean in the form of the manifest.

        It holds base64 of little-endian fp32, its CRC-32, the number of rows, and the CRC-32 of a sample of the rows.
        """
        values = (self._sum / self._num_rows).astype("<f4").tobytes()
        return {
            "values": base64.b64encode(values).decode(),
            "rows": self._num_rows,
            "checksum": zlib.crc32(values),
            "sample": self._sample,
        }


def kept_mean(table: FeatureTable) -> NDArray[np.float32] | None:
    """Mean [*shape] of the features of all images; None if the table keeps no mean, or a mean of other features."""
    kept = table.manifest.mean
    try:
        data = base64.b64decode(kept["values"], validate=True)
        values = np.frombuffer(data, "<f4").reshape(table.manifest.shape)
    except (KeyError, ValueError, TypeError):
        return None
    if kept.get("rows") != len(table) or kept.get("checksum") != zlib.crc32(data):
        return None
    return values if table.path.suffix != ".npy" or kept.get("sample") == _of_sample(table) else None


def _of_sample(table: FeatureTable) -> int:
    checksum = 0
    for row in evenly_spread(len(table), SAMPLE):
        checksum = zlib.crc32(np.ascontiguousarray(table.features(row)).tobytes(), checksum)
    return checksum


def check_output(output: Path) -> None:
    """Raises Refusal if the table cannot be written to `output`. Files of other programs are never replaced."""
    if output.suffix not in ENDINGS:
        kinds = " or ".join(ENDINGS)
        near = nearest_names(output.suffix, ENDINGS) if output.suffix else f"give it one, e.g. {output.name or 'features'}.npy"
        raise Refusal(f"--output {output} must end in {kinds}: {near}")
    if output.is_dir():
        raise Refusal(f"--output {output} is a folder: name a file, e.g. {command('--output', output / 'features.npy')}")
    if not output.parent.is_dir():
        raise Refusal(f"--output {output}: there is no folder {output.parent}; make it first, or name a file elsewhere")
    if not is_writable(output.parent):
        raise Refusal(f"--output {output}: nothing may be written into {output.parent.absolute()}; name a file elsewhere")
    if output.suffix == ".parquet":
        require_package("pyarrow", f"--output {output}", "name a .npy file")
    if output.suffix == ".npy":
        _check_beside(output)
    elif output.exists():
        try:
            parquet_manifest(output)
        except ValueError as error:
            raise Refusal(f"--output would be replaced, but {error}: name another file, or move that one away") from error


def _check_beside(output: Path) -> None:
    """Raises Refusal if the .csv, .json or .npy file exists and openjepa embed has not written it."""
    described, listed = output.with_suffix(".json"), output.with_suffix(".csv")
    foreign = [path for path, is_ours in ((described, _describes), (listed, _lists)) if path.exists() and not is_ours(path)]
    if output.exists() and not described.exists():
        foreign.append(output)
    if foreign:
        raise Refusal(
            f"--output {output} would replace {foreign[0]}, which openjepa embed has not written: name another file, or move "
            "that one away"
        )


def _describes(path: Path) -> bool:
    return (readable_object(path) or {}).get("format") == FORMAT


def _lists(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            return next(csv.reader(file), None) == list(TABLE_COLUMNS)
    except (OSError, csv.Error):
        return False
