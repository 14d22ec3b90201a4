"""What a training run's data may suffer: each fault is injected while batches are taken."""

import errno
import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from openjepa.data.loading import workers as workers_module
from openjepa.data.loading.loader import TrainingLoader
from openjepa.data.loading.order import BatchPlan, permutation
from openjepa.data.loading.unreadable import SkipLedger
from openjepa.data.loading.workers import parallel_map
from openjepa.data.source import ListSource, ShardRecord, ShardSource, open_splits
from openjepa.refusals import Refusal
from openjepa.settings.sources import HuggingFaceSettings
from openjepa.system.patience import Patience
from openjepa.types import Batch
from tests.helpers.images import write_folder
from tests.helpers.loading import CPU, INPUTS, SEED, START, RecordingSampler, Shards, load, opened, same
from tests.helpers.processes import in_process
from tests.helpers.tables import offline as offline
from tests.helpers.tables import png, pq, write_parquet, write_tar

pytestmark = pytest.mark.usefixtures("offline")
NO_PAUSES = (0.0, 0.0, 0.0)
PLAN = BatchPlan(4, 4)


@pytest.fixture
def images(tmp_path: Path) -> ListSource:
    return opened(write_folder(tmp_path / "images", 40, 20, classes=False))


def loader_of(source: ListSource | ShardSource, workers: int = 0, window: int = 1, seconds: float = 30.0) -> TrainingLoader:
    """`seconds` is the time limit of a read, far above what one takes on a slow machine."""
    settings = HuggingFaceSettings(image_size=16, window=window)
    loader = TrainingLoader(source, settings, INPUTS, RecordingSampler(), PLAN, SEED, workers, CPU)
    loader._reader = replace(loader._reader, patience=Patience(seconds, NO_PAUSES))
    return loader


def with_fault(loader: TrainingLoader, num_steps: int, fault: Callable[[], object], after: int = 1) -> list[Batch]:
    """The batches of the loader if `fault` happens after some of them."""
    found = []
    try:
        for batch in loader.iterate(0, START, num_steps):
            found.append(batch)
            if len(found) == after:
                fault()
    finally:
        loader.close()
    return found


def skipped_in(batches: list[Batch]) -> dict[str, str]:
    return {skip.name: skip.reason for batch in batches for skip in batch.skipped}


# -------------------------------------------------------------------------------------------------------------- workers


def send(number: signal.Signals) -> None:
    """Sends a signal to one of the workers, and waits until it has its effect: this process goes on undisturbed."""
    worker = multiprocessing.active_children()[0]
    assert worker.pid is not None
    os.kill(worker.pid, number)
    if number == signal.SIGSTOP:
        os.waitpid(worker.pid, os.WUNTRACED)
    else:
        worker.join()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, r"a data worker was ended by SIGKILL, probably because the memory was full: fewer system.workers"),
        (signal.SIGSTOP, r"the data workers have given no result for 5 s"),
    ],
)
def test_workers_that_are_killed_or_hang_start_again_with_the_same_batches(
    images: ListSource, number: signal.Signals, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if number == signal.SIGSTOP:  # longer than workers take to start
        monkeypatch.setattr(workers_module, "WATCH_SECONDS", 0.2)
        monkeypatch.setattr(workers_module, "HANG_SECONDS", 5.0)
    whole = load(images, 20, plan=PLAN)
    with pytest.warns(UserWarning, match=words + r".* step \d+: .*png.*start again with the same tasks") as said:
        assert same(with_fault(loader_of(images, workers=2), 20, lambda: send(number), after=3), whole)
    assert len(said) == 1 and not multiprocessing.active_children()


def test_workers_that_are_killed_too_often_end_the_run(images: ListSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "RESTARTS", 0)
    with pytest.raises(Refusal, match=r"SIGKILL.*\(the first missing result .*\), more than 0 times within 60 minutes"):
        with_fault(loader_of(images, workers=2), 1000, lambda: send(signal.SIGKILL))
    assert not multiprocessing.active_children()


def large(task: int) -> bytes:
    """More than fits into a pipe between two processes."""
    return bytes(1_000_000)


def take_one_and_stand_still() -> None:
    next(parallel_map(large, range(1000), 2))
    time.sleep(60)


def waited(found: Callable[[], list[str]]) -> list[str]:
    """The first result that is not empty, within 20 seconds."""
    until = time.monotonic() + 20
    while not (result := found()):
        assert time.monotonic() < until
        time.sleep(0.05)
    return result


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux: processes are listed in /proc")
def test_workers_end_with_a_process_that_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "PARENT_SECONDS", 0.1)
    process = in_process(take_one_and_stand_still)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    workers = waited(lambda: children.read_text().split() if len(children.read_text().split()) == 2 else [])
    time.sleep(0.5)
    process.kill()
    process.join()
    waited(lambda: ["all"] if not any(Path(f"/proc/{worker}").exists() for worker in workers) else [])


