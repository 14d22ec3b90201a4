"""Parquet and WebDataset tars as lists and streams, and which of their splits probes learn from and are tested on."""

import os
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from openjepa.data.datasets.layouts import open_parquet_splits
from openjepa.data.selection import for_probes, held_out
from openjepa.data.source import ListSource, ShardSource, open_splits
from openjepa.data.tables import huggingface, parquet
from openjepa.evaluation.tasks import TASKS
from openjepa.refusals import Refusal
from openjepa.settings.sources import FolderSettings, HuggingFaceSettings
from tests.helpers.loading import load, same
from tests.helpers.tables import NAMES, check, opened, pa, png, pq, write_members, write_parquet, write_tar
from tests.helpers.tables import offline as offline

pytestmark = pytest.mark.usefixtures("offline")
DATA = Path(os.environ.get("OPENJEPA_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))


def test_files_belong_to_the_split_their_name_says(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-00001-of-00002.parquet", range(5, 9))
    write_parquet(tmp_path / "train-00000-of-00002.parquet", range(5))
    write_parquet(tmp_path / "val-00000-of-00001.parquet", range(20, 23))
    splits = opened(tmp_path)
    train, test = check(splits.train, range(9)), check(splits.test, range(20, 23))
    assert train.class_names == test.class_names == tuple(NAMES)
    assert np.array_equal(train.labels, np.arange(9) % 2) and np.array_equal(test.labels, [0, 1, 0])
    assert train.name(6) == "train row 6 (6.png)"
    assert "9 images to train in 2 classes, 3 to test" in splits.description


def test_folders_and_globs_name_splits_too(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data" / "training" / "0000.parquet", range(4))
    write_parquet(tmp_path / "data" / "test" / "0000.parquet", range(4, 6))
    check(opened(tmp_path).test, range(4, 6))
    check(opened(str(tmp_path / "data" / "*" / "*.parquet")).train, range(4))
    alone = opened(tmp_path / "data" / "test" / "0000.parquet")
    check(alone.train, range(4, 6))
    assert alone.test is None


def test_undeclared_columns_are_found_by_type_and_name(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", range(4), declared=False)
    assert np.array_equal(check(opened(tmp_path).train, range(4)).labels, [0, 1, 0, 1])
    write_parquet(tmp_path / "other" / "a.parquet", range(4), declared=False, label="kind")
    assert check(opened(tmp_path / "other").train, range(4)).labels is None
    chosen = check(opened(tmp_path / "other", label_column="kind", image_column="image").train, range(4))
    assert np.array_equal(chosen.labels, [0, 1, 0, 1])


def test_classes_in_words_are_numbered_as_in_training(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", range(4), declared=False, words=True)
    write_parquet(tmp_path / "test.parquet", range(4, 5), declared=False, words=True)
    splits = opened(tmp_path, label_column="label")
    assert splits.train.class_names == ("disk", "square") and splits.test is not None
    assert np.array_equal(check(splits.train, range(4)).labels, [1, 0, 1, 0])
    assert np.array_equal(splits.test.labels, [1]) and splits.test.class_names == ("disk", "square")


def test_wrong_names_are_errors_that_name_the_right_ones(tmp_path: Path) -> None:
    write_parquet(tmp_path / "photos" / "train.parquet", range(4))
    with pytest.raises(ValueError, match=r"image_column='picture' is not a column; there are \['image', 'label'\]"):
        opened(tmp_path / "photos", image_column="picture")
    with pytest.raises(ValueError, match=r"test_split='test' is not a split; there are \['train'\]"):
        opened(tmp_path / "photos", test_split="test")
    with pytest.raises(ValueError, match=r"did you mean .*photos"):
        opened(tmp_path / "photo")
    with pytest.raises(ValueError, match="matches no file"):
        opened(tmp_path / "*.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="must hold Parquet files or tars"):
        opened(tmp_path / "empty")
    write_parquet(tmp_path / "photos" / "stray.parquet", range(2))
    with pytest.raises(ValueError, match=r"stray.parquet' does not say its split"):
        opened(tmp_path / "photos")


def test_a_missing_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package datasets: pip install 'openjepa\[data\]'"):
        opened(tmp_path)


def test_large_files_are_mapped_and_hold_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "train.parquet", range(7))
    write_parquet(tmp_path / "test.parquet", range(7, 9))
    monkeypatch.setattr(parquet, "IN_MEMORY_SHARE", 0.0)
    splits = opened(tmp_path)
    train = check(splits.train, range(7))
    check(splits.test, range(7, 9))
    assert np.array_equal(train.labels, np.arange(7) % 2) and train.class_names == tuple(NAMES)
    check(pickle.loads(pickle.dumps(train)), range(7))


def test_lists_in_memory_travel_without_their_pixels(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", range(7))
    train = check(opened(tmp_path, test_fraction=0.0).train, range(7))
    assert len(pickle.dumps(train)) < len(png(0)) * 2
    check(pickle.loads(pickle.dumps(train)), range(7))


def test_rows_without_an_image_are_unreadable_not_fatal(tmp_path: Path) -> None:
    images = pa.array([{"bytes": png(0)}, None, {"bytes": None}], pa.struct([("bytes", pa.binary())]))
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet")
    train = opened(tmp_path).train
    assert isinstance(train, ListSource) and train.labels is None
    for index in (1, 2):
        with pytest.raises(ValueError, match="no image"):
            train.read(index)


def test_webdataset_tars_as_a_list_and_as_a_stream(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", range(4))
    write_tar(tmp_path / "train-1.tar", range(4, 9))
    train = check(opened(tmp_path, test_fraction=0.0).train, range(9))
    assert np.array_equal(train.labels, np.arange(9) % 2)
    stream = opened(tmp_path, streaming=True).train
    assert isinstance(stream, ShardSource) and len(stream) == 2
    records = [record for shard in range(2) for record in stream.read_shard(shard)]
    assert [record.read() for record in records] == [png(seed) for seed in range(9)]
    assert [record.label for record in records] == [seed % 2 for seed in range(9)]


def test_streamed_parquet_has_a_shard_per_file_and_a_listed_test_split(tmp_path: Path) -> None:
    for shard in range(3):
        write_parquet(tmp_path / f"train-{shard}.parquet", range(10 * shard, 10 * shard + 4))
    write_parquet(tmp_path / "test-0.parquet", range(2))
    splits = opened(tmp_path, streaming=True)
    assert isinstance(splits.train, ShardSource) and len(splits.train) == 3
    assert splits.train.class_names == tuple(NAMES)
    assert [record.read() for record in splits.train.read_shard(2)] == [png(seed) for seed in range(20, 24)]
    assert [record.name for record in splits.train.read_shard(1)][1] == "train shard 1 row 1 (11.png)"
    check(splits.test, range(2))
    with pytest.raises(ValueError, match="max_images needs a list"):
        opened(tmp_path, streaming=True, max_images=3)


def test_undeclared_columns_can_be_streamed_too(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train-0.parquet", range(4), declared=False)
    source = opened(tmp_path, streaming=True).train
    assert isinstance(source, ShardSource)
    assert [record.read() for record in source.read_shard(0)] == [png(seed) for seed in range(4)]


@pytest.mark.parametrize(
    ("settings", "rest"),
    [
        ({"test_split": "train"}, r"choose one of \['test'\]"),
        ({"test_split": "training"}, r"choose one of \['test'\]"),
        ({"train_split": "test", "test_split": "testing"}, r"choose one of \['train'\]"),
        ({"test_split": "train", "streaming": True}, r"choose one of \['test'\]"),
    ],
)
def test_probes_are_never_tested_on_the_training_split(tmp_path: Path, settings: dict[str, object], rest: str) -> None:
    write_parquet(tmp_path / "train.parquet", range(4))
    write_parquet(tmp_path / "test.parquet", range(4))
    with pytest.raises(Refusal, match=rf"data.test_split='{settings['test_split']}' is the training split.*{rest}"):
        opened(tmp_path, **settings)


def test_without_other_splits_the_refusal_says_what_to_type(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", range(4))
    with pytest.raises(Refusal, match=r"leave it out, and data\.test_fraction of each class is held out"):
        opened(tmp_path, test_split="train")
    with pytest.raises(Refusal, match=r"leave it out: of a stream nothing is held out, which needs data\.streaming=false"):
        opened(tmp_path, test_split="train", streaming=True)


@pytest.mark.parametrize(
    ("labels", "settings", "reason"),
    [
        ([0, 0, 1, 1], {"test_fraction": 0.0}, "or hold out a part .* with --data.test-fraction 0.2 .* trained on all images"),
        ([0, 1, 2, 3], {}, "hold out a part of each class that has two images or more"),
        ([0, 0, 1, 1], {"streaming": True}, "a list of images with labels, not a stream: set data.streaming=false"),
    ],
)
def test_probes_without_test_images_say_what_to_type(
    tmp_path: Path, labels: list[int], settings: dict[str, object], reason: str
) -> None:
    write_parquet(tmp_path / "a.parquet", range(4), declared=False, labels=labels)
    found = TASKS["classification"].labels(opened(tmp_path, **settings))
    assert isinstance(found, str) and re.search(reason, found)


@pytest.mark.parametrize("write", [write_parquet, write_tar])
def test_of_a_labeled_training_split_alone_the_same_part_is_held_out_as_of_a_folder(
    tmp_path: Path, write: Callable[[Path, range], None]
) -> None:
    write(tmp_path / f"a.{'tar' if write is write_tar else 'parquet'}", range(30))
    for number in range(30):
        file = tmp_path / "folder" / NAMES[number % 2] / f"{number:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    splits = opened(tmp_path / f"a.{'tar' if write is write_tar else 'parquet'}", test_fraction=0.3)
    assert splits.test is not None and isinstance(splits.train, ListSource)
    assert (len(splits.train), len(splits.test)) == (20, 10)
    assert np.bincount(splits.test.labels).tolist() == [5, 5] and np.bincount(splits.train.labels).tolist() == [10, 10]
    rows = [int(splits.test.name(index).split(" row ")[1].split()[0]) for index in range(10)]
    labels = np.arange(30) % 2
    assert np.flatnonzero(held_out(labels, 0.3, 0)).tolist() == rows
    folder = open_splits(FolderSettings(path=str(tmp_path / "folder"), test_fraction=0.3), 0)
    assert folder.test is not None and np.bincount(folder.test.labels).tolist() == [5, 5]
    assert "20 images to train in 2 classes, 10 to test (held out of each class)" in splits.description


def test_an_unlabeled_test_split_tests_nothing_so_a_part_is_held_out(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", range(10))
    write_parquet(tmp_path / "test.parquet", range(4), labels=[-1] * 4)
    splits = opened(tmp_path)
    assert splits.test is not None and (len(splits.train), len(splits.test)) == (8, 2)
    assert opened(tmp_path, test_fraction=0.0).test is None


def test_rows_without_a_label_are_trained_on_but_no_probe_sees_them(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", range(6), labels=[0, None, 1, 0, None, 1])
    write_parquet(tmp_path / "test.parquet", range(4), labels=[1, -1, 0, 1])
    splits = opened(tmp_path)
    train = check(splits.train, range(6))
    assert train.labels is None and np.array_equal(train.partial_labels, [0, -1, 1, 0, -1, 1])
    assert splits.description.endswith(
        "2 training images without a label, which probes leave out; 1 test image without a label, which probes leave out"
    )
    probed = for_probes(splits)
    assert splits.can_test and isinstance(probed.train, ListSource) and probed.test is not None
    assert np.array_equal(probed.train.labels, [0, 1, 0, 1]) and np.array_equal(probed.test.labels, [1, 0, 1])
    assert [probed.train.read(row) for row in range(4)] == [png(seed) for seed in (0, 2, 3, 5)]
    assert [probed.test.read(row) for row in range(3)] == [png(seed) for seed in (0, 2, 3)]


def test_other_splits_have_the_numbers_of_the_training_split(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", range(3), declared=False, labels=[900, 7, 900])
    write_parquet(tmp_path / "test.parquet", range(2), declared=False, labels=[7, 900])
    write_parquet(tmp_path / "val.parquet", range(3), declared=False, labels=[40, 900, 7])
    other = huggingface.left_out_splits(HuggingFaceSettings(path=str(tmp_path)))
    assert list(other) == ["validation"] and np.array_equal(other["validation"].labels, [2, 1, 0])
    assert other["validation"].class_names == ("7", "900", "40") and opened(tmp_path).train.class_names == ("7", "900")


@pytest.mark.parametrize("kind", ["tars", "compressed tars", "tables"])
@pytest.mark.parametrize("streaming", [True, False])
def test_resume_from_any_step_is_exact_also_beside_records_without_an_image(tmp_path: Path, kind: str, streaming: bool) -> None:
    for shard, seeds in enumerate((range(11), range(11, 13), range(13, 30), range(30, 45))):
        bad = seeds.start + 1
        if kind == "tables":
            rows = [{"bytes": None if seed == bad else png(seed)} for seed in seeds]
            table = pa.table({"image": pa.array(rows, pa.struct([("bytes", pa.binary())])), "label": list(seeds)})
            pq.write_table(table, tmp_path / f"{shard}.parquet", row_group_size=4)
        else:
            members = {f"{seed:02d}.{'txt' if seed == bad else 'png'}": png(seed) for seed in seeds}
            gzip = kind == "compressed tars"
            write_members(tmp_path / f"{shard}.tar{'.gz' if gzip else ''}", members, "w:gz" if gzip else "w")
    source = opened(tmp_path, streaming=streaming, test_fraction=0.0).train
    whole = load(source, 13)
    reason = "the row has no image" if kind == "tables" else "the sample has no image, only txt"
    skipped = [item for batch in whole for item in batch.skipped]
    assert len(skipped) >= 8 and {item.reason for item in skipped} == {reason}
    for step in (1, 5, 6, 12):
        assert same(load(source, 13 - step, step, whole[step - 1].next_position), whole[step:]), f"resumed at {step}"
    assert same(load(source, 6, 7, whole[6].next_position, workers=2), whole[7:])


@pytest.mark.data
@pytest.mark.parametrize(("name", "num_train", "num_test"), [("cifar10", 50_000, 10_000), ("imagewoof128", 9_025, 2_000)])
def test_real_sets_open_quickly_and_read_fast(name: str, num_train: int, num_test: int) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"needs {name} in {DATA} (OPENJEPA_DATA)")
    splits = opened(DATA / name)
    train, test = splits.train, splits.test
    assert isinstance(train, ListSource) and test is not None and len(train) == num_train and len(test) == num_test
    assert train.labels is not None and len(np.unique(train.labels)) == 10 and train.class_names is not None
    rows = np.random.default_rng(0).integers(0, num_train, 2000).tolist()
    start = time.process_time()
    assert all(train.read(row)[:2] == b"\xff\xd8" for row in rows)
    assert (time.process_time() - start) / len(rows) < 1e-4


@pytest.mark.parametrize("streaming", [False, True])
def test_what_lies_beside_tables_is_said(tmp_path: Path, streaming: bool) -> None:
    write_parquet(tmp_path / "train.parquet" / "part-0.parquet", range(6))
    write_parquet(tmp_path / "#recycle" / "old-train.parquet", range(6, 9))
    splits = opened(tmp_path, streaming=streaming, test_fraction=0.0)
    said = "1 service folder of another program left out (#recycle)"
    assert splits.left_out == (said,) and splits.description.endswith(f"; {said}")
    if not streaming:
        check(splits.train, range(6))


def test_hidden_tables_of_a_benchmark_are_none(tmp_path: Path) -> None:
    for file in ("train.parquet", "test.parquet"):
        write_parquet(tmp_path / file, range(4))
        (tmp_path / f"._{file}").write_bytes(b"resource fork")
    splits = open_parquet_splits("Shapes", tmp_path, ("label",), 2)
    check(splits.train, range(4))


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["table", "tar", "no bytes", "zeros"])
def test_a_split_without_rows_says_so(tmp_path: Path, kind: str, streaming: bool) -> None:
    if kind == "table":
        write_parquet(tmp_path / "train.parquet", range(0))
    else:
        write_members(tmp_path / "train.tar", {})
        if kind != "tar":
            (tmp_path / "train.tar").write_bytes(bytes(10240 if kind == "zeros" else 0))
    with pytest.raises(Refusal) as refused:
        opened(tmp_path, streaming=streaming)
    words = "the rest of the tar" if kind == "no bytes" else f"the split 'train' of data.path={str(tmp_path)!r} holds no rows"
    assert words in str(refused.value)


def test_a_chosen_test_split_without_rows_says_so(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", range(10))
    write_parquet(tmp_path / "test.parquet", range(0), labels=pa.array([], pa.int64()))
    assert len(opened(tmp_path).test or "") == 2, "held out: an empty split has no labels"
    with pytest.raises(Refusal, match=r"the split 'test' of .* holds no rows"):
        opened(tmp_path, test_split="test")
