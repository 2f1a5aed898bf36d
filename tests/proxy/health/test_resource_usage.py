"""What is read of memory, file descriptors and disks: from control groups of both versions, and of real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.harness.waiting import until
from understudy.proxy.health import resource_usage
from understudy.proxy.health.resource_usage import Listeners, descriptors, disk, memory_of, resident, started

MB = 10**6
LISTENER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
held = [open("/dev/null") for _ in range(40)]
memory = bytearray(40_000_000)
sys.stdin.read()
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up ``/proc`` and ``/sys/fs/cgroup`` with 1 GB of memory; process 7 is the application."""
    monkeypatch.setattr(resource_usage, "PROC", tmp_path / "proc")
    monkeypatch.setattr(resource_usage, "GROUPS", tmp_path / "groups")
    write(tmp_path / "proc/meminfo", "MemTotal:  1000000 kB\nSwapTotal:  0 kB\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def group(folder: Path, files: Mapping[str, object]) -> None:
    for name, content in files.items():
        write(folder / name, f"{content}\n")


def version_2(machine: Path, path: str) -> None:
    write(machine / "groups/cgroup.controllers", "memory\n")
    write(machine / "proc/7/cgroup", f"0::{path}\n")


STAT = "inactive_file 100000000\nactive_file 50000000\nslab_reclaimable 10000000\nanon 300000000"


def test_memory_of_version_2_is_what_the_kernel_cannot_take_back(machine: Path) -> None:
    version_2(machine, "/app")
    group(machine / "groups/app", {"memory.current": 400 * MB, "memory.max": 500 * MB, "memory.stat": STAT})
    found = memory_of("memory", 7, "7:1")
    assert found is not None
    assert (found.used, found.limit, found.share) == (240 * MB, 500 * MB, 0.48)


def test_the_limit_of_a_parent_counts_if_it_is_nearer(machine: Path) -> None:
    version_2(machine, "/pod/app")
    group(machine / "groups/pod/app", {"memory.current": 200 * MB, "memory.max": "max", "memory.stat": "anon 1"})
    group(machine / "groups/pod", {"memory.current": 270 * MB, "memory.max": 300 * MB, "memory.stat": "anon 1"})
    found = memory_of("memory", 7, "7:1")
    assert found is not None
    assert found.share == 0.9


def test_swap_that_a_group_may_use_counts_as_memory(machine: Path) -> None:
    write(machine / "proc/meminfo", "MemTotal:  1000000 kB\nSwapTotal:  200000 kB\n")
    version_2(machine, "/app")
    files = {"memory.current": 500 * MB, "memory.max": 500 * MB, "memory.stat": "anon 1"}
    group(machine / "groups/app", {**files, "memory.swap.current": 100 * MB, "memory.swap.max": "max"})
    found = memory_of("memory", 7, "7:1")
    assert found is not None
    assert (found.used, found.limit) == (600 * MB, 500 * MB + 204_800_000)


@pytest.mark.parametrize("limit", ["max", str(2_000 * MB)])
def test_a_group_without_a_limit_below_the_machines_is_not_watched(machine: Path, limit: str) -> None:
    version_2(machine, "/app")
    group(machine / "groups/app", {"memory.current": 5, "memory.max": limit, "memory.stat": "anon 1"})
    assert memory_of("memory", 7, "7:1") is None


def test_the_kernel_adds_nothing_up_for_groups_without_a_limit(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version_2(machine, "/pod/app")
    for name in ("groups", "groups/pod"):
        group(machine / name, {"memory.current": 270 * MB, "memory.max": "max", "memory.stat": "anon 1"})
    group(machine / "groups/pod/app", {"memory.current": 90 * MB, "memory.max": 100 * MB, "memory.stat": "anon 1"})
    read, read_text = list[Path](), Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path: read.append(path) or read_text(path))
    found = memory_of("memory", 7, "7:1")
    assert found is not None
    assert found.share == 0.9
    assert [path for path in read if path.name == "memory.stat"] == [machine / "groups/pod/app/memory.stat"]
    assert [path.name for path in read].count("meminfo") == 1


def test_the_group_of_another_container_is_read_through_its_own_mount(machine: Path) -> None:
    version_2(machine, "/../other")
    own = machine / "proc/7/root" / (machine / "groups").relative_to("/")
    group(own, {"memory.current": 90 * MB, "memory.max": 100 * MB, "memory.stat": "anon 1"})
    found = memory_of("memory", 7, "7:1")
    assert found is not None
    assert found.share == 0.9


def test_memory_of_version_1(machine: Path) -> None:
    write(machine / "proc/7/cgroup", "4:memory:/app\n3:cpu:/\n0::/\n")
    group(
        machine / "groups/memory/app",
        {
            "memory.usage_in_bytes": 400 * MB,
            "memory.limit_in_bytes": 500 * MB,
            "memory.stat": "total_inactive_file 100000000\ntotal_active_file 0",
            "memory.memsw.usage_in_bytes": 400 * MB,
            "memory.memsw.limit_in_bytes": 2**63,
        },
    )
    found = memory_of("memory", 7, "7:1")
    assert found is not None
    assert (found.used, found.limit) == (300 * MB, 500 * MB)


@pytest.mark.parametrize("text", ["", "no group", "0::/gone\n"])
def test_what_cannot_be_read_is_left_out(machine: Path, text: str) -> None:
    write(machine / "proc/7/cgroup", text)
    assert memory_of("memory", 7, "7:1") is None
    assert memory_of("memory", 8, "8:1") is None
    assert descriptors("file descriptors", 8, "8:1") is None
    assert resident("memory", [8], 5, "8:1") is None
    assert disk(machine / "nowhere") is None


@pytest.fixture
def listener() -> Iterator[tuple[int, int]]:
    """A process that listens, has 40 files open and 40 MB of memory; its id and port."""
    arguments = [sys.executable, "-c", LISTENER]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.pid, int(process.stdout.readline())
        process.kill()


async def test_the_application_is_found_by_its_port_and_measured(listener: tuple[int, int]) -> None:
    pid, port = listener
    found = Listeners(port).processes(0.0)
    assert found == {pid: started(pid)}

    def measured() -> bool:
        files = descriptors("file descriptors", pid, "")
        memory = resident("memory", list(found), 1000 * MB, "")
        return bool(files and memory and 44 <= files.used <= 60 and memory.used > 40 * MB)

    await until(measured)


async def test_an_application_that_is_restarted_is_another_source(listener: tuple[int, int]) -> None:
    pid, port = listener
    search = Listeners(port)
    assert list(search.processes(0.0)) == [pid]
    os.kill(pid, signal.SIGKILL)
    await until(lambda: search.processes(100.0) == {})


def test_a_disk_is_measured_by_what_ordinary_users_may_write(tmp_path: Path) -> None:
    found = disk(tmp_path)
    assert found is not None
    assert 0 < found.share <= 1
    assert found.name == f"disk {tmp_path}"
