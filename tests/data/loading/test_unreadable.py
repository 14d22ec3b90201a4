"""The ledger of skipped samples: each is listed once, and all processes count and judge the same."""

import pytest
import torch

from openjepa.data.loading.unreadable import SkipLedger
from openjepa.types import Batch, Skipped


def batch(*names: str) -> Batch:
    skipped = tuple(Skipped(name, "empty file") for name in names)
    return Batch(torch.zeros(100, dtype=torch.int64), {}, skipped=skipped)


def test_the_ledger_lists_each_sample_once_and_stops_above_the_share() -> None:
    def count(ledger: SkipLedger, *names: str) -> list[str]:
        ledger.count(batch(*names), 1)
        return [skip.name for _, skip in ledger.merge([ledger.take()])]

    ledger = SkipLedger(0.05)
    assert count(ledger, "a", "b") == ["a", "b"]
    assert count(ledger, "a", "c") == ["c"]
    assert count(ledger, "a") == []
    ledger.raise_if_too_many()
    assert (ledger.num_seen, ledger.num_skipped) == (300, 5)
    assert len(count(ledger, *[f"x{i}" for i in range(20)])) == 20  # to be written down before the run stops
    with pytest.raises(ValueError, match=r"25 of 400 images .* data.max_skipped=0.05; the last: x19 \(empty file\)"):
        ledger.raise_if_too_many()
    early = SkipLedger(0.05)
    count(early, *[f"x{i}" for i in range(90)])
    early.raise_if_too_many()  # too few seen to judge


def test_ledgers_of_all_processes_agree_after_each_merge() -> None:
    """Three processes, of which one meets all bad files: nobody judges before the merge, and then all do alike."""
    ledgers = [SkipLedger(0.05, known=["old"], num_seen=100, num_skipped=1) for _ in range(3)]
    for step in (7, 8):
        for rank, ledger in enumerate(ledgers):
            bad = [f"bad{step}", "old", *[f"{step}-{i}" for i in range(10)]] if rank == 1 else []
            ledger.count(batch(*bad, *(["both"] if rank != 0 else [])), step)
            ledger.raise_if_too_many()
    counts = [ledger.take() for ledger in ledgers]
    found = [ledger.merge(counts) for ledger in ledgers]
    assert found[0] == found[1] == found[2]
    assert [(step, skip.name) for step, skip in found[0]] == [
        *[(7, name) for name in ["bad7", *[f"7-{i}" for i in range(10)], "both"]],
        *[(8, name) for name in ["bad8", *[f"8-{i}" for i in range(10)]]],
    ]
    assert {(ledger.num_seen, ledger.num_skipped) for ledger in ledgers} == {(700, 29)}
    for ledger in ledgers:
        ledger.raise_if_too_many()
    ledgers[2].count(batch(*[f"more{i}" for i in range(30)]), 9)
    counts = [ledger.take() for ledger in ledgers]
    for ledger in ledgers:
        ledger.merge(counts)
        with pytest.raises(ValueError, match=r"59 of 800 images could not be used.*the last: more29 \(empty file\)"):
            ledger.raise_if_too_many()


def test_counts_in_parts_are_the_counts_of_one_process() -> None:
    batches = [batch("a", "b"), batch("a"), batch("c", "b"), batch()]
    alone, ranks = SkipLedger(0.5), [SkipLedger(0.5) for _ in range(2)]
    for number, one in enumerate(batches):
        alone.count(one, 1 + number // 2)
        ranks[number % 2].count(one, 1 + number // 2)
    expected = alone.merge([alone.take()])
    counts = [ledger.take() for ledger in ranks]
    for ledger in ranks:
        assert sorted(skip.name for _, skip in ledger.merge(counts)) == sorted(skip.name for _, skip in expected)
        assert (ledger.num_seen, ledger.num_skipped) == (alone.num_seen, alone.num_skipped) == (400, 5)
