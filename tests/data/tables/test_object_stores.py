"""Tars and Parquet files in object stores: the same records as on disk, copied once, whatever the store does meanwhile."""

import multiprocessing
import shutil
import threading
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from openjepa.data.loading.order import _shuffled_records
from openjepa.data.source import ListSource, ShardSource, open_splits
from openjepa.data.tables import local_files, object_stores
from openjepa.refusals import Refusal
from openjepa.settings.sources import FolderSettings
from openjepa.system.patience import Patience
from tests.helpers.loading import load, same
from tests.helpers.packs import content, packed, write_photos
from tests.helpers.processes import in_process
from tests.helpers.tables import offline as offline
from tests.helpers.tables import opened

pytestmark = pytest.mark.usefixtures("offline")
SHARD = "train-00000-of-00004.tar"


class Flaky(MemoryFileSystem):
    """A store in memory that fails as `Flaky.faults` says: each entry is what one request does before it answers."""

    protocol = "flaky"
    store: dict[str, Any] = {}  # noqa: RUF012 (as its parent has it)
    pseudo_dirs = [""]  # noqa: RUF012 (as its parent has it)
    faults: list[Any] = []  # noqa: RUF012 (set by each test)
    num_requests = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        name: str = super()._strip_protocol(path.replace("flaky://", "memory://"))
        return name

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        Flaky.num_requests += 1
        fault = Flaky.faults.pop(0) if Flaky.faults else None
        if isinstance(fault, Exception):
            raise fault
        data: bytes = super().cat_file(path, start, end, **options)
        if fault == "stall":
            threading.Event().wait()
        return data[:-1] if fault == "short" else data


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Packed photos on disk, and the same in two stores in memory: memory://bucket/shards, flaky://bucket/shards."""
    folder = tmp_path / "shards"
    packed(write_photos(tmp_path / "photos"), folder)
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    Flaky.faults, Flaky.num_requests = [], 0
    for protocol in ("memory", "flaky"):
        store = fsspec.filesystem(protocol)
        for file in folder.iterdir():
            store.pipe(f"/bucket/shards/{file.name}", file.read_bytes())
    wait_at_most(30.0, monkeypatch)
    yield folder
    for cls in (MemoryFileSystem, Flaky):
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]


