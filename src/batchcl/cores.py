"""How many CPU cores this process may use: by its affinity, and by the CPU limits of its containers (cgroups)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ["usable_cores"]

_CGROUPS: Final = Path("/sys/fs/cgroup")
_MEMBERSHIP: Final = Path("/proc/self/cgroup")


def usable_cores(*, cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """The number of cores that this process may use; at least 1.

    A limit of 1.5 cores counts as 2. A container's own view of its cgroup is the root of `cgroups`, so the limits of
    all levels from the process's cgroup up to there apply.

    Args:
        cgroups: where the cgroup file systems are mounted.
        membership: the file with the cgroups of this process, one for each hierarchy.
    """
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = [limit for folder in _folders(cgroups, membership) if (limit := _limit(folder)) is not None]
    return max(1, min([affine, *(math.ceil(limit) for limit in limits)]))


def _folders(cgroups: Path, membership: Path) -> Iterator[Path]:
    """The folders of the process's CPU cgroup and its parents, in version 2 and in version 1."""
    try:
        lines = membership.read_text().splitlines()
    except (OSError, ValueError):  # not Linux, or no /proc
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mount = cgroups / controllers
        own = mount / path.lstrip("/")
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(mount))


def _limit(folder: Path) -> float | None:
    """The cores that a cgroup allows; None without a limit."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # version 2, version 1
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            return int(quota) / int(period) if quota not in {"max", "-1"} else None
        except (OSError, ValueError):
            continue
    return None
