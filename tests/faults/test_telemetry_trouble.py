"""Telemetry in trouble costs telemetry: takeovers go on with receivers gone or hanging, and with a full disk."""

import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import aiohttp
import pytest

from tests.faults.judged import Caller
from tests.faults.pool import DEBIAN_ETCD, FaultPool, FaultProgram, Ground, fault_pool
from tests.faults.test_faults import NO_SAFE_ETCD
from tests.harness.commands import ask
from tests.harness.waiting import free_port, until
from understudy.telemetry.tracing.ids import takeover_seed

DISK = "1m"
MOUNTED = 'mount -t tmpfs -o size="$1" tmpfs "$2" && shift 2 && exec "$@"'

pytestmark = pytest.mark.skipif(not DEBIAN_ETCD.exists(), reason=NO_SAFE_ETCD)


def unable() -> str:
    """Why no small disk can be made here, '' if one can."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return "a file system of one's own needs root and unshare"
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]
    return (
        "" if subprocess.run(probe, check=False, capture_output=True).returncode == 0 else "mount is not allowed here"
    )


class SmallDisk(Ground):
    """The control server's traces are on a disk of their own."""

    async def control(self, pool: FaultPool, stack: contextlib.AsyncExitStack, name: str) -> FaultProgram:
        program = await super().control(pool, stack, name)
        disk = pool.home / "disk"
        disk.mkdir()
        command = [*program.command, "--traces", str(disk / "traces.sqlite")]
        program.command = [shutil.which("unshare") or "", "-m", "sh", "-c", MOUNTED, "sh", DISK, str(disk), *command]
        return program


def fill(ballast: Path) -> None:
    """Write until nothing more goes onto the disk."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass


async def metric(address: str, name: str) -> float:
    """The value of one metric at an address, its labels written as they are exposed."""
    text = await ask(address, "/metrics")
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.mark.nightly
async def test_a_takeover_is_served_with_receivers_gone_and_hanging_and_the_disk_full(tmp_path):
    if reason := unable():
        pytest.skip(reason)
    heard = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        heard.set()
        await reader.read()

    hanging = await asyncio.start_server(hang, "127.0.0.1", 0)
    receivers = {
        "m2": f"http://127.0.0.1:{hanging.sockets[0].getsockname()[1]}",
        "m3": f"http://127.0.0.1:{free_port()}",
    }
    async with fault_pool(takeover="fast", traces=True, ground=SmallDisk(), home=tmp_path) as pool:
        (control,), caller = pool.controls, Caller(pool)
        http = control.option("--http")
        for name, receiver in receivers.items():
            pool.members[name].kill()
            pool.members[name].start(OTEL_EXPORTER_OTLP_ENDPOINT=receiver)
            await until(pool.at_rest, 90, "the pool is whole again")
        disk = f"/proc/{control.process.pid}/root{pool.home / 'disk'}"
        ballast = Path(f"{disk}/ballast")
        await asyncio.to_thread(fill, ballast)

        measured = 'understudy_changes_total{kind="failover",outcome="measured"}'
        before = await metric(http, measured)
        lost = await takeover(pool, caller)
        # Measured by the control server, though it cannot be kept: metrics need no disk.
        await until(lambda: _risen(http, measured, before), 60, "the takeover is measured")
        await until(lambda: _risen(http, "understudy_store_dropped_total", 0), 60, "what was lost is counted")
        assert "trace store" in control.log.read_text()
        assert "dropped" in control.log.read_text()
        assert not (await ask(http, f"/v1/traces/{lost}")).get("spans")
        await asyncio.wait_for(heard.wait(), 60)
        for name in receivers:
            peer = json.loads(pool.members[name].command[-1])["peer"]
            await until(lambda peer=peer: _risen(peer, "understudy_spans_waiting", 0), 30, f"spans wait at {name}")

        await asyncio.to_thread(ballast.unlink)
        await until(pool.at_rest, 90, "the pool is whole again")
        kept = await takeover(pool, caller)

        async def rooted() -> bool:
            spans = (await ask(http, f"/v1/traces/{kept}")).get("spans", [])
            return any(not span["parent_id"] for span in spans)

        await until(rooted, 60, "with room on the disk traces are kept again")
    hanging.close()


async def takeover(pool: FaultPool, caller: Caller) -> str:
    """Kill a member and see every write of its sessions taken by others; returns the trace's id."""
    record = await pool.record("m1")
    assert record is not None
    pool.members["m1"].kill()

    async def served() -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            keys = [(name, f"taken-{number}") for name in pool.names if name != "m1" for number in range(8)]
            return all([(await caller.put(name, key, "v"))[0] in (200, 201) for name, key in keys])
        return False

    await until(served, 40, "its slots are served by the others")
    return takeover_seed(pool.name, "m1", record.boot, record.life).hex


async def _risen(address: str, name: str, before: float) -> bool:
    return await metric(address, name) > before