def wait_at_most(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the time limit of an answer."""
    monkeypatch.setattr(object_stores, "Patience", partial(Patience, seconds=seconds, pauses=(0.0, 0.0, 0.0)))


def copies(tmp_path: Path) -> list[str]:
    """The files that were copied."""
    return sorted(file.name for file in (tmp_path / "library_cache").glob("openjepa/stores/*/*/[!.]*"))


@pytest.mark.parametrize("kind", ["tar", "parquet"])
@pytest.mark.parametrize("ending", ["", "/*.{}", "/train-*"])
def test_records_labels_and_splits_are_those_of_the_disk(shards: Path, tmp_path: Path, kind: str, ending: str) -> None:
    if kind == "parquet":
        packed(tmp_path / "photos", tmp_path / "tables", format="parquet")
        shards = tmp_path / "tables"
        for file in shards.iterdir():
            fsspec.filesystem("memory").pipe(f"/bucket/tables/{file.name}", file.read_bytes())
    for streaming in (False, True):
        here = opened(f"{shards}{ending.format(kind)}", streaming=streaming)
        for url in (f"memory://bucket/{shards.name}", f"file://{shards}"):
            there = opened(f"{url}{ending.format(kind)}", streaming=streaming)
            assert content(there.train) == content(here.train) and there.train.class_names == ("disk", "square")
            assert there.description == here.description and there.name == here.name
            assert (there.test is None) == (here.test is None) == (streaming and ending == "/train-*")
            assert there.test is None or content(there.test) == content(here.test)
            if url.startswith("file:"):
                continue
            names = {f"{file.name}" for file in shards.glob(ending.format(kind).strip("/") or f"*.{kind}")}
            assert set(copies(tmp_path)) == names


def test_one_file_and_one_image_by_its_place(shards: Path) -> None:
    alone = opened(f"memory://bucket/shards/{SHARD}", test_fraction=0.0)
    assert content(alone.train) == content(opened(shards / SHARD, test_fraction=0.0).train)


def test_the_loader_gives_the_same_batches(shards: Path) -> None:
    for streaming in (False, True):
        here = load(opened(shards, streaming=streaming).train, 5)
        for url, workers in (("memory://bucket/shards", 0), (f"file://{shards}", 2), ("memory://bucket/shards", 2)):
            assert same(load(opened(url, streaming=streaming).train, 5, workers=workers), here)


def test_a_copy_is_made_once_and_again_if_the_file_changes(shards: Path, tmp_path: Path) -> None:
    first = opened("flaky://bucket/shards").train
    asked = Flaky.num_requests
    assert asked == 6  # a request for each file
    second = opened("flaky://bucket/shards").train
    assert Flaky.num_requests == asked and isinstance(first, ListSource) and isinstance(second, ListSource)
    assert first.fingerprint == second.fingerprint
    shutil.rmtree(tmp_path / "library_cache")
    again = opened("flaky://bucket/shards").train
    assert isinstance(again, ListSource) and again.fingerprint == first.fingerprint  # as on another machine
    fsspec.filesystem("flaky").pipe(f"/bucket/shards/{SHARD}", (shards / "train-00001-of-00004.tar").read_bytes())
    changed = opened("flaky://bucket/shards").train
    second_shard = content(opened(shards / "train-00001-of-00004.tar", test_fraction=0.0).train)
    assert content(changed)[:7] == second_shard and isinstance(changed, ListSource)
    assert changed.fingerprint != first.fingerprint


@pytest.mark.parametrize("fails", [False, True])
def test_the_next_shard_of_a_stream_comes_while_one_is_used(shards: Path, monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    """One shard ahead, not more. If its copy fails, it is made when it is needed."""
    asked, may_answer, copy = list[str](), threading.Event(), Flaky.cat_file

    def slow(store: Flaky, path: str, **options: Any) -> bytes:
        asked.append(path)
        if len(set(asked)) == 2:
            assert may_answer.wait(30)
            if fails:
                raise PermissionError(path)
        return copy(store, path, **options)

    stream = opened("flaky://bucket/shards/train-*", streaming=True).train
    assert isinstance(stream, ShardSource)
    object_stores._ahead.clear()
    shutil.rmtree(object_stores._cache(), ignore_errors=True)  # opening it has looked into the first shard
    monkeypatch.setattr(Flaky, "cat_file", slow)
    records = _shuffled_records(stream, 1, seed=0, epoch=0, skip=0)
    first = next(records)
    (thread,) = object_stores._ahead
    may_answer.set()
    thread.join()
    assert len(set(asked)) == 2, "the shard that is used, and one ahead"
    monkeypatch.setattr(Flaky, "cat_file", copy)
    names = [first.name, *(record.name for record in records)]
    assert sorted(names) == sorted(
        name for shard in range(len(stream)) for name in (record.name for record in stream.read_shard(shard))
    )


def test_processes_share_a_copy(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = tmp_path / "asked"
    all_miss_it = multiprocessing.get_context("fork").Barrier(3, timeout=60)

    def slow(store: Flaky, path: str, **options: Any) -> bytes:
        with asked.open("a") as file:
            file.write(f"{path}\n")
        time.sleep(0.2)
        data: bytes = MemoryFileSystem.cat_file(store, path, **options)
        return data

    monkeypatch.setattr(Flaky, "cat_file", slow)
    monkeypatch.setattr(object_stores, "_make_room", lambda needed: all_miss_it.wait())  # what comes before a copy is made
    processes = [in_process(lambda: object_stores.on_disk(f"flaky://bucket/shards/{SHARD}")) for _ in range(3)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert asked.read_text() == f"/bucket/shards/{SHARD}\n" and copies(tmp_path) == [SHARD]


# ----------------------------------------------------------------------------------------------------------------------- faults


def test_errors_stalls_and_short_answers_are_repeated(
    shards: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = (shards / SHARD).read_bytes()
    Flaky.faults = [RuntimeError("the package's own kind"), ConnectionResetError(104, "reset"), "short"]
    assert object_stores.on_disk(f"flaky://bucket/shards/{SHARD}").read_bytes() == wanted
    assert f"flaky://bucket/shards/{SHARD} answered at try 4" in caplog.text
    caplog.clear()
    wait_at_most(1.0, monkeypatch)
    Flaky.faults = ["stall"]
    other = SHARD.replace("00000-", "00001-")
    assert object_stores.on_disk(f"flaky://bucket/shards/{other}").read_bytes() == (shards / other).read_bytes()
    assert "answered at try 2" in caplog.text


def test_a_store_that_stays_away_is_named_with_the_number_of_tries(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"flaky://bucket/shards/{SHARD}"
    wait_at_most(1.0, monkeypatch)
    Flaky.faults = ["stall"] * 9
    with pytest.raises(OSError, match=rf"{url} gave no answer \(reading it gave no answer for 1 s, 2 times\), 2 tries"):
        object_stores.on_disk(url)
    wait_at_most(30.0, monkeypatch)
    Flaky.faults = [RuntimeError("down")] * 9
    with pytest.raises(OSError, match=rf"{url} gave no answer \(RuntimeError: down\), 4 tries"):
        object_stores.on_disk(url)
    Flaky.faults = [PermissionError(13, "denied")]
    with pytest.raises(Refusal, match=rf"{url} may not be read .*denied.*credentials"):
        object_stores.on_disk(url)
    assert copies(tmp_path) == []  # nothing half-written


def test_what_is_refused(shards: Path, tmp_path: Path) -> None:
    fsspec.register_implementation("unpacked", "package_that_is_not_there.Store", errtxt="install it", clobber=True)
    for path, message in (
        ("unpacked://bucket/x.tar", r"needs the package package_that_is_not_there: pip install package_that_is_not_there"),
        ("nostore://bucket/x.tar", r"'nostore://bucket/x.tar'.*known are s3, gs, abfs"),
        ("memory://bucket/nothing", "memory://bucket/nothing does not exist"),
        ("memory://bucket/shards/*.zip", "matches no file: check the folder and the name of the bucket"),
        ("memory://bucket/shards/manifest.json", "must hold Parquet files or tars, one kind; it holds .json"),
    ):
        with pytest.raises(Refusal, match=message):
            opened(path)
    with pytest.raises(Refusal, match=r"is no folder on a disk.*data pack"):
        open_splits(FolderSettings(path="memory://bucket/shards"), 0)


def test_the_mark_of_an_unfinished_pack_is_looked_for_only_on_disks(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bucket may have the name of a folder here."""
    monkeypatch.setattr(local_files, "UNFINISHED_PACK", str(tmp_path))  # absolute: it is there, whatever the folder
    with pytest.raises(Refusal, match=r"is not complete; repeat"):
        opened(shards)
    assert opened("memory://bucket/shards").train.name


@pytest.mark.skipif(find_spec("s3fs") is not None, reason="s3fs is installed")
def test_the_package_of_s3_is_named() -> None:
    with pytest.raises(Refusal, match=r"data.path='s3://bucket/\*.tar' needs the package s3fs: pip install s3fs"):
        opened("s3://bucket/*.tar")


def test_copies_of_streams_make_room_and_those_of_lists_stay(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(shards.glob("*.tar"))
    capacity = 2 * max(file.stat().st_size for file in files) + object_stores.SPARE_BYTES

    def usage(_: object) -> SimpleNamespace:
        used = [file.stat().st_size for file in (tmp_path / "library_cache").glob("openjepa/stores/*/*/[!.]*")]
        return SimpleNamespace(free=capacity - sum(used))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(object_stores, "IN_USE_SECONDS", 0)
    stream = opened("memory://bucket/shards/train-*", streaming=True).train
    assert content(stream) == content(opened(shards / "train-*", streaming=True).train)
    assert len(copies(tmp_path)) == 2
    with pytest.raises(Refusal, match=r"the copies of the 4 files of memory://.* need .*, but only .* are free"):
        opened("memory://bucket/shards/train-*")
    monkeypatch.setattr(object_stores, "IN_USE_SECONDS", 1800)
    with pytest.raises(Refusal, match=r"the copies of a file of memory://.* need .*, but only .* are free"):
        content(stream)
