"""Images that were overwritten in place, under the same names, are other images, whatever they lie in."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from openjepa.data.datasets.cifar import CifarBinary
from openjepa.data.folders.folder import FolderSource
from openjepa.data.selection import Subset
from openjepa.data.source import JoinedBytes, ListSource, Pieces, ShardSource, source_hash, stamps_hash
from openjepa.evaluation.evaluation_run import evaluate_run
from openjepa.inference.embedding.embed_plan import EmbeddedImages, plan_entries
from openjepa.inference.embedding.embedding_run import embed_dataset
from openjepa.inference.embedding.table import open_table
from openjepa.inference.search.gallery import open_gallery
from openjepa.inference.search.search_run import open_for_search
from openjepa.settings.inference import SearchSettings
from openjepa.settings.sources import FolderSettings
from tests.helpers.embedding import SETTINGS as EMBED
from tests.helpers.embedding import embed, save_encoder, stopped
from tests.helpers.evaluated_run import SETTINGS, images, run
from tests.helpers.images import shape_image, write_folder
from tests.helpers.scene_checks import write_clevr

pa = pytest.importorskip("pyarrow", reason="needs the extra `data`")
pytest.importorskip("datasets", reason="needs the extra `data`")
import pyarrow.parquet as pq  # noqa: E402

from tests.helpers.tables import offline as offline  # noqa: E402
from tests.helpers.tables import opened, write_parquet, write_tar  # noqa: E402

__all__ = ["images", "run"]
pytestmark = pytest.mark.usefixtures("offline")

NUM, CHANGED = 100, 50
"""Records, and one of them whose bytes are not looked at: every third is."""


def later(file: Path) -> None:
    """As if it was written some time after."""
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


def folder(place: Path) -> tuple[Callable[[], ListSource], Path]:
    write_folder(place, NUM, 8, classes=False)
    return lambda: FolderSource(place, sorted(file.name for file in place.iterdir())), place / f"{CHANGED:04d}.png"


def links(place: Path) -> tuple[Callable[[], ListSource], Path]:
    """Links to the images of another folder."""
    write_folder(place / "real", NUM, 8, classes=False)
    (place / "links").mkdir()
    for file in (place / "real").iterdir():
        (place / "links" / file.name).symlink_to(file)
    names = sorted(file.name for file in (place / "links").iterdir())
    return lambda: FolderSource(place / "links", names), place / "real" / f"{CHANGED:04d}.png"


def part(place: Path) -> tuple[Callable[[], ListSource], Path]:
    """Half of the images of a folder."""
    whole, changed = folder(place)
    return lambda: Subset(whole(), np.arange(0, NUM, 2)), changed


def listed(place: Path) -> ListSource:
    train = opened(place).train
    assert isinstance(train, ListSource)
    return train


def parquet(place: Path) -> tuple[Callable[[], ListSource], Path]:
    write_parquet(place / "train-0.parquet", range(60))
    write_parquet(place / "train-1.parquet", range(60, NUM))
    return lambda: listed(place), place / "train-1.parquet"


def tars(place: Path) -> tuple[Callable[[], ListSource], Path]:
    place.mkdir()
    write_tar(place / "train-0.tar", range(60))
    write_tar(place / "train-1.tar", range(60, NUM))
    return lambda: listed(place), place / "train-0.tar"


def rows_that_name_files(place: Path) -> tuple[Callable[[], ListSource], Path]:
    write_folder(place / "files", NUM, 8, classes=False)
    rows = [{"bytes": None, "path": str(place / "files" / f"{index:04d}.png")} for index in range(NUM)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(rows, kind)}), place / "train.parquet")
    return lambda: listed(place), place / "files" / f"{CHANGED:04d}.png"


SOURCES = [folder, links, part, parquet, tars, rows_that_name_files]


@pytest.mark.parametrize("make", SOURCES, ids=lambda make: make.__name__)
def test_a_file_that_was_written_again_makes_another_source(
    make: Callable[[Path], tuple[Callable[[], ListSource], Path]], tmp_path: Path
) -> None:
    source, changed = make(tmp_path / "data")
    before = stamps_hash(source())
    assert stamps_hash(source()) == before
    later(changed)
    assert stamps_hash(source()) != before


@pytest.mark.parametrize("make", [folder, links, part, rows_that_name_files], ids=lambda make: make.__name__)
def test_a_file_of_another_size_makes_another_source_whatever_its_time(
    make: Callable[[Path], tuple[Callable[[], ListSource], Path]], tmp_path: Path
) -> None:
    source, changed = make(tmp_path / "data")
    hashes = []
    for ending in (b"", b"1", b"2"):
        changed.write_bytes(changed.read_bytes().removesuffix(b"1") + ending)
        os.utime(changed, ns=(0, 0))
        hashes.append(stamps_hash(source()))
    assert hashes[0] != hashes[1]
    assert hashes[1] == hashes[2]  # of equal size and time: this goes unnoticed, as docs/evaluation.md says


def test_large_parquet_files_are_known_by_themselves_not_by_their_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the library has prepared of them lies elsewhere on every machine, and is newer wherever it was made again."""
    source, changed = parquet(tmp_path / "data")
    in_memory = stamps_hash(source())
    monkeypatch.setattr("openjepa.data.tables.parquet.IN_MEMORY_SHARE", 0.0)
    assert stamps_hash(source()) == in_memory
    shutil.rmtree(tmp_path / "library_cache")
    assert stamps_hash(source()) == in_memory
    later(changed)
    assert stamps_hash(source()) != in_memory


