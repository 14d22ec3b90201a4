"""Parquet files: types of columns, paths, and row groups that are too large to be read at once."""

import pickle
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from openjepa.data.source import ListSource, ShardSource
from openjepa.data.tables import parquet
from openjepa.refusals import Refusal
from openjepa.settings.sources import HuggingFaceSettings
from tests.helpers.tables import check, opened, pa, png, pq, write_parquet
from tests.helpers.tables import offline as offline

pytestmark = pytest.mark.usefixtures("offline")
IMAGES = [png(seed) for seed in range(4)]
WAYS = ["in memory", "mapped", "streamed"]


def images_of(path: Path, way: str, monkeypatch: pytest.MonkeyPatch, **settings: object) -> list[bytes]:
    """What the training split of a path holds."""
    monkeypatch.setattr(parquet, "IN_MEMORY_SHARE", 0.0 if way == "mapped" else 0.25)
    source = opened(path, streaming=way == "streamed", test_fraction=0.0, **settings).train
    if isinstance(source, ShardSource):
        return [record.read() for shard in range(len(source)) for record in source.read_shard(shard)]
    assert len(pickle.dumps(source)) < 2000
    return [source.read(row) for row in range(len(source))]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["binary", "large_binary", "binary_view", "fixed", "dictionary", "struct of views"])
def test_all_types_of_bytes_are_images(tmp_path: Path, kind: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = IMAGES
    if kind == "fixed":
        size = max(map(len, IMAGES))
        images = [image + bytes(size - len(image)) for image in IMAGES]  # bytes behind the end of a PNG do not matter
        column = pa.array(images, pa.binary(size))
    elif kind == "dictionary":
        column = pa.array(images).dictionary_encode()
    elif kind == "struct of views":
        rows = [{"bytes": image, "path": None} for image in images]
        column = pa.array(rows, pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]))
    else:
        column = pa.array(images, getattr(pa, kind)())
    # pyarrow cannot cut views inside of structs when it writes
    pq.write_table(pa.table({"picture": column}), tmp_path / "a.parquet", row_group_size=4 if kind == "struct of views" else 3)
    assert images_of(tmp_path, way, monkeypatch) == images


@pytest.mark.parametrize(
    "kind", ["string", "large_string", "string_view", "dictionary", "struct", "path alone", "path and more"]
)
@pytest.mark.parametrize("way", WAYS)
def test_paths_are_files_beside_the_table(tmp_path: Path, way: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "set" / "photos").mkdir(parents=True)
    names = ["photos/0.png", "photos/1.PNG", str(tmp_path / "elsewhere.png")]
    for name, image in zip(names, IMAGES, strict=False):
        (tmp_path / "set" / name).write_bytes(image)
    column = pa.array(names)
    if kind == "dictionary":
        column = column.dictionary_encode()
    elif kind.startswith("path"):
        fields = [("path", pa.string()), ("size", pa.int64())][: 2 if "more" in kind else 1]
        column = pa.array([{"path": name, "size": 3} for name in names], pa.struct(fields))
    elif kind == "struct":
        rows = [{"bytes": None, "path": name} for name in names]
        column = pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    else:
        column = column.cast(getattr(pa, kind)())
    captions = pa.array(["a cat", "a dog", "an owl.png is not here"])
    pq.write_table(pa.table({"caption": captions, "file_name": column}), tmp_path / "set" / "a.parquet")
    monkeypatch.chdir("/")
    assert images_of(tmp_path / "set", way, monkeypatch) == IMAGES[:3]


def test_a_missing_file_is_one_unreadable_row(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(0))
    pq.write_table(pa.table({"path": ["0.png", "1.png", None, "\0.png", ""]}), tmp_path / "a.parquet")
    train = opened(tmp_path).train
    assert isinstance(train, ListSource) and train.read(0) == png(0) and train.name(1) == "train row 1 (1.png)"
    with pytest.raises(FileNotFoundError, match=r"1\.png"):
        train.read(1)
    for row in (2, 3, 4):
        with pytest.raises(Refusal, match="the row has no image"):
            train.read(row)
        assert train.stamp(row)
    stream = opened(tmp_path, streaming=True).train
    assert isinstance(stream, ShardSource)
    records = list(stream.read_shard(0))
    assert records[0].read() == png(0)
    with pytest.raises(FileNotFoundError, match=r"1\.png"):
        records[1].read()
    with pytest.raises(Refusal, match="the row has no image"):
        records[2].read()
    sent = [record.to_send() for record in records]
    assert sent[0].data == png(0) and "1.png" in str(sent[1].problem) and sent[2].problem == "the row has no image"


def test_words_that_are_no_paths_are_no_images(tmp_path: Path) -> None:
    table = {"url": ["https://a.org/0.png"], "caption": ["a cat"], "node": [{"path": "a/b"}], "place": [{"path": [1, 2]}]}
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(Refusal, match=r"has no image column among \['url', 'caption', 'node', 'place'\]"):
        opened(tmp_path)


