"""The CPU that processes took, from /proc."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from understudy.deploy.local.processes import Processes


def cpu_ms(pid: int) -> float:
    """The CPU time that the threads of a process have taken, in ms; 0 if there is no such process."""
    nanoseconds = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):
            nanoseconds += int(thread.read_text().split()[0])
    return nanoseconds / 1e6


def kind_of(process: str) -> str:
    """What a process is, by its name."""
    for kind in ("sidecar", "envoy", "haproxy", "etcd", "control", "replica", "redis"):
        if kind in process:
            return kind
    return "envoy" if process.startswith("front") else "app"


def spent(processes: Processes) -> Counter[str]:
    """CPU milliseconds of all processes and their children so far, by what they are."""
    sums: Counter[str] = Counter()
    for process in processes.all:
        sums[kind_of(process.program.name)] += sum(map(cpu_ms, family(process.pid)))  # type: ignore[assignment]
    return sums


def family(pid: int) -> Iterator[int]:
    """A process and all its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in children.read_text().split():
                yield from family(int(child))
