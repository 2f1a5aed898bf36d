"""How much CPU and memory this process uses, and the application where its cgroup is known (Linux, cgroup v2).

What cannot be read counts as not known: a member serves as well without it.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_SELF = Path("/proc/self")
_MEMINFO = Path("/proc/meminfo")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU time used so far in seconds, and the CPUs that may be used; memory in bytes, and its limit (0: not known)."""

    cpu_seconds: float
    cpus: float
    memory: int
    memory_limit: int
    app: bool = False


class ProcessUsage:
    """Reads the usage of this process, and of the cgroup of the application if ``app_cgroup`` names its directory."""

    def __init__(self, app_cgroup: Path | None = None) -> None:
        self._app = app_cgroup
        self._own = own_cgroup(_text(_SELF / "cgroup"))

    def read(self) -> Usage:
        """The usage now."""
        machine = float(len(os.sched_getaffinity(0)))
        cpus = cpu_limit(_text(self._own / "cpu.max")) or machine
        resident = int((_text(_SELF / "statm").split() or ["0", "0"])[1]) * _PAGE
        limit = memory_limit(_text(self._own / "memory.max")) or total_memory(_text(_MEMINFO))
        own = Usage(time.process_time(), min(cpus, machine), resident, limit)
        return own if self._app is None else with_application(own, self._app, machine)


def with_application(own: Usage, cgroup: Path, machine: float) -> Usage:
    """The usage of both: their CPU together, and the memory of the one that is nearer to its limit.

    The CPUs that both may use are those of the machine, unless the application's cgroup has fewer.
    """
    used = cpu_used(_text(cgroup / "cpu.stat"))
    memory = _whole(_text(cgroup / "memory.current"))
    if used is None:
        return own
    limit = memory_limit(_text(cgroup / "memory.max")) or total_memory(_text(_MEMINFO))
    cpus = min(cpu_limit(_text(cgroup / "cpu.max")) or machine, machine)
    fuller = bool(limit) and memory * max(own.memory_limit, 1) > own.memory * limit
    memories = (memory, limit) if fuller else (own.memory, own.memory_limit)
    return Usage(own.cpu_seconds + used, max(own.cpus, cpus), *memories, app=True)


def own_cgroup(text: str) -> Path:
    """The directory of this process's cgroup, from ``/proc/self/cgroup``; in a container that is the root."""
    for line in text.splitlines():
        if line.startswith("0::"):
            return _CGROUPS / line[3:].lstrip("/")
    return _CGROUPS


def cpu_limit(text: str) -> float:
    """The CPUs that ``cpu.max`` allows; 0 if it sets no limit."""
    quota, _, period = text.strip().partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else 0.0


def cpu_used(text: str) -> float | None:
    """The CPU time in ``cpu.stat``, in seconds; None if it is not there."""
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == "usage_usec" and value.isdigit():
            return int(value) / 1e6
    return None


def memory_limit(text: str) -> int:
    """The limit in ``memory.max``, in bytes; 0 for none."""
    return _whole(text)


def total_memory(text: str) -> int:
    """The memory of the machine by ``/proc/meminfo``, in bytes; 0 if it is not there."""
    for line in text.splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _whole(text: str) -> int:
    text = text.strip()
    return int(text) if text.isdigit() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
