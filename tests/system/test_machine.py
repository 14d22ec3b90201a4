"""Free memory is what the groups of a container leave, where files that were read count as free."""

import os
from pathlib import Path

import pytest

from openjepa.engine import device
from openjepa.system import machine
from openjepa.system.machine import available_memory, total_memory

GIB = 1 << 30
UNIFIED = "30 24 0:26 {top} /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
SPLIT = (
    "31 24 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755\n"
    "32 31 0:28 {top} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "33 31 0:29 {top} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)
UNLIMITED_V1 = 9223372036854771712


@pytest.fixture(autouse=True)
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_physical_memory", lambda: 64 * GIB)


def system(root: Path, groups: str, mounts: str, available: int = 50 * GIB) -> Path:
    """A /proc that says of this process which groups it is in, and where they are mounted."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable:   {available // 1024} kB\nSwap: 0 kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    (root / "proc/self/mountinfo").write_text("24 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + mounts)
    return root


def group_v2(folder: Path, limit: int | str, used: int, inactive: int = 0, active: int = 0, high: int | str = "max") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.high").write_text(f"{high}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    stat = f"anon 5\nfile {inactive + active + 7}\nshmem 7\ninactive_file {inactive}\nactive_file {active}\n"
    (folder / "memory.stat").write_text(stat)


def group_v1(folder: Path, limit: int, used: int, inactive: int = 0, hierarchical: int = UNLIMITED_V1) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    stat = f"cache 1\ninactive_file 1\nhierarchical_memory_limit {hierarchical}\ntotal_inactive_file {inactive}\n"
    (folder / "memory.stat").write_text(f"{stat}total_active_file 0\n")


def test_files_that_a_container_has_read_count_as_free(tmp_path: Path) -> None:
    system(tmp_path, "0::/\n", UNIFIED.format(top="/"))
    group_v2(tmp_path / "sys/fs/cgroup", 8 * GIB, used=7 * GIB, inactive=4 * GIB, active=GIB)
    assert available_memory(tmp_path) == 6 * GIB and total_memory(tmp_path) == 8 * GIB


@pytest.mark.parametrize("tight", ["a", "a/b", "a/b/c"])
def test_every_group_above_the_own_one_limits(tmp_path: Path, tight: str) -> None:
    system(tmp_path, "0::/a/b/c\n", UNIFIED.format(top="/"))
    for name in ("a", "a/b", "a/b/c", "a/other"):
        limit = 4 * GIB if name == tight else GIB if name == "a/other" else "max"
        group_v2(tmp_path / "sys/fs/cgroup" / name, limit, used=GIB)
    assert available_memory(tmp_path) == 3 * GIB and total_memory(tmp_path) == 4 * GIB


def test_memory_high_is_a_limit_too(tmp_path: Path) -> None:
    system(tmp_path, "0::/slice\n", UNIFIED.format(top="/"))
    group_v2(tmp_path / "sys/fs/cgroup/slice", 8 * GIB, used=GIB, high=2 * GIB)
    assert available_memory(tmp_path) == GIB


@pytest.mark.parametrize("path", ["/kubepods/pod1/deadbeef", "/../../elsewhere", "/somewhere"])
def test_from_inside_a_container_the_mounted_folder_is_the_own_group(tmp_path: Path, path: str) -> None:
    """The path may be that of the host, or lie outside what is mounted."""
    system(tmp_path, f"0::{path}\n", UNIFIED.format(top="/kubepods/pod1/deadbeef"))
    group_v2(tmp_path / "sys/fs/cgroup", 2 * GIB, used=GIB, inactive=GIB // 2)
    assert available_memory(tmp_path) == 3 * GIB // 2


@pytest.mark.parametrize(("own", "above", "free"), [(4, 64, 3), (64, 4, 2), (4, 3, 1)])
def test_version_1_has_a_tree_of_its_own_for_memory(tmp_path: Path, own: int, above: int, free: int) -> None:
    groups = "5:cpu,cpuacct:/docker\n4:memory:/docker/0123\n1:name=systemd:/docker/0123\n0::/system.slice\n"
    system(tmp_path, groups, SPLIT.format(top="/"))
    tree = tmp_path / "sys/fs/cgroup/memory"
    group_v1(tree, UNLIMITED_V1, used=9 * GIB)
    group_v1(tree / "docker", UNLIMITED_V1 if above == 64 else above * GIB, used=4 * GIB, inactive=2 * GIB)
    group_v1(tree / "docker/0123", UNLIMITED_V1 if own == 64 else own * GIB, used=3 * GIB, inactive=2 * GIB)
    assert available_memory(tmp_path) == free * GIB


def test_version_1_tells_a_limit_of_groups_that_cannot_be_seen(tmp_path: Path) -> None:
    system(tmp_path, "4:memory:/docker/0123\n", SPLIT.format(top="/docker/0123"))
    group_v1(tmp_path / "sys/fs/cgroup/memory", UNLIMITED_V1, used=GIB, hierarchical=3 * GIB)
    assert available_memory(tmp_path) == 2 * GIB and total_memory(tmp_path) == 3 * GIB


def test_both_versions_side_by_side(tmp_path: Path) -> None:
    unified = UNIFIED.format(top="/").replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    system(tmp_path, "4:memory:/job\n0::/session\n", SPLIT.format(top="/") + unified)
    (tmp_path / "sys/fs/cgroup/unified/session").mkdir(parents=True)  # without a controller of memory
    group_v1(tmp_path / "sys/fs/cgroup/memory/job", 5 * GIB, used=2 * GIB)
    assert available_memory(tmp_path) == 3 * GIB


def test_without_limits_the_machine_tells(tmp_path: Path) -> None:
    system(tmp_path / "v2", "0::/user.slice\n", UNIFIED.format(top="/"))
    group_v2(tmp_path / "v2/sys/fs/cgroup/user.slice", "max", used=40 * GIB)
    system(tmp_path / "v1", "4:memory:/\n", SPLIT.format(top="/"))
    group_v1(tmp_path / "v1/sys/fs/cgroup/memory", UNLIMITED_V1, used=40 * GIB)
    for root in (tmp_path / "v1", tmp_path / "v2"):
        assert available_memory(root) == 50 * GIB and total_memory(root) == 64 * GIB


def test_a_group_that_uses_more_than_its_limit_leaves_nothing(tmp_path: Path) -> None:
    system(tmp_path, "0::/\n", UNIFIED.format(top="/"))
    group_v2(tmp_path / "sys/fs/cgroup", GIB, used=2 * GIB)
    assert available_memory(tmp_path) == 0


def test_without_proc_and_with_broken_files_there_is_the_whole_machine(tmp_path: Path) -> None:
    assert available_memory(tmp_path) == total_memory(tmp_path) == 64 * GIB, "macOS"
    system(tmp_path, "0::/\n", UNIFIED.format(top="/"))
    group_v2(tmp_path / "sys/fs/cgroup", "nonsense", used=GIB)
    assert available_memory(tmp_path) == 50 * GIB


def test_blanks_in_a_mount_are_read(tmp_path: Path) -> None:
    system(tmp_path, "0::/a\n", UNIFIED.format(top="/").replace("/sys/fs/cgroup", "/my\\040groups"))
    group_v2(tmp_path / "my groups/a", 2 * GIB, used=GIB)
    assert available_memory(tmp_path) == GIB


def test_a_cpu_has_the_memory_of_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "total_memory", lambda: 7)
    assert device.memory_limit(device.torch.device("cpu")) == 7
    for name, number in (("WORLD_SIZE", 6), ("LOCAL_WORLD_SIZE", 3)):
        monkeypatch.setenv(name, str(number))
    assert device.memory_limit(device.torch.device("cpu")) == 2, "its processes divide it"
    assert device.of_memory(device.torch.device("cpu")) == " (the part of one of the 3 processes of this machine)"


def test_this_machine_has_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert 2**20 < available_memory() <= total_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
