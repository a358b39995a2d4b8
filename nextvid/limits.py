"""What the kernel lets this process have: cores and memory, also inside a container."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
_NO_LIMIT = 2**60
"""Version 1 control groups write a number of this size where there is no limit."""


def usable_cores(root: Path = ROOT) -> float:
    """Cores that this process may keep busy: those that it may run on, less where a quota allows fewer."""
    quota = cpu_quota(root)
    allowed = len(os.sched_getaffinity(0))
    return float(allowed if quota is None else min(allowed, quota))


def cpu_quota(root: Path = ROOT) -> float | None:
    """The smallest quota, in cores, of the control groups (version 1 or 2) around this process; None without one.

    ``root`` is where ``/proc`` and ``/sys`` are looked for.
    """
    quotas = [quota for folder in _control_groups(root, "cpu") if (quota := _quota_of(folder)) is not None]
    return min(quotas, default=None)


def memory_limit(root: Path = ROOT) -> int | None:
    """The smallest memory limit, in bytes, of the control groups (version 1 or 2) around this process; None without one."""
    found = [
        int(text)
        for folder in _control_groups(root, "memory")
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := read(folder / name)).isdigit()
    ]
    return min((limit for limit in found if limit < _NO_LIMIT), default=None)


def memory_of_machine(root: Path = ROOT) -> tuple[int, int]:
    """Total and available memory in bytes, as ``/proc/meminfo`` has them. Raises ``KeyError`` where it has them not."""
    lines = (line.split() for line in read(root / "proc/meminfo").splitlines())
    sizes = {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) > 1}
    return sizes["MemTotal"], sizes["MemAvailable"]


def read(path: Path) -> str:
    """A small file's text, stripped; empty where it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _quota_of(folder: Path) -> float | None:
    limits = read(folder / "cpu.max").split() or [
        read(folder / "cpu.cfs_quota_us"),
        read(folder / "cpu.cfs_period_us"),
    ]
    if len(limits) == 2 and all(limit.isdigit() for limit in limits) and int(limits[1]) > 0:
        return int(limits[0]) / int(limits[1])
    return None


def _control_groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the groups around this process that may limit ``controller``, each group's parents included.

    A container may see its own group at the mount's root, under the name that the host knows.
    """
    mount = root / "sys/fs/cgroup"
    for line in read(root / "proc/self/cgroup").splitlines():
        _, controllers, inner = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        bases = [mount / controllers, mount / controller] if controllers else [mount, mount / "unified"]
        path = PurePosixPath(inner)
        for group in (path, *path.parents):
            if ".." not in group.parts:
                yield from (base / str(group).lstrip("/") for base in bases)
