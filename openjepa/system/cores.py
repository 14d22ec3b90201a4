"""Cores that this process may use: those of the machine, or what the container that limits it grants.

A container limits the time on processors by a quota in each period (Docker's `--cpus`, Kubernetes' `limits.cpu`): more workers
than that wait for one another. cgroups of version 2 have it in `cpu.max`, those of version 1 in `cpu.cfs_quota_us` and
`cpu.cfs_period_us` (Linux kernel documentation, admin-guide/cgroup-v2 and scheduler/sched-bwc).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from openjepa.system.memory import ROOT, group_folders


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