def fail(task: int) -> int:
    raise RuntimeError(f"task {task} has a mistake")


def test_a_mistake_in_a_worker_is_no_reason_to_start_again() -> None:
    with pytest.raises(RuntimeError, match="task 0 has a mistake"):
        list(workers_module.parallel_map(fail, range(3), 1))


# ------------------------------------------------------------------------------------------------------- files of a list


def test_a_file_that_disappears_is_replaced_and_named(images: ListSource, tmp_path: Path) -> None:
    order = permutation(SEED, 0, 40).tolist()
    name = images.name(order[13])
    batches = with_fault(loader_of(images), 6, (tmp_path / "images" / name).unlink)
    assert skipped_in(batches) == {name: "No such file or directory"}
    used = torch.cat([batch.sample_ids for batch in batches]).tolist()
    assert used == [*order[:13], order[14], *order[14:24]]


def test_a_file_that_changes_is_read_as_it_is_now(images: ListSource, tmp_path: Path) -> None:
    order = permutation(SEED, 0, 40).tolist()
    before = load(images, 6, plan=PLAN)
    file, other = (tmp_path / "images" / images.name(order[place]) for place in (13, 30))
    batches = with_fault(loader_of(images), 6, lambda: shutil.copy(other, file))
    assert not skipped_in(batches)
    changed = [not torch.equal(one.views["image"], two.views["image"]) for one, two in zip(before, batches, strict=True)]
    assert changed == [False, False, False, True, False, False]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_vanishes_ends_the_run(images: ListSource, tmp_path: Path, workers: int) -> None:
    loader = loader_of(images, workers)
    words = r"\d+ images in a row cannot be used; the first is .*png: No such file or directory. Is the folder still there, and"
    with pytest.raises(Refusal, match=words):
        with_fault(loader, 1000, lambda: (tmp_path / "images").rename(tmp_path / "away"))


def test_a_read_without_an_answer_is_given_up_by_name(images: ListSource, tmp_path: Path) -> None:
    order = permutation(SEED, 0, 40).tolist()
    file = tmp_path / "images" / images.name(order[13])

    def stall() -> None:
        file.unlink()
        os.mkfifo(file)

    loader = loader_of(images, seconds=0.5)
    batches = with_fault(loader, 6, stall)
    assert skipped_in(batches) == {file.name: "reading it gave no answer for 0.5 s, 2 times"}
    assert loader.reads_repeated == 1
    os.close(os.open(file, os.O_RDWR))  # lets the abandoned reads end, and waits for no reader


class FailingSource(ListSource):
    """Reads fail with an error of the file system, `failures` times for each of some records."""

    def __init__(self, source: ListSource, records: list[int], failures: int, number: int) -> None:
        self._source, self._left, self._number = source, Counter(dict.fromkeys(records, failures)), number

    def __len__(self) -> int:
        return len(self._source)

    def name(self, index: int) -> str:
        return self._source.name(index)

    def read(self, index: int) -> bytes:
        if self._left[index] and self._is_on:
            self._left[index] -= 1
            raise OSError(self._number, os.strerror(self._number))
        return self._source.read(index)

    _is_on = False


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_the_file_system_are_tried_again_and_counted(images: ListSource, number: int, workers: int) -> None:
    order = permutation(SEED, 0, 40).tolist()
    whole = load(images, 6, plan=PLAN)
    for failures, repeated in ((2, 4), (4, 6)):
        source = FailingSource(images, [order[6], order[13]], failures, number)
        loader = loader_of(source, workers)
        source._is_on = True
        batches = list(loader.iterate(0, START, 6))
        loader.close()
        assert loader.reads_repeated == repeated
        if failures == 2:
            assert same(batches, whole)
        else:
            assert skipped_in(batches) == {images.name(order[place]): os.strerror(number) for place in (6, 13)}


# ---------------------------------------------------------------------------------------------------------------- shards


def stream(folder: Path) -> ShardSource:
    source = open_splits(HuggingFaceSettings(path=str(folder), streaming=True), 0).train
    assert isinstance(source, ShardSource)
    return source


