"""A memory limit for a running process, set by a control group of its own, as Kubernetes limits a container.

Needs root and a writable ``memory`` controller, of version 1 or 2; :func:`unable` says what is missing. What the
process has used before counts for its former group.
"""

import contextlib
import functools
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_numbers = itertools.count(1)


@functools.cache
def unable() -> str:
    """Why no process can be limited here, '' if one can."""
    with subprocess.Popen(["sleep", "60"]) as trial:
        try:
            with memory_limit(trial.pid, 100_000_000):
                return ""
        except OSError as error:
            return f"this machine allows no memory limits: {error}"
        finally:
            trial.kill()


@contextlib.contextmanager
def memory_limit(pid: int, most: int) -> Iterator[Path]:
    """Give a process so many bytes at most until the block ends, in the group that is returned.

    Raises ``OSError`` if that cannot be done. At the end the processes in the group go back to the root's.
    """
    root = _V1 if (_V1 / "memory.limit_in_bytes").exists() else _V2
    group = root / f"understudy-{os.getpid()}-{next(_numbers)}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if root is _V1 else "memory.max")).write_text(str(most))
        (group / "cgroup.procs").write_text(str(pid))
        yield group
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                (root / "cgroup.procs").write_text(left)
        group.rmdir()