def test_scenes_are_known_by_their_pictures(tmp_path: Path) -> None:
    from openjepa.data.source import open_splits
    from openjepa.settings.sources import ScenesSettings

    write_clevr(tmp_path / "scenes", {"train": [[9.2, 8.0, 11]], "val": [[8.6] * 10]})
    settings = ScenesSettings(path=str(tmp_path / "scenes"))
    hashes = []
    for _ in range(2):
        splits = open_splits(settings, 0)
        assert isinstance(splits.train, ListSource) and isinstance(splits.test, ListSource)
        hashes.append((stamps_hash(splits.train), stamps_hash(splits.test)))
        later(next((tmp_path / "scenes" / "images" / "val").iterdir()))
    assert hashes[0][0] == hashes[1][0] and hashes[0][1] != hashes[1][1]


def test_records_in_memory_are_known_by_all_of_their_bytes(tmp_path: Path) -> None:
    file = tmp_path / "records.bin"
    records = np.random.default_rng(0).integers(0, 3, (NUM, 3073)).astype(np.uint8)
    hashes = []
    for _ in range(2):
        records.tofile(file)
        os.utime(file, ns=(0, 0))
        source = CifarBinary((file,), 1, 10, None)
        hashes.append((source_hash(source), stamps_hash(source)))
        records[CHANGED, 5] += 1
    assert hashes[0][0] == hashes[1][0] and hashes[0][1] != hashes[1][1]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_streams_of_local_shards_have_a_stamp(kind: str, tmp_path: Path) -> None:
    source, changed = (tars if kind == "tar" else parquet)(tmp_path / "data")
    del source
    stamps = []
    for _ in range(2):
        stream = opened(tmp_path / "data", streaming=True).train
        assert isinstance(stream, ShardSource) and stream.stamp
        stamps.append(stream.stamp)
        later(changed)
    assert stamps[0] != stamps[1]


# -------------------------------------------------------------------------------------------------- what is decided by it


def overwrite(place: Path, but: int) -> int:
    """Other images in all files but each `but`-th, whose bytes are in the hash of names; returns how many."""
    files = [file for number, file in enumerate(sorted(place.rglob("*.png"))) if number % but]
    for number, file in enumerate(files):
        shape_image(1000 + number, 32).save(file)
    return len(files)


