"""A share of a core for a running process, set by a control group of its own, as Kubernetes limits a container.

Needs root and a writable ``cpu`` controller, of version 1 or 2; :func:`unable` says what is missing.
"""

import contextlib
import functools
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

PERIOD = 100_000
"""Microseconds, as the kubelet sets it."""
_V1, _V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
_numbers = itertools.count(1)


@functools.cache
def unable() -> str:
    """Why no process can be limited here, '' if one can."""
    with subprocess.Popen(["sleep", "60"]) as trial:
        try:
            with cpu_limit(trial.pid, 1.0):
                return ""
        except OSError as error:
            return f"this machine allows no CPU limits: {error}"
        finally:
            trial.kill()


@contextlib.contextmanager
def cpu_limit(pid: int, share: float) -> Iterator[None]:
    """Give a process this share of a core at most until the block ends. Raises ``OSError`` if that cannot be done."""
    root = _V1 if (_V1 / "cpu.cfs_quota_us").exists() else _V2
    group = root / f"understudy-{os.getpid()}-{next(_numbers)}"
    home = root / _group_of(pid, "cpu" if root is _V1 else "")
    group.mkdir()
    try:
        quota = int(share * PERIOD)
        if root is _V1:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        else:
            (group / "cpu.max").write_text(f"{quota} {PERIOD}")
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                (home / "cgroup.procs").write_text(left)
        group.rmdir()


def _group_of(pid: int, controller: str) -> str:
    """The control group of a process, relative to the root; ``controller`` is '' in version 2."""
    lines = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    return next((path.lstrip("/") for _, names, path in lines if controller in names.split(",")), "")


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has taken."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
