"""One shard: names that readers of tars keep apart, and files that the `datasets` library reads."""

import tarfile
from pathlib import Path

import pytest

from openjepa.data.tables.shard_files import PackedImage, sample_key, write_parquet, write_tar
from tests.helpers.packs import content
from tests.helpers.tables import NAMES, opened, png
from tests.helpers.tables import offline as offline

pytestmark = pytest.mark.usefixtures("offline")


def test_names_that_would_join_or_hide_samples_are_changed(tmp_path: Path) -> None:
    paths = ["a.jpg", "a.png", "a.b.jpg", "a_b.jpg", "c.d/__x.PNG", "c.d/x.y.z.png", "__classes__.png", "ä/ö\udcff.png"]
    used: set[str] = set()
    assert [sample_key(path, used) for path in paths] == [
        ("a", ".jpg"),
        ("a-2", ".png"),
        ("a_b", ".jpg"),
        ("a_b-2", ".jpg"),
        ("c.d/_x", ".png"),
        ("c.d/x_y_z", ".png"),
        ("_classes__", ".png"),
        ("ä/ö\udcff", ".png"),
    ]
    images = [PackedImage(path, png(seed), seed % 2) for seed, path in enumerate(paths)]
    for name in ("tars", "tables"):
        (tmp_path / name).mkdir()
    write_tar(tmp_path / "tars" / "0.tar", images, ("square", "disk"))
    expected = [(png(seed), NAMES[seed % 2]) for seed in range(len(paths))]
    found = opened(tmp_path / "tars", test_fraction=0.0)
    assert content(found.train) == content(opened(tmp_path / "tars", streaming=True).train) == expected
    write_parquet(tmp_path / "tables" / "0.parquet", images, ("square", "disk"))
    assert content(opened(tmp_path / "tables", test_fraction=0.0).train) == expected


def test_a_tar_names_its_classes_and_nothing_of_this_machine(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", [PackedImage("x/1.png", png(1), 0)], ("square", "disk", "\udcff"))
    with tarfile.open(tmp_path / "0.tar") as tar:
        members = tar.getmembers()
        classes = tar.extractfile("__classes__")
        assert classes is not None and classes.read() == b'["square", "disk", "\\udcff"]'
    assert [member.name for member in members] == ["__classes__", "x/1.png", "x/1.cls"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert opened(tmp_path, test_fraction=0.0).train.class_names == ("square", "disk", "\udcff")
    assert opened(tmp_path, test_fraction=0.0, label_column="cls").train.class_names == ("square", "disk", "\udcff")


def test_the_library_reads_the_shards(tmp_path: Path) -> None:
    from datasets import load_dataset

    images = [PackedImage(f"{seed}.png", png(seed), seed % 2) for seed in range(5)]
    write_tar(tmp_path / "0.tar", images, ("square", "disk"))
    write_parquet(tmp_path / "0.parquet", images, ("square", "disk"))
    tars = load_dataset("webdataset", data_files=str(tmp_path / "0.tar"), split="train", streaming=True)
    assert [(row["__key__"], row["cls"], row["png"].size) for row in tars] == [(f"{s}", s % 2, (16, 16)) for s in range(5)]
    tables = load_dataset("parquet", data_files=str(tmp_path / "0.parquet"), split="train", streaming=True)
    assert [(row["label"], row["image"].size) for row in tables] == [(seed % 2, (16, 16)) for seed in range(5)]
    assert tables.features["label"].names == ["square", "disk"]
