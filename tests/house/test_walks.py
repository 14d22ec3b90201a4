"""How many files an image walks through: measured with a profiler, so that the map cannot grow unseen."""

from pathlib import Path

import pytest

from benchmarks.walks import COMMANDS, walk, write_images

MOST_FILES = {"train": 81, "evaluate": 40, "embed": 32}
"""What each walk needs now. The aim for `evaluate` and `embed` is at most 40."""


def test_no_walk_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("images"), images=10)
    entered = {name: walk(COMMANDS[name]) for name in MOST_FILES}
    grown = {name: list(files) for name, files in entered.items() if len(files) > MOST_FILES[name]}
    assert not grown, "lower a limit when a walk gets shorter; `python -m benchmarks.walks NAME --list` names the files"
    expected = {
        "train": "training/loop.py",
        "evaluate": "evaluation/probes/knn.py",
        "embed": "inference/embedding/compute.py",
    }
    assert all(file in entered[name] for name, file in expected.items())
