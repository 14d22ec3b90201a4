"""Writes one shard: a WebDataset tar or a Parquet file. Its bytes depend only on the images, their names and their labels."""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath

from openjepa.data.tables.tars import CLASS_FIELD, CLASS_NAMES_FILE

GROUP_BYTES = 32 * 2**20
"""Number of bytes of images in a row group of a Parquet file. Readers hold about one group in memory."""
TAR_BYTES_PER_FILE = 1536
"""Largest number of bytes that a tar adds to a file: its header, and what fills the last block."""


@dataclass(frozen=True)
class PackedImage:
    """An image on its way into a shard."""

    path: str
    """Path below the folder of its split."""
    data: bytes
    """The file, unchanged."""
    label: int | None


# -------------------------------------------------------------------------------------------------------------------------- tar


def write_tar(file: Path, images: Iterable[PackedImage], class_names: tuple[str, ...] | None) -> None:
    """Writes a tar. `class_names`: names of the labels 0, 1, ..., or None if the images have no labels."""
    used: set[str] = set()
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as tar:
        if class_names is not None:
            _add(tar, CLASS_NAMES_FILE, json.dumps(class_names).encode())
        for image in images:
            key, suffix = sample_key(image.path, used)
            _add(tar, f"{key}{suffix}", image.data)
            if image.label is not None:
                _add(tar, f"{key}.{CLASS_FIELD}", str(image.label).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # time, owner and group are 0
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    tar.members.clear()  # type: ignore[attr-defined]  # otherwise it would keep a record of every file


def sample_key(path: str, used: set[str]) -> tuple[str, str]:
    """The name that the files of a sample share, and the suffix of its image. Adds the name to those `used` in the shard.

    It is the path without the suffix. What would end or hide the name is changed: dots in the file's name become `_`, a
    beginning `__` (files about the tar) becomes `_`. A name that is used gets a number.
    """
    folder, _, file = path.rpartition("/")
    suffix = PurePosixPath(file).suffix
    stem = file.removesuffix(suffix).replace(".", "_")
    stem = f"_{stem.lstrip('_')}" if stem.startswith("__") else stem
    wanted = f"{folder}/{stem}" if folder else stem
    key = next(name for number in count(1) if (name := wanted if number == 1 else f"{wanted}-{number}") not in used)
    used.add(key)
    return key, suffix.lower()


# ---------------------------------------------------------------------------------------------------------------------- Parquet


def write_parquet(file: Path, images: Iterable[PackedImage], class_names: tuple[str, ...] | None) -> None:
    """Writes a Parquet file with the columns of the `datasets` library: `image` (bytes and path), and `label` if there are any.

    `class_names`: names of the labels 0, 1, ..., or None if the images have no labels.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features: dict[str, object] = {"image": {"_type": "Image"}}
    columns = [("image", image_type)]
    if class_names is not None:
        features["label"] = {"_type": "ClassLabel", "names": list(class_names)}
        columns.append(("label", pa.int64()))
    schema = pa.schema(columns, {"huggingface": json.dumps({"info": {"features": features}})})
    # images are compressed already
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=False, write_statistics=False) as writer:
        for group in _groups(images):
            arrays = [pa.array([{"bytes": image.data, "path": _text(image.path)} for image in group], image_type)]
            if class_names is not None:
                arrays.append(pa.array([image.label for image in group], pa.int64()))
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def _groups(images: Iterable[PackedImage]) -> Iterator[list[PackedImage]]:
    """The images in row groups of about GROUP_BYTES."""
    held, size = [], 0
    for image in images:
        held.append(image)
        size += len(image.data)
        if size >= GROUP_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _text(path: str) -> str:
    """A path as text. Bytes that are no valid UTF-8 become escapes, because Arrow's text cannot hold them."""
    return os.fsencode(path).decode(errors="backslashreplace")


WRITERS = {"tar": write_tar, "parquet": write_parquet}
"""The function that writes a shard, by the format."""
