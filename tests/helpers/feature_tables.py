"""Files of features for tests: those of openjepa embed's format, with given numbers or of real images."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from openjepa.config import to_dict
from openjepa.data.source import ListSource, open_splits
from openjepa.inference.embedding.table import TABLE_COLUMNS, Manifest
from openjepa.inference.encoder import Encoder
from openjepa.models.vit import build_encoder
from openjepa.settings.models import EncoderConfig
from openjepa.settings.sources import DataSettings
from openjepa.types import Export
from openjepa.weights.contents import weights_hash
from openjepa.weights.formats import load_any
from openjepa.weights.native import save_network

CONFIG = EncoderConfig(width=48, depth=2, heads=3, mlp_ratio=4.0, patch_size=8, image_size=(32, 32))
Named = tuple[str, str, int, int | None]
"""Path, split, index and label of a row."""


def write_table(path: Path, features: NDArray[Any], rows: list[Named] | None = None, manifest: Manifest | None = None) -> Path:
    """`path` (.npy) with .csv and .json beside it, or `path` (.parquet)."""
    rows = rows if rows is not None else [(f"{number}.png", "train", number, None) for number in range(len(features))]
    manifest = manifest or plain_manifest(features)
    if path.suffix == ".parquet":
        return _write_parquet(path, features, rows, manifest)
    np.save(path, features)
    lines = [",".join(TABLE_COLUMNS), *(f"{a},{b},{c},{'' if d is None else d}" for a, b, c, d in rows)]
    path.with_suffix(".csv").write_text("\n".join(lines) + "\n")
    path.with_suffix(".json").write_text(manifest.to_json())
    return path


def _write_parquet(path: Path, features: NDArray[Any], rows: list[Named], manifest: Manifest) -> Path:
    import pyarrow
    import pyarrow.parquet as parquet

    flat = pyarrow.array(features.reshape(-1))
    lists = pyarrow.FixedSizeListArray.from_arrays(flat, int(np.prod(features.shape[1:])))
    columns = {name: [row[place] for row in rows] for place, name in enumerate(TABLE_COLUMNS)}
    table = pyarrow.table({**columns, "features": lists})
    bare = replace(manifest, mean={}).to_json()
    metadata = {b"openjepa": bare.encode(), b"openjepa.mean": json.dumps(manifest.mean).encode()}
    parquet.write_table(table.replace_schema_metadata(metadata), path, row_group_size=7)
    return path


def plain_manifest(features: NDArray[Any]) -> Manifest:
    """Of features without images."""
    return Manifest(
        subject="nowhere",
        weights="none",
        kind="pooled" if features.ndim == 2 else "patches",
        shape=tuple(features.shape[1:]),
        dtype=str(features.dtype),  # type: ignore[arg-type]
        pooling="average",
        view="crop",
        size=(32, 32),
        precision="fp32",
    )


def save_encoder(folder: Path, seed: int = 0) -> Path:
    """The folder of a small encoder with random weights."""
    torch.manual_seed(seed)
    save_network(folder / "encoder", Export(config=CONFIG, module=build_encoder(CONFIG)))
    return folder


def embed_source(
    path: Path,
    subject: Path,
    data: DataSettings,
    kind: str = "pooled",
    splits: tuple[str, ...] = ("train",),
    view: str = "crop",
) -> Path:
    """Features of every image of a data source, as openjepa embed would write them."""
    encoder = Encoder(load_any(subject))
    opened = open_splits(data, 0)
    rows: list[Named] = []
    files: list[NDArray[Any]] = []
    from openjepa.data.decode import decode_image

    for split in splits:
        source = opened.train if split == "train" else opened.test
        assert isinstance(source, ListSource)
        for index in range(len(source)):
            rows.append((source.name(index), split, index, None if source.labels is None else int(source.labels[index])))
            files.append(decode_image(source.read(index)))
    call: Any = encoder.embed if kind == "pooled" else encoder.embed_patches
    features = call(files, view=view, precision="fp32").numpy().astype(np.float16)
    manifest = replace(
        plain_manifest(features),
        subject=str(subject),
        weights=weights_hash(encoder.network),
        view=view,  # type: ignore[arg-type]
        size=encoder.config.image_size,
        data=to_dict(data),
        splits=splits,
    )
    return write_table(path, features, rows, manifest)
