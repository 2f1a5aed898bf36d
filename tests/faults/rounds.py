"""One round: clients at work while a nemesis does harm, then peace, last reads at every member, and the verdict."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field

from tests.faults.checker import Violation, check, needless_takeovers
from tests.faults.clients import Clients
from tests.faults.history import History
from tests.faults.nemesis import FAULTS, Fault, Nemesis
from tests.faults.pool import FaultPool
from tests.harness.waiting import until

PEACE = 90.0
"""Seconds within which a pool must be whole again once all faults are healed."""


@dataclass
class Result:
    """What a round did and found."""

    history: History
    violations: list[Violation]
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    needless: Counter[str] = field(default_factory=Counter)


async def play(
    pool: FaultPool,
    seed: str,
    *,
    seconds: float,
    clients: int = 12,
    pause: float = 0.06,
    registers: int = 40,
    fields: int = 12,
    faults: tuple[Fault, ...] = FAULTS,
    durabilities: tuple[str, ...] = ("",),
) -> Result:
    """Play one round on ``pool``; the order of faults and the clients' choices follow from ``seed``.

    Each write asks for one of ``durabilities``. Where that may be ``replicas``, every slot must have two copies again
    at the end, and etcd everything.
    """
    history = History()
    crowd = Clients(pool, history, f"{seed}/clients", registers=registers, fields=fields, durabilities=durabilities)
    nemesis = Nemesis(pool, history, f"{seed}/nemesis", faults)
    await crowd.prepare()
    owners_before = len(pool.owner_changes)
    replicates = "replicas" in durabilities
    working = asyncio.create_task(crowd.run(clients, pause))
    await nemesis.run(seconds)
    await asyncio.sleep(1.0)
    crowd.stopping = True
    await working
    stuck = await _peace(pool, crowd)
    if replicates and not stuck:
        stuck = await _all_safe(pool, crowd)
    history.owners, history.syncs = list(pool.owner_changes), list(pool.sync_changes)
    history.processes = list(pool.processes)
    # Aside, since the cables between the members run on this loop: standing still would look like silence to them.
    violations = await asyncio.to_thread(check, history, takeover=pool.spec.takeover) + stuck
    outcomes = Counter(f"{op.kind} {op.outcome}" for op in history.ops)
    fresh = History(faults=history.faults, owners=pool.owner_changes[max(0, owners_before - pool.spec.slots) :])
    return Result(history, violations, nemesis.count, outcomes, needless_takeovers(fresh))


async def _peace(pool: FaultPool, crowd: Clients) -> list[Violation]:
    """Wait until the pool is whole; then every session must be readable and writable through every member."""
    begin = time.monotonic()
    try:
        await until(pool.settled, PEACE, "the pool is whole again", every=0.2)
    except AssertionError as error:
        return [Violation("not whole again without help", pool.name, (str(error), *await _views(pool)))]
    found = []
    for name in pool.names:
        silent = await crowd.read_all(name)
        if silent:
            found.append(Violation("sessions that cannot be read", name, tuple(silent)))
    refused = await crowd.write_all()
    if refused:
        found.append(Violation("sessions that cannot be written", f"{time.monotonic() - begin:.0f} s", tuple(refused)))
    for name in pool.names:
        await crowd.read_all(name)
    return found


async def _all_safe(pool: FaultPool, crowd: Clients) -> list[Violation]:
    """Wait until every slot has two copies again, and etcd every session."""
    copies = min(2, len(pool.names))
    try:
        await until(lambda: pool.protected(copies), PEACE, f"every slot has {copies} copies")
    except AssertionError as error:
        sets = await pool.sync_sets()
        lines = [f"slot {slot}: {record}" for slot, record in sorted(sets.items())]
        return [Violation("not protected again without help", pool.name, (str(error), *lines, *await _views(pool)))]

    async def saved() -> bool:
        return not await crowd.unsaved()

    try:
        await until(saved, PEACE, "etcd has every session")
    except AssertionError as error:
        return [Violation("sessions that are not in etcd", pool.name, (str(error), *await crowd.unsaved()))]
    return []


async def _views(pool: FaultPool) -> list[str]:
    """Who owns what, in etcd's words and in the members' own."""
    lines = [f"slot {slot}: {owner}" for slot, owner in sorted((await pool.owners()).items())]
    for name in pool.names:
        try:
            lines.append(f"{name}: {await pool.status(name)}")
        except Exception as error:  # noqa: BLE001 - evidence; whatever keeps it from answering
            lines.append(f"{name}: {error!r}")
    return lines