def test_an_evaluation_of_overwritten_images_is_that_of_the_new_ones(run: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for number in range(160):
        (photos / ("dark", "light")[number % 2]).mkdir(parents=True, exist_ok=True)
        tones = np.random.default_rng(number).integers(0, 60, (32, 32, 3)) + 190 * (number % 2)
        Image.fromarray(tones.astype(np.uint8)).save(photos / ("dark", "light")[number % 2] / f"{number:04d}.png")
    data = FolderSettings(path=str(photos), test_fraction=0.4)
    (old,) = evaluate_run(run, SETTINGS, data)
    assert old.subjects["encoder"].metrics["k-NN"].value == 1.0
    assert overwrite(photos, 5) == 128  # by images that have nothing to do with their folders
    (new,) = evaluate_run(run, SETTINGS, data)
    for file in (run / "eval" / "features").iterdir():
        file.unlink()
    (fresh,) = evaluate_run(run, SETTINGS, data)
    assert new.heads == fresh.heads and new.subjects["encoder"].metrics["k-NN"].value < 0.8


def test_a_table_of_overwritten_images_is_refused(tmp_path: Path) -> None:
    encoder, photos, output = save_encoder(tmp_path / "encoder"), write_folder(tmp_path / "photos", 80), tmp_path / "x.npy"
    embed(encoder, photos, output)
    assert embed(encoder, photos, output).status == "there already"
    overwrite(photos, 2)
    with pytest.raises(
        ValueError, match=r"(?s)x\.npy holds other features than these:\n  files: \w{12}, now \w{12}\n.*--again"
    ):
        embed(encoder, photos, output)
    assert embed(encoder, photos, output, again=True).num_images == 80


def test_parts_of_images_that_were_overwritten_meanwhile_are_refused(tmp_path: Path) -> None:
    encoder, photos, output = save_encoder(tmp_path / "encoder"), write_folder(tmp_path / "photos", 80), tmp_path / "x.npy"
    stopped(lambda: embed(encoder, photos, output), tmp_path / "x.npy.parts", 2)
    overwrite(photos, 2)
    with pytest.raises(ValueError, match=r"(?s)x\.npy\.parts holds parts that were made otherwise:\n  files: "):
        embed(encoder, photos, output)


def told(encoder: Path, photos: Path, output: Path) -> tuple[str, list[str]]:
    said: list[str] = []
    status = embed_dataset(encoder, FolderSettings(path=str(photos)), EMBED, output, say=said.append).status
    return status, [text for text in said if "overwritten in place" in text]


def test_tables_and_parts_of_older_versions_are_taken_and_it_is_said(tmp_path: Path) -> None:
    """They do not say of which files they are: nothing is refused, nothing is claimed."""
    encoder, photos = save_encoder(tmp_path / "encoder"), write_folder(tmp_path / "photos", 80)
    table, parts = tmp_path / "old.npy", tmp_path / "begun.npy.parts"
    embed(encoder, photos, table)
    assert told(encoder, photos, table) == ("there already", [])
    described = json.loads((tmp_path / "old.json").read_text())
    assert len(described.pop("files")) == 12
    (tmp_path / "old.json").write_text(json.dumps(described))
    status, said = told(encoder, photos, table)
    assert status == "there already" and len(said) == 1 and "old.npy was begun by a version that did not note" in said[0]
    begun = tmp_path / "begun.npy"
    stopped(lambda: embed(encoder, photos, begun), parts, 2)
    plan = json.loads((parts / "plan.json").read_text())
    del plan["entries"]["files"], plan["manifest"]["files"]
    (parts / "plan.json").write_text(json.dumps(plan))
    assert (plan_entries(parts / "plan.json") or {}).get("files") is None
    status, said = told(encoder, photos, begun)
    assert status == "written" and len(said) == 1
    assert open_table(begun).manifest.files == ""
    np.testing.assert_array_equal(np.load(begun), np.load(table))


def test_pictures_of_a_search_are_said_to_be_of_other_files(tmp_path: Path) -> None:
    encoder, photos, output = save_encoder(tmp_path / "encoder"), write_folder(tmp_path / "photos", 80), tmp_path / "x.npy"
    embed(encoder, photos, output)
    settings = SearchSettings(table=output, row=("0",))
    said: list[str] = []
    open_for_search(settings, said.append)
    assert said == []
    overwrite(photos, 2)
    open_for_search(settings, said.append)
    assert len(said) == 1 and "other sizes or times than when" in said[0]
    open_for_search(replace(settings, picture=False), said.append)
    assert len(said) == 1  # nothing is shown, and no file is looked at


def test_images_that_were_added_or_removed_are_told_from_overwritten_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, photos, output = save_encoder(tmp_path / "encoder"), write_folder(tmp_path / "photos", 20), tmp_path / "x.npy"
    embed(encoder, photos, output)
    table = open_table(output)
    assert open_gallery(table).change == "none"
    for ending in ("npy", "csv", "json"):
        shutil.copy(tmp_path / f"x.{ending}", tmp_path / f"older.{ending}")
    described = json.loads((tmp_path / "older.json").read_text())
    (tmp_path / "older.json").write_text(json.dumps(described | {"files": ""}))
    older = open_table(tmp_path / "older.npy")
    with monkeypatch.context() as patch:
        patch.setattr(
            EmbeddedImages, "stamped", lambda self: pytest.fail("a look at every file, though the table notes no stamps")
        )
        assert open_gallery(older).change == "none"
    added = next(photos.rglob("*.png")).with_name("zz.png")
    added.write_bytes(next(photos.rglob("*.png")).read_bytes())
    assert open_gallery(table).change == open_gallery(older).change == "number"
    said: list[str] = []
    open_for_search(SearchSettings(table=output, row=("0",)), said.append)
    assert len(said) == 1 and "images were added or removed since" in said[0]
    added.unlink()
    assert open_gallery(table).change == "none"
    overwrite(photos, 2)
    assert (open_gallery(table).change, open_gallery(older).change) == ("files", "none")


def test_both_hashes_are_computed_once_for_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, changed = folder(tmp_path / "data")
    first, again = source(), source()
    assert first.fingerprint == source_hash(again) + stamps_hash(again)
    later(changed)
    assert first.fingerprint != source().fingerprint
    monkeypatch.setattr("openjepa.data.source.stamps_hash", lambda _: pytest.fail("computed again"))
    assert pickle.loads(pickle.dumps(first)).fingerprint == first.fingerprint


@pytest.mark.parametrize("lengths", [[4], [1, 3], [0, 2, 0, 2], [2, 0, 0, 2, 0]])
def test_a_record_is_found_in_its_piece(lengths: list[int]) -> None:
    expected = [(piece, row) for piece, length in enumerate(lengths) for row in range(length)]
    places = Pieces(lengths)
    assert [places.locate(index) for index in range(len(places))] == expected
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"there are 4 records; there is no record {index}"):
            places.locate(index)


def test_joined_strings_are_the_strings() -> None:
    strings = [b"", b"a", b"", b"\xff\0bc", b""]
    joined = JoinedBytes.join(strings)
    assert [joined[index] for index in range(len(joined))] == strings
