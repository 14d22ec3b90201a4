"""What of the machine this process may use: memory and cores, and its number among the processes that a launcher has started.

Linux limits a group of processes (Docker, Kubernetes, Slurm, systemd) through cgroups. A process may use no more than its own
group and every group above it (Linux kernel documentation, admin-guide/cgroup-v2, cgroup-v1/memory and scheduler/sched-bwc).

- Memory: version 2 has one tree for all limits, with `memory.max`. Version 1 has a tree for memory, with
  `memory.limit_in_bytes`. The memory that a group uses includes the page cache of every file that its processes have read. The
  kernel frees this cache before it refuses memory.
- Cores: a quota of time in each period (Docker's `--cpus`, Kubernetes' `limits.cpu`), in `cpu.max`, or in `cpu.cfs_quota_us`
  and `cpu.cfs_period_us`. More workers than that wait for one another.

A launcher such as torchrun says in the environment how many processes it has started.
"""

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from openjepa.refusals import Refusal

ROOT = Path("/")
"""The folder that holds proc/ and sys/. Tests use their own."""
RENDEZVOUS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables of the environment by which processes find each other. torchrun sets them, and WORLD_SIZE."""


@dataclass(frozen=True)
class _Version:
    """Names of files and entries in one version of cgroups."""

    limits: tuple[str, ...]
    usage: str
    prefix: str
    """Prefix of the entries of memory.stat that include the groups below."""
    parents_limit: str | None
    """Entry of memory.stat with the lowest limit of all groups above, including groups that a container cannot see."""


# at memory.high the kernel does not refuse memory, but it almost stops processes that exceed it
_V2 = _Version(("memory.max", "memory.high"), "memory.current", "", None)
_V1 = _Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_", "hierarchical_memory_limit")
_RECLAIMABLE = ("inactive_file", "active_file")
"""Entries of the page cache that the kernel can free. Shared memory is not among them."""


@dataclass(frozen=True)
class _Group:
    """A group that this process belongs to, with a limit."""

    limit: int
    free: int


def total_memory(root: Path = ROOT) -> int:
    """Most bytes of memory that this process can have: those of the machine, or the lowest limit of its groups."""
    return min([_physical_memory(), *(group.limit for group in _groups(root))])


def available_memory(root: Path = ROOT) -> int:
    """Bytes of memory that can be used without swapping, as far as the system tells. The page cache counts as free."""
    return min([_physical_memory(), *_available_on_machine(root), *(group.free for group in _groups(root))])


def part_words(processes: int) -> str:
    """Words behind an amount that `processes` of this machine have divided. Empty for a single process."""
    return f" (the part of one of the {processes} processes of this machine)" if processes > 1 else ""


def _physical_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _available_on_machine(root: Path) -> Iterator[int]:
    """Yields the available bytes of the machine. Yields nothing on systems without /proc, such as macOS."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", _text(root / "proc/meminfo"), re.MULTILINE)
    if found is not None:
        yield int(found[1]) * 1024


def _groups(root: Path) -> Iterator[_Group]:
    """Yields the group of this process and the groups above it, if they have a limit and can be read."""
    for folder, is_v2 in group_folders(root, "memory"):
        with suppress(OSError, ValueError):  # a group that cannot be read counts as having no limit
            yield from _read_group(folder, _V2 if is_v2 else _V1)


def group_folders(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yields (folder, True if it is of version 2) of this process's group and of the groups above it that are mounted.

    `controller`: the tree of version 1, such as `memory` or `cpu`. Version 2 has one tree for all.
    """
    paths = _own_paths(root)
    for is_v2, name in ((True, ""), (False, controller)):
        for mount_root, mount_point in _mounts(root, name):
            below = _below(paths.get(name, "/"), mount_root)
            for part in (below, *below.parents):
                yield root / mount_point.relative_to("/") / part, is_v2


def _own_paths(root: Path) -> dict[str, str]:
    """The path of this process's group in each tree. The tree of version 2 has the name ""."""
    paths: dict[str, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():  # as in 0::/user.slice and 4:memory:/docker/0123
        number, names, path = line.split(":", maxsplit=2)
        paths |= {"": path} if (number, names) == ("0", "") else dict.fromkeys(names.split(","), path)
    return paths


def _mounts(root: Path, name: str) -> Iterator[tuple[str, PurePosixPath]]:
    """Yields (path of the group at the top, folder) of each mount of the tree `name`."""
    lines = _text(root / "proc/self/mountinfo").splitlines()
    for left, _, right in (line.partition(" - ") for line in lines if " - cgroup" in line):
        kind, _, options = right.split(" ", maxsplit=2)
        if kind == "cgroup2" if name == "" else kind == "cgroup" and name in options.split(","):
            top, folder = (_unescaped(word) for word in left.split(" ")[3:5])
            yield top, PurePosixPath(folder)


def _unescaped(word: str) -> str:
    r"""A word of mountinfo with escapes replaced: a blank is written as `\040`."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)


def _below(path: str, top: str) -> PurePosixPath:
    """A group's path relative to the mounted group; empty if it lies elsewhere, as it does inside some containers."""
    with suppress(ValueError):
        below = PurePosixPath(path).relative_to(top)
        if ".." not in below.parts:
            return below
    return PurePosixPath()


def _read_group(folder: Path, version: _Version) -> Iterator[_Group]:
    """Yields the group in `folder`, or nothing if it has no limit. Raises OSError or ValueError if it cannot be read."""
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
    """Number of cores that this process may use: at least one, and no more than the quotas of its groups, rounded down."""
    return max(1, int(min([_allowed_cores(), *_granted(root)])))


def _allowed_cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _granted(root: Path) -> Iterator[float]:
    """Yields the number of cores that each group of this process grants, if the group has a quota."""
    for folder, is_v2 in group_folders(root, "cpu"):
        with suppress(OSError, ValueError):  # a quota that cannot be read counts as none
            quota, period = _quota(folder, is_v2)
            if quota > 0 and period > 0:
                yield quota / period


def _quota(folder: Path, is_v2: bool) -> tuple[int, int]:
    """Microseconds on a core in each period, and the period's length. No quota is -1, or raises ValueError (`max`)."""
    if is_v2:
        quota, period = (folder / "cpu.max").read_text().split()
        return int(quota), int(period)
    return int((folder / "cpu.cfs_quota_us").read_text()), int((folder / "cpu.cfs_period_us").read_text())


def launched() -> int:
    """Number of processes that a launcher says it has started (WORLD_SIZE); 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_processes() -> int:
    """Number of them on this machine; 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched() > 1 else 1


def local_rank() -> int:
    """Number of this process among those of its machine, which is also the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if launched() > 1 else 0


def is_first_process() -> bool:
    """True if this is the first of the processes that the launcher has started on all machines, or the only one."""
    return launched() == 1 or os.environ.get("RANK") == "0"


def is_first_here() -> bool:
    """True if this is the first process on its machine, or the only one."""
    return local_rank() == 0


@contextmanager
def told_by_first_process() -> Iterator[None]:
    """For a block that prints what is wrong and exits, in all processes alike: all but the first raise it as a Refusal instead.

    The command line leaves a fault that all processes find to the first of them.
    """
    if is_first_process():
        yield
        return
    with redirect_stderr(io.StringIO()) as said:
        try:
            yield
        except SystemExit as error:
            raise Refusal(said.getvalue().strip()) from error
