"""Reads what processes use of the resources that they can run out of: memory, file descriptors, disk.

All of it is read from Linux's ``/proc`` and control groups, of version 2 or 1. What cannot be read, is not there or has
no limit is left out. The functions block for a moment, so the watch calls them in a thread.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from understudy.proxy.health.forecast import Reading, Unit

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_RECLAIMED_V2 = ("inactive_file", "active_file", "slab_reclaimable")
_RECLAIMED_V1 = ("total_inactive_file", "total_active_file")


def memory_of(name: str, pid: int, source: str) -> Reading | None:
    """The memory of a process's control group against the nearest limit; None if there is none below the machine's.

    Page cache does not count, neither inactive, as for the kubelet's working set, nor active: the kernel takes both
    back before it kills. Swap that the group may use counts as memory. A limit may be that of a parent group.
    """
    return memory_in(name, groups_of(pid), source)


def memory_in(name: str, groups: Iterable[Path], source: str) -> Reading | None:
    """The memory of the fullest of these groups, as :func:`memory_of` counts it; None if none has a limit."""
    machine, swap = _meminfo("MemTotal", "SwapTotal")
    found = [one for group in groups if (one := _of_group(group, machine, swap)) is not None and one[1] < machine]
    if not found:
        return None
    used, limit, group = max(found, key=lambda one: one[0] / one[1])
    return Reading(name, used, limit, f"{source} {group} {limit:.0f}")


def resident(name: str, pids: list[int], limit: int, source: str) -> Reading | None:
    """The resident memory of processes against a limit that was given; None if they are gone."""
    used = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            used += int((PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE
    return Reading(name, used, limit, f"{source} {limit}") if used else None


def descriptors(name: str, pid: int, source: str) -> Reading | None:
    """The open file descriptors of a process against its soft limit; None where they cannot be read."""
    try:
        limits = (PROC / str(pid) / "limits").read_text()
        line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
        limit = int(line.split()[3])
        folder = PROC / str(pid) / "fd"
        used = folder.stat().st_size or sum(1 for _ in folder.iterdir())  # Linux 6.2 and newer count them themselves
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return Reading(name, used, limit, f"{source} {limit}", Unit.COUNT)


def disk(path: Path) -> Reading | None:
    """What of the file system at ``path`` is used, as far as ordinary users may use it; None if it cannot be read."""
    try:
        stat = os.statvfs(path)
    except OSError:
        return None
    used = (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    limit = used + stat.f_bavail * stat.f_frsize
    return Reading(f"disk {path}", used, limit, f"{stat.f_fsid} {stat.f_blocks}") if limit else None


class Listeners:
    """The processes that listen on a TCP port, as far as this process may see them.

    In a pod that is the application only if containers share a process namespace (``shareProcessNamespace``). The
    search looks at every process, so it is repeated only when the processes it found are gone, and more seldom the
    longer it finds none.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._found: dict[int, str] = {}
        self._next = 0.0
        self._pause = _SEARCH_LEAST

    def processes(self, now: float) -> dict[int, str]:
        """The processes with the times of their start, the oldest first; ``now`` is monotonic."""
        if self._found and all(started(pid) == since for pid, since in self._found.items()):
            return self._found
        if now < self._next:
            return {}
        self._found = self._search()
        self._pause = _SEARCH_LEAST if self._found else min(self._pause * 2, _SEARCH_MOST)
        self._next = now + self._pause
        return self._found

    def _search(self) -> dict[int, str]:
        links = {f"socket:[{inode}]" for inode in _listening(self._port)}
        if not links:
            return {}
        pids = sorted(int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())
        found = ((pid, started(pid)) for pid in pids if links & set(_links(pid)))
        return {pid: since for pid, since in sorted(found, key=lambda one: (int(one[1] or 0), one[0])) if since}


_SEARCH_LEAST, _SEARCH_MOST = 1.0, 60.0


def started(pid: int) -> str:
    """When a process began, in clock ticks since the machine's start; '' if it has ended."""
    with contextlib.suppress(OSError, IndexError):
        words = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return "" if words[0] == "Z" else words[19]
    return ""


def _listening(port: int) -> Iterator[str]:
    """The inodes of the sockets that listen on a TCP port."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "self" / "net" / table).read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == "0A" and int(words[1].rpartition(":")[2], 16) == port:
                    yield words[9]


def _links(pid: int) -> Iterator[str]:
    """Where the file descriptors of a process lead; none if this process may not know."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(PROC / str(pid) / "fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(entry.path)  # noqa: PTH115 - no path but socket:[1234]


def _meminfo(*names: str) -> list[int]:
    """Numbers of ``/proc/meminfo`` in bytes; 0 for one that is not there."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = (PROC / "meminfo").read_text().splitlines()
    found = {
        name: int(rest.split()[0]) * 1024 for name, colon, rest in (line.partition(":") for line in lines) if colon
    }
    return [found.get(name, 0) for name in names]


def groups_of(pid: int) -> list[Path]:
    """The control group of a process that counts memory, and its parents, as far as they are mounted here.

    The path of a process in another container lies outside of the groups that are mounted here. Then its own mount is
    read through ``/proc/PID/root``.
    """
    with contextlib.suppress(OSError, ValueError):
        lines = [line.split(":", 2) for line in (PROC / str(pid) / "cgroup").read_text().splitlines()]
        version_2 = (GROUPS / "cgroup.controllers").exists()
        path = next((path for _, names, path in lines if ("" if version_2 else "memory") in names.split(",")), None)
        if path is None:
            return []
        mount = GROUPS if version_2 else GROUPS / "memory"
        group = mount / path.lstrip("/")
        if ".." in group.parts or not group.is_dir():
            return [PROC / str(pid) / "root" / mount.relative_to("/")]
        return [group, *(parent for parent in group.parents if parent == mount or mount in parent.parents)]
    return []


def _of_group(group: Path, machine: int, machine_swap: int) -> tuple[float, float, Path] | None:
    """Used bytes and limit of a group; None if it has no limit below the memory and swap of the machine.

    The limit is read first: for ``memory.stat`` the kernel adds up what all groups below have used.
    """
    with contextlib.suppress(OSError, ValueError, KeyError):
        version_2 = (group / "memory.max").exists()
        limit = _number(group / ("memory.max" if version_2 else "memory.limit_in_bytes"))
        if limit >= machine:
            return None
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        if version_2:
            used = _number(group / "memory.current")
            cached = sum(int(stat.get(name, 0)) for name in _RECLAIMED_V2)
            swap, swap_limit = _swap(group / "memory.swap.current", group / "memory.swap.max")
        else:
            used = _number(group / "memory.usage_in_bytes")
            cached = sum(int(stat.get(name, 0)) for name in _RECLAIMED_V1)
            swap, swap_limit = _swap(group / "memory.memsw.usage_in_bytes", group / "memory.memsw.limit_in_bytes")
            swap, swap_limit = max(swap - used, 0), max(swap_limit - limit, 0)  # these count memory and swap together
        return max(used - cached, 0) + swap, limit + min(swap_limit, machine_swap), group
    return None


def _swap(used: Path, limit: Path) -> tuple[float, float]:
    """Swap that is used, and the limit for it; nothing where the kernel does not count swap."""
    try:
        return _number(used), _number(limit)
    except OSError:
        return 0.0, 0.0


def _number(path: Path) -> float:
    """A number in a file of a control group; ``max`` is infinite."""
    text = path.read_text().strip()
    return float("inf") if text == "max" else float(text)
