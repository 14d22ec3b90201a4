"""CIFAR-10 and CIFAR-100 as binary files, Parquet files or class folders. The pickled version is never opened.

A record of the binary version starts with one label byte (CIFAR-10), or a coarse and a fine one (CIFAR-100). Then follow 3,072
bytes: the red, the green and the blue plane of 32 x 32 pixels, row by row. Source: the data sets' official page.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from openjepa.data.datasets.layouts import (
    class_folders,
    labeled_splits,
    number_as,
    open_parquet_splits,
    parquet_files,
    refuse,
)
from openjepa.data.folders.image_lists import read_lines
from openjepa.data.source import ListSource, Pieces, Splits
from openjepa.refusals import Refusal

SIDE = 32
PIXEL_BYTES = 3 * SIDE * SIDE
PPM_HEADER = f"P6 {SIDE} {SIDE} 255\n".encode()


@dataclass(frozen=True)
class Cifar:
    """Names and numbers that differ between CIFAR-10 and CIFAR-100."""

    title: str
    num_classes: int
    binary_folder: str
    """Folder that the archive of the binary version unpacks to."""
    train: tuple[str, ...]
    test: tuple[str, ...]
    """Test files of the binary version. `train` holds its training files."""
    names: str
    """File of class names of the binary version: one per line, in the order of the labels."""
    num_label_bytes: int
    """Number of bytes in front of the pixels. The last of them is the class to predict."""
    python_folder: str
    """Folder that the archive of the pickled version unpacks to."""
    python_files: tuple[str, ...]
    """Files that identify the pickled version if the folder has another name."""
    label_columns: tuple[str, ...]
    """Columns of Parquet files that may hold the labels, the preferred one first."""


CIFAR10 = Cifar(
    "CIFAR10",
    10,
    "cifar-10-batches-bin",
    tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    ("test_batch.bin",),
    "batches.meta.txt",
    1,
    "cifar-10-batches-py",
    ("batches.meta", "data_batch_1"),
    ("label",),
)
CIFAR100 = Cifar(
    "CIFAR100",
    100,
    "cifar-100-binary",
    ("train.bin",),
    ("test.bin",),
    "fine_label_names.txt",
    2,
    "cifar-100-python",
    ("meta",),
    ("fine_label", "label"),  # such files also have a column `coarse_label` with 20 groups
)


def open_cifar10(root: Path) -> Splits:
    """CIFAR-10 below `root` (see `open_cifar`)."""
    return open_cifar(root, CIFAR10)


def open_cifar100(root: Path) -> Splits:
    """CIFAR-100 below `root` (see `open_cifar`)."""
    return open_cifar(root, CIFAR100)


def open_cifar(root: Path, kind: Cifar) -> Splits:
    """CIFAR below `root`, in the first of the three forms that is found. For CIFAR-100, with the fine labels.

    Raises Refusal if a split is missing, a file is damaged, or only the pickled version is there.
    """
    for place in (root, root / kind.binary_folder):
        if any((place / name).is_file() for name in kind.train + kind.test):
            return _open_binary(place, kind)
    if parquet_files(root):
        return open_parquet_splits(kind.title, root, kind.label_columns, kind.num_classes)
    folders = [root / name for name in ("train", "test")]
    if any(folder.is_dir() for folder in folders):
        if absent := [folder.name for folder in folders if not folder.is_dir()]:
            refuse(kind.title, root, f"has no folder {absent[0]}", "train/CLASS/*.png and test/CLASS/*.png")
        train, test = (class_folders(folder, kind.title) for folder in folders)
        return labeled_splits(kind.title, train, number_as(train, test, folders[1]), kind.num_classes)
    expected = f"{kind.binary_folder}/ (the binary version), train and test Parquet files, or train/CLASS and test/CLASS"
    if (root / kind.python_folder).is_dir() or any((root / name).is_file() for name in kind.python_files):
        problem = "has the pickled Python version, which is never opened because a pickle can run any program"
        refuse(kind.title, root, problem, f'the "binary version" of the same page, which unpacks to {kind.binary_folder}/')
    refuse(kind.title, root, "has none of the known forms", expected)


def _open_binary(place: Path, kind: Cifar) -> Splits:
    if absent := [name for name in kind.train + kind.test if not (place / name).is_file()]:
        refuse(kind.title, place, f"lacks {', '.join(absent)}", ", ".join(kind.train + kind.test))
    names = _class_names(place / kind.names, kind)
    sources = [
        CifarBinary(tuple(place / name for name in files), kind.num_label_bytes, kind.num_classes, names)
        for files in (kind.train, kind.test)
    ]
    return labeled_splits(kind.title, sources[0], sources[1], kind.num_classes)


def _class_names(file: Path, kind: Cifar) -> tuple[str, ...] | None:
    """The class names in the order of the labels. None if the file does not exist."""
    if not file.is_file():
        return None
    names = tuple(line.strip() for line in read_lines(file))
    if len(names) != kind.num_classes:
        raise Refusal(f"{file} has {len(names)} names; expected: {kind.num_classes}, one per line")
    return names


# ----------------------------------------------------------------------------------------------------------------- binary files


class CifarBinary(ListSource):
    """The records of one or more files, in their order. The label of a record is its last label byte."""

    def __init__(
        self, files: tuple[Path, ...], num_label_bytes: int, num_classes: int, class_names: tuple[str, ...] | None
    ) -> None:
        """Raises Refusal if a file is not a whole number of records, or a label is not below `num_classes`."""
        self._files = files
        self._num_label_bytes = num_label_bytes
        self._open()
        parts = [records[:, num_label_bytes - 1].astype(np.int64) for records in self._records]
        for file, labels in zip(files, parts, strict=True):
            _check_labels(file, labels, num_classes)
        self.labels = np.concatenate(parts)
        self.class_names = class_names

    def _open(self) -> None:
        self._records = [_map_records(file, self._num_label_bytes + PIXEL_BYTES) for file in self._files]
        self._places = Pieces(len(records) for records in self._records)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the mapped files, which would be pickled as copies."""
        return {name: value for name, value in vars(self).items() if name not in ("_records", "_places")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Maps the files again."""
        vars(self).update(state)
        self._open()

    def __len__(self) -> int:
        """Number of records."""
        return len(self._places)

    def read(self, index: int) -> bytes:
        """The image as a PPM file, which keeps every pixel."""
        file, row = self._places.locate(index)
        planes = self._records[file][row, self._num_label_bytes :].reshape(3, SIDE, SIDE)
        return PPM_HEADER + planes.transpose(1, 2, 0).tobytes()

    def name(self, index: int) -> str:
        """The name of the file, and the number of the record in it."""
        file, row = self._places.locate(index)
        return f"{self._files[file].name} record {row}"


def _map_records(file: Path, record_bytes: int) -> UInt8[np.ndarray, "n bytes"]:
    size = file.stat().st_size
    if size == 0 or size % record_bytes:
        raise Refusal(
            f"{file} has {size:,} bytes; expected: a whole number of records of {record_bytes:,} bytes. "
            "Unpack the archive again"
        )
    return np.memmap(file, dtype=np.uint8, mode="r", shape=(size // record_bytes, record_bytes))


def _check_labels(file: Path, labels: NDArray[np.int64], num_classes: int) -> None:
    if labels.max() >= num_classes:
        row = int(np.flatnonzero(labels >= num_classes)[0])
        raise Refusal(
            f"{file}: record {row} has the label {labels[row]}; expected: below {num_classes}. Is it another data set's file?"
        )
