"""A cut of eight seconds between any two parts, one way or both: then everything is as before, by itself.

An established connection stays silent for longer than such a cut, since TCP waits longer and longer before it sends
again. So this needs packets that are really lost.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest

from tests.faults.namespaces import Namespaces, namespaces
from tests.faults.pool import DEBIAN_ETCD, FaultPool, fault_pool
from tests.faults.test_faults import NO_SAFE_ETCD
from tests.harness.lateness import lateness
from tests.harness.netns import unable
from tests.harness.waiting import until
from understudy.statesync.etcd.key_range import prefix_range
from understudy.statesync.pool.records import Member, MemberState
from understudy.statesync.pool.slots import slot_of

CUT = 8.0
WHOLE_AGAIN = 5.0
FOR_LATENESS = 20.0
"""Seconds more for each second by which the machine is late at the worst."""
FRESH_MS = 1_000
FRONT = "front"
Pairs = list[tuple[str, str]]


def together(one: str, two: str, three: str) -> dict[str, Pairs]:
    """Pairs that are cut at the same time; no two of a group are about the same question.

    The members take turns: one that fails three times in half a minute is kept waiting.
    """
    controls = ("control-1", "control-2")
    return {
        "member and control, Envoy and control": [(part, control) for part in (one, FRONT) for control in controls],
        "member and etcd, control and etcd, Envoy and member, two members": [
            (two, "etcd1"),
            ("control-2", "etcd1"),
            (FRONT, three),
            (one, three),
        ],
    }


DIRECTIONS = {
    "there": lambda pairs: pairs,
    "back": lambda pairs: [(two, one) for one, two in pairs],
    "both ways": lambda pairs: [*pairs, *((two, one) for one, two in pairs)],
}


@dataclass
class Whole:
    """Looks whether the pool is whole: ``missing`` says what is not, '' for nothing."""

    pool: FaultPool
    front: str
    admins: Sequence[str]

    async def missing(self) -> str:
        """What is not as it was."""
        for look in (self._records, self._copies, self._controls, self._envoy):
            if fault := await look():
                return fault
        return ""

    async def _records(self) -> str:
        page = await self.pool.client.range(prefix_range(self.pool.keys.members))
        states = {member.member: member.state for member in (Member.decode(kv.value) for kv in page.kvs)}
        if states != dict.fromkeys(self.pool.names, MemberState.UP):
            return f"member records: {states}"
        seen = await self.pool.table()
        lost = seen.table.lost if seen else {}
        owners = await self.pool.owners()
        unstable = [slot for slot, owner in owners.items() if owner.phase != "stable"]
        return f"lost: {list(lost)}, {len(owners)} owners, on their way: {unstable}" if lost or unstable else ""

    async def _copies(self) -> str:
        for name in self.pool.names:
            status = await self.pool.status(name)
            if status["state"] != "UP" or status["sync"]["missing"]:  # type: ignore[index]
                return f"{name}: {status['state']} {status['reason']}, {status['sync']}"
        return ""

    async def _controls(self) -> str:
        for admin in self.admins:
            said = await self._get(f"http://{admin}/v1/status")
            for member in said["members"]:
                heard = member["heard_ms_ago"]
                if member["standing"] != "alive" or heard is None or heard > FRESH_MS:
                    return f"{said['control']} holds {member['member']} for {member['standing']}, heard {heard} ms ago"
            if said["etcd"]["trouble"] or said["slots"]["served"] != self.pool.spec.slots:
                return f"{said['control']}: {said['etcd']}, {said['slots']}"
        return ""

    async def _envoy(self) -> str:
        rows = [row for admin in self.admins for row in await self._get(f"http://{admin}/v1/xds")]
        behind = [(row["type_url"], row["state"]) for row in rows if row["state"] != "SYNCED"]
        if behind or not rows:
            return f"Envoy's configuration: {behind or 'connected to nobody'}"
        keys, slots = [], set()
        for key in map(str, range(10_000)):
            if slot_of(key, self.pool.spec.slots) not in slots:
                keys.append(key)
                slots.add(slot_of(key, self.pool.spec.slots))
        statuses = await asyncio.gather(*(self._ask(key) for key in keys))
        return "" if set(statuses) == {200} else f"requests through Envoy: {sorted(statuses)}"

    async def _ask(self, key: str) -> int:
        async with self.pool.http.get(f"http://{self.front}/", headers={"x-session-id": key}) as answer:
            return answer.status

    async def _get(self, url: str):
        async with self.pool.http.get(url) as answer:
            return json.loads(await answer.text())


async def _whole(pool: FaultPool, ground: Namespaces, stack: AsyncExitStack) -> Whole:
    admins = [await ground.admin(stack, control.name) for control in pool.controls]
    return Whole(pool, await ground.front(pool, stack, FRONT), admins)


@pytest.mark.nightly
@pytest.mark.skipif(not DEBIAN_ETCD.exists(), reason=NO_SAFE_ETCD)
async def test_after_a_cut_of_eight_seconds_between_any_two_parts_all_is_as_before(tmp_path):
    if reason := unable():
        pytest.skip(reason)
    async with (
        AsyncExitStack() as stack,
        namespaces(controls=2, more=[FRONT]) as ground,
        fault_pool(takeover="fast", controls=2, ground=ground, home=tmp_path) as pool,
    ):
        whole = await _whole(pool, ground, stack)

        async def all_is_well() -> bool:
            fault = await whole.missing()
            assert not fault, fault
            return True

        await until(all_is_well, 60, "the pool is whole", every=0.2)
        members = deque(pool.names)
        for direction, cuts in DIRECTIONS.items():
            members.rotate()
            for name, pairs in together(*members).items():
                with lateness() as late:
                    with ground.net.severed(cuts(pairs)):
                        await asyncio.sleep(CUT)
                    mended = time.monotonic()
                    await until(all_is_well, 90, f"{name}, {direction}: as before (logs: {tmp_path})", every=0.1)
                took = time.monotonic() - mended
                assert took < WHOLE_AGAIN + FOR_LATENESS * late.worst, f"{name}, {direction}: {took:.1f} s"