def test_a_tar_that_is_cut_costs_its_lost_images_and_says_so(tmp_path: Path) -> None:
    """Cut in the middle of an image: this one and the rest are two unreadable records, whoever reads them."""
    write_tar(tmp_path / "0.tar", range(10))
    write_tar(tmp_path / "1.tar", range(10, 30))
    content = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(content[: content.index(png(6)) + 100])
    ranks = []
    for rank in range(2):
        settings = HuggingFaceSettings(image_size=16, window=1)
        plan = BatchPlan(4, 2, rank, 2)
        loader = TrainingLoader(stream(tmp_path), settings, INPUTS, RecordingSampler(), plan, SEED, 0, CPU)
        ranks.append(list(loader.iterate(0, START, 6)))
    found = skipped_in(ranks[0] + ranks[1])
    assert sorted(found) == ["train shard 0 row 6 (006.png)", "train shard 0 row 7 (0.tar)"], found
    assert any(f"the rest of the tar {tmp_path / '0.tar'} cannot be read" in reason for reason in found.values())


def test_a_tar_that_changes_after_it_was_listed_is_not_misread(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number}.tar", range(20 * number, 20 * number + 20))
    source = stream(tmp_path)
    first = permutation(SEED, 0, 2).tolist()[0]
    file = tmp_path / f"{first}.tar"
    loader, ledger = loader_of(source), SkipLedger(0.05, min_seen=8)
    with pytest.raises(Refusal, match=rf"data.max_skipped=0.05; the last: .*{first}.tar has changed since its contents"):
        for batch in loader.iterate(0, START, 10):
            ledger.count(batch, 1)
            ledger.merge([ledger.take()])
            ledger.raise_if_too_many()
            write_tar(file, range(100, 120))


def test_damaged_pages_of_a_parquet_file_cost_their_row_group(tmp_path: Path) -> None:
    for number in range(3):
        write_parquet(tmp_path / f"train-{number}.parquet", range(12 * number, 12 * number + 12))
    file = tmp_path / "train-1.parquet"
    column = pq.read_metadata(file).row_group(2).column(0)
    damaged = bytearray(file.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    damaged[start : start + 20] = b"\xff" * 20
    file.write_bytes(damaged)
    skips = [skipped_in(load(stream(tmp_path), 9, plan=plan)) for plan in (PLAN, BatchPlan(4, 1, 0, 4))]
    assert sorted(skips[0]) == [f"train shard 1 row {row} ({12 + row}.png)" for row in (6, 7, 8)]
    assert all("train-1.parquet cannot be read as Parquet" in reason for reason in skips[0].values())
    assert set(skips[1]) < set(skips[0])


def test_a_parquet_file_without_its_end_is_one_record_with_the_reason(tmp_path: Path) -> None:
    for number in range(2):
        write_parquet(tmp_path / f"train-{number}.parquet", range(12 * number, 12 * number + 12))
    file = tmp_path / "train-1.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    (batches,) = [load(stream(tmp_path), 3, plan=PLAN)]
    (name, reason), *others = skipped_in(batches).items()
    assert not others and name == "train shard 1 row 0" and "train-1.parquet cannot be read as Parquet" in reason


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_that_is_gone_ends_the_run(tmp_path: Path, kind: str) -> None:
    """To go on without it would shift the order, for this process alone if the others still see it."""
    for number in range(3):
        (write_tar if kind == "tar" else write_parquet)(tmp_path / f"{number}.{kind}", range(300 * number, 300 * number + 300))
    source = stream(tmp_path)
    last = permutation(SEED, 0, 3).tolist()[-1]
    with pytest.raises(Refusal, match=rf"shard of the data cannot be reached .*{last}.{kind}.*continues from its last checkp"):
        with_fault(loader_of(source), 225, (tmp_path / f"{last}.{kind}").unlink)


def test_errors_while_a_shard_is_listed_end_the_run_too(images: ListSource) -> None:
    class Unreachable(Shards):
        def read_shard(self, shard: int) -> Iterator[ShardRecord]:
            yield from super().read_shard(shard)
            raise OSError(errno.EIO, os.strerror(errno.EIO), "1.tar")

    with pytest.raises(Refusal, match=r"a shard of the data cannot be reached \(\[Errno 5\] Input/output error: '1.tar'\)"):
        load(Unreachable(images, (20, 20)), 3, plan=PLAN)
