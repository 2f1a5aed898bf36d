"""A pool whose members replicate to each other: real etcd, control server and sidecars, without cables between them.

A killed member refuses connections at once, so it is found without waiting for its silence. All limits for silence are
long: a process that stands still for a moment on a busy machine moves nothing.
"""

import contextlib
import signal
import time
from collections.abc import AsyncIterator, Collection, Iterable
from pathlib import Path

from tests.faults.pool import FaultPool, FaultProgram, Ground, fault_pool
from tests.harness.http_app import http_app
from tests.harness.sidecars import PATIENT, sidecar_command
from tests.harness.waiting import free_port, until
from understudy.statesync.pool.spec_reader import parse_spec

COPIES = 3
CHECKPOINT = 1.0
"""Seconds: ``replication.checkpoint_ms`` of these pools."""
REPLICAS = f"durability: replicas\nreplication: {{patience_ms: 1500, checkpoint_ms: {CHECKPOINT * 1000:.0f}}}"
"""Only who is frozen or dead leaves a set, not who waits for CPU."""
DRAIN_SECONDS = 30.0
"""Long enough for a busy machine to make copies elsewhere."""


class DirectGround(Ground):
    """All on loopback; members and control servers reach each other and etcd directly."""

    async def member(self, pool: FaultPool, stack: contextlib.AsyncExitStack, name: str) -> FaultProgram:
        """A sidecar with a Redis port, not started yet, and what stands for its application, which runs."""
        api, peer, redis = (f"127.0.0.1:{free_port()}" for _ in range(3))
        command = sidecar_command(
            name,
            pool.name,
            drain_seconds=DRAIN_SECONDS,
            app=f"127.0.0.1:{await stack.enter_async_context(http_app(self._answer))}",
            session_api=api,
            peer=peer,
            redis=redis,
            etcd=[etcd.endpoint for etcd in pool.etcds],
        )
        return FaultProgram(name, command, pool.home / f"{name}.log", api=api, redis=redis)


@contextlib.asynccontextmanager
async def replica_pool(
    home: Path, *, members: int = 3, etcds: int = 1, slots: int = 16, more: str = REPLICAS, traces: bool = False
) -> AsyncIterator[FaultPool]:
    """A pool at rest; with ``durability: replicas`` every slot has all its copies in its sync set.

    ``traces``: its processes record traces.
    """
    lines = f"copies: {COPIES}\n{PATIENT}\n{more}"
    async with fault_pool(
        takeover="fast",
        members=members,
        etcds=etcds,
        slots=slots,
        home=home,
        ground=DirectGround(),
        more=lines,
        traces=traces,
    ) as pool:
        if "replicas" in more:
            await in_all_sets(pool, min(members, COPIES))
        yield pool


async def in_all_sets(pool: FaultPool, copies: int = COPIES) -> None:
    """Wait until every slot has so many processes in its sync set."""
    await until(lambda: pool.protected(copies), 60, f"every slot has {copies} copies in its sync set")


async def switch(pool: FaultPool, more: str) -> None:
    """Give the running pool another spec: the usual one and ``more``."""
    lines = f"pool: {pool.name}\nslots: {pool.spec.slots}\ntakeover: fast\ncopies: {COPIES}\n{PATIENT}\n{more}"
    await pool.apply(parse_spec(lines, where="test"))


def kill_at_once(pool: FaultPool, names: Iterable[str]) -> float:
    """``kill -9`` of these members, all before any of them is waited for; returns when that began."""
    doomed, begin = [pool.members[name] for name in names], time.monotonic()
    for member in doomed:
        member.signal(signal.SIGKILL)
    for member in doomed:
        member.kill()
    return begin


async def served_by(pool: FaultPool, names: Collection[str]) -> None:
    """Wait until these members are active for all slots, among them."""

    async def theirs() -> bool:
        owners = await pool.owners()
        stable = all(owner.phase == "stable" and owner.active in names for owner in owners.values())
        return stable and len(owners) == pool.spec.slots

    await until(theirs, 60, f"{', '.join(names)} are active for all slots")


async def started_again(pool: FaultPool, *names: str) -> None:
    """Start members again, and wait until the pool is whole."""
    for name in names:
        pool.members[name].start()
    await until(pool.settled, 90, "the pool is whole again")
