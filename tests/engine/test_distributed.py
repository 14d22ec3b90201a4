"""Sums, decisions and errors over processes, in two real ones."""

import gc
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from openjepa.engine import distributed
from openjepa.refusals import Lost, Refusal, RepeatedRefusal
from openjepa.system.machine import launched
from tests.helpers.ranks import free_port, on_ranks, start_ranks


def _sums() -> dict[str, object]:
    rank = distributed.rank()
    value = torch.tensor([1.0, 2.0]) * (rank + 1)
    value.requires_grad_()
    # the loss of this process: sum over processes, squared, times a weight of its own
    loss = (distributed.sum_over_ranks(value) ** 2).sum() * (rank + 1)
    loss.backward()
    return {
        "sum": distributed.sum_over_ranks(value.detach()),
        "gradient": value.grad,
        "mean": distributed.mean_over_ranks(torch.tensor(float(rank))),
        "rows": distributed.rows_of_all(torch.full((rank + 1, 2), rank)),
        "largest": distributed.largest_over_ranks([rank, -rank]),
        "gathered": distributed.gathered(("rank", rank)),
        "main": distributed.from_main(lambda: distributed.rank()),
        "added": _added(rank),
        "shared": distributed.divided_work([lambda number=number: (number, distributed.rank()) for number in range(3)]),
    }


def _added(rank: int) -> list[torch.Tensor]:
    distributed.BUCKET_NUMBERS = 3
    tensors = [torch.full((2, 2), 1.0 + rank), torch.tensor(10.0 * rank), torch.ones(3)[::2]]
    distributed.add_over_ranks(tensors)
    return tensors


def _decisions() -> dict[str, str]:
    found = {}
    for name, run in (("main", _fail_on(0, distributed.from_main)), ("all", _fail_on(1, distributed.in_all))):
        try:
            run()
        except RepeatedRefusal as error:
            found[name] = f"repeated: {error}"
        except Refusal as error:
            found[name] = f"own: {error}"
    print("only the main process prints")
    return found


def _fail_on(rank: int, collective: object) -> object:
    def fail() -> None:
        if distributed.rank() == rank:
            raise Refusal("no such folder")

    return lambda: collective(fail)  # type: ignore[operator]


def _both() -> tuple[dict[str, object], dict[str, str]]:
    return _sums(), _decisions()


