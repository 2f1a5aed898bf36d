"""A pool whose members have uneven load: the operator plans, applies and undoes, and no client notices.

The leading control server is killed in the middle of a plan, and another one goes on. Then a spec prefers one member.
"""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.harness.forkserver import forked
from tests.harness.local_pools import killed_at_the_end, settled
from tests.harness.sidecars import PATIENT
from tests.harness.waiting import until
from understudy.deploy.inspect.query import read_pool
from understudy.deploy.local.local_layout import LocalSettings
from understudy.deploy.local.local_pool import LocalPool
from understudy.statesync.etcd.client import EtcdClient
from understudy.statesync.pool.records import Phase
from understudy.statesync.pool.slots import slot_of
from understudy.statesync.pool.spec_reader import parse_spec

ROOT = Path(__file__).parents[2]
SLOTS = 24
SPEC = parse_spec(
    f"pool: cart\nslots: {SLOTS}\nbalance: {{by: requests, over: 25%, mode: off}}\n{PATIENT}", where="test"
)
BUSY, QUIET = 0.2, 1.0
"""Seconds between two writes of a session: in the slots of one member, and in all others."""


@dataclass
class Writers:
    """One session per slot, written over and over; ``acknowledged`` is the last value of each."""

    apis: list[str]
    busy: frozenset[int]
    http: aiohttp.ClientSession
    acknowledged: dict[str, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    async def write(self, key: str) -> None:
        rest = BUSY if slot_of(key, SLOTS) in self.busy else QUIET
        number = 0
        while True:
            number += 1
            api = self.apis[number % len(self.apis)]
            async with self.http.put(f"http://{api}/v1/sessions/{key}", data=str(number)) as answer:
                if answer.status < 400:
                    self.acknowledged[key] = number
                else:
                    self.failed.append(f"{key}: {answer.status} {await answer.text()}")
            await asyncio.sleep(rest)

    async def found(self) -> dict[str, int]:
        """What each session holds now."""
        held = {}
        for key in self.acknowledged:
            async with self.http.get(f"http://{self.apis[0]}/v1/sessions/{key}") as answer:
                held[key] = int(await answer.text())
        return held


@asynccontextmanager
async def writing(pool: LocalPool, busy: frozenset[int]) -> AsyncIterator[Writers]:
    keys: dict[int, str] = {}
    for number in range(10_000):
        keys.setdefault(slot_of(f"key-{number}", SLOTS), f"key-{number}")
    async with aiohttp.ClientSession() as http:
        writers = Writers([place.session_api for place in pool.layout.members], busy, http)
        tasks = [asyncio.create_task(writers.write(key)) for key in keys.values()]
        try:
            yield writers
            assert not any(task.done() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        assert writers.failed == []
        held = await writers.found()
        # What was acknowledged is there; so may be the write whose answer was under way.
        assert all(value <= held[key] <= value + 1 for key, value in writers.acknowledged.items())


async def understudy(pool: LocalPool, *arguments: str) -> tuple[int, str]:
    """A command as an operator gives it."""
    process = await asyncio.create_subprocess_exec(
        *forked([sys.executable, "-m", "understudy.deploy.cli", *arguments]),
        cwd=ROOT,
        env={**os.environ, "UNDERSTUDY_ETCD": ",".join(pool.etcd_endpoints), "UNDERSTUDY_POOL": "cart"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, error = await process.communicate()
    return process.returncode or 0, said.decode() or error.decode()


async def planned(pool: LocalPool) -> dict[str, Any]:
    """The plan, as soon as there can be one."""
    found: list[dict[str, Any]] = []

    async def there() -> bool:
        code, said = await understudy(pool, "rebalance", "plan", "-o", "json")
        if code == 0:
            found.append(json.loads(said))
        return bool(found) and found[-1]["worst_before"] > 1.4 and len(found[-1]["moves"]) > 1

    await until(there, 120, "the load of all slots is known")
    return found[-1]


async def kill_leader_under_way(pool: LocalPool, etcd: EtcdClient, applying: asyncio.Task[tuple[int, str]]) -> str:
    """Kill the leading control server when the first move of a plan is asked for and others are not; its name."""
    leader = ""

    async def under_way() -> bool:
        nonlocal leader
        state, _ = await read_pool(etcd, "cart")
        plan, progress = state.move_plan, state.move_progress
        leader = state.leader.record if state.leader else ""
        if plan is None or progress is None or not progress.record.running:
            assert not applying.done(), f"nobody applies the plan any more: {applying.result()}"
            return False
        return 0 < progress.record.released < len(plan.record.steps())

    await until(under_way, 40, "the plan is under way")
    pool.processes.kill(leader)
    return leader


async def prefer_one_member(pool: LocalPool, etcd: EtcdClient, home: Path) -> None:
    """Give all active roles to one member, by the spec."""
    preferring = home / "preferring.yaml"
    preferring.write_text(f"pool: cart\nslots: {SLOTS}\nprefer: {{members: [cart-2]}}\n{PATIENT}")
    code, said = await understudy(pool, "apply", "-f", str(preferring))
    assert (code, "cart-1 to cart-2" in said) == (0, True), said

    async def all_there() -> bool:
        state, _ = await read_pool(etcd, "cart")
        return {(at.record.active, at.record.phase) for at in state.owners.values()} == {("cart-2", Phase.STABLE)}

    await until(all_there, 60, "the preferred member is active for all slots")
    code, said = await understudy(pool, "table")
    assert (code, "the spec prefers cart-2 (member cart-2)" in said) == (0, True), said


async def test_a_busy_member_gives_slots_away_by_plan_and_gets_them_back(tmp_path: Path) -> None:
    async with (
        LocalPool(LocalSettings(directory=tmp_path, spec=SPEC, controls=2)) as pool,
        EtcdClient(pool.etcd_endpoints) as etcd,
        killed_at_the_end(pool),
    ):
        await settled(pool.layout, etcd)
        state, _ = await read_pool(etcd, "cart")
        before = {slot: at.record.active for slot, at in state.owners.items()}
        busy = frozenset(slot for slot, member in before.items() if member == "cart-1")
        async with writing(pool, busy):
            plan = await planned(pool)
            saved = tmp_path / "plan.json"
            saved.write_text(json.dumps({"kind": "understudy rebalance plan", **plan}))
            moved = {move["slot"]: move["target"] for move in plan["moves"]}
            assert len(moved) > 1
            assert {move["source"] for move in plan["moves"]} == {"cart-1"}
            assert plan["worst_after"] <= 1.25

            applying = asyncio.create_task(understudy(pool, "rebalance", "apply", str(saved), "--yes", "--rate", "0.5"))
            killed = await kill_leader_under_way(pool, etcd, applying)
            code, said = await applying
            assert code == 0, said
            state, _ = await read_pool(etcd, "cart")
            assert state.leader is not None
            assert state.leader.record != killed, "another leader went on"
            state, _ = await read_pool(etcd, "cart")
            assert {slot: at.record.active for slot, at in state.owners.items()} == {**before, **moved}

            code, said = await understudy(pool, "rebalance", "apply", str(saved), "--yes")
            assert (code, "make a new plan" in said) == (1, True), said
            code, said = await understudy(pool, "rebalance", "plan", "-o", "json")
            assert code == 0, said
            assert json.loads(said)["worst_before"] <= 1.35

            code, said = await understudy(pool, "rebalance", "undo", "--yes", "--rate", "4")
            assert code == 0, said
            state, _ = await read_pool(etcd, "cart")
            assert {slot: at.record.active for slot, at in state.owners.items()} == before
            await prefer_one_member(pool, etcd, tmp_path)
        code, said = await understudy(pool, "audit", "-o", "json")
        assert [word in said for word in ("rebalance apply", "rebalance undo", "by requests")] == [True] * 3
