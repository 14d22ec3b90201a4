"""The mean that a table keeps: used where it is that of its features, else computed; and manifests that are damaged."""

import base64
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from openjepa.inference.embedding.table import SAMPLE, FeatureTable, Tally, evenly_spread, kept_mean, open_table
from openjepa.inference.search import vectors
from openjepa.inference.search.vectors import place_means, table_mean
from tests.helpers.feature_tables import plain_manifest, write_table


def features_of(shape: tuple[int, ...] = (24,), number: int = 60, seed: int = 0) -> NDArray[np.float16]:
    return (np.random.default_rng(seed).normal(size=(number, *shape)) + 1).astype(np.float16)


def write_with_mean(path: Path, features: NDArray[Any], at_a_time: int = 7) -> Path:
    """A table as openjepa embed writes it, its features tallied a few rows at a time."""
    manifest = plain_manifest(features)
    tally = Tally(manifest, len(features))
    for first in range(0, len(features), at_a_time):
        tally.add(features[first : first + at_a_time].tobytes())
    return write_table(path, features, manifest=replace(manifest, mean=tally.mean()))


@pytest.mark.parametrize("shape", [(24,), (3, 4, 6)])
@pytest.mark.parametrize("name", ["x.npy", "x.parquet"])
def test_it_spares_the_pass_over_the_table(
    name: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = features_of(shape)
    bare = open_table(write_table(tmp_path / "bare.npy", features))
    assert kept_mean(bare) is None
    table = open_table(write_with_mean(tmp_path / name, features))
    expected = place_means(bare), table_mean(bare)
    monkeypatch.setattr(vectors, "map_blocks", None)
    np.testing.assert_allclose(place_means(table), expected[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(table_mean(table), expected[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("at_a_time", [1, 7, 60])
def test_it_does_not_depend_on_how_the_features_came(at_a_time: int, tmp_path: Path) -> None:
    features = features_of()
    table = open_table(write_with_mean(tmp_path / "x.npy", features, at_a_time))
    np.testing.assert_array_equal(kept_mean(table), features.astype(np.float64).mean(axis=0).astype(np.float32))


def test_few_rows_are_all_looked_at() -> None:
    assert evenly_spread(3, SAMPLE) == [0, 1, 2] and evenly_spread(1, SAMPLE) == [0] and evenly_spread(0, SAMPLE) == []
    assert evenly_spread(100, 4) == [0, 33, 66, 99]


def normalized(path: Path) -> None:
    features = np.load(path).astype(np.float32)
    np.save(path, (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16))


def filtered(path: Path) -> None:
    np.save(path, np.load(path)[::2])
    lines = path.with_suffix(".csv").read_text().splitlines()
    path.with_suffix(".csv").write_text("\n".join([lines[0], *lines[1::2]]) + "\n")


def of_another_table(path: Path) -> None:
    other = write_with_mean(path.with_name("other.npy"), features_of(seed=1))
    shutil.copy(other.with_suffix(".json"), path.with_suffix(".json"))


def changed(**entries: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        described = json.loads(path.with_suffix(".json").read_text())
        described["mean"] |= entries
        path.with_suffix(".json").write_text(json.dumps(described))

    return change


WRONG = {
    "normalized": normalized,
    "filtered": filtered,
    "of another table": of_another_table,
    "not finite": changed(values=base64.b64encode(np.full(24, np.nan, "<f4").tobytes()).decode()),
    "huge": changed(values=base64.b64encode(np.full(24, 1e30, "<f4").tobytes()).decode()),
    "too short": changed(values="QUJDRA=="),
    "no base64": changed(values="!"),
    "no text": changed(values=3),
    "no checksum": changed(checksum=None),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mean_of_other_features_is_computed_anew(name: str, tmp_path: Path) -> None:
    path = write_with_mean(tmp_path / "x.npy", features_of())
    WRONG[name](path)
    table = open_table(path)
    assert kept_mean(table) is None
    np.testing.assert_allclose(table_mean(table), np.load(path).astype(np.float64).mean(axis=0), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mean", ["of an older state", None, 3, []])
def test_a_mean_that_is_not_understood_is_not_known(mean: object, tmp_path: Path) -> None:
    path = write_with_mean(tmp_path / "x.npy", features_of())
    described = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(described | {"mean": mean}))
    assert kept_mean(open_table(path)) is None


def test_a_single_changed_row_of_a_small_table_is_noticed(tmp_path: Path) -> None:
    path = write_with_mean(tmp_path / "x.npy", features_of())
    stored = np.load(path, mmap_mode="r+")
    stored[41] *= 20
    stored.flush()
    assert kept_mean(open_table(path)) is None


@pytest.mark.parametrize("mean", [b"\xff", b"{", b"[1]", b'"x"'])
def test_a_damaged_mean_of_a_parquet_file_is_computed_anew(mean: bytes, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = write_with_mean(tmp_path / "x.parquet", features_of())
    table = parquet.read_table(path)
    parquet.write_table(table.replace_schema_metadata({**table.schema.metadata, b"openjepa.mean": mean}), path)
    assert pyarrow is not None and kept_mean(open_table(path)) is None


def test_parquet_that_was_filtered_has_none(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = write_with_mean(tmp_path / "x.parquet", features_of())
    assert kept_mean(open_table(path)) is not None
    parquet.write_table(parquet.read_table(path).slice(10, 20), path)
    assert kept_mean(open_table(path)) is None


# ------------------------------------------------------------------------------------------------------------- manifests


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"shape": None}, "shape=None must be a list"),
        ({"shape": ["x"]}, r"shape\[0\]='x' must be a whole number"),
        ({"shape": [3, 8]}, r"features of kind pooled cannot have the shape \[3, 8\]"),
        ({"shape": [0]}, r"cannot have the shape \[0\]"),
        ({"dtype": "floop"}, "dtype='floop' is not one of float16, float32"),
        ({"kind": "both"}, "kind='both' is not one of pooled, patches"),
        ({"data": 3}, "data=3 must be a mapping"),
    ],
)
@pytest.mark.parametrize("name", ["x.npy", "x.parquet"])
def test_a_damaged_manifest_is_named(name: str, entries: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_table(tmp_path / name, features_of())
    if name.endswith("npy"):
        place = path.with_suffix(".json")
        place.write_text(json.dumps(json.loads(place.read_text()) | entries))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        table = parquet.read_table(path)
        manifest = json.loads(table.schema.metadata[b"openjepa"]) | entries
        parquet.write_table(table.replace_schema_metadata({b"openjepa": json.dumps(manifest).encode()}), path)
        place = path
    with pytest.raises(ValueError, match=rf"{place.name} is damaged: .*{message}.*; embed the images again"):
        open_table(path)


def test_a_manifest_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.npy", features_of())
    path.with_suffix(".json").write_bytes(b'{"format": "\xff"}')
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON .*; embed the images again"):
        open_table(path)


@pytest.mark.parametrize("column", ["split", "features"])
def test_a_parquet_file_that_lacks_a_column_is_named(column: str, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = write_table(tmp_path / "x.parquet", features_of())
    parquet.write_table(parquet.read_table(path).drop_columns([column]), path)
    with pytest.raises(ValueError, match=rf"x\.parquet is damaged or cut off \(it has no column {column}\)"):
        open_table(path)


def test_missing_entries_are_listed(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.npy", features_of())
    described = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(
        json.dumps({key: described[key] for key in described if key not in ("weights", "kind")})
    )
    with pytest.raises(ValueError, match=r"x\.json lacks weights, kind; embed the images again"):
        open_table(path)


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.npy", features_of())
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.npy is damaged or cut off: .*embed the images again"):
        open_table(path)


def test_features_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = write_table(tmp_path / "x.parquet", features_of((2,), 5))
    table = parquet.read_table(path)
    for column in ([["a", "b"]] * 5, [[True, False]] * 5, [[[1.0], [2.0]]] * 5):
        parquet.write_table(table.set_column(4, "features", pyarrow.array(column)), path)
        with pytest.raises(ValueError, match=r"x\.parquet: row group 0 "):
            next(open_table(path).blocks(4))


def test_rows_of_another_length_are_named(tmp_path: Path) -> None:
    path = write_table(tmp_path / "x.parquet", features_of((12,)), manifest=plain_manifest(features_of((24,))))
    table: FeatureTable = open_table(path)
    with pytest.raises(ValueError, match=r"x\.parquet: row group 0 holds 84 numbers instead of 168; embed the images again"):
        next(table.blocks(4))