def test_sums_decisions_and_errors_of_two_processes(tmp_path: Path) -> None:
    (first, said_first), (second, said_second) = on_ranks(2, tmp_path, _both)
    for found in (first, second):
        assert torch.equal(found["sum"], torch.tensor([3.0, 6.0]))
        # d/dS of S^2 is 2 S = (6, 12) in each process, times the weights 1 and 2
        assert torch.equal(found["gradient"], torch.tensor([18.0, 36.0]))
        assert found["mean"] == 0.5
        assert found["rows"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert found["largest"] == [1, 0]
        assert found["gathered"] == [("rank", 0), ("rank", 1)]
        assert found["main"] == 0
        assert [tensor.tolist() for tensor in found["added"]] == [[[3.0, 3.0], [3.0, 3.0]], 10.0, [2.0, 2.0]]
        assert found["shared"] == [(0, 0), (1, 1), (2, 0)]
    assert said_first == {"main": "own: no such folder", "all": "repeated: process 1: no such folder"}
    assert said_second == {"main": "repeated: no such folder", "all": "own: no such folder"}
    assert "only the main" in (tmp_path / "rank0.txt").read_text()
    assert "only the main" not in (tmp_path / "rank1.txt").read_text()


def test_a_single_process_communicates_nothing() -> None:
    value = torch.ones(2)
    assert distributed.sum_over_ranks(value) is value and distributed.mean_over_ranks(value) is value
    assert distributed.gathered(3) == [3] and distributed.from_main(lambda: 4) == 4 and distributed.in_all(lambda: 5) == 5
    assert distributed.divided_work([lambda: 6, lambda: 7]) == [6, 7] and distributed.rows_of_all(value) is value
    distributed.add_over_ranks([value])
    distributed.barrier()
    assert value.tolist() == [1.0, 1.0]


def _refuse(number: int | None) -> str:
    """How this process ends if it refuses, which all do if `number` is None."""
    try:
        with distributed.joined(torch.device("cpu"), 60):
            if number in (None, distributed.rank()):
                raise Refusal("no such folder")
            distributed.barrier()  # waits for the one that has refused
    except RepeatedRefusal:
        return "repeated"
    except Refusal as error:
        return str(error)
    return "ended well"


@pytest.mark.parametrize("number", [None, 1])
def test_only_one_process_tells_a_refusal(tmp_path: Path, number: int | None) -> None:
    assert sorted(on_ranks(2, tmp_path, _refuse, number, joined=False)) == ["no such folder", "repeated"]


def _groups_after_leaving() -> list[bool]:
    """True for each process group that still exists after the block that it served."""
    with distributed.joined(torch.device("cpu"), 60):
        groups = [weakref.ref(dist.group.WORLD), weakref.ref(distributed.own_group())]
        distributed.barrier()
    gc.collect()
    return [group() is not None for group in groups]


def test_process_groups_outlive_what_uses_them(tmp_path: Path) -> None:
    # else DDP's reducer may be the last to hold one, and ends it while it holds Python's lock: a process in thirty hung
    assert on_ranks(2, tmp_path, _groups_after_leaving, joined=False) == [[True, True]] * 2


def test_processes_that_are_started_again_find_nothing_of_those_before_them() -> None:
    launch = dist.HashStore()
    launch.set_timeout(timedelta(seconds=20))
    launch.add("asked", 1)  # by a process that was killed before the main process answered
    for _ in range(2):
        with ThreadPoolExecutor(3) as threads:
            met = threads.map(lambda number: distributed._of_this_start(launch, number, 3, 20), (2, 1, 0))
        second, first, main = met
        assert not main.check(["address"])
        main.set("address", "here")
        assert first.get("address") == second.get("address") == b"here"
    with pytest.raises(TimeoutError, match="2 did not come"):
        distributed._of_this_start(launch, 0, 3, 0.05)


def test_the_folder_of_a_fresh_run_outlives_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [distributed.once("folder", lambda name=name: name) for name in ("a", "b")] == ["a", "b"]
    monkeypatch.setattr(distributed, "_launch", dist.HashStore())
    assert [distributed.once("folder", lambda name=name: name) for name in ("a", "b")] == ["a", "a"]


def _other_version() -> None:
    import openjepa

    if launched() and os.environ["RANK"] == "1":
        openjepa.__version__ = "0.0.1"
    words = r"different versions of openjepa: .* in process 0; 0\.0\.1 in process 1"
    with pytest.raises(Refusal, match=words), distributed.joined(torch.device("cpu"), 60):
        raise AssertionError("different versions were accepted")


def test_mixed_versions_are_named(tmp_path: Path) -> None:
    on_ranks(2, tmp_path, _other_version, joined=False)


def test_a_launch_without_a_meeting_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = "RANK and LOCAL_RANK and MASTER_ADDR and MASTER_PORT are not set:.*torchrun"
    with pytest.raises(Refusal, match=words), distributed.joined(torch.device("cpu")):
        pass
    values = {"RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    words = r"process 0 of 2 did not find the others at 127\.0\.0\.1:\d+ within 1 s"
    with pytest.raises(Refusal, match=words), distributed.joined(torch.device("cpu"), timeout_seconds=1):
        pass
    words = "2 processes cannot train on mps: .*run.device=cuda or cpu"
    with pytest.raises(Refusal, match=words), distributed.joined(torch.device("mps")):
        pass


def _found_by_main(error: Exception | None) -> object:
    """What the first of two processes knows of the end of the second: by `error`, or killed."""
    try:
        with distributed.joined(torch.device("cpu"), 60):
            distributed.barrier()
            if distributed.rank() == 1:
                if error is None:
                    os._exit(0)
                raise error
            distributed.doing("the sums of step 3")
            try:
                distributed.barrier()
            except Exception as lost:
                with distributed.explain_lost(60):
                    raise lost
    except Lost as lost:
        return lost.waited_in, distributed.first_error()
    except Exception as own:
        return type(own)
    return None


def test_a_killed_process_is_told_from_one_that_failed(tmp_path: Path) -> None:
    processes = start_ranks(2, tmp_path / "killed", _found_by_main, None)
    for process in processes:
        process.join(60)
    assert torch.load(tmp_path / "killed" / "rank0.pt", weights_only=False) == ("the sums of step 3", "")
    found = on_ranks(2, tmp_path / "failed", _found_by_main, KeyError("a bug"), joined=False)
    assert found == [("the sums of step 3", "process 1: 'a bug'"), KeyError]


def test_only_errors_of_an_exchange_are_taken_for_a_lost_process() -> None:
    with pytest.raises(RuntimeError, match=r"^a file system timed out$"), distributed.explain_lost(1):
        raise RuntimeError("a file system timed out")
    with (
        pytest.raises(Refusal, match=r"at least one of them ended or cannot be reached"),
        distributed.explain_lost(1),
    ):
        raise torch.distributed.DistError