@pytest.mark.parametrize("row", [{"bytes": [1, 2]}, {"bytes": "text"}, {"path": [1]}, [1, 2], 3.5])
def test_a_chosen_column_of_other_types_is_refused(tmp_path: Path, row: object) -> None:
    pq.write_table(pa.table({"picture": [row]}), tmp_path / "a.parquet")
    for streaming in (False, True):
        with pytest.raises(Refusal, match=r"the image column holds .*: images are bytes, or paths of files"):
            opened(tmp_path, image_column="picture", streaming=streaming)


@pytest.mark.parametrize("kind", ["categories", "string", "large_string", "string_view"])
def test_words_of_a_label_column_are_classes(tmp_path: Path, kind: str) -> None:
    for name, words in (("train", ["owl", "ant", "owl", "bee"]), ("test", ["bee", "owl"])):
        labels = pa.array(words).dictionary_encode() if kind == "categories" else pa.array(words, getattr(pa, kind)())
        write_parquet(tmp_path / f"{name}.parquet", range(len(words)), declared=False, labels=labels)
    splits = opened(tmp_path)
    assert splits.train.class_names == ("ant", "bee", "owl") and splits.test is not None
    assert np.array_equal(check(splits.train, range(4)).labels, [2, 0, 2, 1])
    assert np.array_equal(check(splits.test, range(2)).labels, [1, 2])


def test_files_may_have_labels_of_different_types(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", range(2), declared=False, labels=pa.array([0, 1], pa.int8()))
    write_parquet(tmp_path / "train-1.parquet", range(2, 4), declared=False, labels=pa.array([2, 0], pa.uint32()))
    write_parquet(tmp_path / "train-2.parquet", range(4, 6), declared=False, labels=pa.array([1.0, None]))
    train = check(opened(tmp_path, test_fraction=0.0).train, range(6))
    assert train.partial_labels is not None and train.partial_labels.tolist() == [0, 1, 2, 0, 1, -1]


def test_what_cannot_be_read_names_its_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", range(2))
    (tmp_path / "train-1.parquet").write_bytes(b"an error page")
    with pytest.raises(Refusal, match=r"train-1.parquet cannot be read as Parquet"):
        opened(tmp_path)
    stream = opened(tmp_path, streaming=True).train
    assert isinstance(stream, ShardSource)
    (record,) = stream.read_shard(1)
    assert "train-1.parquet cannot be read as Parquet" in str(record.problem)
    for missing, names in (("image", ["picture", "label"]), ("label", ["image", "kind"])):
        pq.write_table(pa.table(dict(zip(names, [IMAGES, [0, 1, 0, 1]], strict=True))), tmp_path / "train-1.parquet")
        with pytest.raises(Refusal, match=rf"train-1.parquet has no column '{missing}'"):
            opened(tmp_path)


def test_damage_of_a_row_group_costs_a_stream_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "BATCH_ROWS", 2)
    pq.write_table(pa.table({"image": IMAGES}), tmp_path / "train.parquet", row_group_size=2, compression="zstd")
    damaged = bytearray((tmp_path / "train.parquet").read_bytes())
    start = pq.read_metadata(tmp_path / "train.parquet").row_group(0).column(0).dictionary_page_offset
    damaged[start : start + 20] = b"\xff" * 20
    (tmp_path / "train.parquet").write_bytes(damaged)
    with pytest.raises(Refusal, match=r"train.parquet cannot be read as Parquet"):
        opened(tmp_path)
    stream = opened(tmp_path, streaming=True).train
    assert isinstance(stream, ShardSource)
    *bad, third, fourth = stream.read_shard(0)
    assert [third.read(), fourth.read()] == IMAGES[2:4]
    for record in bad:
        with pytest.raises(Refusal, match=r"train.parquet cannot be read as Parquet"):
            record.read()
        assert "train.parquet cannot be read as Parquet" in str(record.to_send().problem)


