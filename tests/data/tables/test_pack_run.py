"""`openjepa data pack`: the shards hold what the folder holds, and are the same bytes however they came about."""

import csv
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from openjepa.data.folders.folder import FolderSource
from openjepa.data.source import ListSource, open_splits
from openjepa.data.tables import pack_run, shard_manifest
from openjepa.data.tables.pack_plan import _shards
from openjepa.refusals import Refusal
from openjepa.settings.sources import FolderSettings, PackSettings
from openjepa.system import shared_files
from tests.helpers.images import shape_image, write_folder
from tests.helpers.packs import content, files_of, packed, write_photos
from tests.helpers.processes import in_process
from tests.helpers.tables import offline as offline
from tests.helpers.tables import opened

pytestmark = pytest.mark.usefixtures("offline")


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("shuffle", [True, False])
def test_sources_read_the_same_images_labels_and_splits(tmp_path: Path, kind: str, shuffle: bool) -> None:
    folder, shards = write_photos(tmp_path / "photos"), tmp_path / "shards"
    packed(folder, shards, format=kind, shuffle=shuffle)
    assert sorted(file.name for file in shards.glob(f"*.{kind}")) == [
        *(f"train-0000{number}-of-00004.{kind}" for number in range(4)),
        *(f"validation-0000{number}-of-00002.{kind}" for number in range(2)),
    ]
    there = open_splits(FolderSettings(path=str(folder)), 0)
    listed, streamed = opened(shards), opened(shards, streaming=True)
    for split in ("train", "test"):
        wanted, found = content(getattr(there, split)), content(getattr(listed, split))
        assert (found == wanted) != shuffle and sorted(found) == sorted(wanted)
        assert getattr(listed, split).class_names == getattr(there, split).class_names == ("disk", "square")
        assert getattr(listed, split).labels.dtype == getattr(there, split).labels.dtype
    assert content(streamed.train) == content(listed.train) and streamed.train.class_names == ("disk", "square")
    assert content(streamed.test) == content(listed.test)
    assert isinstance(listed.train, ListSource) and isinstance(there.train, ListSource)
    names, found_names = ([source.image_name(row) for row in range(30)] for source in (there.train, listed.train))
    assert sorted(found_names) == sorted(names)  # lists of low-shot images find theirs


def test_without_a_split_the_same_images_are_held_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "photos", 40, 16)
    packed(folder, tmp_path / "shards", shuffle=False)
    there = open_splits(FolderSettings(path=str(folder)), 0)
    found = opened(tmp_path / "shards")
    assert content(found.test) == content(there.test) and content(found.train) == content(there.train)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_flat_folders_have_no_labels(tmp_path: Path, kind: str) -> None:
    folder = write_folder(tmp_path / "photos", 10, 16, classes=False)
    result = packed(folder, tmp_path / "shards", format=kind, shuffle=False)
    found = opened(tmp_path / "shards")
    assert content(found.train) == [((folder / f"{number:04d}.png").read_bytes(), None) for number in range(10)]
    assert found.test is None and not found.train.is_labeled and result.manifest.classes == ()


