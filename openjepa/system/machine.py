"""What this process may use of the machine, or of the container that limits it: memory, and cores.

Linux limits a group of processes (Docker, Kubernetes, Slurm, systemd) through cgroups. A process may use no more than its own
group and every group above it (Linux kernel documentation, admin-guide/cgroup-v2, cgroup-v1/memory and scheduler/sched-bwc).

- Memory: version 2 has one tree with `memory.max`, version 1 a tree of its own with `memory.limit_in_bytes`. What a group
  "uses" includes the page cache of every file that its processes have read; the kernel gives that back before it refuses
  memory.
- Cores: a quota of time in each period (Docker's `--cpus`, Kubernetes' `limits.cpu`), in `cpu.max`, or in `cpu.cfs_quota_us`
  and `cpu.cfs_period_us`. More workers than that wait for one another.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path("/")
"""The folder with proc/ and sys/; tests put their own here."""


@dataclass(frozen=True)
class _Version:
    """Names in the files of one version of cgroups."""

    limits: tuple[str, ...]
    usage: str
    prefix: str
    """Prefix of the entries of memory.stat that count the groups below too."""
    parents_limit: str | None
    """Entry of memory.stat with the lowest limit of all groups above, also of those that cannot be seen from a container."""


# memory.high is no refusal, but the kernel all but stops processes that are above it
_V2 = _Version(("memory.max", "memory.high"), "memory.current", "", None)
_V1 = _Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_", "hierarchical_memory_limit")
_RECLAIMABLE = ("inactive_file", "active_file")
"""The page cache without shared memory, which is not given back."""


@dataclass(frozen=True)
class _Group:
    """A group that this process belongs to, with a limit."""

    limit: int
    free: int


def total_memory(root: Path = ROOT) -> int:
    """Bytes of memory that this process can have at most: those of the machine, or the lowest limit of its groups."""
    return min([_physical_memory(), *(group.limit for group in _groups(root))])


def available_memory(root: Path = ROOT) -> int:
    """Bytes of memory that can be taken without swapping, as far as the system tells. The page cache counts as free."""
    return min([_physical_memory(), *_available_on_machine(root), *(group.free for group in _groups(root))])


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _available_on_machine(root: Path) -> Iterator[int]:
    """Nothing on systems without /proc, such as macOS."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    if found is not None:
        yield int(found[1]) * 1024


def _groups(root: Path) -> Iterator[_Group]:
    """The group of this process and those above it, as far as they have a limit and can be seen from here."""
    for folder, is_v2 in group_folders(root, "memory"):
        with suppress(OSError, ValueError):  # a group that cannot be read limits nothing that we know of
            yield from _read_group(folder, _V2 if is_v2 else _V1)


def group_folders(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's group and of those above it as far as they are mounted, and whether they are of version 2.

    `controller`: whose tree is looked at in version 1, such as `memory` or `cpu`; version 2 has one tree for all.
    """
    paths = _own_paths(root)
    for is_v2, name in ((True, ""), (False, controller)):
        for mount_root, mount_point in _mounts(root, name):
            below = _below(paths.get(name, "/"), mount_root)
            for part in (below, *below.parents):
                yield root / mount_point.relative_to("/") / part, is_v2


def _own_paths(root: Path) -> dict[str, str]:
    """The path of this process's group in each tree; version 2 has the name ""."""
    paths: dict[str, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():  # as in 0::/user.slice and 4:memory:/docker/0123
        number, names, path = line.split(":", maxsplit=2)
        paths |= {"": path} if (number, names) == ("0", "") else dict.fromkeys(names.split(","), path)
    return paths


def _mounts(root: Path, name: str) -> Iterator[tuple[str, PurePosixPath]]:
    """Mounts of the tree `name`: the group at its top, and the folder."""
    lines = _text(root / "proc/self/mountinfo").splitlines()
    for left, _, right in (line.partition(" - ") for line in lines if " - cgroup" in line):
        kind, _, options = right.split(" ", maxsplit=2)
        if kind == "cgroup2" if name == "" else kind == "cgroup" and name in options.split(","):
            top, folder = (_unescaped(word) for word in left.split(" ")[3:5])
            yield top, PurePosixPath(folder)


def _unescaped(word: str) -> str:
    r"""Blanks are written as `\040` and so on."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)


def _below(path: str, top: str) -> PurePosixPath:
    """A group's path from the group that is mounted; nothing if it lies elsewhere, as from inside some containers."""
    with suppress(ValueError):
        below = PurePosixPath(path).relative_to(top)
        if ".." not in below.parts:
            return below
    return PurePosixPath()


def _read_group(folder: Path, version: _Version) -> Iterator[_Group]:
    """Nothing if the group has no limit. Raises OSError or ValueError if its files cannot be read."""
    counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    files = [folder / name for name in version.limits]
    limits = [file.read_text().strip() for file in files if file.exists()]
    if version.parents_limit in counts:
        limits.append(counts[version.parents_limit])
    limit = min((int(text) for text in limits if text != "max"), default=None)
    if limit is None:
        return
    used = int((folder / version.usage).read_text())
    reclaimable = sum(int(counts.get(f"{version.prefix}{name}", 0)) for name in _RECLAIMABLE)
    yield _Group(limit, max(0, limit - max(0, used - reclaimable)))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def available_cores(root: Path = ROOT) -> int:
    """Cores that this process may run on, at most the whole cores that its groups grant, at least one."""
    return max(1, int(min([_allowed_cores(), *_granted(root)])))


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _granted(root: Path) -> Iterator[float]:
    """Cores that each group of this process grants it, if it has a quota."""
    for folder, is_v2 in group_folders(root, "cpu"):
        with suppress(OSError, ValueError):  # a group without a quota that can be read limits nothing that we know of
            quota, period = _quota(folder, is_v2)
            if quota > 0 and period > 0:
                yield quota / period


def _quota(folder: Path, is_v2: bool) -> tuple[int, int]:
    """Microseconds on a core in each period, and its length. Raises ValueError for the word `max`; -1 means none as well."""
    if is_v2:
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota), int(period)
    return int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text())
