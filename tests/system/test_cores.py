"""Cores are those that a container grants, in both versions of cgroups, as the files of a made-up system say."""

import os
import sys
from pathlib import Path

import pytest

from openjepa.data.passes import choose_workers
from openjepa.system import machine
from openjepa.system.machine import available_cores

V2 = "30 24 0:26 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "32 31 0:28 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:29 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


@pytest.fixture(autouse=True)
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_allowed_cores", lambda: 16)


def system(root: Path, groups: str, mounts: str) -> Path:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text(mounts)
    return root / "sys/fs/cgroup"


def quota_v2(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.max").write_text(f"{text}\n")


def quota_v1(folder: Path, quota: int, period: int = 100_000) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.mark.parametrize(
    ("text", "number"),
    [("max 100000", 16), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 16), ("x", 16)],
)
def test_a_quota_grants_whole_cores_and_at_least_one(tmp_path: Path, text: str, number: int) -> None:
    quota_v2(system(tmp_path, "0::/\n", V2.format(top="/")), text)
    assert available_cores(tmp_path) == number


@pytest.mark.parametrize("tight", ["a", "a/b", "a/b/c"])
def test_every_group_above_the_own_one_limits(tmp_path: Path, tight: str) -> None:
    tree = system(tmp_path, "0::/a/b/c\n", V2.format(top="/"))
    for name in ("a", "a/b", "a/b/c", "a/other"):
        quota_v2(tree / name, "300000 100000" if name == tight else "100000 100000" if name == "a/other" else "max 100000")
    assert available_cores(tmp_path) == 3


def test_from_inside_a_container_the_mounted_folder_is_the_own_group(tmp_path: Path) -> None:
    quota_v2(system(tmp_path, "0::/../../elsewhere\n", V2.format(top="/pod/dead")), "200000 100000")
    assert available_cores(tmp_path) == 2


@pytest.mark.parametrize(("own", "above", "number"), [(200_000, -1, 2), (-1, 300_000, 3), (-1, -1, 16), (150_000, 100_000, 1)])
def test_version_1_has_a_tree_of_its_own_for_processors(tmp_path: Path, own: int, above: int, number: int) -> None:
    tree = system(tmp_path, "5:cpu,cpuacct:/docker/0123\n4:memory:/docker\n", V1.format(top="/"))
    quota_v1(tree / "cpu,cpuacct/docker", above)
    quota_v1(tree / "cpu,cpuacct/docker/0123", own)
    assert available_cores(tmp_path) == number


def test_without_groups_the_machine_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_cores(tmp_path) == 16
    monkeypatch.undo()
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    assert available_cores(tmp_path) == allowed


def test_a_worker_is_started_for_each_core_but_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, workers in ((1, 1), (2, 1), (4, 3), (64, 16)):
        monkeypatch.setattr("openjepa.data.passes.available_cores", lambda number=number: number)
        assert choose_workers(None) == workers
    assert choose_workers(None, "memory") == 0 and choose_workers(5, "memory") == 5
    for name, number in (("WORLD_SIZE", 16), ("LOCAL_WORLD_SIZE", 8)):
        monkeypatch.setenv(name, str(number))
    assert choose_workers(None) == 7 and choose_workers(5) == 5