def test_unlabeled_and_unlisted_images_of_other_splits(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos")
    shape_image(90, 16).save(folder / "spare.png")
    (folder / "test" / "images").mkdir(parents=True)
    (folder / "spare.png").rename(folder / "test" / "images" / "90.png")
    shutil.rmtree(folder / "val")
    (folder / "val" / "images").mkdir(parents=True)
    for seed in range(3):
        shape_image(seed, 16).save(folder / "val" / "images" / f"val_{seed}.png")
    (folder / "val" / "val_annotations.txt").write_text("val_0.png\tdisk\t0\t0\t9\t9\nval_1.png\tsquare\t0\t0\t9\t9\n")
    result = packed(folder, tmp_path / "shards")
    assert result.manifest.splits == {"train": 30, "test": 1, "validation": 2}
    assert result.manifest.left_out == {"the list of its split does not name it": 1}
    found = opened(tmp_path / "shards")
    assert sorted(name for _, name in content(found.test)) == ["disk", "square"]
    assert "splits that are not used: test" in found.description
    with (tmp_path / "shards" / "left-out.csv").open() as rows:
        assert list(csv.reader(rows))[1] == ["val/images/val_2.png", "", "", "the list of its split does not name it"]


# ------------------------------------------------------------------------------------------------------------------ same bytes


def test_bytes_do_not_depend_on_workers_or_times_but_on_the_seed(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos")
    packed(folder, tmp_path / "one", shard_images=None, shard_mb=0.004)
    for file in folder.rglob("*.*"):
        os.utime(file, (0, 0))
    packed(folder, tmp_path / "two", workers=2, shard_images=None, shard_mb=0.004)
    packed(folder, tmp_path / "other", shard_images=None, shard_mb=0.004, seed=1)
    one, two, other = (files_of(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two and len(one) > 5
    assert one.keys() == other.keys() and all(one[name] != other[name] for name in one)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_killed_at_any_moment_it_continues_to_the_same_bytes(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole, shards = write_photos(tmp_path / "photos"), tmp_path / "whole", tmp_path / "shards"
    (folder / "train" / "disk" / "broken.jpg").write_bytes(b"text")
    packed(folder, whole, format=kind)
    real, flushes = os.fsync, 0

    def flush_and_die(number: int) -> None:
        nonlocal flushes
        real(number)
        flushes -= 1
        if flushes == 0:
            os._exit(9)

    monkeypatch.setattr(os, "fsync", flush_and_die)
    exit_codes = []
    while 0 not in exit_codes and len(exit_codes) < 40:
        # killed after one flush, a shard has its bytes but not its name; after some more it is finished
        flushes = 1 + len(exit_codes) % 5
        before = recorded(shards)
        process = in_process(lambda: packed(folder, shards, format=kind))
        process.join()
        exit_codes.append(process.exitcode)
        after = recorded(shards) if process.exitcode else {name: (shards / name).stat().st_ino for name in before}
        assert before.items() <= after.items()  # what is finished is not written again
    assert len(exit_codes) > 6 and exit_codes == [9] * (len(exit_codes) - 1) + [0]
    assert files_of(shards) == files_of(whole)


def recorded(shards: Path) -> dict[str, int]:
    """The finished shards of an unfinished folder, with their places on the disk."""
    journal = shards / ".packing.jsonl"
    lines = journal.read_text().splitlines()[1:] if journal.exists() else []
    return {name: (shards / name).stat().st_ino for name in (json.loads(line)["name"] for line in lines)}


def test_a_torn_line_and_a_lost_shard_are_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, shards = write_photos(tmp_path / "photos"), tmp_path / "shards"
    packed(folder, tmp_path / "whole")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pack_run, "write_records", full)
    with pytest.raises(OSError, match="No space left"):
        packed(folder, shards)
    with pytest.raises(Refusal, match=r"shards is not complete; repeat the `openjepa data pack` that was stopped"):
        opened(shards)
    monkeypatch.undo()
    journal = shards / ".packing.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    (shards / "train-00001-of-00004.tar").unlink()
    (shards / "train-00002-of-00004.tar").write_bytes(b"cut")
    (shards / ".train-00001-of-00004.tar.elsewhere.7.unfinished").write_bytes(b"left by a killed process")
    assert packed(folder, shards).num_written == 3
    assert files_of(shards) == files_of(tmp_path / "whole")
    assert packed(folder, shards).num_written == 0


# -------------------------------------------------------------------------------------------------------------------- left out


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_images_that_cannot_be_used_are_listed(tmp_path: Path, kind: str) -> None:
    folder, shards = write_photos(tmp_path / "photos"), tmp_path / "shards"
    whole = sorted(content(open_splits(FolderSettings(path=str(folder)), 0).train))
    place = folder / "train" / "disk"
    (place / "empty.png").write_bytes(b"")
    (place / "text.jpg").write_text("this is a text")
    (place / "cut.png").write_bytes((place / "003.png").read_bytes()[:100])
    (place / "gone.png").symlink_to(tmp_path / "nowhere")
    (place / "notes.txt").write_text("no image")
    result = packed(folder, shards, format=kind)
    reasons = {"empty.png": "empty file", "text.jpg": "not an image", "gone.png": "No such file or directory"}
    with (shards / "left-out.csv").open() as opened_list:
        rows = {row["path"]: row for row in csv.DictReader(opened_list)}
    assert rows.keys() == {f"train/disk/{name}" for name in (*reasons, "cut.png")}
    assert {name: rows[f"train/disk/{name}"]["reason"] for name in reasons} == reasons
    assert {(row["split"], row["class"]) for row in rows.values()} == {("train", "disk")}
    assert sum(result.manifest.left_out.values()) == 4 and result.manifest.splits["train"] == 30
    assert result.manifest.other_entries == ("1 other file ignored",)
    assert sorted(content(opened(shards).train)) == whole
    if kind == "tar":  # undecoded, only what cannot be read is left out
        packed(folder, tmp_path / "fast", decode=False)
        assert len(content(opened(tmp_path / "fast").train)) == 32


def test_too_many_unusable_images_stop_it(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos")
    for number in range(12):
        (folder / "train" / "disk" / f"bad{number}.png").write_bytes(b"text")
    with pytest.raises(
        Refusal, match=r"more than --max-skipped 0.05 of the 42 images of train-00000-of-00001.tar.*not an image"
    ):
        packed(folder, tmp_path / "shards", shard_images=100)
    packed(folder, tmp_path / "shards", shard_images=100, max_skipped=0.5)
    assert len(content(opened(tmp_path / "shards").train)) == 30


# -------------------------------------------------------------------------------------------------------------------- refusals


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, shards = write_photos(tmp_path / "photos"), tmp_path / "shards"
    for inside in (folder, folder / "shards", folder / "train" / ".." / "new"):
        with pytest.raises(Refusal, match="lies in the folder that is packed"):
            packed(folder, inside)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Refusal, match="holds no images"):
        packed(tmp_path / "empty", shards)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(Refusal, match=r"shards: the 6 shards need \d.* kB, but only 1.0 kB are free"):
        packed(folder, shards)
    monkeypatch.undo()
    shutil.rmtree(shards)
    shards.mkdir()
    (shards / "mine.txt").write_text("something else")
    with pytest.raises(Refusal, match="is not empty: name a new folder"):
        packed(folder, shards)
    (shards / "mine.txt").unlink()
    packed(folder, shards)
    with pytest.raises(Refusal, match="holds shards with seed=0 instead of 4: name a new folder"):
        packed(folder, shards, seed=4)
    shape_image(99, 16).save(folder / "train" / "disk" / "new.png")
    with pytest.raises(Refusal, match="holds shards of other images: name a new folder"):
        packed(folder, shards)
    (folder / "valid" / "disk").mkdir(parents=True)
    shape_image(98, 16).save(folder / "valid" / "disk" / "new.png")
    with pytest.raises(Refusal, match="holds 'val' and 'valid', which mean the same split"):
        packed(folder, tmp_path / "more")


def test_a_second_process_and_changed_images_are_refused(tmp_path: Path) -> None:
    folder, shards = write_photos(tmp_path / "photos"), tmp_path / "shards"
    shards.mkdir()
    claim = shared_files.take(shards / ".packing.jsonl")
    assert claim is not None
    with pytest.raises(Refusal, match="another process is packing into"):
        packed(folder, shards)
    claim.release()
    (shards / ".packing.jsonl").write_text('{"content": "other", "stamps": "other"}\n')
    with pytest.raises(Refusal, match="of an interrupted `openjepa data pack` of other images or with other settings"):
        packed(folder, shards)


# ---------------------------------------------------------------------------------------------------------------------- verify


def test_verifying_names_every_difference(tmp_path: Path) -> None:
    folder, shards = write_photos(tmp_path / "photos"), tmp_path / "shards"
    packed(folder, shards)
    assert shard_manifest.compare(shards, 2).splits == {"train": 30, "validation": 12}
    flipped = shards / "train-00000-of-00004.tar"
    data = bytearray(flipped.read_bytes())
    data[700] ^= 1
    flipped.write_bytes(data)
    (shards / "train-00001-of-00004.tar").write_bytes(b"cut")
    (shards / "validation-00000-of-00002.tar").unlink()
    shutil.copy(flipped, shards / "more.tar")
    with pytest.raises(Refusal) as caught:
        shard_manifest.compare(shards, 2)
    for words in (
        "4 of 6 shards are not as packed: more.tar is not in the manifest, train-00000-of-00004.tar has other bytes (SHA-256)",
        "train-00001-of-00004.tar has 3 bytes instead of ",
        "validation-00000-of-00002.tar is missing; copy them again, or delete those that have other bytes",
    ):
        assert words in str(caught.value)
    (shards / "manifest.json").write_text("{}")
    with pytest.raises(Refusal, match=r"manifest.json lacks version.*copy the shards again with their manifest"):
        shard_manifest.compare(shards, 1)
    with pytest.raises(Refusal, match=r"holds no manifest\.json"):
        shard_manifest.compare(folder, 1)


@pytest.mark.parametrize("is_listed", [True, False])
def test_packing_again_mends_what_the_manifest_does_not_fit(tmp_path: Path, is_listed: bool) -> None:
    folder, shards = write_photos(tmp_path / "photos"), tmp_path / "shards"
    (folder / "train" / "disk" / "a, broken.jpg").write_bytes(b"text")
    result = packed(folder, shards, shuffle=False)
    whole = files_of(shards)
    assert [shard.images for shard in result.manifest.shards] == [8, 7, 8, 7, 6, 6]
    for file in (shards / "train-00000-of-00004.tar", shards / "validation-00001-of-00002.tar"):
        file.unlink()
    (shards / "train-00002-of-00004.tar").write_bytes(b"cut")
    if not is_listed:  # what the shard with a broken image has left out is not known, so that it is written again
        (shards / "left-out.csv").unlink()
    assert packed(folder, shards, shuffle=False).num_written == 3 + (not is_listed)
    assert files_of(shards) == whole
    assert packed(folder, shards, shuffle=False).num_written == 0
    changed = shards / "train-00002-of-00004.tar"
    changed.write_bytes(bytes(len(whole[changed.name])))
    with pytest.raises(Refusal, match=r"delete those that have other bytes.* then repeat the command that packed them"):
        shard_manifest.compare(shards, 1)
    changed.unlink()  # what the message says
    assert packed(folder, shards, shuffle=False).num_written == 1
    assert files_of(shards) == whole


def test_a_folder_that_lacks_shards_of_its_manifest_is_refused_as_data(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    packed(write_photos(tmp_path / "photos"), shards)
    opened(shards)
    (shards / "train-00001-of-00004.tar").unlink()
    (shards / "validation-00000-of-00002.tar").write_bytes(b"cut")
    for path in (shards, tmp_path):  # also below the folder that is named
        with pytest.raises(
            Refusal, match=r"2 of 6 shards of .*train-00001-of-00004\.tar is missing, validation-00000.*3 bytes"
        ):
            opened(path)
    assert len(content(opened(shards / "train*.tar").train)) < 30
    (shards / "manifest.json").write_text('{"shards": "of another program"}')
    (shards / "validation-00000-of-00002.tar").unlink()
    opened(shards)


def test_shards_of_a_split_are_about_equal(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 50, 1)
    result = packed(folder, tmp_path / "shards", shard_images=16)
    assert [shard.images for shard in result.manifest.shards] == [13, 12, 13, 12, 1]
    order = np.arange(8)
    source = FolderSource(tmp_path, [str(number) for number in order])
    split = _shards("train", source, np.array([5, 5, 5, 40, 1, 1, 2, 1]) * 1_000_000, PackSettings(shard_mb=15, shuffle=False))
    assert split.firsts.tolist() == [0, 3, 4, 8]  # one image is larger than a shard