def test_label_columns_hold_classes(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", range(3), declared=False, labels=[0.5, 1.0, 2.0])
    train = check(opened(tmp_path).train, range(3))
    assert train.labels is None and train.partial_labels is None
    with pytest.raises(Refusal, match=r"data.label_column='label' holds no labels of the split 'train'"):
        opened(tmp_path, label_column="label")


def test_a_column_that_only_some_files_have_is_missed_when_mapped_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "train-0.parquet", range(2))
    pq.write_table(pa.table({"picture": IMAGES, "label": [0, 1, 0, 1]}), tmp_path / "train-1.parquet")
    monkeypatch.setattr(parquet, "uncompressed_bytes", lambda file, names: 10**15)
    with pytest.raises(Refusal, match=r"train-1.parquet has no column 'image'"):
        opened(tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_group_is_never_read_at_once(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow cannot hold a row group of structs with more than 2 GB; pieces of it are no larger than a limit."""
    table = pa.table({"image": pa.array([{"bytes": png(seed)} for seed in range(40)], pa.struct([("bytes", pa.binary())]))})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=40, use_dictionary=False)
    sizes: list[int] = []

    class Watched(parquet.ImageRows):
        def __init__(self, column: pa.Array, folder: str = "") -> None:
            sizes.append(column.nbytes)
            super().__init__(column, folder)

    monkeypatch.setattr(parquet, "ImageRows", Watched)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 4000)
    assert images_of(tmp_path, way, monkeypatch) == [png(seed) for seed in range(40)]
    assert len(sizes) > 5 and max(sizes) < 6000 < table.nbytes


def test_memory_is_judged_by_unpacked_images_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bitmaps = [bytes(1000) + bytes([number]) * 4000 for number in range(50)]
    table = pa.table({"image": bitmaps, "note": ["unused" * 1000 + str(n) for n in range(50)]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False, row_group_size=20)
    file = str(tmp_path / "a.parquet")
    assert Path(file).stat().st_size < 20_000
    assert 250_000 <= parquet.uncompressed_bytes(file, ["image"]) < 252_000
    assert parquet.uncompressed_bytes(file, ["image", "note"]) > 550_000
    settings = HuggingFaceSettings(path=file)
    for free, way in ((900_000, "mapped_rows"), (1_100_000, "read_image_column")):
        monkeypatch.setattr(parquet, "available_memory", lambda free=free: free)
        for name in ("mapped_rows", "read_image_column"):
            monkeypatch.setattr(parquet, name, Mock(return_value=[]))
        parquet.ParquetReader({"train": [file]}, settings).open_list("train")
        assert [name for name in ("mapped_rows", "read_image_column") if getattr(parquet, name).called] == [way]


@pytest.mark.parametrize("kind", ["plain", "categories", "struct"])
def test_repeated_images_count_as_often_as_they_occur(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet stores each once, and its metadata say so; in memory every row has its own."""
    distinct = [bytes([seed]) * 5000 for seed in range(4)]
    column = pa.array([distinct[row % 4] for row in range(600)])
    arrays = {"plain": column, "categories": column.dictionary_encode()}
    arrays["struct"] = pa.StructArray.from_arrays([column], ["bytes"])
    pq.write_table(pa.table({"image": arrays[kind]}), tmp_path / "train.parquet")
    file = str(tmp_path / "train.parquet")
    assert parquet.uncompressed_bytes(file, ["image"]) < 25_000 < 3_000_000 == sum(map(len, column.to_pylist()))
    mapped = Mock(side_effect=parquet.mapped_rows)
    monkeypatch.setattr(parquet, "mapped_rows", mapped)
    for free, calls in ((4 * 3_100_000, 0), (4 * 2_900_000, 1)):
        monkeypatch.setattr(parquet, "available_memory", lambda free=free: free)
        source = parquet.ParquetReader({"train": [file]}, HuggingFaceSettings(path=file)).open_list("train")
        assert mapped.call_count == calls
        assert [source.read(row) for row in range(len(source))] == column.to_pylist()


def test_mapped_images_follow_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "train.parquet", range(3))
    assert images_of(tmp_path, "mapped", monkeypatch) == IMAGES[:3]
    write_parquet(tmp_path / "train.parquet", range(1, 4))
    assert images_of(tmp_path, "mapped", monkeypatch) == IMAGES[1:4]


def test_values_of_every_type_in_a_stream_of_the_library_are_images_or_have_a_reason() -> None:
    from datasets import Dataset

    from openjepa.data.tables.huggingface import stream_of

    no_image, a_file = "the row has no image", "the row names a file, which is not looked for in a stream from the Hub"
    cases: list[tuple[object, bytes, str | None]] = [
        (IMAGES[0], IMAGES[0], None),
        ({"bytes": IMAGES[0], "path": "a.png"}, IMAGES[0], None),
        ({"bytes": None, "path": "a.png"}, b"", a_file),
        ({"path": "a.png"}, b"", a_file),
        ({"bytes": None, "path": None}, b"", no_image),
        ("a.png", b"", a_file),
        (None, b"", no_image),
        (b"", b"", no_image),
        (7, b"", "the image column holds values of the type int: images are bytes"),
        ([7], b"", "the image column holds values of the type list: images are bytes"),
    ]
    for value, data, problem in cases:
        dataset = Dataset.from_dict({"image": [value], "label": [1]}).to_iterable_dataset()
        stream = stream_of(dataset, HuggingFaceSettings(path="x", image_column="image"), "train")
        (record,) = stream.read_shard(0)
        assert (record.data, record.problem, record.label) == (data, problem, 1), value
