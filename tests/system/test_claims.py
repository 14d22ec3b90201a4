"""Work that processes share: locks that end with the process that holds them."""

import threading
import time
from pathlib import Path

import pytest

from openjepa.system import shared_files
from openjepa.system.shared_files import Claim, claimed, take
from tests.helpers.processes import in_process


def test_a_claim_is_one_process_alone_and_ends_with_it(tmp_path: Path) -> None:
    place = tmp_path / "work"

    def hold() -> None:
        kept = take(place, wait=True)  # the loop below may have it just then; one that is not kept ends at once
        time.sleep(1000)
        assert kept is not None

    process = in_process(hold)
    while not place.exists() or (claim := take(place)) is not None:
        assert process.is_alive()
        if place.exists() and claim is not None:
            claim.release()
        time.sleep(0.005)
    process.kill()
    process.join()
    claim = take(place)
    assert claim is not None
    with claimed(tmp_path, "work") as ours:
        assert not ours
    claim.release()
    with claimed(tmp_path, "work") as ours:
        assert ours


def test_a_claim_on_a_file_that_was_removed_meanwhile_is_none(tmp_path: Path) -> None:
    place = tmp_path / "work"
    first = take(place)
    assert first is not None
    found: list[Claim | None] = []
    waiting = threading.Thread(target=lambda: found.append(take(place, wait=True)))
    waiting.start()
    time.sleep(0.05)
    place.unlink()  # whoever waited for this file must not believe to have the new one's work
    second = take(place)
    assert second is not None
    first.release()
    time.sleep(0.05)
    assert not found
    second.release()
    waiting.join(10)
    assert found and found[0] is not None
    found[0].release()


def test_shared_claims_exclude_only_whoever_wants_it_alone(tmp_path: Path) -> None:
    first, second = (take(tmp_path / "work", shared=True) for _ in range(2))
    assert first is not None and second is not None and take(tmp_path / "work") is None
    first.release()
    second.release()
    alone = take(tmp_path / "work")
    assert alone is not None
    alone.release()


def test_without_locks_everyone_has_everything_and_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(shared_files.WITHOUT_LOCKS[0], "No locks available")

    monkeypatch.setattr("openjepa.system.shared_files.fcntl.flock", refuse)
    with pytest.warns(UserWarning, match="cannot lock files: let only one process work there"):
        claim = take(tmp_path / "work")
    assert claim is not None
    claim.release()
